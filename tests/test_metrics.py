import json
import math

import numpy as np
import pytest
import sklearn.metrics

from keras_bert_app.tasks.metrics import (
    calibration_bins,
    classification_metrics,
    expected_calibration_error,
    worst_mistakes,
)

LABELS = ("bad", "good")


def random_predictions(num_examples, num_classes, seed=0):
    """Labels int [N] and probabilities float32 [N, C] that are right more often than not."""
    generator = np.random.default_rng(seed)
    label_ids = generator.integers(num_classes, size=num_examples)
    logits = generator.normal(size=(num_examples, num_classes))
    logits[np.arange(num_examples), label_ids] += 2.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return label_ids, probabilities.astype(np.float32)


def test_metrics_of_four_predictions_equal_those_worked_out_by_hand():
    probabilities = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]]
    metrics = classification_metrics([0, 0, 1, 0], probabilities, LABELS)
    assert metrics["num_examples"] == 4
    assert metrics["confusion_matrix"] == [[2, 1], [0, 1]]
    assert metrics["accuracy"] == 0.75
    assert metrics["loss"] == pytest.approx(-math.log(0.9 * 0.4 * 0.8 * 0.7) / 4, rel=1e-12)
    assert metrics["mcc"] == pytest.approx((2 * 1 - 1 * 0) / math.sqrt(3 * 1 * 2 * 2), rel=1e-12)
    bad, good = metrics["per_class"]
    assert bad == {
        "label": "bad", "precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3, "predicted": 2
    }  # fmt: skip
    assert (good["precision"], good["recall"], good["f1"]) == (0.5, 1.0, pytest.approx(2 / 3))
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_the_accuracy_interval_is_wilsons():
    label_ids, probabilities = random_predictions(200, 3)
    metrics = classification_metrics(label_ids, probabilities, ["a", "b", "c"])
    n, p, z = 200, metrics["accuracy"], 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert metrics["accuracy_interval"] == pytest.approx([middle - half, middle + half], rel=1e-9)


def test_loss_equals_scikit_learns_log_loss_where_nothing_is_clipped():
    label_ids, probabilities = random_predictions(500, 7)
    metrics = classification_metrics(label_ids, probabilities, "abcdefg")
    probabilities = probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = sklearn.metrics.log_loss(label_ids, probabilities, labels=range(7))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_probability_of_zero_costs_a_finite_loss_and_a_certain_right_answer_costs_none():
    metrics = classification_metrics([0, 0], [[0.0, 1.0], [1.0, 0.0]], LABELS)
    assert metrics["loss"] == pytest.approx(87.3365 / 2, abs=1e-3)
    certain = classification_metrics([1], [[0.0, 1.0]], LABELS)["loss"]
    assert certain == 0.0 and math.copysign(1, certain) == 1
    assert classification_metrics([1], [[0.0, 1.0000001]], LABELS)["loss"] == 0.0


def test_macro_f1_leaves_out_classes_without_examples_and_predictions():
    probabilities = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]
    metrics = classification_metrics([0, 1], probabilities, ["a", "b", "never seen"])
    assert metrics["macro_f1"] == 1.0
    assert metrics["per_class"][2] == {
        "label": "never seen", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "predicted": 0
    }  # fmt: skip


def test_macro_f1_counts_a_class_that_is_predicted_but_has_no_examples():
    metrics = classification_metrics([0, 0], [[0.8, 0.2], [0.2, 0.8]], LABELS)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("predicted", [0, 1])
def test_a_single_example_gives_finite_metrics(predicted):
    probabilities = [[0.3, 0.7] if predicted else [0.7, 0.3]]
    metrics = classification_metrics([1], probabilities, LABELS)
    json.dumps(metrics, allow_nan=False)
    assert metrics["accuracy"] == metrics["micro_f1"] == predicted
    assert metrics["mcc"] == 0.0
    assert metrics["expected_calibration_error"] == pytest.approx(0.3 if predicted else 0.7)


