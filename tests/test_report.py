import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import sklearn.metrics

from keras_bert_app import report
from keras_bert_app.tasks import metrics as task_metrics

LABELS = ("bad", "good")


def random_predictions(num_examples, num_classes, seed=0):
    """Labels int [N] and probabilities float32 [N, C] that are right more often than not."""
    generator = np.random.default_rng(seed)
    label_ids = generator.integers(num_classes, size=num_examples)
    logits = generator.normal(size=(num_examples, num_classes))
    logits[np.arange(num_examples), label_ids] += 2.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return label_ids, probabilities.astype(np.float32)


def write(tmp_path, labels=LABELS, texts=None, title="Report", facts=None, history=(), num_examples=60):
    label_ids, probabilities = random_predictions(num_examples, len(labels))
    metrics = task_metrics.classification_metrics(label_ids, probabilities, labels)
    texts = texts or ["a film"] * num_examples
    mistakes = task_metrics.worst_mistakes(texts, label_ids, probabilities, labels, count=num_examples)
    report.write_report(tmp_path, title, metrics, mistakes, facts or {}, history)
    content = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    return content, (tmp_path / "report.html").read_bytes().decode("utf-8")


class Page(HTMLParser):
    """Collects what a browser would see: tags, attributes, and whether every tag is closed."""

    VOID = {"meta", "br"}

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_metrics_of_four_predictions_equal_those_worked_out_by_hand():
    probabilities = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]]
    metrics = task_metrics.classification_metrics([0, 0, 1, 0], probabilities, LABELS)
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
    metrics = task_metrics.classification_metrics(label_ids, probabilities, ["a", "b", "c"])
    n, p, z = 200, metrics["accuracy"], 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert metrics["accuracy_interval"] == pytest.approx([middle - half, middle + half], rel=1e-9)


def test_loss_equals_scikit_learns_log_loss_where_nothing_is_clipped():
    label_ids, probabilities = random_predictions(500, 7)
    metrics = task_metrics.classification_metrics(label_ids, probabilities, "abcdefg")
    probabilities = probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = sklearn.metrics.log_loss(label_ids, probabilities, labels=range(7))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_probability_of_zero_costs_a_finite_loss_and_a_certain_right_answer_costs_none():
    metrics = task_metrics.classification_metrics([0, 0], [[0.0, 1.0], [1.0, 0.0]], LABELS)
    assert metrics["loss"] == pytest.approx(87.3365 / 2, abs=1e-3)
    certain = task_metrics.classification_metrics([1], [[0.0, 1.0]], LABELS)["loss"]
    assert certain == 0.0 and math.copysign(1, certain) == 1
    assert task_metrics.classification_metrics([1], [[0.0, 1.0000001]], LABELS)["loss"] == 0.0


def test_macro_f1_leaves_out_classes_without_examples_and_predictions():
    probabilities = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]
    metrics = task_metrics.classification_metrics([0, 1], probabilities, ["a", "b", "never seen"])
    assert metrics["macro_f1"] == 1.0
    assert metrics["per_class"][2] == {
        "label": "never seen", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "predicted": 0
    }  # fmt: skip


def test_macro_f1_counts_a_class_that_is_predicted_but_has_no_examples():
    metrics = task_metrics.classification_metrics([0, 0], [[0.8, 0.2], [0.2, 0.8]], LABELS)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("predicted", [0, 1])
def test_a_single_example_gives_finite_metrics(predicted):
    probabilities = [[0.3, 0.7] if predicted else [0.7, 0.3]]
    metrics = task_metrics.classification_metrics([1], probabilities, LABELS)
    json.dumps(metrics, allow_nan=False)
    assert metrics["accuracy"] == metrics["micro_f1"] == predicted
    assert metrics["mcc"] == 0.0
    assert metrics["expected_calibration_error"] == pytest.approx(0.3 if predicted else 0.7)


