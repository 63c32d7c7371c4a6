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
from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle, preparation, verification
from keras_bert_app.export.freezing import FrozenNetwork
from keras_bert_app.export.options import PLAIN, ExportOptions
from keras_bert_app.training import finetuning
from keras_bert_app.training import workdir as folders


@pytest.fixture(scope="module")
def model(tiny_run):
    return folders.load_best_model(tiny_run, "float32")[1]


@pytest.fixture(scope="module")
def examples(tiny_run):
    """Packed texts of the run's own."""
    description = folders.ModelDescription.load(tiny_run)
    records = finetuning.load_splits(folders.read_config(tiny_run)).train
    return finetuning.make_examples(description.packer(), description.task, records)


def logits(network, examples):
    """What a graph gives, as integers aren't multiplied outside of one."""
    inputs = examples.batch(np.arange(len(examples)))
    inputs = {name: inputs[name] for name in features.ENCODER_INPUTS}
    return np.array(tf.function(lambda inputs: network(inputs, training=False))(inputs)["logits"])


def test_int8_bundles_have_integers_for_every_dense_layer_of_the_blocks_and_for_tokens(
    tiny_run, model, examples
):
    stored = preparation.with_precision(tiny_run, model, "int8", examples)
    encoder = stored.get_layer("encoder")
    for block in encoder.blocks:
        attention = block.attention
        products = {
            layer.integers
            for layer in (attention.query, attention.key, attention.value, attention.output_dense)
        } | {block.intermediate.integers, block.output_dense.integers}
        assert len(products) == 4
        assert {product.kernel.values.dtype for product in products} == {np.dtype("int8")}
    (table,) = (one for one in encoder.embeddings.token.weights if one.dtype == "int8")
    exact = keras.ops.convert_to_numpy(model.get_layer("encoder").embeddings.token.embeddings)
    scale = 127 / np.abs(exact).max(axis=1, keepdims=True)
    np.testing.assert_allclose(table.numpy() / scale, exact, atol=0.51 / scale.min())


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.05), ("int8", 0.3)])
def test_answers_of_coarser_weights_are_close_to_the_exact_ones(
    tiny_run, model, examples, precision, tolerance
):
    stored = preparation.with_precision(tiny_run, model, precision, examples)
    exact, found = logits(model, examples), logits(stored, examples)
    assert found.dtype == "float32"
    assert 0 < np.abs(exact - found).max() < tolerance
    frozen = logits(FrozenNetwork(stored), examples)
    np.testing.assert_allclose(frozen, found, atol=tolerance / 10)


def test_a_processor_without_bfloat16_stores_it_and_multiplies_float32(
    tiny_run, model, examples, monkeypatch
):
    monkeypatch.setattr(preparation, "processor_has", lambda *names: False)
    stored = preparation.with_precision(tiny_run, model, "bfloat16", examples)
    assert {weight.dtype for weight in stored.get_layer("encoder").weights} == {"bfloat16"}
    assert stored.get_layer("encoder").compute_dtype == "float32"
    assert 0 < np.abs(logits(model, examples) - logits(stored, examples)).max() < 0.01


def test_a_processor_without_products_of_integers_is_refused(tiny_run, model, examples, monkeypatch):
    monkeypatch.setattr(preparation, "processor_has", lambda *names: False)
    with pytest.raises(UserError, match="--precision=int8: this processor has no products of 8-bit integers"):
        preparation.with_precision(tiny_run, model, "int8", examples)


def test_what_the_processor_has_is_read_from_linux_or_nothing(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(preparation, "Path", lambda name: file)
    assert not preparation.processor_has("avx512_bf16")
    file.write_text("processor : 0\nflags : fpu avx512_bf16 avx512_vnni\n", encoding="utf-8")
    assert preparation.processor_has("amx_bf16", "avx512_bf16")
    assert not preparation.processor_has("amx_bf16", "fp")


def test_a_precision_that_loses_too_much_is_refused_with_both_accuracies(tiny_run, monkeypatch):
    def spoilt(workdir, model, precision, examples):
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


def test_the_flags_of_export_are_its_options(tiny_run, monkeypatch, capsys):
    fresh_flags(monkeypatch)
    asked = []
    monkeypatch.setattr(bundle, "export", lambda *arguments: asked.append(arguments) or "exported/1")
    flags = ["--top_k=2", "--calibrate", "--abstain=0.8", "--precision=int8", "--max_loss=0.02", "--keep=3"]
    run.main(["export", f"--workdir={tiny_run}", "--export_dir=exported", *flags])
    assert asked == [(tiny_run, Path("exported"), ExportOptions(2, True, 0.8, "int8", 0.02, 3))]
    assert capsys.readouterr().out == "exported exported/1\n"


def test_without_flags_a_bundle_is_the_run_as_it_is(tiny_run, monkeypatch):
    fresh_flags(monkeypatch)
    asked = []
    monkeypatch.setattr(bundle, "export", lambda *arguments: asked.append(arguments[2]))
    run.main(["export", f"--workdir={tiny_run}", "--export_dir=exported"])
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
