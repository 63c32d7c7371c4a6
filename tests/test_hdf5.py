"""HDF5 files of strangers: read as they are, or refused in one line."""

import h5py
import ml_dtypes
import numpy as np
import pytest

from keras_bert_app.convert.hdf5 import read_h5
from keras_bert_app.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "any.weights.h5"


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_h5(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    assert str(caught.value).startswith(f"{path}: can't read")
    return str(caught.value)


def test_datasets_are_read_by_their_paths(path):
    arrays = {
        "a/b/0": np.arange(6, dtype="float32").reshape(2, 3),
        "a/1": np.ones(4, ">f8"),
        "c": np.ones((0, 2)),
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    tensors = read_h5(path, "task:")
    assert tensors.keys() == {f"task:{name}" for name in arrays}
    for name, array in arrays.items():
        tensor = tensors[f"task:{name}"]
        assert tensor.shape == array.shape and tensor.dtype == array.dtype.name
        np.testing.assert_array_equal(tensor.read(), array)


def test_two_bytes_that_keras_marks_are_bfloat16(path):
    array = np.array([1.5, -3, 1e30], ml_dtypes.bfloat16)
    with h5py.File(path, "w") as file:
        file["marked"] = array
        file["marked"].attrs["dtype"] = "bfloat16"
        file["bare"] = array
    tensors = read_h5(path)
    assert tensors["marked"].dtype == "bfloat16" and tensors["bare"].dtype == "void16"
    assert tensors["marked"].read().astype("float32").tolist() == array.astype("float32").tolist()


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda file: file.create_dataset("a", data=h5py.Empty("f")), "a isn't whole in it"),
        (lambda file: file.create_dataset("a", data=np.ones(999), compression="gzip"), "a isn't whole in it"),
        (lambda file: file.create_dataset("a\nb", data=np.ones(2)), r"'a\\nb' is no name of weights"),
        (lambda file: file.create_dataset("\x1b[31m", data=np.ones(2)), r"'\\x1b[31m' is no name of weights"),
        (
            lambda file: file.create_dataset(b"\xff\xfe", data=np.ones(2)),
            r"\\xff\\xfe' is no name of weights",
        ),
        (lambda file: file.create_group("/".join("a" * 5000)), "a/a' is no name of weights"),
    ],
)
def test_what_keras_does_not_write_is_refused(path, put, message):
    with h5py.File(path, "w") as file:
        put(file)
    assert message in refusal(path)


def replace(path, numbers):
    """Put other 8-byte numbers into a file's headers."""
    data = path.read_bytes()
    for one, other in numbers.items():
        assert data.count(one.to_bytes(8, "little"))
        data = data.replace(one.to_bytes(8, "little"), other.to_bytes(8, "little"))
    path.write_bytes(data)


def test_a_header_that_declares_more_than_the_file_has_is_refused(path):
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(7919, "f")
    replace(path, {7919: 10**12, 4 * 7919: 4 * 10**12})
    refusal(path)


def test_datasets_that_share_their_bytes_are_refused(path):
    with h5py.File(path, "w") as file:
        file["large"], file["small"] = np.ones(7919, "f"), np.ones(101, "f")
        places = {file["small"].id.get_offset(): file["large"].id.get_offset()}
    replace(path, {101: 7919, 4 * 101: 4 * 7919} | places)
    with h5py.File(path) as file:
        assert file["small"].shape == (7919,) and file["small"][-1] == 1
    assert f"it has {path.stat().st_size:,} bytes, its datasets 63,352" in refusal(path)


def test_random_damage_is_read_or_refused_in_one_line(path):
    with h5py.File(path, "w") as file:
        for number in range(8):
            file[f"layers/dense_{number}/vars/0"] = np.ones(2, "f")
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in draw.integers(len(data), size=3):
            data[place] = draw.integers(256)
        path.write_bytes(data)
        try:
            for tensor in read_h5(path).values():
                tensor.read()
        except UserError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 30
