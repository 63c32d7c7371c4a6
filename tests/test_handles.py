"""Handles of model hubs, offline: a cache as huggingface_hub keeps it, downloaders that are stood in for."""

import json

import huggingface_hub
import kagglehub
import pytest
from test_huggingface_heads import SHAPES, make

from keras_bert_app.convert import handles
from keras_bert_app.errors import UserError
from keras_bert_app.training import initial

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Hugging Face's cache with one repository, `org/tiny`, of which main is COMMIT."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    make(tmp_path / "made", "bert", "encoder", SHAPES[0])
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate((tmp_path / "made").iterdir()):
        path.rename(blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    return snapshot


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_hugging_face_name_is_a_folder_of_its_cache(cache, revision):
    pretrained = initial.load_pretrained(f"hf://org/tiny{revision}")
    assert pretrained.network.kind == "encoder" and pretrained.arrays()
    assert pretrained.provenance["revision"] == COMMIT
    assert pretrained.provenance["handle"] == f"hf://org/tiny{revision}"


def test_only_what_is_read_is_asked_for_and_a_pickle_only_where_there_is_nothing_else(cache, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    handles.fetch("hf://org/tiny")
    assert len(asked) == 1 and "pytorch_model.bin" not in asked[0]
    (cache / "model.safetensors").unlink()
    handles.fetch("hf://org/tiny")
    assert "pytorch_model.bin" not in asked[1] and "pytorch_model.bin" in asked[2]


@pytest.mark.parametrize("source", ["hf://org/nothing", "hf://org/tiny@nowhere", "hf://", "hf://a/b/c/d"])
def test_what_can_not_be_had_from_hugging_face_is_one_line(cache, source):
    with pytest.raises(UserError) as caught:
        initial.load_pretrained(source)
    message = str(caught.value)
    assert message.startswith(f"{source}: can't be had from Hugging Face: ")
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("source", ["kaggle://keras/bert/keras/tiny/3", "bert_tiny_en_uncased"])
def test_a_kaggle_handle_is_pinned_to_its_version(tmp_path, monkeypatch, source):
    asked = []
    make(tmp_path / "3", "bert", "encoder", SHAPES[0])
    monkeypatch.setattr(
        kagglehub, "model_download", lambda handle: asked.append(handle) or str(tmp_path / "3")
    )
    pretrained = initial.load_pretrained(source)
    assert pretrained.provenance["revision"] == "3"
    assert asked[0] in ("keras/bert/keras/tiny/3", "keras/bert/keras/bert_tiny_en_uncased/3")
    assert pretrained.provenance["handle"] == f"kaggle://{asked[0]}"


def test_what_can_not_be_had_from_kaggle_is_one_line(monkeypatch):
    def download(handle):
        raise ValueError("Invalid model handle: x. See\nthe documentation")

    monkeypatch.setattr(kagglehub, "model_download", download)
    with pytest.raises(UserError, match="^kaggle://x: can't be had from Kaggle: Invalid model handle: x$"):
        initial.load_pretrained("kaggle://x")


def test_what_is_no_handle_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "bert_mine", "bert", "encoder", SHAPES[0])
    assert handles.fetch("bert_mine") is None
    assert "handle" not in initial.load_pretrained("bert_mine").provenance
    assert handles.fetch("bert_unheard_of") is None
    with pytest.raises(UserError, match="'bert_unheard_of': no such file or folder"):
        initial.load_pretrained("bert_unheard_of")
    assert json.loads((tmp_path / "bert_mine" / "config.json").read_text())
