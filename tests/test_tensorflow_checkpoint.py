"""Checkpoints by name and by object; what is malformed is refused, before TensorFlow looks at it."""

import struct

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from keras_bert_app.convert.tensorflow_checkpoint import find_checkpoint, read_checkpoint
from keras_bert_app.errors import UserError


def save(path, arrays):
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )


def read(path):
    files, tensors = read_checkpoint(find_checkpoint(path))
    return files, {name: tensor.read() for name, tensor in tensors.items()}


def refusal(path):
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


ARRAYS = {
    "a/kernel": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.float64(7.5),
    "c/number": np.int64(12),
    "c/none": np.zeros((0, 4), "float32"),
    "half": np.ones(3, "float16"),
}


def test_what_was_saved_by_name_is_read_as_it_is(tmp_path):
    save(tmp_path / "model.ckpt-12", ARRAYS)
    files, arrays = read(tmp_path)
    assert [file.name for file in files] == ["model.ckpt-12.index", "model.ckpt-12.data-00000-of-00001"]
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == np.asarray(array).dtype


def test_thousands_of_variables_fill_many_blocks_of_the_index(tmp_path):
    """Keys share what they begin with, which the index leaves out."""
    arrays = {f"layer_{i}/dense/kernel": np.full((i % 3 + 1,), i, "float32") for i in range(3000)}
    save(tmp_path / "x.ckpt", arrays)
    _, found = read(tmp_path / "x.ckpt")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_several_data_files_are_read_in_order(tmp_path):
    for number in range(2):
        save(tmp_path / f"part{number}", {f"v{number}": np.full((5,), number, "float32")})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / f"part{number}") for number in range(2)],
        destination_prefix=str(tmp_path / "all"),
    )
    files, arrays = read(tmp_path / "all")
    assert [file.name[-14:] for file in files[1:]] == ["00000-of-00002", "00001-of-00002"]
    assert arrays["v1"].tolist() == [1] * 5
    files[2].unlink()
    assert "all.data-00001-of-00002: can't read it: No such file" in refusal(tmp_path / "all")


def test_what_was_saved_by_object_has_the_names_that_the_variables_had(tmp_path):
    model = tf.Module()
    model.kernel = tf.Variable([1.0, 2.0], name="dense/kernel")
    model.again = [tf.Variable(1.0, name="same"), tf.Variable(2.0, name="same")]
    model.flag = tf.Variable(True, trainable=False)
    optimizer = tf.compat.v1.train.AdamOptimizer()
    optimizer.apply_gradients([(tf.zeros(2), model.kernel)])
    tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(tmp_path / "ckpt"))
    _, arrays = read(tmp_path)
    assert arrays.keys() == {
        "dense/kernel",
        "model/again/0",
        "model/again/1",
        "model/flag",
        "model/kernel/.OPTIMIZER_SLOT/optimizer/m",
        "model/kernel/.OPTIMIZER_SLOT/optimizer/v",
        "optimizer/beta1_power",
        "optimizer/beta2_power",
        "save_counter",
    }
    assert arrays["model/again/1"] == 2 and arrays["dense/kernel"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("give", "prefix"),
    [
        ("saved/variables/variables", "variables"),
        ("saved/variables/variables.index", "variables"),
        ("saved", "variables"),
        ("x.ckpt-1.data-00000-of-00001", "x.ckpt-1"),
        ("x.ckpt-1", "x.ckpt-1"),
    ],
)
def test_a_checkpoint_is_found_by_its_folder_its_prefix_or_its_files(tmp_path, give, prefix):
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    save(tmp_path / "saved" / "variables" / "variables", ARRAYS)
    save(tmp_path / "x.ckpt-1", ARRAYS)
    # TensorFlow would take the folder of the same name for the one that is meant.
    (tmp_path / "x.ckpt-1.d").mkdir()
    found = find_checkpoint(tmp_path / give)
    assert found.prefix.name == prefix
    assert found.folder == (tmp_path / "saved" if "saved" in give else tmp_path)
    assert read(tmp_path / give)[1].keys() == ARRAYS.keys()


def test_of_several_checkpoints_one_has_to_be_given(tmp_path):
    assert "there is none" in refusal(tmp_path)
    for name in ("model.ckpt-1", "model.ckpt-2"):
        save(tmp_path / name, ARRAYS)
    message = "there is model.ckpt-1.index, model.ckpt-2.index; give the path of one"
    assert message in refusal(tmp_path)
    assert "ckpt-3.index: can't read it: No such file" in refusal(tmp_path / "model.ckpt-3")


# How indexes that no program of good will writes are made: LevelDB's table_format.md, and the masked sums
# that records of TensorFlow have too.
def varint(number):
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def masked_sum(data, path):
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(data)
    return path.read_bytes()[-4:]


