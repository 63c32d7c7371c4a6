import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import fresh_flags
from sklearn.metrics import log_loss

import run
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle, preparation, verification
from keras_bert_app.export.options import PLAIN, ExportOptions
from keras_bert_app.training import finetuning
from keras_bert_app.training import workdir as folders


@pytest.fixture(scope="module")
def model(tiny_run):
    return folders.load_best_model(tiny_run, "float32")[1]


def test_int8_weights_are_the_nearest_to_those_of_each_column_or_row(tiny_run, model):
    stored = preparation.with_precision(tiny_run, model, "int8")
    block = stored.get_layer("encoder").blocks[0]
    for layer, theirs, axis in (
        (block.intermediate, model.get_layer("encoder").blocks[0].intermediate.kernel, 0),
        (
            stored.get_layer("encoder").embeddings.token,
            model.get_layer("encoder").embeddings.token.embeddings,
            1,
        ),
    ):
        exact = keras.ops.convert_to_numpy(theirs)
        scale = 127 / np.abs(exact).max(axis=axis, keepdims=True)
        (weights,) = (one for one in layer.weights if one.dtype == "int8")
        np.testing.assert_allclose(weights.numpy() / scale, exact, atol=0.51 / scale.min())
    kinds = {one.path: one.dtype for one in stored.weights}
    assert sum(kind == "int8" for kind in kinds.values()) == 2 + 1 + 2 * 6
    assert not any(kind == "int8" for path, kind in kinds.items() if path.startswith("head"))


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.01), ("int8", 0.1)])
def test_answers_of_coarser_weights_are_close_to_the_exact_ones(tiny_run, model, precision, tolerance):
    stored = preparation.with_precision(tiny_run, model, precision)
    inputs = folders.ModelDescription.load(tiny_run).packer()(
        [tf.constant(["good film", "", "so dull " * 9])]
    )
    exact, found = model(inputs)["logits"], stored(inputs)["logits"]
    assert found.dtype == "float32"
    assert precision in {weight.dtype for weight in stored.weights}
    assert 0 < np.abs(exact - found).max() < tolerance


def test_a_precision_that_loses_too_much_is_refused_with_both_accuracies(tiny_run, monkeypatch):
    def spoilt(workdir, model, precision):
        _, other = folders.load_best_model(workdir, "float32")
        for weight in other.get_layer("head").weights:
            weight.assign(-weight)
        return other

    monkeypatch.setattr(preparation, "with_precision", spoilt)
    with pytest.raises(UserError, match=r"--precision=int8 loses .* of accuracy .*more than --max_loss=0.01"):
        preparation.prepare(tiny_run, ExportOptions(precision="int8"))


def test_an_imported_run_has_nothing_to_measure_on(tiny_run, monkeypatch):
    config = folders.read_config(tiny_run)
    data = type(config.data)()
    monkeypatch.setattr(folders, "read_config", lambda _: type(config)(data=data))
    with pytest.raises(
        UserError, match="was imported and has no examples, which --calibrate, --precision needs"
    ):
        preparation.prepare(tiny_run, ExportOptions(calibrate=True, precision="int8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "--precision is 'int4'; it takes one of float32, bfloat16, int8"),
        ({"abstain": 1.5}, "--abstain is 1.5; it takes a probability between 0 and 1"),
        ({"max_loss": -1.0}, "--max_loss is -1; it takes 0 to 1"),
        ({"keep": 0}, "--keep is 0; it takes at least 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ExportOptions(**options)


def test_the_flags_of_export_are_its_options(monkeypatch, capsys):
    fresh_flags(monkeypatch)
    asked = []
    monkeypatch.setattr(bundle, "export", lambda *arguments: asked.append(arguments) or "exported/1")
    flags = ["--top_k=2", "--calibrate", "--abstain=0.8", "--precision=int8", "--max_loss=0.02", "--keep=3"]
    run.main(["export", "--workdir=run", "--export_dir=exported", *flags])
    assert asked == [(Path("run"), Path("exported"), ExportOptions(2, True, 0.8, "int8", 0.02, 3))]
    assert capsys.readouterr().out == "exported exported/1\n"


def test_without_flags_a_bundle_is_the_run_as_it_is(monkeypatch):
    fresh_flags(monkeypatch)
    asked = []
    monkeypatch.setattr(bundle, "export", lambda *arguments: asked.append(arguments[2]))
    run.main(["export", "--workdir=run", "--export_dir=exported"])
    assert asked == [PLAIN]


@pytest.mark.parametrize("top_k", [0, 3])
def test_more_labels_than_there_are_are_refused(tiny_run, top_k):
    with pytest.raises(UserError, match=f"--top_k is {top_k}; the run has 2 labels, so it takes 1 to 2"):
        preparation.prepare(tiny_run, ExportOptions(top_k=top_k))


def with_mistakes(config, load_splits=finetuning.load_splits):
    """A run's splits, the first three labels of each that no training sees changed."""
    parts = load_splits(config)

    def changed(records):
        other = {"gut": "übel", "übel": "gut"}
        wrong = [
            dataclasses.replace(record, values=record.values | {"label": other[record.values["label"]]})
            for record in records[:3]
        ]
        return [*wrong, *records[3:]]

    return dataclasses.replace(parts, evaluation=changed(parts.evaluation), test=changed(parts.test))


def test_a_bundle_with_every_option_stands_alone_and_says_what_was_measured(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "load_splits", with_mistakes)
    options = ExportOptions(top_k=2, abstain=0.8, precision="int8", max_loss=0.2)
    path = bundle.export(tiny_run, tmp_path / "exported", options)
    monkeypatch.setattr(verification, "_RUNTIMES", {"C API": "c_api.py"})
    assert verification.verify(path).endswith("stands alone")
    content = json.loads((path / "assets.extra" / "export.json").read_text("utf-8"))
    measured, given = content["measured"], content["options"]
    assert measured["calibration"]["temperature"] == given["temperature"] != 1
    assert measured.keys() == {"precision", "calibration", "abstention"}
    assert measured["precision"]["float32_accuracy"] < 1
    test = with_mistakes(folders.read_config(tiny_run)).test
    texts, labels = zip(*((record.values["text"], record.values["label"]) for record in test), strict=True)
    answer = tf.saved_model.load(str(path)).signatures["serving_default"](text=tf.constant(texts))
    served = {name: value.numpy() for name, value in answer.items()}
    after = measured["calibration"]["test_after"]["negative_log_likelihood"]
    assert after == pytest.approx(log_loss(labels, served["probabilities"]), rel=1e-3)
    abstention = measured["abstention"]["test"]
    assert abstention["coverage"] == pytest.approx(1 - served["abstained"].mean())
    assert served["top_labels"].shape == (len(test), 2)
    assert ((served["score"] < 0.8) == served["abstained"]).all()
    assert ((served["label"] == b"") == served["abstained"]).all()
