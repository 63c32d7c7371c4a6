"""Checkpoints: whole or not there."""

import errno
import json

import keras
import numpy as np
import pytest
from safetensors import SafetensorError

from keras_bert_app.errors import UserError
from keras_bert_app.training import checkpoints


def _model(width=3, name="dense"):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, name=name)], name="model")
    optimizer = keras.optimizers.AdamW(0.1, name="optimizer")
    optimizer.build(model.trainable_variables)
    return model, optimizer


def _values(variables):
    return [variable.numpy() for variable in variables]


def test_what_is_restored_is_what_was_saved(tmp_path):
    model, optimizer = _model()
    optimizer.apply([np.ones(variable.shape, "float32") for variable in model.trainable_variables])
    checkpoints.save(tmp_path, 5, model, optimizer, {"step": 5, "best_step": None})
    other_model, other_optimizer = _model()
    state = checkpoints.restore(tmp_path, 5, other_model, other_optimizer)
    assert state == checkpoints.read_state(tmp_path, 5) == {"step": 5, "best_step": None}
    for one, other in (
        (model.weights, other_model.weights),
        (optimizer.variables, other_optimizer.variables),
    ):
        assert len(checkpoints.values_by_path(one)) == len(one)
        for before, after in zip(_values(one), _values(other), strict=True):
            np.testing.assert_array_equal(before, after)
    assert checkpoints.steps(tmp_path) == [5]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_leaves_no_checkpoint_and_no_temporary_folder(tmp_path, monkeypatch, error):
    model, optimizer = _model()
    checkpoints.save(tmp_path, 1, model, optimizer, {})
    save_file, calls = checkpoints.save_file, []

    def full_at_the_second_file(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise error
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full_at_the_second_file)
    with pytest.raises(UserError, match=r"step-00000002: can't write the checkpoint: .*No space left"):
        checkpoints.save(tmp_path, 2, model, optimizer, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert checkpoints.steps(tmp_path) == [1]


def test_an_unfinished_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000009.x.tmp").mkdir(parents=True)
    assert checkpoints.steps(tmp_path) == []
    assert checkpoints.steps(tmp_path / "nowhere") == []


def test_a_checkpoint_that_is_there_stays(tmp_path):
    model, optimizer = _model()
    checkpoints.save(tmp_path, 1, model, optimizer, {"step": 1})
    checkpoints.save(tmp_path, 1, model, optimizer, {"step": "other"})
    assert checkpoints.read_state(tmp_path, 1) == {"step": 1}


def test_weights_of_another_model_are_refused_with_all_names(tmp_path):
    model, optimizer = _model(name="first")
    checkpoints.save(tmp_path, 1, model, optimizer, {})
    other, _ = _model(name="second")
    before = _values(other.weights)
    with pytest.raises(UserError) as error:
        checkpoints.restore(tmp_path, 1, other)
    for words in (
        "second/kernel missing",
        "second/bias missing",
        "first/kernel unknown",
        "first/bias unknown",
    ):
        assert words in str(error.value)
    for one, after in zip(before, _values(other.weights), strict=True):
        np.testing.assert_array_equal(one, after)


def test_weights_of_another_shape_are_refused_with_all_names(tmp_path):
    model, optimizer = _model(3)
    checkpoints.save(tmp_path, 1, model, optimizer, {})
    other, _ = _model(5)
    with pytest.raises(
        UserError, match=r"bias has shape \[3\], the model's \[5\].*kernel has shape \[4, 3\]"
    ):
        checkpoints.restore(tmp_path, 1, other)


@pytest.mark.parametrize("name", [checkpoints.MODEL, checkpoints.OPTIMIZER])
def test_a_truncated_or_missing_file_is_refused_with_its_path(tmp_path, name):
    model, optimizer = _model()
    checkpoints.save(tmp_path, 1, model, optimizer, {})
    path = checkpoints.folder_of(tmp_path, 1) / name
    before = _values([*model.weights, *optimizer.variables])
    model.weights[0].assign(before[0] + 1)
    path.write_bytes(path.read_bytes()[:-7])
    for _ in range(2):
        with pytest.raises(checkpoints.Unreadable, match=name):
            checkpoints.restore(tmp_path, 1, model, optimizer)
        np.testing.assert_array_equal(model.weights[0].numpy(), before[0] + 1)  # nothing is set
        path.unlink(missing_ok=True)


def test_a_broken_state_is_refused_with_its_path(tmp_path):
    model, optimizer = _model()
    checkpoints.save(tmp_path, 1, model, optimizer, {})
    path = checkpoints.folder_of(tmp_path, 1) / checkpoints.STATE
    path.write_text(json.dumps({"step": 1})[:-3])
    with pytest.raises(UserError, match=r"state\.json"):
        checkpoints.read_state(tmp_path, 1)


def test_pruning_leaves_those_that_are_named(tmp_path):
    model, optimizer = _model()
    for step in (1, 2, 10, 123456789):
        checkpoints.save(tmp_path, step, model, optimizer, {})
    assert checkpoints.steps(tmp_path) == [1, 2, 10, 123456789]
    checkpoints.prune(tmp_path, [2, 123456789, None])
    assert checkpoints.steps(tmp_path) == [2, 123456789]
