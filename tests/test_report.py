import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from keras_bert_app import report
from keras_bert_app.tasks.metrics import classification_metrics, worst_mistakes

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
    metrics = classification_metrics(label_ids, probabilities, labels)
    texts = texts or ["a film"] * num_examples
    mistakes = worst_mistakes(texts, label_ids, probabilities, labels, count=num_examples)
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


def test_the_terminal_summary_lists_up_to_twenty_classes():
    for num_classes, listed in ((20, True), (21, False)):
        labels = [f"class {i}" for i in range(num_classes)]
        metrics = classification_metrics(*random_predictions(100, num_classes), labels)
        summary = report.format_metrics(metrics)
        assert f"{metrics['accuracy']:.4f}" in summary and f"{metrics['loss']:.4f}" in summary
        assert ("class 19" in summary) is listed


def test_the_terminal_summary_keeps_one_line_per_class_and_lets_no_escape_code_through():
    metrics = classification_metrics([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["a\nb", "\x1b[31mred"])
    lines = report.format_metrics(metrics).splitlines()
    assert [line for line in lines if line.startswith("a b ")]
    assert "\x1b" not in "".join(lines)
    assert len({len(line) for line in lines[-3:]}) == 1


def test_the_terminal_summary_of_another_task_has_the_metrics_that_it_has():
    metrics = {"perplexity": 12.5, "num_masked": 1234, "mlm_accuracy": 0.25, "unknown": 1.0}
    assert report.format_metrics(metrics).splitlines() == [
        "masked tokens      1,234",
        "perplexity         12.5000",
        "MLM accuracy       0.2500",
    ]


def test_metrics_json_holds_what_it_was_given(tmp_path):
    history = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan, "evaluation/loss": np.float32(0.25)}]
    content, _ = write(tmp_path, title="Titel", facts={"Data": "x.csv"}, history=history)
    label_ids, probabilities = random_predictions(60, 2)
    assert content["metrics"] == classification_metrics(label_ids, probabilities, LABELS)
    assert (content["title"], content["facts"]) == ("Titel", {"Data": "x.csv"})
    assert content["history"] == [{"step": 1, "loss": 0.5}, {"step": 2, "evaluation/loss": 0.25}]
    assert content["worst_mistakes"][0]["text"] == "a film"


def test_markup_in_texts_labels_titles_and_facts_is_shown_and_not_obeyed(tmp_path):
    attack = "<script>alert('1')</script>\"><img src=x>"
    _, html = write(
        tmp_path,
        labels=(attack, "a&b", "$x^2$"),
        texts=[attack] * 60,
        title=attack,
        facts={attack: attack},
        history=[{"step": 1, attack: 1.0, "$y^2$": 1.0}],
    )
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(attack) > 10
    assert "a&b" in page.text and "$x^2$" in page.text and "$y^2$" in page.text
    assert page.open == []


def test_control_characters_and_lone_surrogates_can_be_written(tmp_path):
    text = "a\x00b\x1b[31m\ud800c\x85 日本 👍 \u202e"
    content, html = write(tmp_path, labels=("\udcff\x01", "b"), texts=[text] * 60, title="\ud800")
    assert content["worst_mistakes"][0]["text"] == text
    assert content["metrics"]["per_class"][0]["label"] == "\udcff\x01"
    assert "a\ufffdb\ufffd[31m\ufffdc\ufffd 日本 👍" in html
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", html)


@pytest.mark.parametrize(("num_classes", "table"), [(2, True), (12, True), (13, False), (100, False)])
def test_a_wide_confusion_matrix_becomes_a_picture(tmp_path, num_classes, table):
    _, html = write(tmp_path, labels=[f"class {i}" for i in range(num_classes)])
    page = Page(html)
    assert (("class", "matrix") in page.attributes) is table
    assert (("aria-label", "Confusion matrix") in page.attributes) is not table
    assert ("aria-label", "Reliability diagram") in page.attributes
    assert page.open == []


