import json

import pytest
from conftest import tiny_rows

from keras_bert_app import evaluation
from keras_bert_app.errors import UserError
from keras_bert_app.training import workdir as folders


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
