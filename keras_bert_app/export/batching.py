"""A version's own batching parameters, for a server that runs with --enable_batching.

It reads them from the version folder where --enable_per_model_batching_parameters is given; see
BatchingParameters in TensorFlow Serving's servables/tensorflow/session_bundle_config.proto, of which the
package tensorflow-serving-api has no Python code.
"""

from functools import cache
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from keras_bert_app.errors import UserError

FILE = "batching_params.pbtxt"
TEXT = """\
# Where the server runs with --enable_batching and --enable_per_model_batching_parameters, this counts for
# this version. How many batches run at once, num_batch_threads, it takes from its own
# --batching_parameters_file alone: all its models share the threads.

# The most rows that run at once, and the most that one request may have. "A really high value" where there
# are only CPUs, says TensorFlow Serving's batching guide (tensorflow_serving/batching/README.md): with the
# timeout below a batch is what came while the threads were busy. For a GPU, measure.
max_batch_size { value: 128 }

# The same guide's for CPUs: a free thread takes at once what is there, and nobody waits for company.
batch_timeout_micros { value: 0 }

# Batches that may wait, beyond which callers get UNAVAILABLE. The guide's for answers that somebody waits
# for is as many as there are threads; 8 is that of a server with 8 cores.
max_enqueued_batches { value: 8 }

# No allowed_batch_sizes: they fill batches up with rows that nobody asked for, which pays only where every
# shape is compiled. No pad_variable_length_inputs: it pads with a tensor's first value
# (batching/batching_util.cc), here [CLS] and a mask of True, so that answers to token_ids would be wrong;
# texts have no length to pad.
"""


@cache
def _message():
    """The class of BatchingParameters, from its fields' names, numbers and types in the .proto file."""
    file = descriptor_pb2.FileDescriptorProto(
        name="batching_parameters.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    message = file.message_type.add(name="BatchingParameters")
    field = descriptor_pb2.FieldDescriptorProto
    for name, number, wrapper in (
        ("max_batch_size", 1, "Int64Value"),
        ("batch_timeout_micros", 2, "Int64Value"),
        ("max_enqueued_batches", 3, "Int64Value"),
        ("num_batch_threads", 4, "Int64Value"),
        ("thread_pool_name", 5, "StringValue"),
        ("enable_large_batch_splitting", 8, "BoolValue"),
        ("max_execution_batch_size", 9, "Int64Value"),
    ):
        type_name = f".google.protobuf.{wrapper}"
        message.field.add(name=name, number=number, type=field.TYPE_MESSAGE, type_name=type_name, label=1)
    message.field.add(name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    message.field.add(name="pad_variable_length_inputs", number=7, type=field.TYPE_BOOL, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    )


def write(path: Path) -> None:
    """Write the file into a version folder."""
    (path / FILE).write_text(TEXT, encoding="utf-8")


def check(path: Path) -> str:
    """Read a version folder's file as a server does; return its parameters in one line.

    Raises:
        UserError: it isn't there or no text of BatchingParameters, or has what a server refuses.
    """
    file = path / FILE
    try:
        found = text_format.Parse(file.read_text("utf-8"), _message()())
    except OSError as error:
        raise UserError(f"{file}: can't be read: {error.strerror}; export it again") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: no text of BatchingParameters ({error}); mend or export it again"
        ) from error
    sizes, largest = list(found.allowed_batch_sizes), found.max_batch_size.value
    if largest < 1:
        raise UserError(f"{file}: max_batch_size is {largest}; write max_batch_size {{ value: 128 }}")
    if sizes and (sizes != sorted(set(sizes)) or sizes[-1] != largest):
        raise UserError(
            f"{file}: allowed_batch_sizes are {sizes}; they have to increase and end with max_batch_size, "
            f"{largest}"
        )
    if found.max_execution_batch_size.value > largest:
        raise UserError(f"{file}: max_execution_batch_size is more than max_batch_size, {largest}")
    if found.pad_variable_length_inputs:
        raise UserError(
            f"{file}: pad_variable_length_inputs makes answers to token_ids wrong; take the line out"
        )
    return text_format.MessageToString(found, as_one_line=True)
