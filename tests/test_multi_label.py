"""Several labels a text, or none: from a file to answers over gRPC, and transformers' model of the kind."""

import itertools
import json

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf
import torch
import transformers
from conftest import tiny_config
from test_huggingface_heads import LABELS, SHAPES, make

from keras_bert_app import config as configuration
from keras_bert_app import evaluation, features
from keras_bert_app.convert import reference
from keras_bert_app.convert.reference import random_batch
from keras_bert_app.data.readers import Record
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle, calibration, preparation, publishing, verification
from keras_bert_app.export.options import ExportOptions
from keras_bert_app.scoring import models, resumable
from keras_bert_app.tasks.answers import AnswerOptions
from keras_bert_app.tasks.classification import SEVERAL_LABELS, ClassificationTask
from keras_bert_app.tasks.metrics import multi_label_metrics, worst_sets
from keras_bert_app.training import finetuning, importing
from keras_bert_app.training import workdir as folders
from serving import server
from serving.client import PredictClient
from serving.compare import compare

WORDS = {"good": "gut", "bad": "übel", "film": "Film"}
SETTINGS = {
    "data.label_separator": "|",
    "train.learning_rate": 5e-3,
    "encoder.num_layers": 1,
    "encoder.pooling": "mean",
    "encoder.initializer_range": 0.2,
    "encoder.dropout": 0.0,
}


def rows():
    """Texts whose words tell their labels, none in every eighth."""
    kinds = [kind for count in range(4) for kind in itertools.combinations(WORDS, count)]
    return [
        {
            "text": f"the {' '.join(kinds[row % 8])} {'a ' * (row // 8)}",
            "label": " | ".join(WORDS[word] for word in kinds[row % 8]),
        }
        for row in range(96)
    ]


