"""How a classifier's logits become an answer: calibrated, with runners-up, one label, none or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from keras_bert_app import features


@dataclass(frozen=True)
class AnswerOptions:
    """temperature: logits are divided by it (Guo et al. 2017, section 4.2).

    top_k: so many labels are given with their scores; None: the best alone.
    abstain: below this score there is no label; None: there always is one.
    thresholds: the least probability of each label, where a text may have several; None: 0.5 of all. A text
    that may have several is answered with `top_k` and these alone.
    """

    temperature: float = 1.0
    top_k: int | None = None
    abstain: float | None = None
    thresholds: Sequence[float] | None = None


BEST_LABEL = AnswerOptions()


def answer(logits: tf.Tensor, labels: Sequence[str], options: AnswerOptions) -> Mapping[str, tf.Tensor]:
    """Logits [B, C] -> label string [B], score float32 [B], probabilities float32 [B, C].

    With `top_k` K also top_labels string [B, K] and top_scores float32 [B, K], best first; with `abstain`
    also abstained bool [B], where the label is empty.
    """
    names = tf.constant(labels)  # [C]
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32) / options.temperature)
    best = tf.gather(names, tf.argmax(probabilities, axis=-1))
    score = tf.reduce_max(probabilities, axis=-1)
    given = {features.LABEL: best, features.SCORE: score, features.PROBABILITIES: probabilities}
    given |= _top(names, probabilities, options)
    if options.abstain is not None:
        abstained = score < options.abstain
        given |= {features.LABEL: tf.where(abstained, "", best), features.ABSTAINED: abstained}
    return given


def answer_several(
    logits: tf.Tensor, labels: Sequence[str], options: AnswerOptions
) -> Mapping[str, tf.Tensor]:
    """Logits [B, C] -> labels string [B, C], num_labels int32 [B], probabilities float32 [B, C], of sigmoids.

    A text has the labels whose probability is at least their threshold. They come first, likeliest first, and
    "" after them: a row is as wide whatever the batch, so that servers can cut and join batches. `top_k` is
    as for one label.
    """
    names = tf.constant(labels)  # [C]
    probabilities = tf.sigmoid(tf.cast(logits, tf.float32))
    thresholds = options.thresholds or [0.5] * len(labels)
    given = probabilities >= tf.constant(thresholds, tf.float32)  # [B, C]
    # No probability is as low as -1.
    scores, places = tf.math.top_k(tf.where(given, probabilities, -1.0), len(labels))
    return {
        features.LABELS: tf.where(scores >= 0, tf.gather(names, places), ""),
        features.NUM_LABELS: tf.math.count_nonzero(given, axis=-1, dtype=tf.int32),
        features.PROBABILITIES: probabilities,
    } | _top(names, probabilities, options)


def _top(names: tf.Tensor, probabilities: tf.Tensor, options: AnswerOptions) -> dict[str, tf.Tensor]:
    if options.top_k is None:
        return {}
    scores, places = tf.math.top_k(probabilities, options.top_k)
    return {features.TOP_LABELS: tf.gather(names, places), features.TOP_SCORES: scores}
