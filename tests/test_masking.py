"""Masking: its shares over a million tokens, its units, what it never touches, and its seed."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.text.masking import UNITS, TokenMasker, masked_positions, number_spans
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

UNUSED = tuple(f"[unused{number}]" for number in range(20))
WORDS = tuple(f"word{number}" for number in range(300))
PIECES = tuple(f"##piece{number}" for number in range(100))
VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *UNUSED, *WORDS, *PIECES, "[", "]"))
IDS = VOCABULARY.ids
SPECIAL = [IDS[piece] for piece in (*SPECIAL_TOKENS, *UNUSED)]
MASK = IDS["[MASK]"]
FIRST_WORD, FIRST_PIECE = IDS["word0"], IDS["##piece0"]
SEED = tf.constant([3, 4], tf.int64)


def make_batch(rows, length, least=3, pair=True, seed=0):
    """Rows of random words of some pieces, of `least` to `length` tokens, with special tokens inside."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(FIRST_WORD, FIRST_PIECE, (rows, length))
    pieces = draw.integers(FIRST_PIECE, FIRST_PIECE + len(PIECES), (rows, length))
    ids = np.where(draw.random((rows, length)) < 0.35, pieces, ids)
    ids = np.where(draw.random((rows, length)) < 0.01, IDS["[UNK]"], ids)
    lengths = draw.integers(least, length + 1, rows)
    places = np.arange(length)
    ids[:, 0] = IDS["[CLS]"]
    if pair:
        ids[places == (lengths // 2)[:, None]] = IDS["[SEP]"]
    ids[places == lengths[:, None] - 1] = IDS["[SEP]"]
    mask = places < lengths[:, None]
    return {
        features.TOKEN_IDS: tf.constant(np.where(mask, ids, 0), tf.int32),
        features.PADDING_MASK: tf.constant(mask),
        features.SEGMENT_IDS: tf.zeros([rows, length], tf.int32),
    }


def maskable_tokens(batch):
    return batch[features.PADDING_MASK].numpy() & ~np.isin(batch[features.TOKEN_IDS], SPECIAL)


def chosen_tokens(masked):
    """bool [B, S], from positions and weights."""
    chosen = np.zeros(masked[features.TOKEN_IDS].shape, int)
    rows = np.arange(len(chosen))[:, None]
    np.add.at(
        chosen, (rows, masked[features.MASKED_POSITIONS]), masked[features.MASKED_WEIGHTS].numpy().astype(int)
    )
    assert chosen.max() <= 1
    return chosen.astype(bool)


def words_of(batch):
    """For each row the lists of places that make a word, read token by token."""
    ids, maskable = batch[features.TOKEN_IDS].numpy(), maskable_tokens(batch)
    for row, allowed in zip(ids, maskable, strict=True):
        words = []
        for place in np.flatnonzero(allowed):
            if row[place] >= FIRST_PIECE and row[place] < FIRST_PIECE + len(PIECES) and allowed[place - 1]:
                words[-1].append(place)
            else:
                words.append([place])
        yield words


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("rows", "length"), [(17_000, 128), (230_000, 12)])
def test_of_a_million_tokens_fifteen_percent_are_masked_in_the_papers_shares(unit, rows, length):
    batch = make_batch(rows, length)
    masked = TokenMasker(VOCABULARY, unit)(batch, SEED)
    before, after = batch[features.TOKEN_IDS].numpy(), masked[features.TOKEN_IDS].numpy()
    maskable, chosen = maskable_tokens(batch), chosen_tokens(masked)
    assert maskable.sum() >= 1_000_000
    assert abs(chosen.sum() / maskable.sum() - 0.15) <= 0.002
    assert not (chosen & ~maskable).any()
    np.testing.assert_array_equal(after[~chosen], before[~chosen])
    hidden = after[chosen] == MASK
    kept = after[chosen] == before[chosen]
    assert abs(hidden.mean() - 0.8) <= 0.005
    assert abs(kept.mean() - 0.1) <= 0.005
    assert not np.isin(after[chosen & (after != MASK)], SPECIAL).any()
    replacements = after[chosen][~hidden & ~kept]
    assert len(np.unique(replacements)) == len(VOCABULARY) - len(SPECIAL)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_units_of_one_length_are_as_likely_at_every_place_of_a_row(unit):
    words = [FIRST_WORD] * 9 + [FIRST_PIECE] * 3 + [FIRST_WORD] * 8
    batch = {
        features.TOKEN_IDS: tf.constant([words] * 40_000),
        features.PADDING_MASK: tf.fill([40_000, 20], True),
    }
    shares = chosen_tokens(TokenMasker(VOCABULARY, unit)(batch, SEED)).mean(axis=0)
    assert abs(shares.mean() - 0.15) <= 0.002
    alike = shares if unit == "token" else np.delete(shares, range(8, 12))
    assert np.abs(alike - alike.mean()).max() <= 0.009  # five standard errors


@pytest.mark.parametrize("unit", ["word", "ngram"])
def test_words_are_masked_whole(unit):
    batch = make_batch(300, 60)
    chosen = chosen_tokens(TokenMasker(VOCABULARY, unit)(batch, SEED))
    long = 0
    for row, words in zip(chosen, words_of(batch), strict=True):
        for word in words:
            assert row[word].all() or not row[word].any()
            long += len(word) > 2 and row[word[0]]
    assert long > 20


def test_tokens_are_masked_without_regard_to_words():
    batch = make_batch(300, 60)
    chosen = chosen_tokens(TokenMasker(VOCABULARY, "token")(batch, SEED))
    words = [row[word] for row, words in zip(chosen, words_of(batch), strict=True) for word in words]
    assert sum(word.any() and not word.all() for word in words) > 100


def test_spans_have_lengths_in_proportion_to_one_over_n():
    words = tf.tile(tf.range(200)[None], [500, 1])
    spans = number_spans(words, 3, SEED).numpy()
    lengths = [len(list(run)) for row in spans for _, run in itertools.groupby(row[:190])][:-1]
    shares = np.bincount(lengths, minlength=4)[1:] / len(lengths)
    np.testing.assert_allclose(shares, np.array([6, 3, 2]) / 11, atol=0.01)
    assert (np.diff(spans, axis=1) >= 0).all() and (np.diff(spans, axis=1) <= 1).all()
    np.testing.assert_array_equal(number_spans(words, 1, SEED), words)


def test_ngrams_mask_neighbouring_words_more_often_than_words_do():
    batch = make_batch(2000, 60, least=60, pair=False)
    neighbours = {}
    for unit in ("word", "ngram"):
        chosen = chosen_tokens(TokenMasker(VOCABULARY, unit)(batch, SEED))
        rows = zip(chosen, words_of(batch), strict=True)
        pairs = [(row[a[0]], row[b[0]]) for row, words in rows for a, b in itertools.pairwise(words)]
        neighbours[unit] = sum(a and b for a, b in pairs) / sum(a for a, _ in pairs)
    assert neighbours["word"] < 0.2 and neighbours["ngram"] > 0.35


@pytest.mark.parametrize("unit", UNITS)
def test_the_same_seed_masks_the_same_and_another_does_not(unit):
    batch, masker = make_batch(50, 40), TokenMasker(VOCABULARY, unit)
    one, same = masker(batch, SEED), tf.function(masker)(batch, SEED)
    for name, value in one.items():
        np.testing.assert_array_equal(value, same[name])
    for other in ([3, 5], [4, 4]):
        different = masker(batch, tf.constant(other, tf.int64))
        assert (chosen_tokens(different) != chosen_tokens(one)).sum() > 50


def test_rows_and_choices_are_drawn_apart():
    row = make_batch(1, 60, least=60)
    batch = {name: tf.repeat(value, 40, axis=0) for name, value in row.items()}
    masked = TokenMasker(VOCABULARY)(batch, SEED)
    assert len(np.unique(chosen_tokens(masked), axis=0)) == 40
    hidden = masked[features.TOKEN_IDS].numpy() == MASK
    assert len(np.unique(hidden.sum(axis=1))) > 1


def test_what_stood_there_and_where_fits_together():
    batch = make_batch(50, 40)
    masked = TokenMasker(VOCABULARY)(batch, SEED)
    positions, ids, weights = (
        masked[name].numpy()
        for name in (features.MASKED_POSITIONS, features.MASKED_IDS, features.MASKED_WEIGHTS)
    )
    assert (positions.dtype, ids.dtype, weights.dtype) == ("int32", "int32", "float32")
    real = weights == 1
    assert positions.shape == ids.shape == weights.shape and real.sum(axis=1).max() == real.shape[1]
    original = np.take_along_axis(batch[features.TOKEN_IDS].numpy(), positions, axis=1)
    np.testing.assert_array_equal(ids, np.where(real, original, 0))
    assert not positions[~real].any() and not weights[~real].any()
    for row, its in zip(positions, real, strict=True):
        assert its[: its.sum()].all() and (np.diff(row[its]) > 0).all()
    assert masked[features.SEGMENT_IDS] is batch[features.SEGMENT_IDS]


@pytest.mark.parametrize("unit", UNITS)
def test_rows_with_nothing_to_mask_stay_as_they_are(unit):
    special = [IDS[piece] for piece in ("[CLS]", "[SEP]", "[UNK]", "[MASK]", "[unused3]", "[PAD]")]
    batch = {
        features.TOKEN_IDS: tf.constant([special] * 200),
        features.PADDING_MASK: tf.constant([[True] * 5 + [False]] * 200),
    }
    masked = TokenMasker(VOCABULARY, unit)(batch, SEED)
    np.testing.assert_array_equal(masked[features.TOKEN_IDS], batch[features.TOKEN_IDS])
    assert masked[features.MASKED_POSITIONS].shape == (200, 1)
    assert not masked[features.MASKED_WEIGHTS].numpy().any() and not masked[features.MASKED_IDS].numpy().any()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("most", [1, 4, 100])
def test_there_are_at_most_so_many_predictions_and_units_stay_whole(unit, most):
    batch = make_batch(200, 60)
    masked = TokenMasker(VOCABULARY, unit, max_predictions=most)(batch, SEED)
    assert masked[features.MASKED_POSITIONS].shape == (200, most)
    chosen = chosen_tokens(masked)
    counts = chosen.sum(axis=1)
    assert 0 < counts.max() <= most and (most == 100 or (counts == most).any())
    if unit != "token":
        for row, words in zip(chosen, words_of(batch), strict=True):
            assert all(row[word].all() or not row[word].any() for word in words)


def test_any_batch_shape_goes_through_one_graph():
    spec = {
        features.TOKEN_IDS: tf.TensorSpec([None, None], tf.int32),
        features.PADDING_MASK: tf.TensorSpec([None, None], tf.bool),
    }
    masker = TokenMasker(VOCABULARY, "ngram")
    graph = tf.function(masker, input_signature=[spec, tf.TensorSpec([2], tf.int64)])
    for rows, length in ((1, 3), (7, 1), (0, 4), (5, 33)):
        batch = make_batch(rows, length, least=1)
        batch.pop(features.SEGMENT_IDS)
        for name, value in graph(batch, SEED).items():
            np.testing.assert_array_equal(value, masker(batch, SEED)[name])


def test_positions_are_padded_to_their_size():
    chosen = tf.constant([[False, True, True], [False, False, False]])
    for size, expected in ((None, [[1, 2], [0, 0]]), (4, [[1, 2, 0, 0], [0, 0, 0, 0]])):
        positions, weights = masked_positions(chosen, size)
        np.testing.assert_array_equal(positions, expected)
        np.testing.assert_array_equal(weights, np.array(expected) > 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "sentence"}, "'sentence'; it takes one of token, word, ngram"),
        ({"rate": 15}, "rate is 15; it takes a share"),
        ({"max_ngram": 0}, "max_ngram is 0"),
        ({"max_predictions": 0}, "max_predictions is 0"),
        ({"vocabulary": Vocabulary((*SPECIAL_TOKENS, "[unused0]"), "v.txt")}, "v.txt: special tokens only"),
    ],
)
def test_an_impossible_setting_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TokenMasker(VOCABULARY), **settings)
