"""How a classifier's logits become an answer: calibrated, with runners-up, or none where it isn't sure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from keras_bert_app import features


@dataclass(frozen=True)
class AnswerOptions:
    """temperature: logits are divided by it (Guo et al. 2017, section 4.2).

    top_k: so many labels are given with their scores; None: the best alone.
    abstain: below this score there is no label; None: there always is one.
    """

    temperature: float = 1.0
    top_k: int | None = None
    abstain: float | None = None


BEST_LABEL = AnswerOptions()


def answer(logits: tf.Tensor, labels: Sequence[str], options: AnswerOptions) -> Mapping[str, tf.Tensor]:
    """Logits [B, C] -> label string [B], score float32 [B], probabilities float32 [B, C].

    With `top_k` K also top_labels string [B, K] and top_scores float32 [B, K], best first; with `abstain`
    also abstained bool [B], where the label is empty.
    """
    names = tf.constant(labels)
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32) / options.temperature)
    best = tf.gather(names, tf.argmax(probabilities, axis=-1))
    score = tf.reduce_max(probabilities, axis=-1)
    given = {features.LABEL: best, features.SCORE: score, features.PROBABILITIES: probabilities}
    if options.top_k is not None:
        scores, places = tf.math.top_k(probabilities, options.top_k)
        given |= {features.TOP_LABELS: tf.gather(names, places), features.TOP_SCORES: scores}
    if options.abstain is not None:
        abstained = score < options.abstain
        given |= {features.LABEL: tf.where(abstained, "", best), features.ABSTAINED: abstained}
    return given
