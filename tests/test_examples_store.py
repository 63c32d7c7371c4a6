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
    index_path,
    write_records,
)
from keras_bert_app.errors import UserError


def example(number):
    length = 3 + number % 7
    ids = [(number * 31 + place) * 97 % 30_000 for place in range(length)]
    return Example(ids, [0] * 2 + [1] * (length - 2), number % 2)


def store(tmp_path, sizes=(5, 1, 9), objective="nsp"):
    number, files = 0, []
    for place, size in enumerate(sizes):
        path = tmp_path / f"train-{place}.tfrecord"
        write_records(path, [example(number + row) for row in range(size)])
        files.append(describe(path))
        number += size
    manifest = {"options": {"objective": objective}, "pad_id": 9, "splits": {"train": {"files": files}}}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    return ExampleStore(tmp_path)


def test_any_example_is_read_by_its_number(tmp_path):
    examples, rows = store(tmp_path), [14, 0, 5, 4, 6, 0]
    read = examples.read(rows)
    wanted = [example(row) for row in rows]
    assert len(examples) == 15
    assert read[features.TOKEN_IDS].to_list() == [each.token_ids for each in wanted]
    assert read[features.SEGMENT_IDS].to_list() == [each.segment_ids for each in wanted]
    assert read[features.NEXT_SENTENCE_LABEL].numpy().tolist() == [each.label for each in wanted]
    assert examples.lengths.tolist() == [len(example(row)[0]) for row in range(15)]


def test_stock_tensorflow_reads_the_same(tmp_path):
    examples = store(tmp_path)
    paths = [str(tmp_path / f"train-{place}.tfrecord") for place in range(3)]
    assert list(tf.data.TFRecordDataset(paths).as_numpy_iterator()) == examples.records(range(15))
    examples.verify()


@pytest.mark.parametrize(
    "example",
    [
        Example([101, 0, 127, 128, 16383, 16384, 2**21, 2**31 - 1], bytes(4) + b"\1" * 4, 1),
        Example(list(range(300)), [0] * 300, 0),
        Example([5] * 700, bytes(700), sequence_ids=[number // 3 + 1 for number in range(700)]),
        Example([5], [0]),
    ],
    ids=["pair", "long pair", "packed", "one token"],
)
def test_records_are_what_tensorflow_would_write(tmp_path, example):
    write_records(tmp_path / "a.tfrecord", [example, example])
    wanted = tf.train.Example()
    for name in ("token_ids", "segment_ids", "sequence_ids"):
        if len(getattr(example, name)):
            wanted.features.feature[name].int64_list.value.extend(getattr(example, name))
    if example.label >= 0:
        wanted.features.feature["next_sentence_label"].int64_list.value.append(example.label)
    records = list(tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord")).as_numpy_iterator())
    assert records == [wanted.SerializeToString(deterministic=True)] * 2


def test_a_batch_is_padded_to_its_longest_example(tmp_path):
    batch = store(tmp_path).batch(np.array([0, 6]))
    assert batch[features.TOKEN_IDS].numpy().tolist() == [example(0)[0] + [9] * 6, example(6)[0]]
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

    assert sorted(epoch(0)) == sorted(epoch(1)) == sorted(tuple(example(row)[0][:3]) for row in range(15))
    assert epoch(1) == epoch(1) != epoch(0)


def test_examples_without_pairs_have_no_label(tmp_path):
    write_records(tmp_path / "a.tfrecord", [Example([1, 2], [0, 0])])
    files = [describe(tmp_path / "a.tfrecord")]
    manifest = {"options": {"objective": "none"}, "pad_id": 0, "splits": {"train": {"files": files}}}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert set(ExampleStore(tmp_path).batch([0])) == {*features.ENCODER_INPUTS, features.WEIGHT}


def test_texts_packed_in_a_row_are_numbered_and_padding_is_0(tmp_path):
    rows = [
        Example([1, 2, 3, 4, 5], [0] * 5, sequence_ids=[1, 1, 2, 2, 2]),
        Example([6], [0], sequence_ids=[1]),
    ]
    write_records(tmp_path / "a.tfrecord", rows)
    splits = {"train": {"files": [describe(tmp_path / "a.tfrecord")]}}
    manifest = {"options": {"objective": "none", "pack": True}, "pad_id": 9, "splits": splits}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    examples = ExampleStore(tmp_path)
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


def test_a_broken_manifest_is_named(tmp_path):
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: can't be read"):
        ExampleStore(tmp_path)
