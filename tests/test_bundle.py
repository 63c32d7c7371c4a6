import dataclasses
import errno
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.saved_model import loader_impl

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.training import workdir as folders


@pytest.fixture
def run_copy(tiny_run, tmp_path):
    """A run's folder that a test may change."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def entries(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def described(tensors):
    return {
        name: (tf.as_dtype(info.dtype).name, [dim.size for dim in info.tensor_shape.dim])
        for name, info in tensors.items()
    }


def test_the_signatures_have_the_names_dtypes_and_shapes_of_the_contract(tiny_bundle):
    saved = loader_impl.parse_saved_model(str(tiny_bundle / "1"))
    signatures = saved.meta_graphs[0].signature_def
    assert set(signatures) - {"__saved_model_init_op"} == {"serving_default", "token_ids"}
    assert described(signatures["serving_default"].inputs) == {"text": ("string", [-1])}
    assert described(signatures["serving_default"].outputs) == {
        "label": ("string", [-1]),
        "score": ("float32", [-1]),
        "probabilities": ("float32", [-1, 2]),
    }
    assert described(signatures["token_ids"].inputs) == {
        name: (dtype, [-1, -1]) for name, dtype in features.ENCODER_INPUTS.items()
    }
    assert described(signatures["token_ids"].outputs) == {"logits": ("float32", [-1, 2])}


def test_the_bundle_says_what_it_is_and_where_it_comes_from(tiny_bundle, tiny_run):
    extra = tiny_bundle / "1" / "assets.extra"
    content = json.loads((extra / "bundle.json").read_text("utf-8"))
    assert content["format_version"] == 1
    assert content["task"] == {
        "name": "classification",
        "labels": ["gut", "übel"],
        "text_inputs": ["text"],
        "head_dropout": None,
    }
    description = folders.ModelDescription.load(tiny_run)
    assert content["tokenizer"]["vocabulary_sha256"] == description.vocabulary.sha256
    assert (extra / "vocab.txt").read_bytes() == (tiny_run / "vocab.txt").read_bytes()
    assert content["checkpoint_step"] == folders.best_step(tiny_run)
    assert content["training"]["starts"][0]["data"]["train"].endswith("train.csv")
    assert content["export"]["packages"]["tensorflow"] == tf.__version__


def test_metrics_and_licences_of_weights_and_data_go_into_the_bundle(run_copy):
    folders.write_json(run_copy / "metrics.json", {"metrics": {"accuracy": 0.5}})
    start = {"weights": {"license": "Apache-2.0"}, "data": {"train": {"package": "p", "license": "CC0"}}}
    folders.write_json(run_copy / "provenance.json", {"starts": [start]})
    description = folders.ModelDescription.load(run_copy)
    content = bundle.describe(run_copy, description, 1)
    assert content["metrics"] == {"accuracy": 0.5}
    assert content["training"]["starts"] == [start]


def test_the_tokenizers_options_go_into_the_bundle(run_copy):
    options = TokenizerOptions(False, strip_accents=True, split_chinese=False, never_split=("[MASK]",))
    description = folders.ModelDescription.load(run_copy)
    content = bundle.describe(run_copy, dataclasses.replace(description, tokenizer_options=options), 1)
    assert json.loads(json.dumps(content["tokenizer"])) == {
        "vocabulary_sha256": description.vocabulary.sha256,
        "max_length": description.max_length,
        "truncation": description.truncation,
        "lower_case": False,
        "strip_accents": True,
        "split_chinese": False,
        "never_split": ["[MASK]"],
    }


def test_versions_count_up_from_the_highest_there(tmp_path):
    assert bundle.next_version(tmp_path / "new") == 1
    for name in ("2", "10", "old", ".11.x.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").touch()
    assert bundle.versions(tmp_path) == [2, 10]
    assert bundle.next_version(tmp_path) == 11


def test_a_second_export_is_the_next_version_and_leaves_the_first_alone(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(tf.saved_model, "save", lambda *_, **__: None)
    first, second = (bundle.export(tiny_run, tmp_path / "exported") for _ in range(2))
    assert (first.name, second.name) == ("1", "2")
    assert entries(tmp_path / "exported") == ["1", "2"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "No space left on device"),
        KeyboardInterrupt(),
        SystemExit(143),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("late", [False, True])
def test_an_export_that_fails_leaves_nothing(tiny_run, tmp_path, monkeypatch, error, late):
    def fail(module, path, **_):
        (tmp_path.__class__(path) / "saved_model.pb").touch()
        if not late:
            raise error

    def fail_late(*_):
        raise error

    monkeypatch.setattr(tf.saved_model, "save", fail)
    monkeypatch.setattr(bundle, "describe", fail_late)
    expected = UserError if isinstance(error, tf.errors.OpError) and not late else type(error)
    with pytest.raises(expected):
        bundle.export(tiny_run, tmp_path / "exported")
    assert entries(tmp_path / "exported") == []


def test_a_file_in_place_of_the_folder_is_refused(tiny_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give a folder as --export_dir"):
        bundle.export(tiny_run, tmp_path / "file")


def test_a_run_of_an_unknown_format_is_refused_with_what_to_do(run_copy, tmp_path):
    content = json.loads((run_copy / "config.json").read_text("utf-8"))
    folders.write_json(run_copy / "config.json", content | {"format_version": 2})
    with pytest.raises(UserError, match="has format 2, this version knows 1; use the version that made it"):
        bundle.export(run_copy, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_the_keras_model_gives_the_bundles_logits(tiny_run, tiny_bundle):
    model = keras.saving.load_model(tiny_run / "model.keras", compile=False)
    served = tf.saved_model.load(str(tiny_bundle / "1")).signatures["token_ids"]
    inputs = folders.ModelDescription.load(tiny_run).packer()(
        [tf.constant(["good film", "", "so dull " * 9])]
    )
    np.testing.assert_allclose(model(inputs)["logits"], served(**inputs)["logits"], atol=1e-5)
