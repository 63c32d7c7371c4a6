"""The embedded server's flags, named as `tensorflow_model_server` names them."""

import dataclasses
import sys

from absl import flags

from serving.config import StartError

MAX_MESSAGE_BYTES = 64 << 20
# {flag: (lowest, highest)}; gRPC would take a port of 70,000 as 4,464.
LIMITS = {
    "port": (0, 65535),
    "rest_api_port": (-1, 65535),
    "model_config_file_poll_wait_seconds": (0, None),
    "file_system_poll_wait_seconds": (0, None),
    "grpc_max_threads": (1, None),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the embedded server can be told; each is a flag.

    `host` alone is not the stock server's, which listens on every address. Raises StartError where a number
    can't be.
    """

    port: int = 8500
    rest_api_port: int = -1
    host: str = "127.0.0.1"
    model_name: str | None = None
    model_base_path: str | None = None
    model_config_file: str | None = None
    model_config_file_poll_wait_seconds: int = 0
    file_system_poll_wait_seconds: int = 1
    grpc_max_threads: int = 64
    grpc_channel_arguments: str = ""
    enable_batching: bool = False
    batching_parameters_file: str | None = None
    enable_per_model_batching_parameters: bool = False
    enable_model_warmup: bool = True

    def __post_init__(self):
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                limits = f"{least} or more" if most is None else f"{least} to {most}"
                raise StartError(f"--{name} is {value}; it takes {limits}")

    def channel_arguments(self):
        """{name: value} of gRPC's channel arguments, those included that the server itself sets."""
        arguments = {
            "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
            "grpc.max_send_message_length": -1,
            "grpc.so_reuseport": 0,  # a second server on the port must fail, not share it
        }
        for part in filter(None, self.grpc_channel_arguments.split(",")):
            name, equals, value = part.partition("=")
            if not name or not equals:
                raise StartError(f"--grpc_channel_arguments takes name=value, not {part}")
            arguments[name] = int(value) if value.lstrip("-").isdigit() else value
        limit = arguments["grpc.max_receive_message_length"]
        if not isinstance(limit, int):
            raise StartError(f"grpc.max_receive_message_length takes a number of bytes, not {limit}")
        return arguments


HELP = {
    "port": "gRPC port; 0 takes a free one",
    "rest_api_port": "REST port; 0 takes a free one; -1: no REST",
    "host": "address to listen on; 0.0.0.0 for every one of the machine",
    "model_name": "name that clients ask for",
    "model_base_path": "folder of the model's version folders",
    "model_config_file": "ModelServerConfig as text, in place of the two above",
    "model_config_file_poll_wait_seconds": "read the config file again so often; 0: never",
    "file_system_poll_wait_seconds": "look for new versions so often; 0: never",
    "grpc_max_threads": "requests under way, those that wait included; more are refused",
    "grpc_channel_arguments": "name=value,name=value; such as grpc.max_receive_message_length, now 64 MiB",
    "enable_batching": "compute requests that come at the same time together",
    "batching_parameters_file": "BatchingParameters as text",
    "enable_per_model_batching_parameters": "take them from batching_params.pbtxt in each version's folder",
    "enable_model_warmup": "answer a version's warm-up requests before it is AVAILABLE",
}


# The stock server's other flags (tensorflow_serving/model_servers/main.cc, July 2026).
STOCK_FLAGS = frozenset(
    [
        "allow_version_labels_for_unavailable_models",
        "enable_grpc_healthcheck_service",
        "enable_profiler",
        "enable_serialization_as_tensor_content",
        "enable_signature_method_name_check",
        "flush_filesystem_caches",
        "grpc_socket_path",
        "load_retry_interval_micros",
        "max_num_load_retries",
        "mixed_precision",
        "monitoring_config_file",
        "num_load_threads",
        "num_request_iterations_for_warmup",
        "num_tflite_interpreters_per_pool",
        "num_tflite_pools",
        "num_unload_threads",
        "per_process_gpu_memory_fraction",
        "platform_config_file",
        "prefer_tflite_model",
        "remove_unused_fields_from_bundle_metagraph",
        "rest_api_enable_cors_support",
        "rest_api_num_threads",
        "rest_api_timeout_in_ms",
        "saved_model_tags",
        "skip_initialize_tpu",
        "ssl_config_file",
        "tensorflow_inter_op_parallelism",
        "tensorflow_intra_op_parallelism",
        "tensorflow_session_config_file",
        "tensorflow_session_parallelism",
        "thread_pool_factory_config_file",
        "use_alts_credentials",
        "version",
        "xla_cpu_compilation_enabled",
        "xla_gpu_compilation_enabled",
    ]
)


def parse(arguments, usage):
    """The options {name: value} of a command line; raises StartError. --help prints `usage` and exits."""
    values = flags.FlagValues()
    for field in dataclasses.fields(Options):
        define = {int: flags.DEFINE_integer, bool: flags.DEFINE_boolean}.get(field.type, flags.DEFINE_string)
        define(field.name, field.default, HELP[field.name], flag_values=values)
    flags.DEFINE_boolean("help", False, "show the flags", short_name="h", flag_values=values)
    try:
        others = values(["serving.server", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        if error.flagname in STOCK_FLAGS:
            raise StartError(
                f"--{error.flagname} is a flag of tensorflow_model_server that the embedded server has not; "
                "leave it out, or start that server in place of this one"
            ) from error
        raise StartError(f"{error}; --help lists the flags") from error
    except flags.Error as error:
        raise StartError(str(error)) from error
    if others:
        raise StartError(f"{others[0]} is no flag; --help lists them")
    if values.help:
        print(f"{usage}\n{values.main_module_help() or values.get_help()}")
        sys.exit(0)
    return {field.name: values[field.name].value for field in dataclasses.fields(Options)}
