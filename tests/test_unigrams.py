"""The loss that frequencies alone would give: of the very tokens that evaluation hides."""

import json

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from benchmarks.unigrams import count_hidden_tokens, count_tokens, cross_entropy
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.data.examples_store import (
    MANIFEST,
    Example,
    ExampleStore,
    describe,
    dtypes,
    write_records,
)
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary
from keras_bert_app.training.loop import predict_examples
from keras_bert_app.training.step import make_predict_step

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *(f"word{number}" for number in range(20))), "memory")


@pytest.fixture
def store(tmp_path):
    """150 examples of 5 to 24 tokens, more than one batch."""
    random = np.random.default_rng(0)
    path = tmp_path / "held_out-0.tfrecord"
    rows = [random.integers(len(SPECIAL_TOKENS), 15, random.integers(5, 25)) for _ in range(150)]
    write_records(path, [Example(ids.astype("<u2").tobytes(), bytes(len(ids))) for ids in rows])
    manifest = {
        "options": {"objective": "none"},
        "pad_id": 0,
        "dtypes": dtypes(len(VOCABULARY)),
        "splits": {"held_out": {"files": [describe(path)]}},
    }
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    return ExampleStore(tmp_path, "held_out")


def test_what_is_counted_is_what_evaluation_hides(store):
    masker, strategy = TokenMasker(VOCABULARY), tf.distribute.OneDeviceStrategy("CPU:0")

    class Squares(PretrainingTask):
        """Sums the squares of the hidden ids, which tells them from others as many."""

        def predictions(self, outputs, batch):
            ids, weights = batch["masked_ids"], batch["masked_weights"]
            return {"sum": tf.reduce_sum(weights * tf.cast(ids, "float32") ** 2, axis=1)}

    encoder = complete_encoder(
        EncoderConfig(len(VOCABULARY), num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4), {}
    )
    task = Squares("none")
    predict = make_predict_step(strategy, task.build_model(encoder, "float32"), task, masker)
    wanted = predict_examples(strategy, predict, store)["sum"].sum()
    counts = count_hidden_tokens(store, masker)
    assert counts @ np.arange(len(VOCABULARY)) ** 2 == wanted > 0
    assert counts.sum() == pytest.approx(0.15 * store.lengths.sum(), rel=0.1)


def test_tokens_are_counted(store):
    wanted = np.zeros(len(VOCABULARY))
    for row in store.read(range(len(store)))["token_ids"].to_list():
        for token_id in row:
            wanted[token_id] += 1
    np.testing.assert_array_equal(count_tokens(store, len(VOCABULARY)), wanted)


def test_the_cross_entropy_is_that_of_scipy():
    counts, model_counts = np.array([5.0, 0, 1, 2]), np.array([1.0, 7, 2, 3])
    assert cross_entropy(counts, counts) == pytest.approx(scipy.stats.entropy(counts))
    relative = scipy.stats.entropy(counts, model_counts)
    assert cross_entropy(counts, model_counts) == pytest.approx(scipy.stats.entropy(counts) + relative)
