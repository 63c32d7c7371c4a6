import base64
import json

import pytest
from conftest import tiny_rows

from keras_bert_app import evaluation
from keras_bert_app.errors import UserError
from keras_bert_app.training import workdir as folders

# What answers have to be given to, whatever it is.
TEXTS = (
    b"good",
    b"",
    b"good film " * 1000,
    "the film was great 👍🏽 中".encode(),
    b"\xff\xfe good \x00",
    b" \xe4 ",
)


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return evaluation.Predictor(tiny_run)


def answers_to(predict_path, tiny_run):
    output = predict_path.with_name("answers.jsonl")
    count = evaluation.predict_file(tiny_run, predict_path, output)
    answers = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert len(answers) == count
    return answers


def test_the_tiny_run_has_learned_what_its_texts_tell(predictor):
    good, bad = predictor.answers([{"text": b"the film was great"}, {"text": b"the plot was dull"}])
    assert (good["label"], bad["label"]) == ("gut", "übel")
    assert good["score"] == max(good["probabilities"]) > 0.5
    assert sum(good["probabilities"]) == pytest.approx(1, abs=1e-6)


def test_jsonl_is_answered_line_by_line_whatever_the_bytes(tmp_path, tiny_run, predictor):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": {"b64": base64.b64encode(text).decode()}} for text in TEXTS] + [{"text": "so 👍 dull"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = answers_to(path, tiny_run)
    assert len(answers) == len(rows)
    for text, answer in zip([*TEXTS, "so 👍 dull".encode()], answers, strict=True):
        (alone,) = predictor.answers([{"text": text}])
        assert answer["label"] == alone["label"]
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_each_line_of_a_txt_file_is_a_text(tmp_path, tiny_run):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"good film\n\ndull \xff film\r\n" + b"bad " * 2500)
    labels = [answer["label"] for answer in answers_to(path, tiny_run)]
    assert len(labels) == 4
    assert (labels[0], labels[3]) == ("gut", "übel")


def test_a_csv_file_needs_no_labels_and_keeps_its_order(tmp_path, tiny_run):
    path = tmp_path / "texts.csv"
    path.write_text('id,text\n1,"the film was good"\n2,"the film\nwas dull"\n3,\n4,great\n')
    labels = [answer["label"] for answer in answers_to(path, tiny_run)]
    assert (len(labels), labels[0], labels[1], labels[3]) == (4, "gut", "übel", "gut")


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl"])
def test_an_empty_file_gets_no_answers(tmp_path, tiny_run, name):
    (tmp_path / name).touch()
    assert answers_to(tmp_path / name, tiny_run) == []


def test_more_texts_than_are_answered_at_once_are_all_answered_in_order(tmp_path, tiny_run, monkeypatch):
    monkeypatch.setattr(evaluation, "_TEXTS_AT_ONCE", 2)
    path = tmp_path / "texts.txt"
    path.write_text("good\ndull\ngood\ngood\ndull")
    assert [row["label"] for row in answers_to(path, tiny_run)] == ["gut", "übel", "gut", "gut", "übel"]


def test_a_broken_row_is_refused_with_its_line_and_no_output_is_left(tmp_path, tiny_run):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "good"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"texts.jsonl:2: text"):
        evaluation.predict_file(tiny_run, path, tmp_path / "answers.jsonl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["texts.jsonl"]


def write_csv(path, rows):
    path.write_text("".join(f"{row}\n" for row in rows), "utf-8")
    return str(path)


def test_evaluating_a_file_writes_metrics_and_a_report(tmp_path, tiny_run):
    rows = tiny_rows(20)
    path = write_csv(tmp_path / "dev.csv", ["text,label", *(f"{row['text']},{row['label']}" for row in rows)])
    summary = evaluation.evaluate_file(tiny_run, path, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert content["metrics"]["num_examples"] == 20
    assert [row["label"] for row in content["metrics"]["per_class"]] == ["gut", "übel"]
    assert content["facts"]["data"] == path
    assert f"accuracy           {content['metrics']['accuracy']:.4f}" in summary
    assert "übel" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert content["history"][-1]["step"] > 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["text,label", "good,gut", "bad,schlecht"],
            r"dev.csv:3: unknown label 'schlecht'; the training set has gut",
        ),
        (["text,lable", "good,gut"], r"dev.csv:1: no column 'label'.* set config.data.label_column=lable"),
        (["text,label", "good,gut", ",gut"], r"dev.csv:3: text \(column 'text'\) is empty"),
        (["text,label"], r"dev.csv: nothing to read, no rows"),
        ([], r"dev.csv: empty"),
    ],
)
def test_a_file_that_cannot_be_evaluated_is_refused_with_its_line(tmp_path, tiny_run, rows, message):
    path = write_csv(tmp_path / "dev.csv", rows)
    with pytest.raises(UserError, match=message):
        evaluation.evaluate_file(tiny_run, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run's folder; `run.py finetune` or `pretrain` makes one"):
        evaluation.Predictor(tmp_path)


def test_a_run_of_an_unknown_format_is_refused_with_what_to_do(tmp_path, tiny_run):
    content = json.loads((tiny_run / "config.json").read_text("utf-8"))
    folders.write_json(tmp_path / "config.json", content | {"format_version": 99})
    with pytest.raises(UserError, match="has format 99, this version knows 1; use the version that made it"):
        evaluation.Predictor(tmp_path)
