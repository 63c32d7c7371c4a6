"""The embedded model server: TensorFlow Serving's gRPC and REST API from Python, for a laptop, a test, CI.

    python -m serving.server --model_name=sentiment --model_base_path=exported/sentiment --port=8500

Flags are named as `tensorflow_model_server` names them, and mean the same. Where that program is installed,
`stock_command` says how it is started for the same models.
"""

import logging
import os
import shlex
import shutil
import signal
import sys
import threading

from serving import config
from serving.options import Options, parse

DRAIN_S = 60.0  # seconds that requests under way have to finish once asked to stop


def stock_command(port, model_name=None, model_base_path=None, model_config_file=None):
    """The command line of the stock server for the same arguments, or None where it is not installed.

    The stock server listens on every address of the machine; it has no flag for one.
    """
    program = shutil.which("tensorflow_model_server")
    if program is None:
        return None
    if model_config_file:
        return [program, f"--port={port}", f"--model_config_file={os.path.abspath(model_config_file)}"]
    return [
        program,
        f"--port={port}",
        f"--model_name={model_name}",
        f"--model_base_path={os.path.abspath(model_base_path)}",
    ]


class ModelServer:
    """An embedded server, answering; a context manager that stops it at the end.

    Attributes:
        address, port: where it answers gRPC.
        rest_port: where it answers REST, or None.
        store: serving.models.ModelStore.
    """

    def __init__(self, options):
        # Below level 2 TensorFlow logs the messages of failed requests, which may quote them. It reads this
        # once, when it is first imported: hence the imports here.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        model_config = _model_config(options)
        for entry in config.entries(model_config).values():
            config.wanted_versions(entry)  # what is wrong with folders is said before TensorFlow is imported
        channel_arguments = options.channel_arguments()
        from serving import models, rest, service

        self._options = options
        self.store = models.ModelStore(_loader(options))
        max_running = None if options.enable_batching else 2 * (os.cpu_count() or 1)
        self._service = service.Service(self.store, options.grpc_max_threads, max_running)
        self._stopped = threading.Event()
        self._grpc = service.GrpcServer(
            self._service, options.host, options.port, options.grpc_max_threads, channel_arguments
        )
        self._rest = None
        try:
            if options.rest_api_port >= 0:
                self._rest = rest.RestServer(
                    self._service.answer,
                    options.host,
                    options.rest_api_port,
                    options.grpc_max_threads + service.SPARE_THREADS,
                    channel_arguments["grpc.max_receive_message_length"],
                )
            self.store.reload(model_config)
        except BaseException:
            self.stop()
            raise
        self.address, self.port = self._grpc.address, self._grpc.port
        self.rest_port = self._rest and self._rest.port
        for server in filter(None, (self._grpc, self._rest)):
            server.start()
        for period, function in (
            (options.file_system_poll_wait_seconds, self.store.poll),
            (options.model_config_file and options.model_config_file_poll_wait_seconds, self._read_again),
        ):
            if period:
                threading.Thread(target=self._repeat, args=(period, function), daemon=True).start()

    def _repeat(self, period_s, function):
        while not self._stopped.wait(period_s):
            try:
                function()
            except config.StartError as error:
                logging.getLogger(__name__).error("%s; all goes on as before", error)

    def _read_again(self):
        model_config = config.read_config(self._options.model_config_file)
        if model_config != self.store.model_server_config:
            self.store.reload(model_config)

    def stop(self, grace_s=0.0):
        """Take no more requests, let those under way finish within `grace_s` seconds, and unload."""
        self._stopped.set()
        ended = self._grpc.stop(grace_s)
        if self._rest:
            self._rest.stop(grace_s)
        ended.wait()
        self.store.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()


def _loader(options):
    """The function with which a ModelStore loads a version, batched and warmed up as the options say."""
    from serving import batching, servable, warmup

    parameters = batching.Parameters()
    if options.batching_parameters_file:
        parameters = batching.read_parameters(options.batching_parameters_file)

    def load(name, version, path):
        chosen = parameters if options.enable_batching else None
        own = os.path.join(path, batching.FILE)
        if chosen and options.enable_per_model_batching_parameters and os.path.exists(own):
            chosen = batching.read_parameters(own)
        loaded = servable.Servable(name, version, path, chosen)
        try:
            if options.enable_model_warmup:
                warmup.warm_up(loaded, path)
        except Exception:
            loaded.close()
            raise
        return loaded

    return load


def _model_config(options):
    if options.model_config_file:
        return config.read_config(options.model_config_file)
    if options.model_name and options.model_base_path:
        return config.one_model(options.model_name, options.model_base_path)
    raise config.StartError("give --model_name and --model_base_path, or --model_config_file")


def serve(model_name=None, model_base_path=None, **options):
    """Start the embedded server and return it, answering: a ModelServer.

    Raises `serving.config.StartError`, one line, where it cannot start. Args: as Options.
    """
    return ModelServer(Options(model_name=model_name, model_base_path=model_base_path, **options))


def wait(server):
    """Say that `server` answers, wait for SIGTERM or SIGINT, finish what is under way, and stop it.

    A second SIGINT ends the process at once; a second SIGTERM does not, as supervisors send it to a process
    and to its group. For the main thread only.
    """
    # A pipe, as the system may hand the signal to a thread of the runtime, which does not wake this one.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    rest = f", port {server.rest_port} (REST)" if server.rest_port else ""
    print(f"embedded server: {server.store} on {server.address} (gRPC){rest}", flush=True)
    while os.read(told, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
        pass
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("embedded server: stopping, requests under way are finished", flush=True)
    server.stop(DRAIN_S)


def main(**arguments):
    """`serve` with these arguments until told to stop; the exit status, 2 where it cannot start."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what is wrong is said below, in one line
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("serving").setLevel(logging.INFO)
    try:
        server = serve(**arguments)
    except config.StartError as error:
        print(f"embedded server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    wait(server)
    return 0


def run(model_base_path, model_name, **options):
    """Serve a model until told to stop, by the stock server where it is installed; ends the process.

    Says which of the two it is. Args: as Options.
    """
    port, rest_api_port = options["port"], options.get("rest_api_port", -1)
    command = stock_command(port, model_name, model_base_path)
    if command is None:
        sys.exit(main(model_name=model_name, model_base_path=model_base_path, **options))
    if rest_api_port >= 0:
        command.append(f"--rest_api_port={rest_api_port}")
    if options.get("enable_batching"):
        command += ["--enable_batching", "--enable_per_model_batching_parameters"]
    print(f"stock server, on every address of this machine: {shlex.join(command)}", flush=True)
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        given = parse(sys.argv[1:], __doc__)
    except config.StartError as error:
        print(f"embedded server: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(**given))
