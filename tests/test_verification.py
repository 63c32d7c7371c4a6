import json
import shutil

import numpy as np
import pytest

from keras_bert_app.errors import UserError
from keras_bert_app.export import c_api, verification


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A version folder that a test may spoil."""
    return shutil.copytree(tiny_bundle / "1", tmp_path / "exported" / "1")


@pytest.fixture
def c_api_alone(monkeypatch):
    """Leave out the runtime that takes seconds to start."""
    monkeypatch.setattr(verification, "_RUNTIMES", {"C API": "c_api.py"})


def change_first(copy, change):
    """Change the first example request of a bundle."""
    path = copy / "assets.extra" / "examples.json"
    content = json.loads(path.read_text("utf-8"))
    change(content[0])
    path.write_text(json.dumps(content))


def test_a_bundle_stands_alone_in_both_runtimes_without_its_vocabulary_file(copy):
    (copy / "assets.extra" / "vocab.txt").unlink()
    found = verification.verify(copy.parent)
    for runtime in verification._RUNTIMES:
        for signature in ("serving_default", "token_ids"):
            assert any(line.startswith(runtime) and signature in line for line in found.splitlines())
    assert found.endswith(f"{copy} stands alone")


def test_changed_weights_are_noticed(copy, c_api_alone):
    (data,) = (copy / "variables").glob("*.data-*")
    content = np.fromfile(data, "float32")
    content[: len(content) // 2] *= -1
    content.tofile(data)
    with pytest.raises(UserError, match="exported/1: C API: .*Checksum does not match"):
        verification.verify(copy.parent)


def test_an_answer_that_differs_is_refused_with_runtime_and_signature(copy, c_api_alone):
    def change(request):
        score = c_api.decode_tensor(request["outputs"]["score"])
        request["outputs"]["score"] = c_api.encode_tensor(score + np.float32(1e-3))

    change_first(copy, change)
    with pytest.raises(
        UserError, match="C API, signature serving_default differs from the trainer by 1.0e-03"
    ):
        verification.verify(copy)


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_a_cut_file_is_refused(copy, c_api_alone, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="exported/1: C API: "):
        verification.verify(copy)


def test_an_unknown_format_is_refused_with_what_to_do(copy):
    path = copy / "assets.extra" / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"format_version": 7}))
    with pytest.raises(
        UserError, match="has format 7, this version knows 1; verify it with the version that"
    ):
        verification.verify(copy)


def test_a_folder_without_bundle_or_examples_is_refused(copy, tmp_path):
    with pytest.raises(UserError, match="has no version folder; `run.py export` writes one"):
        verification.verify(tmp_path)
    (copy / "assets.extra" / "examples.json").unlink()
    with pytest.raises(UserError, match="has no example requests; export it again"):
        verification.verify(copy)


REQUEST = {"signature": "s", "outputs": {"x": c_api.encode_tensor(np.array([1.0, np.nan], "float32"))}}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": "no such op"}, "C, signature s: no such op"),
        ({"outputs": {}}, r"gives \[\], the trainer \['x'\]"),
        ({"outputs": {"x": c_api.encode_tensor(np.array([1.0], "float32"))}}, r"x is float32 \(1,\)"),
        (
            {"outputs": {"x": c_api.encode_tensor(np.array([1.0, np.nan], "float32"))}},
            "differs from the trainer by nan",
        ),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path, answer, message):
    with pytest.raises(UserError, match=message):
        verification.compare(tmp_path, "C", REQUEST, answer)