@pytest.fixture(scope="module")
def several_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    finetuning.finetune(tiny_config(folder / "data", rows(), **SETTINGS), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def several_bundle(several_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "several"
    return bundle.export(several_run, folder, ExportOptions(top_k=2, calibrate=True))


@pytest.fixture
def task():
    return ClassificationTask(("a", "b", "c"), [features.TEXT], problem_type=SEVERAL_LABELS)


@pytest.fixture(scope="module")
def examples():
    """Targets of four labels, the last of which no text has, and probabilities that follow them loosely."""
    rng = np.random.default_rng(3)
    targets = (rng.random((80, 4)) < [0.5, 0.2, 0.05, 0.0]).astype("float32")
    return targets, scipy.special.expit(rng.normal(size=targets.shape) + 2 * targets - 1.5)


# ---- Records and targets ----


def read(folder, label, *more):
    (folder / "x.csv").write_text("".join(f"{row}\n" for row in ("text,label", f"one,{label}", *more)))
    config = configuration.default()
    config.data.update({"train": str(folder / "x.csv"), "label_separator": "|"})
    config.data.evaluation = config.data.test = str(folder / "x.csv")
    frozen = configuration.freeze(config)
    return frozen, finetuning.load_splits(frozen)


def test_an_empty_label_in_a_row_is_refused_with_its_file_and_line(tmp_path):
    with pytest.raises(UserError, match=r"x.csv:3: label .* is 'a\|', with an empty label in it; write"):
        read(tmp_path, "a", "two,a|")


def test_a_training_set_without_any_label_is_refused_with_its_file_and_line():
    records = [Record({"text": str(line), "label": ()}, f"x.csv:{line}") for line in (2, 3)]
    config = configuration.default()
    config.data.label_separator = "|"
    with pytest.raises(UserError, match="x.csv:2: no label here, nor in any row"):
        ClassificationTask.from_records(configuration.freeze(config), records)
    config.task.class_weights = "balanced"
    with pytest.raises(UserError, match="class_weights is balanced, which is for one label a text"):
        ClassificationTask.from_records(configuration.freeze(config), records)


def test_targets_are_1_where_a_text_has_a_label_and_unknown_labels_are_refused(task):
    records = [
        Record({"text": "x", "label": labels}, f"x.csv:{line}")
        for line, labels in enumerate([(), ("c", "a")])
    ]
    targets = task.targets(records)
    assert targets[features.LABEL].tolist() == [[0, 0, 0], [1, 0, 1]]
    for name, spec in task.targets_specs.items():
        assert targets[name].dtype == spec.dtype and spec.shape.is_compatible_with(targets[name].shape)
        assert task.no_targets(2)[name].shape == targets[name].shape
    with pytest.raises(UserError, match="x.csv:9: unknown label 'd'; the training set has a, b, c"):
        task.targets([Record({"text": "x", "label": ("a", "d")}, "x.csv:9")])


# ---- Answers, metrics and thresholds ----


def test_labels_at_or_above_their_thresholds_come_first_likeliest_first(task):
    logits = {features.LOGITS: tf.constant([[0.0, 2.0, -1.0], [-3.0, -3.0, -3.0], [1.0, 0.5, 3.0]])}
    found = {name: value.numpy() for name, value in task.decode(logits, AnswerOptions(top_k=1)).items()}
    assert found["labels"].tolist() == [[b"b", b"a", b""], [b""] * 3, [b"c", b"a", b"b"]]
    assert found["num_labels"].tolist() == [2, 0, 3]
    assert found["top_labels"].tolist() == [[b"b"], [b"a"], [b"c"]]
    np.testing.assert_allclose(found["probabilities"], scipy.special.expit(logits["logits"]), rtol=1e-6)
    stricter = task.decode(logits, AnswerOptions(thresholds=[0.2, 0.9, 0.2]))
    assert stricter["labels"].numpy().tolist() == [[b"a", b"c", b""], [b""] * 3, [b"c", b"a", b""]]


def test_metrics_are_scikit_learns(examples):
    targets, probabilities = examples
    found = multi_label_metrics(targets, probabilities, "abcd", thresholds := [0.4, 0.5, 0.6, 0.99999])
    given = probabilities >= thresholds
    for name, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        # The macro F1 leaves the label out that is neither there nor given.
        columns = slice(3) if name == "macro_f1" else slice(4)
        expected = sklearn.metrics.f1_score(targets[:, columns], given[:, columns], average=average)
        assert found[name] == pytest.approx(expected, abs=1e-12)
    assert found["exact_match"] == np.mean((given == targets).all(axis=1))
    losses = [
        sklearn.metrics.log_loss(*columns, labels=[0, 1])
        for columns in zip(targets.T, probabilities.T, strict=True)
    ]
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-12)
    alone = multi_label_metrics(targets[:, :1], probabilities[:, :1], "a", 0.4)
    assert alone["per_class"] == found["per_class"][:1]


def test_no_other_threshold_has_a_better_f1(examples):
    targets, probabilities = examples
    found = calibration.fit_thresholds(probabilities, targets)
    assert found[3] == 0.5  # No text has the label.
    for column, threshold in enumerate(found[:3]):
        scores = probabilities[:, column]
        every = [sklearn.metrics.f1_score(targets[:, column], scores >= one) for one in scores]
        assert sklearn.metrics.f1_score(targets[:, column], scores >= threshold) == max(every)
        assert np.abs(scores - threshold).min() > 0
    before, after = (
        calibration.thresholding(probabilities, targets, "abcd", *more) for more in ((), (found,))
    )
    assert after["macro_f1"] > before["macro_f1"]


def test_the_worst_mistakes_are_those_of_the_surest_sets():
    probabilities = np.array([[0.9, 0.2], [0.6, 0.1], [0.99, 0.99]])
    mistakes = worst_sets(["x", "y", "z"], np.array([[0, 0], [0, 1], [1, 1]]), probabilities, "ab")
    assert [(row["text"], row["label"], row["predicted"]) for row in mistakes] == [
        ("x", "–", "a"),
        ("y", "b", "a"),
    ]
    assert mistakes[0]["predicted_probability"] == pytest.approx(0.9 * 0.8)
    assert mistakes[0]["label_probability"] == pytest.approx(0.1 * 0.8)


# ---- From transformers and back ----


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """transformers' model, imported as the folder `ours`."""
    monkeypatch.setattr(reference, "LIBRARIES", {"huggingface": ("not_installed",)})
    model = make(
        tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0], problem_type=SEVERAL_LABELS
    )
    importing.import_weights(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer={})
    return model


