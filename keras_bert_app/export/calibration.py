"""Temperatures and thresholds fitted on one split, and what they do on another (Guo et al. 2017)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from keras_bert_app.tasks.metrics import (
    calibration_bins,
    expected_calibration_error,
    multi_label_metrics,
)

# Beyond these, a temperature says no more than that nearly all examples are right, or few.
_LEAST, _MOST = 0.05, 20.0


def fit_temperature(logits: np.ndarray, label_ids: np.ndarray) -> float:
    """The temperature from 0.05 to 20 of the least negative log likelihood; logits [N, C], labels int [N].

    1 where all are right: the likeliest temperature would be 0, which says nothing of other examples.
    """
    if np.all(logits.argmax(axis=-1) == label_ids):
        return 1.0

    def loss(log_temperature):
        return negative_log_likelihood(logits, label_ids, np.exp(log_temperature))

    bounds = (np.log(_LEAST), np.log(_MOST))
    found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def negative_log_likelihood(logits: np.ndarray, label_ids: np.ndarray, temperature: float = 1.0) -> float:
    """Mean over the examples, in nats, of logits [N, C] and labels int [N]."""
    likelihoods = scipy.special.log_softmax(np.asarray(logits, "float64") / temperature, axis=-1)
    return float(-likelihoods[np.arange(len(label_ids)), label_ids].mean())


def calibration(logits: np.ndarray, label_ids: np.ndarray, temperature: float = 1.0) -> dict[str, Any]:
    """num_examples, negative_log_likelihood in nats and expected_calibration_error, ready for JSON."""
    probabilities = scipy.special.softmax(np.asarray(logits, "float64") / temperature, axis=-1)
    correct = probabilities.argmax(axis=-1) == label_ids
    return {
        "num_examples": len(label_ids),
        "negative_log_likelihood": negative_log_likelihood(logits, label_ids, temperature),
        "expected_calibration_error": expected_calibration_error(
            calibration_bins(probabilities.max(axis=-1), correct)
        ),
    }


def abstention(logits: np.ndarray, label_ids: np.ndarray, temperature: float, least: float) -> dict[str, Any]:
    """Of answers with a score of at least `least`: num_examples, coverage, accuracy (None of none)."""
    probabilities = scipy.special.softmax(np.asarray(logits, "float64") / temperature, axis=-1)
    answered = probabilities.max(axis=-1) >= least
    correct = (probabilities.argmax(axis=-1) == label_ids)[answered]
    return {
        "num_examples": len(label_ids),
        "coverage": float(answered.mean()),
        "accuracy": float(correct.mean()) if answered.any() else None,
    }


def fit_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> list[float]:
    """For each label the threshold of the best F1; probabilities [N, C], targets [N, C] of 0 and 1.

    It lies halfway between the least probability that gets the label and the next lower one, so that rounding
    moves neither across; 0.5 for a label that no example has. Of equally good ones it is the lowest.
    """
    from sklearn.metrics import precision_recall_curve

    thresholds = []
    for column, has_label in zip(np.asarray(probabilities, "float64").T, targets.T, strict=True):
        if not has_label.any():
            thresholds.append(0.5)
            continue
        precision, recall, steps = precision_recall_curve(has_label, column)
        # The curve's last point, nothing predicted, has no threshold.
        f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
        place = int(f1.argmax())
        thresholds.append(float((steps[place] + (steps[place - 1] if place else 0.0)) / 2))
    return thresholds


def thresholding(
    probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str], thresholds: Any = 0.5
) -> dict[str, Any]:
    """num_examples, micro_f1, macro_f1 and exact_match, ready for JSON; see `multi_label_metrics`."""
    metrics = multi_label_metrics(targets, probabilities, labels, thresholds)
    return {name: metrics[name] for name in ("num_examples", "micro_f1", "macro_f1", "exact_match")}
