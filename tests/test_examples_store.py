"""Example files: read by number as by stock TensorFlow, and refused when they aren't whole."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.data.batches import Batches
from keras_bert_app.data.examples_store import (
    MANIFEST,
    Example,
    ExampleStore,
    describe,
    dtypes,
    index_path,
    write_records,
)
from keras_bert_app.errors import UserError


def encoded(token_ids, num_first=None, label=-1, sequence_ids=(), token_dtype="<u2"):
    """An example of these ids, the first `num_first` of them in the first segment."""
    segment_ids = [int(num_first is not None and place >= num_first) for place in range(len(token_ids))]
    token_ids = np.array(token_ids, token_dtype).tobytes()
    return Example(token_ids, bytes(segment_ids), label, np.array(sequence_ids, "<u2").tobytes())


def ids_of(number):
    return [(number * 31 + place) * 97 % 30_000 for place in range(3 + number % 7)]


def example(number):
    return encoded(ids_of(number), 2, number % 2)


def write_manifest(folder, paths, vocabulary_size=30_000, **options):
    manifest = {
        "options": options,
        "pad_id": 9,
        "dtypes": dtypes(vocabulary_size),
        "splits": {"train": {"files": [describe(path) for path in paths]}},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return ExampleStore(folder)


def store(tmp_path, sizes=(5, 1, 9), objective="nsp"):
    number, paths = 0, []
    for place, size in enumerate(sizes):
        paths.append(tmp_path / f"train-{place}.tfrecord")
        write_records(paths[-1], [example(number + row) for row in range(size)])
        number += size
    return write_manifest(tmp_path, paths, objective=objective)


def test_any_example_is_read_by_its_number(tmp_path):
    examples, rows = store(tmp_path), [14, 0, 5, 4, 6, 0]
    read = examples.read(rows)
    assert len(examples) == 15
    assert read[features.TOKEN_IDS].to_list() == [ids_of(row) for row in rows]
    assert read[features.SEGMENT_IDS].to_list() == [[0, 0] + [1] * (len(ids_of(row)) - 2) for row in rows]
    assert read[features.NEXT_SENTENCE_LABEL].numpy().tolist() == [row % 2 for row in rows]
    assert examples.lengths.tolist() == [len(ids_of(row)) for row in range(15)]


def test_stock_tensorflow_reads_the_same(tmp_path):
    examples = store(tmp_path)
    paths = [str(tmp_path / f"train-{place}.tfrecord") for place in range(3)]
    dataset = tf.data.TFRecordDataset(paths)
    assert list(dataset.as_numpy_iterator()) == examples.records(range(15))

    def parse(record):
        wanted = {name: tf.io.FixedLenFeature([], tf.string) for name in ("token_ids", "segment_ids")}
        parsed = tf.io.parse_single_example(record, wanted)
        return {name: tf.io.decode_raw(parsed[name], examples.manifest["dtypes"][name]) for name in parsed}

    read = list(dataset.map(parse).as_numpy_iterator())
    assert [row["token_ids"].tolist() for row in read] == [ids_of(row) for row in range(15)]
    assert [row["segment_ids"].sum() for row in read] == [len(ids_of(row)) - 2 for row in range(15)]
    examples.verify()


def test_ids_of_a_large_vocabulary_are_read_as_they_were(tmp_path):
    ids = [0, 2**16, 119_546]
    write_records(tmp_path / "a.tfrecord", [encoded(ids, token_dtype="<i4")])
    examples = write_manifest(tmp_path, [tmp_path / "a.tfrecord"], 119_547, objective="none")
    assert examples.read([0])[features.TOKEN_IDS].to_list() == [ids]


@pytest.mark.parametrize(
    "example",
    [
        encoded([101, 0, 127, 128, 16383, 16384, 65535], 4, 1),
        encoded(range(300), 300, 0),
        encoded([5] * 9000, sequence_ids=[number // 3 + 1 for number in range(9000)]),
        encoded([5]),
    ],
    ids=["pair", "long pair", "packed", "one token"],
)
def test_records_are_what_tensorflow_would_write(tmp_path, example):
    write_records(tmp_path / "a.tfrecord", [example, example])
    wanted = tf.train.Example()
    for name in ("token_ids", "segment_ids", "sequence_ids"):
        if getattr(example, name):
            wanted.features.feature[name].bytes_list.value.append(getattr(example, name))
    if example.label >= 0:
        wanted.features.feature["next_sentence_label"].int64_list.value.append(example.label)
    records = list(tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord")).as_numpy_iterator())
    assert records == [wanted.SerializeToString(deterministic=True)] * 2


def test_a_batch_is_padded_to_its_longest_example(tmp_path):
    batch = store(tmp_path).batch(np.array([0, 6]))
    assert batch[features.TOKEN_IDS].numpy().tolist() == [ids_of(0) + [9] * 6, ids_of(6)]
    assert batch[features.SEGMENT_IDS].numpy()[0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert batch[features.PADDING_MASK].numpy()[0].tolist() == [True] * 3 + [False] * 6
    assert {name: value.dtype.name for name, value in batch.items()} == {
        **features.ENCODER_INPUTS,
        features.NEXT_SENTENCE_LABEL: "int32",
        features.WEIGHT: "float32",
    }


@pytest.mark.parametrize("objective", ["nsp", "none"])
def test_targets_are_those_of_the_batches(tmp_path, objective):
    examples, rows = store(tmp_path, objective=objective), np.array([7, 2, 14])
    batch = examples.batch(rows)
    assert (features.NEXT_SENTENCE_LABEL in examples.targets) is (objective == "nsp")
    for name, values in examples.targets.items():
        assert values[rows].tolist() == batch[name].numpy().tolist()
        assert (len(values), values.dtype) == (len(examples), batch[name].dtype.as_numpy_dtype)


def test_batches_give_every_example_once_an_epoch_in_an_order_of_seed_and_epoch(tmp_path):
    examples = store(tmp_path)

    def epoch(number, seed=1):
        batches = Batches(examples, 4, seed, group_by_length=True)
        steps = range(number * batches.steps_per_epoch, (number + 1) * batches.steps_per_epoch)
        rows = [row for step in steps for row in batches[step][features.TOKEN_IDS].numpy().tolist()]
        return [tuple(row[:3]) for row in rows]

    assert sorted(epoch(0)) == sorted(epoch(1)) == sorted(tuple(ids_of(row)[:3]) for row in range(15))
    assert epoch(1) == epoch(1) != epoch(0)


def test_examples_without_pairs_have_no_label(tmp_path):
    write_records(tmp_path / "a.tfrecord", [encoded([1, 2])])
    examples = write_manifest(tmp_path, [tmp_path / "a.tfrecord"], objective="none")
    assert set(examples.batch([0])) == {*features.ENCODER_INPUTS, features.WEIGHT}


def test_texts_packed_in_a_row_are_numbered_and_padding_is_0(tmp_path):
    rows = [encoded([1, 2, 3, 4, 5], sequence_ids=[1, 1, 2, 2, 2]), encoded([6], sequence_ids=[1])]
    write_records(tmp_path / "a.tfrecord", rows)
    examples = write_manifest(tmp_path, [tmp_path / "a.tfrecord"], objective="none", pack=True)
    batch = examples.batch([1, 0])
    assert examples.packed
    assert batch[features.SEQUENCE_IDS].numpy().tolist() == [[1, 0, 0, 0, 0], [1, 1, 2, 2, 2]]
    assert batch[features.SEQUENCE_IDS].dtype == "int32"
    assert batch[features.TOKEN_IDS].numpy().tolist() == [[6, 9, 9, 9, 9], [1, 2, 3, 4, 5]]


def test_rows_of_one_text_have_no_numbers_of_texts(tmp_path):
    examples = store(tmp_path)
    assert not examples.packed and features.SEQUENCE_IDS not in examples.batch([0])


def test_a_failure_leaves_neither_records_nor_index(tmp_path):
    def broken():
        yield example(1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_records(tmp_path / "a.tfrecord", broken())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_not_finished_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json there"):
        ExampleStore(tmp_path)


def test_a_missing_split_or_file_is_named(tmp_path):
    store(tmp_path)
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        ExampleStore(tmp_path, "test")
    index_path(tmp_path / "train-1.tfrecord").unlink()
    with pytest.raises(UserError, match=r"train-1\.index\.npy: missing"):
        ExampleStore(tmp_path)


def test_a_changed_file_does_not_verify(tmp_path):
    examples = store(tmp_path)
    path = tmp_path / "train-2.tfrecord"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-2\.tfrecord: changed"):
        examples.verify()


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text('{"options": {}, "splits": {"train": {"files": []}}}')
    with pytest.raises(
        UserError, match=r"manifest\.json: of an earlier version .* prepare the examples again"
    ):
        ExampleStore(tmp_path)


def test_a_broken_manifest_is_named(tmp_path):
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: can't be read"):
        ExampleStore(tmp_path)