def write_index(path, entries, num_shards=1):
    """A table of one block, its keys in the order of `entries`, whose sums are right."""
    header = BundleHeaderProto(num_shards=num_shards)
    header.version.producer = 1
    pairs = [(b"", header.SerializeToString())]
    pairs += [(key.encode(), entry.SerializeToString()) for key, entry in entries]
    data = b""

    def add(pairs):
        nonlocal data
        block = b"".join(
            varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs
        )
        block += struct.pack("<II", 0, 1)
        handle = varint(len(data)) + varint(len(block))
        data += block + b"\0" + masked_sum(block + b"\0", path.with_suffix(".record"))
        return handle

    content, nothing = add(pairs), add([])
    footer = nothing + add([(pairs[-1][0] + b"~", content)])
    path.write_bytes(data + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


def entry(shape=(2, 3), dtype=tf.float32.as_datatype_enum, size=24, **more):
    result = BundleEntryProto(dtype=dtype, size=size, **more)
    for length in shape:
        result.shape.dim.add(size=length)
    return result


def test_the_tests_own_index_is_one_that_tensorflow_reads(tmp_path):
    save(tmp_path / "good", {"a": ARRAYS["a/kernel"]})
    good = tf.train.load_checkpoint(str(tmp_path / "good")).get_tensor("a")
    checked = entry(crc32c=struct.unpack("<I", masked_sum(good.tobytes(), tmp_path / "x.record"))[0])
    write_index(tmp_path / "made.index", [("a", checked)])
    (tmp_path / "made.data-00000-of-00001").write_bytes(good.tobytes())
    assert np.array_equal(read(tmp_path / "made")[1]["a"], good)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (entry((10**11, 10**12)), "a can't be float32 [100000000000, 1000000000000] in 24 bytes"),
        (entry((10**11,), size=4 * 10**11), "it has 24 bytes, by the index 400,000,000,000"),
        (entry((-1, 3)), "a can't have shape [-1, 3]"),
        (entry((1,) * 300), "a can't have shape [1, 1, 1, 1, 1, 1, 1, 1]"),
        (entry(size=4), "a can't be float32 [2, 3] in 4 bytes"),
        (entry(size=-24), "a can't have shape [2, 3] at 0"),
        (entry(offset=-8), "a can't have shape [2, 3] at -8"),
        (entry(offset=2**40), "it has 24 bytes, by the index 1,099,511,627,800"),
        (entry(shard_id=7), "data-00007-of-00001: can't read it: No such file"),
        (entry(dtype=77), "no checkpoint's index, or a broken one"),
        (entry((10**12,), tf.string.as_datatype_enum), "a can't be string [1000000000000] in 24 bytes"),
        (entry(), "Checksum does not match"),
    ],
)
def test_an_index_that_lies_is_refused_and_costs_no_memory(tmp_path, made, message):
    """TensorFlow's reader ends the process at some of these."""
    write_index(tmp_path / "x.index", [("a", made)])
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(24))
    assert message in refusal(tmp_path / "x")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    write_index(tmp_path / "x.index", [("a", entry((-1,))), ("a", entry())])
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(24))
    assert "no checkpoint's index, or a broken one" in refusal(tmp_path / "x")


def test_slices_are_refused(tmp_path):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "x"),
        tensor_names=["a"],
        shape_and_slices=["4 3 0,2:0,3"],
        tensors=[np.ones((2, 3), "float32")],
    )
    assert "a is in slices, which can't be joined here" in refusal(tmp_path / "x")


@pytest.mark.parametrize("name", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: bytes(len(data)),
        lambda data: data[:5] + bytes(byte ^ 255 for byte in data[5:20]) + data[20:],
        lambda data: data[len(data) // 2 :],
        None,
    ],
)
def test_broken_files_are_refused(tmp_path, name, change):
    save(tmp_path / "x.ckpt", {"a": np.arange(100, dtype="float32")})
    path = tmp_path / f"x.ckpt.{name}"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    message = refusal(tmp_path / "x.ckpt")
    assert "x.ckpt" in message and "can't read" in message


def test_any_byte_of_the_index_may_be_another(tmp_path):
    """The end is a UserError or the right arrays, never anything else."""
    save(tmp_path / "x.ckpt", ARRAYS)
    path = tmp_path / "x.ckpt.index"
    good, generator = path.read_bytes(), np.random.default_rng(0)
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(data))
        try:
            _, arrays = read(tmp_path / "x.ckpt")
        except UserError:
            continue
        assert all(np.array_equal(arrays[name], array) for name, array in ARRAYS.items()), place


def test_a_graph_of_objects_that_is_none_is_refused(tmp_path):
    for content in (b"\xff\xff\xff", np.float32(1)):
        save(tmp_path / "x.ckpt", {"_CHECKPOINTABLE_OBJECT_GRAPH": content, "a": np.float32(1)})
        assert "_CHECKPOINTABLE_OBJECT_GRAPH isn't what it should be" in refusal(tmp_path / "x.ckpt")


@pytest.mark.parametrize("name", ["x.ckpt.index", "x.ckpt.data-00000-of-00001", "variables"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    save((outside if name == "variables" else inside) / "x.ckpt", ARRAYS)
    if name == "variables":
        (inside / name).symlink_to(outside)
    else:
        (inside / name).rename(outside / name)
        (inside / name).symlink_to(outside / name)
    assert "a link that leads out of its folder" in refusal(inside)
