import random

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving import tensors

DTYPES = list(tensors.VALUE_FIELDS)


def by_tensorflow(proto):
    """What TensorFlow's own C++ makes of a TensorProto: an array, or None where it refuses."""
    try:
        return tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype)).numpy()
    except (tf.errors.InvalidArgumentError, TypeError):
        return None


def decoded(proto):
    try:
        return tensors.decode(proto)
    except ValueError:
        return None


def a_value(chance, field):
    if field == "string_val":
        return chance.choice([b"", b"a", b"\xff\0", b"x" * 200])
    if field == "bool_val":
        return chance.random() < 0.5
    if field in ("float_val", "double_val", "scomplex_val", "dcomplex_val"):
        return chance.choice([0.0, -1.5, 3.25, float("inf")])
    return chance.randrange(128)


def a_tensor(seed):
    """A TensorProto whose shape, values and content need not fit together."""
    chance = random.Random(seed)
    dtype = chance.choice(DTYPES)
    field = tensors.VALUE_FIELDS[dtype]
    sizes = [chance.choice([-1, 0, 1, 1, 2, 2, 3, 3]) for _ in range(chance.randrange(4))]
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    proto.tensor_shape.unknown_rank = chance.random() < 0.1
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    kind = chance.choice(["values", "content", "bytes"])
    if kind == "values":
        getattr(proto, field).extend(a_value(chance, field) for _ in range(chance.randrange(8)))
    elif kind == "content" and -1 not in sizes and dtype != tf.string:
        content = np.arange(np.prod(sizes, dtype=int)).astype(dtype.as_numpy_dtype)
        proto.tensor_content = content.tobytes()
    else:
        # No other dtype: TensorFlow reads any byte as a truth value, and NumPy does not.
        proto.tensor_content = b"" if dtype == tf.bool else chance.randbytes(chance.randrange(12))
    return proto


@pytest.mark.parametrize("part", range(8))
def test_a_tensor_is_read_as_tensorflow_reads_it(part):
    refused = 0
    for seed in range(part * 250, part * 250 + 250):
        proto = a_tensor(seed)
        expected, array = by_tensorflow(proto), decoded(proto)
        refused += expected is None
        assert (array is None) == (expected is None), (seed, proto)
        if array is not None:
            expected = np.asarray(expected, object if proto.dtype == tf.string else None)
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype), (seed, proto)
            np.testing.assert_array_equal(array, expected, err_msg=f"{seed} {proto}")
    assert 0 < refused < 250


def test_strings_in_the_content_are_read_as_tensorflow_reads_them():
    for content in (b"\x01\x02abb", b"\x00\x00", b"\x81\x00\x00a", b"\x01\x02abbc", b"\x01", b"\xff" * 12):
        proto = tensor_pb2.TensorProto(dtype=tf.string.as_datatype_enum, tensor_content=content)
        proto.tensor_shape.dim.add(size=2)
        expected, array = by_tensorflow(proto), decoded(proto)
        assert (array is None) == (expected is None), content
        assert array is None or array.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_a_tensor_is_written_with_every_value_in_its_field(dtype):
    values = [[b"a", b"a"], [b"\xff\0", b"a"]] if dtype == tf.string else [[1, 1], [0, 1]]
    array = np.array(values, object if dtype == tf.string else dtype.as_numpy_dtype)
    proto = tensors.encode(array, dtype)
    assert not proto.tensor_content
    assert len(getattr(proto, tensors.VALUE_FIELDS[dtype])) == (8 if dtype.is_complex else 4)
    np.testing.assert_array_equal(by_tensorflow(proto), array)


def test_a_few_bytes_cannot_ask_for_gigabytes():
    proto = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1.0])
    proto.tensor_shape.dim.add(size=1 << 32)
    with pytest.raises(ValueError, match="more values asked for"):
        tensors.decode(proto)
