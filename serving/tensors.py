"""TensorProto <-> NumPy, by the rules of TensorFlow's C++ `Tensor::FromProto` and `Tensor::AsProtoField`.

TensorFlow's Python ops for the same are not used: a failure of theirs writes the whole request to the log.
"""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

# Which repeated field holds the values of a dtype.
VALUE_FIELDS = {
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int8: "int_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
    tf.complex64: "scomplex_val",
    tf.complex128: "dcomplex_val",
}
# As C++ names them in messages, where that isn't the name Python has.
CPP_NAMES = {tf.float16: "half", tf.float32: "float", tf.float64: "double"}
FIELDS_BY_NUMBER = {dtype.as_datatype_enum: (dtype, field) for dtype, field in VALUE_FIELDS.items()}

# A shape may ask for more values than were sent: they are filled in. Beyond this many, the request is
# refused rather than a laptop's memory filled on the word of a few bytes.
MAX_FILLED = 1 << 24


def dtype_name(dtype):
    """A dtype's name in the stock server's messages."""
    return CPP_NAMES.get(dtype, dtype.name)


def proto_name(dtype):
    """A dtype's name in a proto, such as "DT_FLOAT"."""
    return types_pb2.DataType.Name(dtype.as_datatype_enum)


def decode(proto):
    """The array of a TensorProto; raises ValueError where its shape, dtype or content make no sense.

    Missing values repeat the last one sent (or are zero, empty, where none was); surplus values are
    dropped. A tensor of unknown rank is a scalar.
    """
    if proto.dtype not in FIELDS_BY_NUMBER:
        raise ValueError("dtype without values")
    dtype, field = FIELDS_BY_NUMBER[proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if any(size < 0 for size in shape):
        raise ValueError("negative dimension")
    size = math.prod(shape)
    if proto.tensor_content and size:
        if dtype == tf.string:
            return _decode_strings(proto.tensor_content, size).reshape(shape)
        return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(shape)
    values = _from_field(getattr(proto, field)[:], dtype)
    if size > max(len(values), MAX_FILLED):
        raise ValueError("more values asked for than sent")
    array = np.empty(size, values.dtype)
    array[: len(values)] = values[:size]
    array[len(values) :] = values[-1] if len(values) else b"" if dtype == tf.string else 0
    return array.reshape(shape)


def _from_field(values, dtype):
    numpy_dtype = np.dtype(dtype.as_numpy_dtype)
    if dtype == tf.string:
        array = np.empty(len(values), object)
        array[:] = values
        return array
    if dtype in (tf.float16, tf.bfloat16):
        return np.array(values, np.int32).astype(np.uint16).view(numpy_dtype)
    if dtype.is_complex:
        parts = np.array(values[: len(values) // 2 * 2], dtype.real_dtype.as_numpy_dtype)
        return parts.view(numpy_dtype)
    return np.array(values).astype(numpy_dtype)


def _decode_strings(content, size):
    """Strings as `tensor_content` has them: all lengths as varints, then all bytes."""
    lengths, position = [], 0
    while len(lengths) < size:
        length = shift = 0
        while True:
            if position == len(content) or shift > 28:
                raise ValueError("broken string lengths")
            byte = content[position]
            length |= (byte & 127) << shift
            position, shift = position + 1, shift + 7
            if byte < 128:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise ValueError("string lengths do not add up")
    array = np.empty(size, object)
    for index, length in enumerate(lengths):
        array[index] = content[position : position + length]
        position += length
    return array


def encode(array, dtype):
    """The TensorProto of `array` (tf.DType `dtype`), values in the field of their dtype, none left out."""
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    proto.tensor_shape.SetInParent()
    for size in np.shape(array):
        proto.tensor_shape.dim.add().size = size
    flat = np.ravel(array)
    if dtype in (tf.float16, tf.bfloat16):
        flat = flat.view(np.uint16)
    elif dtype.is_complex:
        flat = flat.view(dtype.real_dtype.as_numpy_dtype)
    getattr(proto, VALUE_FIELDS[dtype]).extend(flat.tolist())
    return proto
