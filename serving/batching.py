"""Batching across requests by TensorFlow's own batching op, as the stock server's `--enable_batching` does.

Parameters are those of `BatchingParameters` in TensorFlow Serving's session_bundle_config.proto, which the
tensorflow-serving-api package doesn't have.
"""

import dataclasses
import os

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from serving.config import StartError

FILE = "batching_params.pbtxt"  # in a version's folder, as --enable_per_model_batching_parameters has it
# In the order of their numbers in the message, which has thread_pool_name as 5.
_FIELDS = {
    "max_batch_size": (1, "Int64Value"),
    "batch_timeout_micros": (2, "Int64Value"),
    "max_enqueued_batches": (3, "Int64Value"),
    "num_batch_threads": (4, "Int64Value"),
    "thread_pool_name": (5, "StringValue"),
    "enable_large_batch_splitting": (8, "BoolValue"),
    "max_execution_batch_size": (9, "Int64Value"),
}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What a BatchingParameters message says, with the stock server's values for what it leaves out."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = dataclasses.field(default_factory=os.cpu_count)
    allowed_batch_sizes: tuple = ()
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None

    @property
    def sizes(self):
        """What `allowed_batch_sizes` must end with, and the op's attribute of that name."""
        if not self.enable_large_batch_splitting:
            return self.max_batch_size, list(self.allowed_batch_sizes) or None
        largest = self.max_execution_batch_size or self.max_batch_size
        # The op knows the largest batch by the last of these; all of them mean no padding.
        return largest, list(self.allowed_batch_sizes or range(1, largest + 1))


def _message_class():
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/batching.proto",
        package="serving.batching",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    message = file.message_type.add(name="BatchingParameters")
    for name, (number, kind) in _FIELDS.items():
        message.field.add(name=name, number=number, type=11, label=1, type_name=f".google.protobuf.{kind}")
    message.field.add(name="allowed_batch_sizes", number=6, type=3, label=3)
    message.field.add(name="pad_variable_length_inputs", number=7, type=8, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.batching.BatchingParameters"))


BatchingParameters = _message_class()


def read_parameters(path):
    """The Parameters in the text file at `path`; raises StartError.

    `pad_variable_length_inputs`, which the op has not, is refused; `thread_pool_name` has no consequence.
    """
    try:
        with open(path, encoding="utf-8") as file:
            message = text_format.Parse(file.read(), BatchingParameters())
    except OSError as error:
        raise StartError(f"batching parameters file {path} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise StartError(f"batching parameters file {path} is no BatchingParameters: {error}") from error
    if message.pad_variable_length_inputs:
        raise StartError(f"{path}: the embedded server has no pad_variable_length_inputs; leave it out")
    given = {
        name: getattr(message, name).value
        for name in _FIELDS
        if message.HasField(name) and name in Parameters.__dataclass_fields__
    }
    parameters = Parameters(allowed_batch_sizes=tuple(message.allowed_batch_sizes), **given)
    sizes, (largest, _) = parameters.allowed_batch_sizes, parameters.sizes
    if min(parameters.max_batch_size, parameters.num_batch_threads, parameters.max_enqueued_batches) < 1:
        raise StartError(f"{path}: sizes and numbers of threads and batches are at least 1")
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[-1] != largest):
        raise StartError(f"{path}: allowed_batch_sizes must grow, and end with {largest}, the largest batch")
    return parameters


def add_batching(graph, signatures, parameters):
    """Give each signature with batches of any size, of rows of one size, a twin that batches across calls.

    Args:
        graph: the loaded tf.Graph, the default one.
        signatures: {name: SignatureDef}.
        parameters: Parameters.

    Returns:
        [(feeds, fetches)], {tensor name: name of the twin's tensor} each.
    """
    graph_def = graph.as_graph_def()
    twins = []
    for signature in signatures.values():
        outputs, inputs = signature.outputs.values(), signature.inputs.values()
        # Rows of other sizes would fail all requests of a batch, as they do in the stock server.
        same = all(dim.size >= 0 for info in inputs for dim in info.tensor_shape.dim[1:])
        if signature.method_name and same and all(map(_is_batched, [*inputs, *outputs])):
            twins.append(_twin(graph_def, signature, parameters, len(twins)))
    return twins


def _is_batched(info):
    dims = info.tensor_shape.dim
    return bool(dims) and dims[0].size == -1 and not info.tensor_shape.unknown_rank


def _twin(graph_def, signature, parameters, number):
    feeds = {info.name: info.dtype for info in signature.inputs.values()}
    fetches = [info.name for info in signature.outputs.values()]
    part = tf.compat.v1.graph_util.extract_sub_graph(graph_def, [name.split(":")[0] for name in fetches])
    placeholders = [tf.compat.v1.placeholder(dtype, name=f"unbatched_{number}") for dtype in feeds.values()]

    @tf.nondifferentiable_batch_function(
        num_batch_threads=parameters.num_batch_threads,
        max_batch_size=parameters.max_batch_size,
        batch_timeout_micros=parameters.batch_timeout_micros,
        allowed_batch_sizes=parameters.sizes[1],
        max_enqueued_batches=parameters.max_enqueued_batches,
        enable_large_batch_splitting=parameters.enable_large_batch_splitting,
    )
    def batched(*tensors):
        return tf.import_graph_def(part, dict(zip(feeds, tensors, strict=True)), fetches, name="batched")

    # Variables and tables are found again by their shared names.
    results = batched(*placeholders)
    return (
        dict(zip(feeds, (tensor.name for tensor in placeholders), strict=True)),
        dict(zip(fetches, (tensor.name for tensor in results), strict=True)),
    )