def test_loss_scores_and_problem_type_are_transformers(theirs, tmp_path):
    description, model = folders.load_best_model(tmp_path / "ours", "float32")
    batch = random_batch(description.task.network, description.encoder)
    count = len(batch["token_ids"])
    targets = np.random.default_rng(0).integers(0, 2, (count, len(LABELS))).astype("float32")
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(batch["token_ids"]).long(),
            token_type_ids=torch.tensor(batch["segment_ids"]).long(),
            attention_mask=torch.tensor(batch["padding_mask"]).long(),
            labels=torch.tensor(targets),
        )
    outputs = model(batch)
    losses = description.task.losses(outputs, {features.LABEL: tf.constant(targets)})["loss"]
    assert losses.shape == (count,)
    assert float(tf.reduce_mean(losses)) == pytest.approx(expected.loss.item(), rel=1e-5)
    scores = description.task.decode(outputs)["probabilities"]
    np.testing.assert_allclose(scores, torch.sigmoid(expected.logits).numpy(), atol=1e-5)
    publishing.publish(tmp_path / "ours", "huggingface", tmp_path / "back")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "back").problem_type == SEVERAL_LABELS


@pytest.mark.slow
def test_an_imported_classifier_is_asked_exported_and_evaluated_at_once(theirs, tmp_path):
    (answer,) = models.open_run(tmp_path / "ours", {}).answerer.answers([{"text": b"piece1 piece2"}])
    likely = [
        name for name, score in zip(LABELS.values(), answer["probabilities"], strict=True) if score >= 0.5
    ]
    assert sorted(filter(None, answer["labels"])) == sorted(likely) and answer["num_labels"] == len(likely)
    bundle.export(tmp_path / "ours", tmp_path / "exported")
    (exported,) = models.open_bundle(tmp_path / "exported", {}).answerer.answers([{"text": b"piece1 piece2"}])
    assert exported["labels"] == answer["labels"]
    (tmp_path / "dev.csv").write_text(f"text,label\npiece1 piece2,{'|'.join(likely)}\n")
    summary = evaluation.evaluate_file(tmp_path / "ours", str(tmp_path / "dev.csv"), tmp_path / "evaluated")
    assert "exact match        1.0000" in summary


# ---- From a file to gRPC ----


def test_a_run_learns_the_labels_and_is_evaluated(several_run, tmp_path):
    summary = evaluation.evaluate_test(several_run)
    metrics = json.loads((several_run / "metrics.json").read_text("utf-8"))["metrics"]
    assert metrics["micro_f1"] > 0.9
    assert f"exact match        {metrics['exact_match']:.4f}" in summary
    report = (several_run / "report.html").read_text("utf-8")
    assert "Exact match" in report and "Always answering" not in report
    (tmp_path / "dev.csv").write_text("text,label\nthe good film,gut|Film\nthe bad,gut\nthe,\n")
    assert "examples           3" in evaluation.evaluate_file(
        several_run, str(tmp_path / "dev.csv"), tmp_path
    )
    (mistake,) = json.loads((tmp_path / "metrics.json").read_text("utf-8"))["worst_mistakes"]
    assert (mistake["label"], mistake["predicted"]) == ("gut", "übel")
    (tmp_path / "dev.csv").write_text("text,label\nthe good film,gut|film\n")
    with pytest.raises(UserError, match="dev.csv:2: unknown label 'film'; the training set has Film, gut"):
        evaluation.evaluate_file(several_run, str(tmp_path / "dev.csv"), tmp_path)


