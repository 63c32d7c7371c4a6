"""Training order."""

import numpy as np
import pytest

from keras_bert_app import features
from keras_bert_app.data import batches as module
from keras_bert_app.data.batches import Batches, epoch_order, evaluation_order, pack_texts, record_texts
from keras_bert_app.data.readers import Record
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import Vocabulary

_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]


@pytest.fixture
def examples(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(_PIECES) + "\n")
    packer = TextPacker(BertTokenizer(Vocabulary.load(tmp_path / "vocab.txt")), 12)
    texts = ["a " * (1 + number % 9) for number in range(23)]
    return pack_texts(packer, [texts], {features.LABEL: np.arange(23, dtype="int32")})


def _lengths(count=5000):
    return np.random.default_rng(0).integers(3, 128, count)


def _padding_share(lengths, order):
    padded = sum(len(rows) * lengths[rows].max() for rows in order)
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("size", [1, 32, 33, 6000])
def test_an_epoch_has_every_row_once(grouped, size):
    order = epoch_order(_lengths(), size, 3, 2, grouped)
    assert sorted(np.concatenate(order)) == list(range(5000))
    assert len(order) == -(-5000 // size)
    assert sorted(map(len, order))[1:] == [size] * (len(order) - 1)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_is_a_function_of_seed_and_epoch(grouped):
    def order(seed, epoch):
        return np.concatenate(epoch_order(_lengths(), 32, seed, epoch, grouped)).tolist()

    first = order(1, 1)
    np.random.default_rng(9).random(5)
    assert order(1, 1) == first
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_grouping_leaves_far_less_padding_than_chance():
    lengths = _lengths()
    chance = _padding_share(lengths, epoch_order(lengths, 32, 0, 0, False))
    grouped = _padding_share(lengths, epoch_order(lengths, 32, 0, 0, True))
    assert chance > 0.4 and grouped < 0.05


def test_the_order_of_batches_tells_nothing_of_length():
    lengths = _lengths()
    means = [lengths[rows].mean() for rows in epoch_order(lengths, 32, 0, 0, True)]
    # Five standard errors of a correlation of independent values.
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 5 / len(means) ** 0.5


def test_any_step_is_the_one_that_iterating_gives(examples):
    iterated = [
        batch[features.LABEL].numpy().tolist()
        for batch in map(Batches(examples, 4, 7, True).__getitem__, range(18))
    ]
    for step in (17, 0, 11, 5, 6):
        assert Batches(examples, 4, 7, True)[step][features.LABEL].numpy().tolist() == iterated[step]
    assert [sorted(sum(iterated[start : start + 6], [])) for start in (0, 6, 12)] == [list(range(23))] * 3


def test_a_step_far_on_makes_one_epochs_order(examples, monkeypatch):
    epochs = []

    def counted(*arguments):
        epochs.append(arguments[3])
        return epoch_order(*arguments)

    monkeypatch.setattr(module, "epoch_order", counted)
    batches = Batches(examples, 4, 7, True)
    batches[10_000_000]
    batches[10_000_001]
    assert epochs == [10_000_000 // 6]


def test_a_batch_is_as_long_as_its_longest_row(examples):
    batch = examples.batch(np.array([0, 3]))
    ids = {piece: place for place, piece in enumerate(_PIECES)}
    cls, sep, a = ids["[CLS]"], ids["[SEP]"], ids["a"]
    assert batch[features.TOKEN_IDS].numpy().tolist() == [[cls, a, sep, 0, 0, 0], [cls, a, a, a, a, sep]]
    assert batch[features.PADDING_MASK].numpy().sum(1).tolist() == [3, 6]
    assert batch[features.LABEL].numpy().tolist() == [0, 3]


def test_many_texts_are_packed_in_parts_in_their_order(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_PACKED_AT_ONCE", 5)
    packer = TextPacker(BertTokenizer(Vocabulary.load(tmp_path / "vocab.txt")), 12)
    again = pack_texts(packer, [["a " * (1 + number % 9) for number in range(23)]], {})
    assert again.token_ids.to_list() == examples.token_ids.to_list()
    assert len(pack_texts(packer, [[]], {})) == 0


def test_texts_of_records_come_as_one_or_two_columns():
    record = Record({features.TEXT: "ä", features.TEXT_PAIR: "b", features.LABEL: "x"}, "made.csv:1")
    assert record_texts([record]) == [["ä".encode()], [b"b"]]


def test_evaluation_takes_every_row_once_in_order_of_length():
    lengths = _lengths(100)
    rows = np.concatenate(evaluation_order(lengths, 32))
    assert sorted(rows) == list(range(100))
    assert (np.diff(lengths[rows]) >= 0).all()
