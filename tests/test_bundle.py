import dataclasses
import errno
import json
import os
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import loader_impl

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle, c_api, verification
from keras_bert_app.export.options import ExportOptions
from keras_bert_app.export.versions import version_folders
from keras_bert_app.tasks import ClassificationTask
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.training import workdir as folders


@pytest.fixture(scope="module")
def served(tiny_bundle):
    """The signatures of a bundle that was loaded again."""
    return tf.saved_model.load(str(tiny_bundle / "1")).signatures


def write_empty(module, path, **_):
    """A SavedModel with nothing in it, in place of tf.saved_model.save."""
    saved = saved_model_pb2.SavedModel()
    saved.meta_graphs.add().meta_info_def.tags.append("serve")
    Path(path, "saved_model.pb").write_bytes(saved.SerializeToString())


@pytest.fixture
def without_graphs(monkeypatch):
    """Exports that write no graphs, for tests of the folders."""
    monkeypatch.setattr(ClassificationTask, "signatures", lambda *_: {})
    monkeypatch.setattr(bundle, "requests_by_length", lambda *_: [])
    monkeypatch.setattr(tf.saved_model, "save", write_empty)


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


LENGTHS = [-1, -1]
TOKENS = {name: (dtype, LENGTHS) for name, dtype in features.ENCODER_INPUTS.items()}
EXAMPLES = {"inputs": ("string", [-1])}
CONTRACT = {
    "serving_default": (
        {"text": ("string", [-1])},
        {
            "label": ("string", [-1]),
            "score": ("float32", [-1]),
            "probabilities": ("float32", [-1, 2]),
            "num_tokens": ("int32", [-1]),
            "truncated": ("bool", [-1]),
        },
    ),
    "classify": (EXAMPLES, {"classes": ("string", [-1, 2]), "scores": ("float32", [-1, 2])}),
    "regress": (EXAMPLES, {"outputs": ("float32", [-1])}),
    "token_ids": (TOKENS, {"logits": ("float32", [-1, 2])}),
    "embed": ({"text": ("string", [-1])}, {"embedding": ("float32", [-1, 32])}),
    "tokenize": (
        {"text": ("string", [-1])},
        {"pieces": ("string", LENGTHS), "num_tokens": ("int32", [-1])}
        | dict.fromkeys(("token_ids", "segment_ids", "starts", "ends"), ("int32", LENGTHS)),
    ),
}


def test_the_signatures_have_the_names_dtypes_and_shapes_of_the_contract(tiny_bundle):
    saved = loader_impl.parse_saved_model(str(tiny_bundle / "1"))
    found = dict(saved.meta_graphs[0].signature_def)
    found.pop("__saved_model_init_op")
    assert {name: (described(one.inputs), described(one.outputs)) for name, one in found.items()} == CONTRACT
    methods = {name: one.method_name.removeprefix("tensorflow/serving/") for name, one in found.items()}
    assert {name: method for name, method in methods.items() if method != "predict"} == {
        "classify": "classify",
        "regress": "regress",
    }


def test_every_signature_is_asked_about_one_text_several_and_none(tiny_bundle):
    requests = json.loads((tiny_bundle / "1" / "assets.extra" / "examples.json").read_text("utf-8"))
    asked = [(row["signature"], next(iter(row["inputs"].values()))["shape"][0]) for row in requests]
    assert sorted(asked) == sorted((name, count) for name in CONTRACT for count in (0, 1, 1, 1, 1, 7))
    lengths = [(row["signature"], row["length"]) for row in requests if "length" in row]
    assert sorted(lengths) == sorted((name, length) for name in CONTRACT for length in (8, 16, 32))


def test_examples_get_the_probabilities_that_texts_get(served):
    texts = ["good film", "", b"so dull \xff " * 9]
    examples = tf.constant(
        [
            tf.train.Example(
                features=tf.train.Features(
                    feature={
                        "text": tf.train.Feature(
                            bytes_list=tf.train.BytesList(value=[tf.compat.as_bytes(text)])
                        )
                    }
                )
            ).SerializeToString()
            for text in texts
        ]
    )
    expected = served["serving_default"](text=tf.constant(texts))["probabilities"].numpy()
    classified = served["classify"](inputs=examples)
    assert [[label.decode() for label in row] for row in classified["classes"].numpy()] == [
        ["gut", "übel"]
    ] * 3
    np.testing.assert_allclose(classified["scores"], expected, atol=1e-6)
    np.testing.assert_allclose(served["regress"](inputs=examples)["outputs"], expected[:, 1], atol=1e-6)