def test_predict_writes_the_labels_of_a_run(several_run, tmp_path):
    (tmp_path / "texts.txt").write_text("the good film\nthe\nthe bad\n")
    resumable.predict_files(models.open_run(several_run, {}), [tmp_path / "texts.txt"], tmp_path / "answers")
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text("utf-8").splitlines()]
    assert [sorted(one["labels"]) for one in answers] == [["", "Film", "gut"], ["", "", ""], ["", "", "übel"]]
    assert [one["num_labels"] for one in answers] == [2, 0, 1]


def test_thresholds_are_fitted_on_one_split_and_measured_on_the_other(several_run):
    prepared = preparation.prepare(several_run, ExportOptions(calibrate=True, precision="bfloat16"))
    measured = prepared.figures["thresholds"]
    assert list(measured["thresholds"].values()) == prepared.answers.thresholds
    assert measured["thresholds"].keys() == set(WORDS.values())
    parts = finetuning.load_splits(folders.read_config(several_run))
    assert measured["fitted_on"] == len(parts.evaluation) > 0
    assert measured["test_before"]["num_examples"] == len(parts.test) > 0
    assert measured["test_after"]["micro_f1"] > 0.9
    precision = prepared.figures["precision"]
    assert precision["micro_f1"] >= precision["float32_micro_f1"] - precision["max_loss"]
    with pytest.raises(UserError, match="--abstain is for one label a text"):
        preparation.prepare(several_run, ExportOptions(abstain=0.8))


@pytest.mark.slow
def test_a_bundle_stands_alone_and_answers_over_grpc_with_the_labels(
    several_run, several_bundle, monkeypatch
):
    monkeypatch.setattr(verification, "_RUNTIMES", {"C API": "c_api.py"})
    assert verification.verify(several_bundle).endswith("stands alone")
    content = json.loads((several_bundle / "assets.extra" / "export.json").read_text("utf-8"))
    measured = content["measured"]["thresholds"]
    assert list(measured["thresholds"].values()) == content["options"]["thresholds"]
    texts = [b"the good film", b"the", b"the film a", b"\xff"]
    with (
        server.serve("several", str(several_bundle.parent), port=0) as running,
        PredictClient(running.address, "several") as client,
    ):
        assert "regress" not in client.metadata()
        answers = client.predict(texts)
        classes = client.classify([{"text": text} for text in texts], "classify")
    assert [sorted(filter(None, one["labels"])) for one in answers[:3]] == [["Film", "gut"], [], ["Film"]]
    assert [one["num_labels"] for one in answers[:3]] == [2, 0, 1]
    for one, scored in zip(answers, classes, strict=True):
        assert [each["score"] for each in scored] == pytest.approx(one["probabilities"], abs=1e-6)
        assert [each["label"] for each in scored] == ["Film", "gut", "übel"]
    wanted = models.open_bundle(several_bundle.parent, {}).answerer.answers(
        [{"text": text} for text in texts]
    )
    for one, other in zip(answers, wanted, strict=True):
        assert one["labels"] == other["labels"] and one["top_labels"] == other["top_labels"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_answers_with_the_same_labels_in_another_order_are_not_changed():
    def row(*labels, score):
        names = np.empty((1, 3), object)
        names[0] = [*labels, *[b""] * (3 - len(labels))]
        return {"labels": names, "probabilities": np.full((1, 3), score, "float32")}

    a = row(b"x", b"y", score=0.9)
    found = compare(
        [((b"t",), a, row(b"y", b"x", score=0.8), 0.1, 0.1), ((b"u",), a, row(b"x", score=0.9), 0.1, 0.1)]
    )
    assert found.confusion == {("x,y", "x,y"): 1, ("x,y", "x"): 1}
    assert [change.row for change in found.changes] == [(b"u",)]