def test_a_test_set_of_one_class_gives_finite_metrics():
    probabilities = [[0.9, 0.05, 0.05]] * 5
    metrics = task_metrics.classification_metrics([0] * 5, probabilities, ["a", "b", "c"])
    json.dumps(metrics, allow_nan=False)
    assert (metrics["accuracy"], metrics["macro_f1"], metrics["mcc"]) == (1.0, 1.0, 0.0)
    assert metrics["confusion_matrix"] == [[5, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_hundreds_of_classes_of_which_most_are_missing_give_finite_metrics():
    label_ids, probabilities = random_predictions(50, 300)
    metrics = task_metrics.classification_metrics(label_ids, probabilities, [f"class {i}" for i in range(300)])
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
        task_metrics.classification_metrics(label_ids, probabilities, LABELS)


def test_calibration_error_of_two_bins_equals_the_one_worked_out_by_hand():
    confidence = np.array([0.2, 0.4, 0.7, 0.9, 0.8])
    correct = np.array([False, True, True, True, False])
    bins = task_metrics.calibration_bins(confidence, correct, num_bins=2)
    assert [(row["lower"], row["upper"], row["count"]) for row in bins] == [(0, 0.5, 2), (0.5, 1, 3)]
    assert [row["accuracy"] for row in bins] == [0.5, pytest.approx(2 / 3)]
    assert [row["confidence"] for row in bins] == [pytest.approx(0.3), pytest.approx(0.8)]
    expected = 2 / 5 * 0.2 + 3 / 5 * (0.8 - 2 / 3)
    assert task_metrics.expected_calibration_error(bins) == pytest.approx(expected, rel=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    bins = task_metrics.calibration_bins(np.array([0.0, 0.5, 0.75, 1.0]), np.ones(4, bool), num_bins=4)
    assert [row["count"] for row in bins] == [1, 1, 1, 1]
    assert task_metrics.calibration_bins(np.array([0.5]), np.ones(1, bool), num_bins=4)[1]["count"] == 1


def test_an_empty_calibration_bin_has_no_accuracy_or_confidence():
    bins = task_metrics.calibration_bins(np.array([0.9]), np.array([True]), num_bins=2)
    assert (bins[0]["count"], bins[0]["accuracy"], bins[0]["confidence"]) == (0, None, None)


def test_calibration_error_equals_a_sum_over_examples_bin_by_bin():
    label_ids, probabilities = random_predictions(2000, 4)
    metrics = task_metrics.classification_metrics(label_ids, probabilities, "abcd")
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
    mistakes = task_metrics.worst_mistakes(list("abcde"), [1, 0, 1, 0, 1], probabilities, LABELS)
    assert [row["index"] for row in mistakes] == [1, 2, 3, 0]
    assert mistakes[0] == {
        "index": 1, "text": "b", "label": "bad", "predicted": "good",
        "label_probability": 0.1, "predicted_probability": 0.9,
    }  # fmt: skip
    assert len(task_metrics.worst_mistakes(list("abcde"), [1, 0, 1, 0, 1], probabilities, LABELS, count=2)) == 2


def test_no_mistakes_are_no_rows():
    assert task_metrics.worst_mistakes(["a"], [1], [[0.2, 0.8]], LABELS) == []


def test_a_long_text_is_cut_to_500_characters_with_an_ellipsis():
    long, exact = task_metrics.worst_mistakes(["x" * 501, "y" * 500], [0, 0], [[0, 1], [0, 1]], LABELS)
    assert long["text"] == "x" * 499 + "…"
    assert exact["text"] == "y" * 500


def test_texts_that_are_not_as_many_as_labels_are_refused():
    with pytest.raises(ValueError, match="texts: 2"):
        task_metrics.worst_mistakes(["a", "b"], [0], [[0.5, 0.5]], LABELS)


def test_the_terminal_summary_lists_up_to_twenty_classes():
    for num_classes, listed in ((20, True), (21, False)):
        labels = [f"class {i}" for i in range(num_classes)]
        metrics = task_metrics.classification_metrics(*random_predictions(100, num_classes), labels)
        summary = report.format_metrics(metrics)
        assert f"{metrics['accuracy']:.4f}" in summary and f"{metrics['loss']:.4f}" in summary
        assert ("class 19" in summary) is listed


def test_the_terminal_summary_keeps_one_line_per_class_and_lets_no_escape_code_through():
    metrics = task_metrics.classification_metrics([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["a\nb", "\x1b[31mred"])
    lines = report.format_metrics(metrics).splitlines()
    assert [line for line in lines if line.startswith("a b ")]
    assert "\x1b" not in "".join(lines)
    assert len({len(line) for line in lines[-3:]}) == 1


def test_metrics_json_holds_what_it_was_given(tmp_path):
    history = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan, "evaluation/loss": np.float32(0.25)}]
    content, _ = write(tmp_path, title="Titel", facts={"Data": "x.csv"}, history=history)
    label_ids, probabilities = random_predictions(60, 2)
    assert content["metrics"] == task_metrics.classification_metrics(label_ids, probabilities, LABELS)
    assert (content["title"], content["facts"]) == ("Titel", {"Data": "x.csv"})
    assert content["history"] == [{"step": 1, "loss": 0.5}, {"step": 2, "evaluation/loss": 0.25}]
    assert content["worst_mistakes"][0]["text"] == "a film"


def test_markup_in_texts_labels_titles_and_facts_is_shown_and_not_obeyed(tmp_path):
    attack = "<script>alert('1')</script>\"><img src=x>"
    _, report = write(
        tmp_path,
        labels=(attack, "a&b", "$x^2$"),
        texts=[attack] * 60,
        title=attack,
        facts={attack: attack},
        history=[{"step": 1, attack: 1.0, "$y^2$": 1.0}],
    )
    page = Page(report)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(attack) > 10
    assert "a&b" in page.text and "$x^2$" in page.text and "$y^2$" in page.text
    assert page.open == []


def test_control_characters_and_lone_surrogates_can_be_written(tmp_path):
    text = "a\x00b\x1b[31m\ud800c\x85 日本 👍 \u202e"
    content, report = write(tmp_path, labels=("\udcff\x01", "b"), texts=[text] * 60, title="\ud800")
    assert content["worst_mistakes"][0]["text"] == text
    assert content["metrics"]["per_class"][0]["label"] == "\udcff\x01"
    assert "a\ufffdb\ufffd[31m\ufffdc\ufffd 日本 👍" in report
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", report)


@pytest.mark.parametrize(("num_classes", "table"), [(2, True), (12, True), (13, False), (100, False)])
def test_a_wide_confusion_matrix_becomes_a_picture(tmp_path, num_classes, table):
    _, report = write(tmp_path, labels=[f"class {i}" for i in range(num_classes)])
    page = Page(report)
    assert (("class", "matrix") in page.attributes) is table
    assert (("aria-label", "Confusion matrix") in page.attributes) is not table
    assert ("aria-label", "Reliability diagram") in page.attributes
    assert page.open == []


def test_the_commonest_mistakes_are_listed_with_their_counts_and_shares(tmp_path):
    label_ids = [0] * 5 + [1] * 3 + [2]
    predicted_ids = [0, 0, 1, 2, 2, 1, 0, 1, 2]
    metrics = task_metrics.classification_metrics(label_ids, np.eye(3)[predicted_ids], ["a", "b", "c"])
    report.write_report(tmp_path, "Report", metrics, [], {})
    report = (tmp_path / "report.html").read_text("utf-8")
    section = report.split("Commonest mistakes")[1].split("</table>")[0]
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in section.split("<tr>")[2:]]
    assert rows == [
        ["a", "c", "2", "40.0&nbsp;%"],
        ["a", "b", "1", "20.0&nbsp;%"],
        ["b", "a", "1", "33.3&nbsp;%"],
    ]


def test_the_report_needs_nothing_from_elsewhere(tmp_path):
    _, report = write(tmp_path, labels=[f"class {i}" for i in range(13)], history=[{"step": 1, "loss": 1.0}])
    page = Page(report)
    links = [value for name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not {"link", "script", "iframe"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import", report)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_report_says_what_the_figures_are(tmp_path):
    content, report = write(tmp_path, facts={"Checkpoint": "step 640"})
    metrics, text = content["metrics"], Page(report).text
    assert f"{100 * metrics['accuracy']:.1f}\N{NO-BREAK SPACE}%" in text
    assert f"{metrics['mcc']:.3f}" in text and f"{metrics['loss']:.4f}" in text
    assert "Checkpoint" in text and "step 640" in text


def test_curves_are_drawn_only_when_there_is_a_history(tmp_path):
    rows = [
        {"step": 10, "loss": 0.7, "learning_rate": 1e-5},
        {"step": 20, "evaluation/loss": 0.6},
        {"epoch": 1},
    ]
    assert "Training curves" in write(tmp_path, history=rows)[1]
    assert ">evaluation/loss<" in write(tmp_path, history=rows)[1]
    assert ">learning rate<" in write(tmp_path, history=rows)[1]
    assert "Training curves" not in write(tmp_path)[1]
    assert "Training curves" not in write(tmp_path, history=[{"loss": 0.7}])[1]


def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path):
    history = [{"step": step, "loss": 1 / step, "evaluation/loss": 2 / step} for step in range(1, 5)]
    _, here = write(tmp_path / "here", labels=[f"class {i}" for i in range(13)], history=history)
    program = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import test_report as t; "
        "t.write(pathlib.Path(sys.argv[1]), labels=[f'class {i}' for i in range(13)], "
        "history=[{'step': s, 'loss': 1 / s, 'evaluation/loss': 2 / s} for s in range(1, 5)])"
    )
    paths = [str(report.Path(module).resolve().parent) for module in (__file__, report.__file__)]
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-c", program, there, paths[0], f"{paths[1]}/.."], check=True)
    assert (there / "report.html").read_text("utf-8") == here
    assert (there / "metrics.json").read_bytes() == (tmp_path / "here" / "metrics.json").read_bytes()


def test_metrics_of_another_task_are_written_without_the_sections_that_do_not_apply(tmp_path):
    report.write_report(tmp_path, "Regression", {"num_examples": 3, "loss": 0.5, "pearson": 0.9}, [], {})
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert "0.5000" in page.text and "Confusion" not in page.text and page.open == []


def test_a_value_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError):
        report.write_report(tmp_path, "Report", {"num_examples": 1, "loss": math.nan}, [], {})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_replacing_leaves_the_old_report_and_no_temporary_file(tmp_path, monkeypatch):
    _, before = write(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, title="Another")
    assert (tmp_path / "report.html").read_text("utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html"]


def test_importing_report_brings_no_plotting_or_learning_library():
    program = (
        "import sys, keras_bert_app.report; "
        "assert not {'matplotlib', 'jinja2', 'sklearn', 'scipy', 'tensorflow'} & set(sys.modules)"
    )
    root = report.Path(report.__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_the_report_leaves_matplotlibs_global_state_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write(tmp_path, history=[{"step": 1, "loss": 1.0}])
    assert dict(matplotlib.rcParams) == before
