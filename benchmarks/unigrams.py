"""What frequencies alone say of the tokens that pretraining hides: the loss that a model has to go below."""

import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.data.examples_store import ExampleStore
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.training.loop import predict_examples
from keras_bert_app.training.step import make_predict_step


class HiddenTokens(PretrainingTask):
    """Counts what evaluation hides of rows without pairs; it is in the place of a model too."""

    input = ()

    def __init__(self, vocabulary_size: int):
        super().__init__("none")
        self.vocabulary_size = vocabulary_size

    def __call__(self, inputs, training):
        return inputs

    def predictions(self, outputs, batch) -> dict[str, tf.Tensor]:
        """How often each token is hidden in each row, float32 [B, V]."""
        size, weights = self.vocabulary_size, batch[features.MASKED_WEIGHTS]
        counts = tf.math.bincount(batch[features.MASKED_IDS], weights, size, size, axis=-1)
        return {"counts": counts}


def count_hidden_tokens(examples: ExampleStore, masker: TokenMasker) -> np.ndarray:
    """How often evaluation hides each token of examples without pairs, float64 [V], by its own masks."""
    strategy, counter = tf.distribute.OneDeviceStrategy("CPU:0"), HiddenTokens(len(masker.vocabulary))
    predict = make_predict_step(strategy, counter, counter, masker)
    return predict_examples(strategy, predict, examples)["counts"].sum(axis=0, dtype="float64")


def count_tokens(examples: ExampleStore, vocabulary_size: int) -> np.ndarray:
    """How often each token is in the examples, float64 [V]."""
    counts = np.zeros(vocabulary_size)
    for start in range(0, len(examples), 4096):
        rows = range(start, min(start + 4096, len(examples)))
        counts += np.bincount(examples.read(rows)[features.TOKEN_IDS].flat_values, minlength=vocabulary_size)
    return counts


def cross_entropy(counts: np.ndarray, model_counts: np.ndarray) -> float:
    """Nats a token of `counts` under the frequencies of `model_counts`, both [V]; of itself: its entropy."""
    seen = counts > 0
    shares, model_shares = counts[seen] / counts.sum(), model_counts[seen] / model_counts.sum()
    return float(-np.sum(shares * np.log(model_shares)))