def test_a_test_set_of_one_class_gives_finite_metrics():
    probabilities = [[0.9, 0.05, 0.05]] * 5
    metrics = classification_metrics([0] * 5, probabilities, ["a", "b", "c"])
    json.dumps(metrics, allow_nan=False)
    assert (metrics["accuracy"], metrics["macro_f1"], metrics["mcc"]) == (1.0, 1.0, 0.0)
    assert metrics["confusion_matrix"] == [[5, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_hundreds_of_classes_of_which_most_are_missing_give_finite_metrics():
    label_ids, probabilities = random_predictions(50, 300)
    metrics = classification_metrics(label_ids, probabilities, [f"class {i}" for i in range(300)])
    json.dumps(metrics, allow_nan=False)
    predicted_ids = probabilities.argmax(axis=1)
    expected = sklearn.metrics.f1_score(label_ids, predicted_ids, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("label_ids", "probabilities", "message"),
    [
        ([], np.zeros((0, 2)), "N > 0"),
        ([0.0], [[0.5, 0.5]], "expected int"),
        ([0], [[0.5, 0.3, 0.2]], r"\[1, 3\], expected .* \[1, 2\]"),
        ([0, 1], [[0.5, 0.5]], r"\[1, 2\], expected .* \[2, 2\]"),
        ([2], [[0.5, 0.5]], "2 to 2, expected 0 to 1"),
        ([-1], [[0.5, 0.5]], "-1 to -1, expected 0 to 1"),
        ([0], [[2.0, -1.0]], "sum to 1"),
        ([0], [[3.0, 1.0]], "sum to 1"),
        ([0], [[math.nan, 1.0]], "finite"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_with_what_was_expected(label_ids, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(label_ids, probabilities, LABELS)


def test_calibration_error_of_two_bins_equals_the_one_worked_out_by_hand():
    confidence = np.array([0.2, 0.4, 0.7, 0.9, 0.8])
    correct = np.array([False, True, True, True, False])
    bins = calibration_bins(confidence, correct, num_bins=2)
    assert [(row["lower"], row["upper"], row["count"]) for row in bins] == [(0, 0.5, 2), (0.5, 1, 3)]
    assert [row["accuracy"] for row in bins] == [0.5, pytest.approx(2 / 3)]
    assert [row["confidence"] for row in bins] == [pytest.approx(0.3), pytest.approx(0.8)]
    expected = 2 / 5 * 0.2 + 3 / 5 * (0.8 - 2 / 3)
    assert expected_calibration_error(bins) == pytest.approx(expected, rel=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    bins = calibration_bins(np.array([0.0, 0.5, 0.75, 1.0]), np.ones(4, bool), num_bins=4)
    assert [row["count"] for row in bins] == [1, 1, 1, 1]
    assert calibration_bins(np.array([0.5]), np.ones(1, bool), num_bins=4)[1]["count"] == 1


def test_an_empty_calibration_bin_has_no_accuracy_or_confidence():
    bins = calibration_bins(np.array([0.9]), np.array([True]), num_bins=2)
    assert (bins[0]["count"], bins[0]["accuracy"], bins[0]["confidence"]) == (0, None, None)


def test_calibration_error_equals_a_sum_over_examples_bin_by_bin():
    label_ids, probabilities = random_predictions(2000, 4)
    metrics = classification_metrics(label_ids, probabilities, "abcd")
    gaps = {}  # number of the bin -> correctness minus confidence, example by example
    for label_id, row in zip(label_ids, probabilities.astype(float).tolist(), strict=True):
        confidence = max(row)
        correct = row.index(confidence) == label_id
        gaps.setdefault(math.ceil(confidence * 15), []).append(correct - confidence)
    expected = sum(abs(sum(gap)) for gap in gaps.values()) / len(label_ids)
    assert len(gaps) > 5
    assert metrics["expected_calibration_error"] == pytest.approx(expected, rel=1e-9)


def test_the_worst_mistakes_come_surest_first_and_ties_in_the_order_of_the_texts():
    probabilities = [[0.6, 0.4], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.0, 1.0]]
    mistakes = worst_mistakes(list("abcde"), [1, 0, 1, 0, 1], probabilities, LABELS)
    assert [row["index"] for row in mistakes] == [1, 2, 3, 0]
    assert mistakes[0] == {
        "index": 1, "text": "b", "label": "bad", "predicted": "good",
        "label_probability": 0.1, "predicted_probability": 0.9,
    }  # fmt: skip
    assert len(worst_mistakes(list("abcde"), [1, 0, 1, 0, 1], probabilities, LABELS, count=2)) == 2


def test_no_mistakes_are_no_rows():
    assert worst_mistakes(["a"], [1], [[0.2, 0.8]], LABELS) == []


def test_a_long_text_is_cut_to_500_characters_with_an_ellipsis():
    long, exact = worst_mistakes(["x" * 501, "y" * 500], [0, 0], [[0, 1], [0, 1]], LABELS)
    assert long["text"] == "x" * 499 + "…"
    assert exact["text"] == "y" * 500


def test_texts_that_are_not_as_many_as_labels_are_refused():
    with pytest.raises(ValueError, match="texts: 2"):
        worst_mistakes(["a", "b"], [0], [[0.5, 0.5]], LABELS)
