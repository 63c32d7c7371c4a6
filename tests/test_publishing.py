"""A run in other people's formats: whole, read back, and nothing where it can't be."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import test_google
import torch
import transformers

import keras_bert_app.model
from keras_bert_app.convert import huggingface, reference
from keras_bert_app.convert.reference import random_batch
from keras_bert_app.errors import UserError
from keras_bert_app.export import publishing
from keras_bert_app.training import importing, initial
from keras_bert_app.training import workdir as folders


@pytest.fixture(scope="module")
def answers(tiny_run):
    """A batch and what the run's model answers."""
    description, model = folders.load_best_model(tiny_run, "float32")
    batch = random_batch(description.task.network, description.encoder)
    return batch, np.asarray(model(batch)["logits"])


def test_transformers_loads_a_published_run_and_answers_the_same(tiny_run, answers, tmp_path):
    said = publishing.publish(tiny_run, "huggingface", tmp_path / "out")
    assert "read back and found equal" in said
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    batch, expected = answers
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(batch["token_ids"]).long(),
            token_type_ids=torch.tensor(batch["segment_ids"]).long(),
            attention_mask=torch.tensor(batch["padding_mask"]).long(),
        ).logits
    np.testing.assert_allclose(logits.numpy(), expected, atol=2e-5)
    assert model.config.id2label == {0: "gut", 1: "übel"}
    assert model.config.problem_type == "single_label_classification"
    classify = transformers.pipeline("text-classification", str(tmp_path / "out"))
    assert classify("the film was great")[0]["label"] in ("gut", "übel")


def test_the_card_says_what_it_is(tiny_run, tmp_path):
    publishing.publish(tiny_run, "huggingface", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    for part in ("BertForSequenceClassification", "gut, übel.", "Not measured.", "WordPiece, 20 pieces"):
        assert part in card
    assert str(tiny_run.parent) not in card and "train.csv" in card  # Paths are nobody else's business.


def test_keras_loads_a_published_run_and_answers_the_same(tiny_run, answers, tmp_path):
    publishing.publish(tiny_run, "keras", tmp_path / "classifier.keras")
    batch, expected = answers
    model = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(model(batch)["logits"], expected)
    assert isinstance(model.get_layer("encoder"), keras_bert_app.model.BertEncoder)


@pytest.mark.parametrize(
    ("format", "name", "message"),
    [
        ("huggingface", "there", "there is there already; give another --output"),
        ("keras", "there", "there is there already; give another --output"),
        ("keras", "model.h5", "a Keras model is a file whose name ends in .keras"),
    ],
)
def test_what_can_not_be_written_is_refused(tiny_run, tmp_path, format, name, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(UserError, match=message):
        publishing.publish(tiny_run, format, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("format", ["google", "kerashub"])
def test_exact_gelu_is_refused_where_it_is_not_computed(tiny_run, tmp_path, format):
    with pytest.raises(UserError, match="gelu"):
        publishing.publish(tiny_run, format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A run made of a release of Google's, which every format can hold."""
    folder = tmp_path_factory.mktemp("imported")
    shape = test_google.SHAPES[0]
    arrays = test_google.release_arrays(test_google.make_reference("sequence_classification", shape))
    test_google.write_release(folder / "theirs", arrays, shape)
    importing.import_weights(str(folder / "theirs"), folder / "run", tokenizer={})
    return folder / "run"


@pytest.mark.parametrize("format", ["huggingface", "google", "kerashub"])
def test_what_every_format_can_hold_goes_out_and_comes_in_again(imported, tmp_path, format, monkeypatch):
    monkeypatch.setattr(reference, "LIBRARIES", {})  # Their processes take seconds to start.
    said = publishing.publish(imported, format, tmp_path / "out")
    assert ("no names for labels" in said) is False  # They are LABEL_0 and so on.
    importing.import_weights(str(tmp_path / "out"), tmp_path / "again", tokenizer={})
    before, after = initial.load_run(imported), initial.load_run(tmp_path / "again")
    assert before.network.kind == after.network.kind and before.network.labels == after.network.labels
    one, other = before.arrays(), after.arrays()
    assert one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)
    assert before.encoder == after.encoder
    assert before.vocabulary.pieces == after.vocabulary.pieces
    assert "SHA-256" in (tmp_path / "out" / "README.md").read_text()


def test_a_network_that_the_format_can_not_hold_leaves_nothing(tiny_run, tmp_path, monkeypatch):
    description = folders.ModelDescription.load(tiny_run)
    encoder = {**vars(description.encoder), "position_type": "sinusoidal"}
    load = publishing.initial.load_run
    monkeypatch.setattr(
        publishing.initial,
        "load_run",
        lambda workdir: publishing.dataclasses.replace(load(workdir), encoder=encoder),
    )
    with pytest.raises(UserError, match="transformers can't hold this network"):
        publishing.publish(tiny_run, "huggingface", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_changes_a_tensor_is_found_out(tiny_run, tmp_path, monkeypatch):
    save = huggingface.save

    def wrong(pretrained, folder, max_length):
        arrays = pretrained.arrays()
        arrays["head/logits/bias"] = arrays["head/logits/bias"][::-1]
        monkeypatch.setattr(type(pretrained), "arrays", lambda self: arrays)
        save(pretrained, folder, max_length)

    monkeypatch.setattr(huggingface, "save", wrong)
    with pytest.raises(UserError, match="huggingface changes head/logits/bias, so nothing was written"):
        publishing.publish(tiny_run, "huggingface", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encoder": {"epsilon": 1e-3}}, "epsilon"),
        ({"encoder": {"activation": "relu"}}, "activation"),
        ({"tokenizer_options": {"strip_accents": False}}, "strip_accents"),
    ],
)
def test_a_format_that_changes_a_setting_is_found_out(tiny_run, tmp_path, monkeypatch, changes, named):
    save = huggingface.save

    def wrong(pretrained, folder, max_length):
        encoder = {**pretrained.encoder, **changes.get("encoder", {})}
        options = dataclasses.replace(pretrained.tokenizer_options, **changes.get("tokenizer_options", {}))
        changed = dataclasses.replace(pretrained, encoder=encoder, tokenizer_options=options)
        save(changed, folder, max_length)

    monkeypatch.setattr(huggingface, "save", wrong)
    with pytest.raises(UserError, match=f"huggingface changes {named}, so nothing was written"):
        publishing.publish(tiny_run, "huggingface", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_published_run_are_its_own(tiny_run, tmp_path):
    publishing.publish(tiny_run, "huggingface", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["architectures"] == ["BertForSequenceClassification"]
    assert settings["num_hidden_layers"] == 2 and settings["hidden_act"] == "gelu"
    assert settings["pad_token_id"] == 0