def of_higher_rank(dtype, shape):
    kind, value = ("O", b"a") if dtype == "string" else (dtype, 0)
    return c_api.encode_tensor(np.full([1] * (len(shape) + 1), value, kind))


def test_every_signature_refuses_another_rank_and_names_the_input(tiny_bundle):
    """Asked as a model server asks, through the C API: Python would see to the ranks itself."""
    requests = [
        {"signature": name, "inputs": {key: of_higher_rank(*info) for key, info in inputs.items()}}
        for name, (inputs, _) in CONTRACT.items()
    ]
    answers = verification.ask("here", "c_api.py", tiny_bundle / "1", requests)
    for (name, (inputs, _)), answer in zip(CONTRACT.items(), answers, strict=True):
        rank = 2 if name == "token_ids" else 1
        assert re.search(rf"({'|'.join(inputs)}): expected \w+ of rank {rank}, got shape", answer["error"])


def test_the_embedding_is_what_the_head_sees(served, tiny_run):
    description, model = folders.load_best_model(tiny_run, "float32")
    texts = tf.constant(["good film", "", "the plot was dull"])
    embedding = served["embed"](text=texts)["embedding"]
    head = model.get_layer("head")
    logits = model(description.packer()([texts]), training=False)["logits"]
    np.testing.assert_allclose(head(embedding), logits, atol=1e-5)


def test_tokens_and_their_places_are_those_of_the_reference_tokenizer(served, tiny_run):
    reference = tokenizers.BertWordPieceTokenizer(str(tiny_run / "vocab.txt"), lowercase=True)
    reference.enable_truncation(32)
    texts = ["", "Good film.", "naïve the 中plot ... ½ bad", "the film was great " * 20]
    found = {name: value.numpy() for name, value in served["tokenize"](text=tf.constant(texts)).items()}
    for row, text in enumerate(texts):
        encoding = reference.encode(text)
        count = len(encoding.ids)
        assert found["num_tokens"][row] == count
        assert found["token_ids"][row].tolist() == encoding.ids + [0] * (32 - count)
        assert [piece.decode() for piece in found["pieces"][row, :count]] == encoding.tokens
        assert set(found["pieces"][row, count:]) <= {b"[PAD]"}
        for place, (start, end) in enumerate(encoding.offsets):
            assert found["starts"][row, place] == len(text[:start].encode()) * (start != end)
            assert found["ends"][row, place] == len(text[:end].encode()) * (start != end)


def test_the_answer_says_how_much_was_read(served):
    texts = ["", "good film", "good " * 30, "good " * 31]
    answer = served["serving_default"](text=tf.constant(texts))
    assert answer["num_tokens"].numpy().tolist() == [2, 4, 32, 32]
    assert answer["truncated"].numpy().tolist() == [False, False, False, True]


def test_the_bundle_says_what_it_is_and_where_it_comes_from(tiny_bundle, tiny_run):
    extra = tiny_bundle / "1" / "assets.extra"
    content = json.loads((extra / "export.json").read_text("utf-8"))
    assert content["format_version"] == 1
    assert content["task"] == {
        "name": "classification",
        "labels": ["gut", "übel"],
        "text_inputs": ["text"],
        "head_dropout": None,
        "problem_type": "single_label_classification",
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
    assert [path.name for path in version_folders(tmp_path)] == ["2", "10"]
    assert bundle.next_version(tmp_path) == 11


def test_a_second_export_is_the_next_version_and_leaves_the_first_alone(tiny_run, tmp_path, without_graphs):
    first, second = (bundle.export(tiny_run, tmp_path / "exported") for _ in range(2))
    assert (first.name, second.name) == ("1", "2")
    assert entries(tmp_path / "exported") == ["1", "2"]


def test_pruning_keeps_the_highest_versions_and_numbers_go_on(
    tiny_run, tmp_path, without_graphs, monkeypatch
):
    away = []
    monkeypatch.setattr(bundle.os, "rename", lambda *paths: (away.append(paths), os.replace(*paths)))
    for name in ("2", "09", "10", "old"):
        (tmp_path / name / "variables").mkdir(parents=True)
    assert bundle.export(tiny_run, tmp_path, ExportOptions(keep=2)).name == "11"
    assert entries(tmp_path) == ["10", "11", "old"]
    # Each leaves whole, for where no server looks for versions.
    removed = [(old.name, new.parent.name) for old, new in away if old.name in ("2", "09")]
    assert [old for old, _ in removed] == ["2", "09"]
    assert not any(re.fullmatch(r"\d+", new) for _, new in removed)


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
def test_an_export_that_fails_leaves_nothing(tiny_run, tmp_path, monkeypatch, without_graphs, error, late):
    def fail(module, path, **_):
        write_empty(module, path)
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
