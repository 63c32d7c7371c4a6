"""Other people's files of tensors: read whole, or refused in one line, and never run."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from keras_bert_app.convert import weight_files
from keras_bert_app.errors import UserError

ARRAYS = {
    "one": np.arange(6, dtype="float32").reshape(2, 3),
    "two": np.ones(4, "float16"),
    "three": np.zeros((0, 2), "float64"),
}


@pytest.fixture
def folder(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    return tmp_path


def refused(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_tensors_are_described_before_they_are_read(folder):
    files, tensors = weight_files.find_tensors(folder)
    assert files == [folder / "model.safetensors"]
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        name: (array.shape, array.dtype.name) for name, array in ARRAYS.items()
    }
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), ARRAYS[name])


def header(folder, header, data=b"\0" * 24):
    path = folder / "model.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start=0, end=24, shape=(2, 3), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        {"one": entry(0, 24), "two": entry(0, 24)},  # overlapping
        {"one": entry(0, 2**60)},
        {"one": entry(24, 0)},
        {"one": entry(0, 24, (2**40, 2**40))},
        {"one": entry(0, 24, (3, 3))},
        {"one": entry(0, 20)},  # bytes that are nobody's
        {"one": entry(dtype="F31")},
        {"one": {"dtype": "F32"}},
        [1, 2],
        b"\xff" * 8,
        b"[" * 5000,
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(folder, content):
    assert "can't read the weights" in refused(weight_files.safetensors, header(folder, content))


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9, 100])
def test_a_header_longer_than_the_file_is_refused_before_it_is_read(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert "can't read the weights" in refused(weight_files.safetensors, path)


def test_an_enormous_header_is_refused_though_it_is_there(folder):
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2**26))
        file.truncate(2**26 + 8)
    assert "its header has 67,108,864 bytes, more than any needs" in refused(weight_files.safetensors, path)


@pytest.mark.parametrize("size", [0, 7, 100, 200])
def test_a_truncated_file_is_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "can't read the weights" in refused(weight_files.safetensors, path)


def shards(folder, names=None):
    safetensors.numpy.save_file({"one": ARRAYS["one"]}, folder / "model-1.safetensors")
    safetensors.numpy.save_file({"two": ARRAYS["two"]}, folder / "model-2.safetensors")
    path = folder / weight_files.INDEX
    names = names or {"one": "model-1.safetensors", "two": "model-2.safetensors"}
    path.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return path


def test_shards_are_one(tmp_path):
    shards(tmp_path)
    files, tensors = weight_files.find_tensors(tmp_path)
    assert [file.name for file in files] == ["model-1.safetensors", "model-2.safetensors"]
    for name in ("one", "two"):
        np.testing.assert_array_equal(tensors[name].read(), ARRAYS[name])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"one": "../model.safetensors"}, "'../model.safetensors' is no safetensors file beside the index"),
        ({"one": "/etc/passwd"}, "'/etc/passwd' is no safetensors file"),
        ({"one": "a\\..\\b.safetensors"}, "is no safetensors file"),
        ({"one": ".."}, "is no safetensors file"),
        ({"one": "model.bin"}, "'model.bin' is no safetensors file"),
        ({"one": 3}, "weight_map isn't a file's name for each tensor"),
        (["one"], "weight_map isn't a file's name for each tensor"),
        ({"one": "model-1.safetensors"} | {"ten": "model-2.safetensors"}, "ten isn't in model-2.safetensors"),
        ({"one": "model-2.safetensors", "two": "model-2.safetensors"}, "one isn't in model-2.safetensors"),
        (
            {"one": "model-1.safetensors", "x": "model-2.safetensors", "two": "model-1.safetensors"},
            "two is in model-2.safetensors, unlisted; two isn't in model-1.safetensors; x isn't in",
        ),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, names, message):
    path = shards(tmp_path, names)
    with pytest.raises(UserError) as caught:
        weight_files.sharded(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    path = shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="model-2.safetensors: can't read it: No such file"):
        weight_files.sharded(path)


class Hostile:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_tensors_is_read(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    tensors = {name: torch.tensor(array) for name, array in ARRAYS.items()}
    tensors["half"] = torch.ones(3, dtype=torch.bfloat16)
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    read = weight_files.find_tensors(tmp_path)[1]
    assert {name: tensor.dtype for name, tensor in read.items()} == {
        name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()
    }
    for name in ARRAYS:
        np.testing.assert_array_equal(read[name].read(), ARRAYS[name])
    np.testing.assert_array_equal(read["half"].read(), np.ones(3))


@pytest.mark.parametrize("write", ["torch", "old torch", "pickle"])
def test_a_pickle_of_anything_else_is_refused_and_not_run(tmp_path, write):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    content = {"one": torch.ones(2), "two": Hostile(trace)}
    if write == "pickle":
        path.write_bytes(pickle.dumps(content["two"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    assert "it holds more than tensors, or is broken" in refused(weight_files.pickled, path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"one": 3}, [torch.ones(2)], {"one": {"two": torch.ones(2)}}])
def test_a_pickle_without_names_and_tensors_is_refused(tmp_path, content):
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    assert "it holds more than tensors by name" in refused(weight_files.pickled, path)


def test_a_compressed_pickle_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"one": torch.zeros(10**6)}, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as plain, zipfile.ZipFile(path, "w", 8) as packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    assert "it is compressed" in refused(weight_files.pickled, path)


def test_a_pickled_tensor_larger_than_its_file_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"one": torch.zeros(1).expand(10**12)}, path)
    assert "too few for one" in refused(weight_files.pickled, path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04 and no more", b"\0" * 100])
def test_a_broken_pickle_is_refused(tmp_path, content):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    assert "can't read the weights" in refused(weight_files.pickled, path)


def test_a_pickle_is_refused_where_pytorch_is_not_installed(tmp_path, monkeypatch):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"")
    monkeypatch.setattr(weight_files.importlib.util, "find_spec", lambda name: None)
    assert "is a pickle, which only PyTorch can read without running" in refused(weight_files.pickled, path)


def test_a_link_out_of_the_folder_is_refused(tmp_path, folder):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert "a link that leads out of its folder" in refused(
        weight_files.safetensors, inside / "model.safetensors"
    )
    (inside / "config.json").symlink_to("/etc/hostname")
    assert "a link that leads out of its folder" in refused(weight_files.read_json, inside / "config.json")


def test_links_within_the_folder_and_of_a_hub_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "again.json").symlink_to("config.json")
    assert weight_files.read_json(snapshot / "config.json") == {"a": 1}
    assert weight_files.read_json(snapshot / "again.json") == {"a": 1}


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "circle", "nothing"])
def test_what_is_no_ordinary_file_is_refused_and_not_opened(tmp_path, kind):
    path = tmp_path / "config.json"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to("config.json")
    assert "can't read it" in refused(weight_files.read_json, path)


def test_an_enormous_json_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(2**40)
    assert "it has 1,099,511,627,776 bytes, which no such file has" in refused(weight_files.read_json, path)