def test_the_commonest_mistakes_are_listed_with_their_counts_and_shares(tmp_path):
    label_ids = [0] * 5 + [1] * 3 + [2]
    predicted_ids = [0, 0, 1, 2, 2, 1, 0, 1, 2]
    metrics = classification_metrics(label_ids, np.eye(3)[predicted_ids], ["a", "b", "c"])
    report.write_report(tmp_path, "Report", metrics, [], {})
    html = (tmp_path / "report.html").read_text("utf-8")
    section = html.split("Commonest mistakes")[1].split("</table>")[0]
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in section.split("<tr>")[2:]]
    assert rows == [
        ["a", "c", "2", "40.0&nbsp;%"],
        ["a", "b", "1", "20.0&nbsp;%"],
        ["b", "a", "1", "33.3&nbsp;%"],
    ]


def test_the_report_needs_nothing_from_elsewhere(tmp_path):
    _, html = write(tmp_path, labels=[f"class {i}" for i in range(13)], history=[{"step": 1, "loss": 1.0}])
    page = Page(html)
    links = [value for name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not {"link", "script", "iframe"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import", html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_report_says_what_the_figures_are(tmp_path):
    content, html = write(tmp_path, facts={"Checkpoint": "step 640"})
    metrics, text = content["metrics"], Page(html).text
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
    assert ">evaluation<" in write(tmp_path, history=rows)[1]
    assert ">training<" in write(tmp_path, history=rows)[1]
    assert ">learning rate<" in write(tmp_path, history=rows)[1]
    assert "Training curves" not in write(tmp_path)[1]
    assert "Training curves" not in write(tmp_path, history=[{"loss": 0.7}])[1]


PRETRAINING = {
    "num_examples": 293,
    "num_masked": 5095,
    "loss": 6.368,
    "mlm_loss": 5.642,
    "unigram_entropy": 6.108,
    "perplexity": 281.9,
    "mlm_accuracy": 0.1474,
    "nsp_loss": 0.726,
    "nsp_accuracy": 0.509,
}


def test_a_pretraining_report_says_loss_perplexity_and_accuracies_beside_what_frequencies_give(tmp_path):
    names = ("learning_rate", "nsp_accuracy", "mlm_loss", "evaluation/mlm_loss", "evaluation/perplexity")
    history = [{"step": step} | dict.fromkeys(names, 1.0) for step in (1, 2)]
    history[1]["evaluation/mlm_log_likelihood"] = -1.0
    report.write_report(tmp_path, "Report", PRETRAINING, [], {}, history)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    tiles, curves = " ".join(page.text.split()).split("Training How")
    for shown in ("MLM loss5.6420", "6.108", "Perplexity282.0", "449.4", "293", "5,095 hidden tokens"):
        assert shown in tiles
    assert "MLM accuracy14.7 %" in tiles and "NSP accuracy50.9 %" in tiles
    assert "SOP" not in tiles and "true label" not in tiles and page.open == []
    titles = ("MLM loss", "perplexity", "NSP accuracy", "learning rate")
    places = [curves.index(title) for title in titles]
    assert places == sorted(places)
    assert "by frequency alone" in curves and "log likelihood" not in curves


@pytest.mark.parametrize(("num_points", "faint"), [(59, False), (60, True)])
def test_long_training_curves_get_a_moving_mean_and_say_so(tmp_path, num_points, faint):
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1.0} for step in range(1, num_points + 1)]
    _, html = write(tmp_path, history=history)
    assert ("The strong line is the mean" in html) is faint
    assert html.split("Training curves")[1].count("opacity: 0.3") == faint


def test_a_moving_mean_is_of_the_neighbours_there_are():
    assert report._moving_mean([1.0, 2.0, 6.0, 7.0], 1).tolist() == [1.5, 3.0, 5.0, 6.5]


def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path):
    history = [{"step": step, "loss": 1 / step, "evaluation/loss": 2 / step} for step in range(1, 5)]
    _, here = write(tmp_path / "here", labels=[f"class {i}" for i in range(13)], history=history)
    program = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import test_report as t; "
        "t.write(pathlib.Path(sys.argv[1]), labels=[f'class {i}' for i in range(13)], "
        "history=[{'step': s, 'loss': 1 / s, 'evaluation/loss': 2 / s} for s in range(1, 5)])"
    )
    paths = [str(Path(module).resolve().parent) for module in (__file__, report.__file__)]
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


def test_the_report_leaves_matplotlibs_global_state_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write(tmp_path, history=[{"step": 1, "loss": 1.0}])
    assert dict(matplotlib.rcParams) == before
