"""Predictions -> metrics: pure functions from arrays to values that JSON can hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NUM_CALIBRATION_BINS = 15  # Guo et al. 2017
MAX_MISTAKE_CHARACTERS = 500


def classification_metrics(
    label_ids: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]
) -> dict[str, Any]:
    """Everything the report says about a single-label classifier, as values that JSON can hold.

    A ratio with nothing to count is 0: the precision of a class that is never predicted, the recall of one
    without examples, the F1 of one without either, and the MCC when all labels or all predictions are one
    class. The macro F1 is the mean over the classes that have examples or predictions.

    Args:
        label_ids: int [N], the true classes, each in [0, C).
        probabilities: float [N, C], rows that sum to 1.
        labels: the C names of the classes.

    Returns:
        `num_examples`; `loss`, the mean negative log-likelihood in nats, where a probability of 0 counts as
        float32's smallest normal number; `accuracy`, and `accuracy_interval`, its 95 % Wilson score interval
        [low, high]; `macro_f1`, `micro_f1`, `mcc`, `expected_calibration_error`; `per_class`, rows of label,
        precision, recall, f1, support and predicted (number of predictions); `confusion_matrix`, counts
        [C][C], rows true, columns predicted; `calibration_bins`, as the function of that name gives them.

    Raises:
        ValueError: no examples, shapes or ids that don't fit, or rows that are no probabilities.
    """
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef, precision_recall_fscore_support

    label_ids, probabilities = _checked(label_ids, probabilities, labels)
    predicted_ids = probabilities.argmax(axis=1)  # [N]
    class_ids = np.arange(len(labels))
    correct = predicted_ids == label_ids
    precision, recall, f1, support = precision_recall_fscore_support(
        label_ids, predicted_ids, labels=class_ids, zero_division=0.0
    )
    matrix = confusion_matrix(label_ids, predicted_ids, labels=class_ids)
    predicted = matrix.sum(axis=0)
    likelihood = probabilities[np.arange(len(label_ids)), label_ids]  # [N]
    likelihood = np.clip(likelihood, np.finfo(np.float32).tiny, 1.0)
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    # With one class all through, scikit-learn's MCC is 0 too, but it warns.
    several = len(np.union1d(label_ids, predicted_ids)) > 1
    bins = calibration_bins(probabilities.max(axis=1), correct)
    return {
        "num_examples": len(label_ids),
        "loss": float(np.log(1.0 / likelihood).mean()),
        "accuracy": float(correct.mean()),
        "accuracy_interval": [float(interval.low), float(interval.high)],
        "macro_f1": float(f1[(support > 0) | (predicted > 0)].mean()),
        "micro_f1": float(f1_score(label_ids, predicted_ids, average="micro")),
        "mcc": float(matthews_corrcoef(label_ids, predicted_ids)) if several else 0.0,
        "expected_calibration_error": expected_calibration_error(bins),
        "per_class": _per_class(labels, precision, recall, f1, support, predicted),
        "confusion_matrix": matrix.tolist(),
        "calibration_bins": bins,
    }


def multi_label_metrics(
    targets: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    thresholds: float | Sequence[float] = 0.5,
) -> dict[str, Any]:
    """Everything the report says about a classifier whose texts have several labels or none.

    A ratio with nothing to count is 0, and the macro F1 is over labels that some text has or is given, as in
    `classification_metrics`.

    Args:
        targets: [N, C], 1 where the text has the label, else 0.
        probabilities: float [N, C], each of its own.
        labels: the C names.
        thresholds: a text is given the labels that are at least so probable; one for all, or C.

    Returns:
        `num_examples`; `loss`, the mean negative log-likelihood of a label's presence or absence in nats;
        `exact_match`, the share of texts that are given all their labels and no others; `micro_f1`,
        `macro_f1`; `per_class`, as in `classification_metrics`.

    Raises:
        ValueError: no examples, or shapes that don't fit.
    """
    from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support

    targets, probabilities = np.asarray(targets).astype(np.int64), np.asarray(probabilities, np.float64)
    if not targets.size or targets.shape != probabilities.shape or targets.shape[1:] != (len(labels),):
        shapes = f"targets: {list(targets.shape)}, probabilities: {list(probabilities.shape)}"
        raise ValueError(f"{shapes}, expected [N, C] = [N, {len(labels)}] with N > 0")
    given = (probabilities >= thresholds).astype(np.int64)  # [N, C]
    # With one more column, of a label that is never there: one alone scikit-learn takes for two classes.
    both = [np.pad(sets, ((0, 0), (0, 1))) for sets in (targets, given)]
    precision, recall, f1, support = precision_recall_fscore_support(*both, zero_division=0.0)
    predicted = given.sum(axis=0)
    seen = (targets.sum(axis=0) > 0) | (predicted > 0)
    return {
        "num_examples": len(targets),
        "loss": float(log_loss(targets.ravel(), probabilities.ravel(), labels=[0, 1])),
        "exact_match": float(accuracy_score(*both)),
        "micro_f1": float(f1_score(*both, average="micro", zero_division=0.0)),
        "macro_f1": float(f1[: len(labels)][seen].mean()) if seen.any() else 0.0,
        "per_class": _per_class(labels, precision, recall, f1, support, predicted),
    }


def _per_class(labels, precision, recall, f1, support, predicted) -> list[dict[str, Any]]:
    return [
        {
            "label": str(label),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
            "predicted": int(predicted[i]),
        }
        for i, label in enumerate(labels)
    ]


def _checked(label_ids: Any, probabilities: Any, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The arrays as int64 [N] and float64 [N, C], or a ValueError that says what doesn't fit."""
    label_ids = np.asarray(label_ids)
    probabilities = np.asarray(probabilities, np.float64)
    if label_ids.ndim != 1 or label_ids.size == 0 or not np.issubdtype(label_ids.dtype, np.integer):
        raise ValueError(f"label_ids: {label_ids.dtype} {list(label_ids.shape)}, expected int [N] with N > 0")
    if probabilities.shape != (len(label_ids), len(labels)):
        raise ValueError(
            f"probabilities: {list(probabilities.shape)}, expected [N, C] = [{len(label_ids)}, {len(labels)}]"
        )
    if label_ids.min() < 0 or label_ids.max() >= len(labels):
        found = f"{label_ids.min()} to {label_ids.max()}"
        raise ValueError(f"label_ids: {found}, expected 0 to {len(labels) - 1}")
    # Wide enough for rows that were computed in bfloat16; logits and NaN fail.
    if not (np.all(probabilities >= 0) and np.all(np.abs(probabilities.sum(axis=1) - 1) < 0.05)):
        raise ValueError("probabilities: expected rows of finite values from 0 to 1 that sum to 1")
    return label_ids.astype(np.int64), probabilities


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = NUM_CALIBRATION_BINS
) -> list[dict[str, Any]]:
    """The bars of a reliability diagram.

    As in Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2: bin m of M holds the
    predictions with a confidence in ((m - 1) / M, m / M].

    Args:
        confidence: float [N], the probability given to the predicted class.
        correct: bool [N], whether that class is the true one.
        num_bins: the number of bins of equal width.

    Returns:
        For each bin `lower`, `upper`, `count`, and the means `confidence` and `accuracy`, None where empty.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bin_ids = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, num_bins - 1)  # [N]
    bins = []
    for i in range(num_bins):
        inside = bin_ids == i
        count = int(inside.sum())
        bins.append(
            {
                "lower": float(edges[i]),
                "upper": float(edges[i + 1]),
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(correct[inside].mean()) if count else None,
            }
        )
    return bins


def expected_calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """Mean of |accuracy - confidence| over `calibration_bins` by their counts (Guo et al. 2017, eq. 3)."""
    filled = [row for row in bins if row["count"]]
    gap = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in filled)
    return gap / sum(row["count"] for row in filled)


def worst_mistakes(
    texts: Sequence[str],
    label_ids: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    count: int = 20,
) -> list[dict[str, Any]]:
    """The wrong predictions the model was surest of, surest first; among equals, in the order of the texts.

    Args:
        texts: N strings.
        label_ids: int [N], the true classes.
        probabilities: float [N, C].
        labels: the C names of the classes.
        count: the most rows to return.

    Returns:
        Rows of `index` (position in `texts`), `text` (at most 500 characters, with an ellipsis where cut),
        `label`, `predicted`, and the probabilities given to these, `label_probability` and
        `predicted_probability`.

    Raises:
        ValueError: as `classification_metrics`, or another number of texts than of labels.
    """
    label_ids, probabilities = _checked(label_ids, probabilities, labels)
    if len(texts) != len(label_ids):
        raise ValueError(f"texts: {len(texts)}, expected as many as label_ids, {len(label_ids)}")
    predicted_ids = probabilities.argmax(axis=1)  # [N]
    wrong = np.flatnonzero(predicted_ids != label_ids)
    surest_first = wrong[np.argsort(-probabilities[wrong, predicted_ids[wrong]], kind="stable")]
    return [
        {
            "index": int(i),
            "text": shortened(texts[i], MAX_MISTAKE_CHARACTERS),
            "label": str(labels[label_ids[i]]),
            "predicted": str(labels[predicted_ids[i]]),
            "label_probability": float(probabilities[i, label_ids[i]]),
            "predicted_probability": float(probabilities[i, predicted_ids[i]]),
        }
        for i in surest_first[:count]
    ]


def worst_sets(
    texts: Sequence[str],
    targets: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    count: int = 20,
) -> list[dict[str, Any]]:
    """As `worst_mistakes`, of texts that have several labels or none: targets [N, C] of 0 and 1.

    `label` and `predicted` are sets of labels with commas between, – for none. Their probabilities are those
    of the whole sets, as if each label were there or not whatever the others.
    """
    targets, probabilities = np.asarray(targets) > 0, np.asarray(probabilities, np.float64)
    given = probabilities >= 0.5

    def chance(sets):
        return np.where(sets, probabilities, 1 - probabilities).prod(axis=1)

    def shown(row):
        return ", ".join(str(label) for label, there in zip(labels, row, strict=True) if there) or "–"

    of_given, of_targets = chance(given), chance(targets)
    wrong = np.flatnonzero((given != targets).any(axis=1))
    surest_first = wrong[np.argsort(-of_given[wrong], kind="stable")]
    return [
        {
            "index": int(i),
            "text": shortened(texts[i], MAX_MISTAKE_CHARACTERS),
            "label": shown(targets[i]),
            "predicted": shown(given[i]),
            "label_probability": float(of_targets[i]),
            "predicted_probability": float(of_given[i]),
        }
        for i in surest_first[:count]
    ]


def shortened(text: str, length: int) -> str:
    """`text`, cut to so many characters with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
