"""Checkpoints: a folder a step, whole or not there, as safetensors and JSON.

checkpoints/step-00000610/model.safetensors      the model's weights by their Keras path
checkpoints/step-00000610/optimizer.safetensors  the optimizer's variables by theirs
checkpoints/step-00000610/state.json             what the loop knows: see loop.State
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_directory


class Unreadable(UserError):
    """A file of a checkpoint is missing or broken."""


_NAME = re.compile(r"step-(\d{8,})")
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def folder_of(workdir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return workdir / "checkpoints" / f"step-{step:08d}"


def steps(workdir: Path) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    folder = workdir / "checkpoints"
    names = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def save(
    workdir: Path, step: int, model: keras.Model, optimizer: keras.optimizers.Optimizer, state: dict[str, Any]
) -> None:
    """Write the checkpoint of a step; one that is there already stays.

    Raises:
        UserError: it can't be written; nothing of it stays.
    """
    path = folder_of(workdir, step)
    if path.exists():
        return
    try:
        with atomic_directory(path) as temporary:
            save_file(values_by_path(model.weights), temporary / MODEL)
            save_file(values_by_path(optimizer.variables), temporary / OPTIMIZER)
            (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            # Else a rename can outlive a power cut and its files not.
            for written in (*temporary.iterdir(), temporary):
                _flush(written)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: can't write the checkpoint: {error}; the same command goes on from the one before"
        ) from error


def read_state(workdir: Path, step: int) -> dict[str, Any]:
    """The loop's state at a step.

    Raises:
        Unreadable: the file is missing or broken.
    """
    path = folder_of(workdir, step) / STATE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: can't read it: {error}") from error


def restore(
    workdir: Path, step: int, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None
) -> dict[str, Any]:
    """Set the model's weights, and the optimizer's variables where it is given, to those of a step.

    Returns:
        The loop's state at that step.

    Raises:
        Unreadable: a file is missing or broken; nothing has been set.
        UserError: its tensors aren't those of this model.
    """
    folder = folder_of(workdir, step)
    parts = {MODEL: model.weights} | ({OPTIMIZER: optimizer.variables} if optimizer is not None else {})
    state = read_state(workdir, step)
    tensors = {name: read_tensors(folder / name) for name in parts}
    for name, variables in parts.items():
        assign_by_path(variables, tensors[name], folder / name)
    return state


def prune(workdir: Path, keep: Iterable[int]) -> None:
    """Remove the checkpoints of all steps but these, and what a killed process left half-written."""
    for path in (workdir / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(path)
    remove(workdir, set(steps(workdir)) - set(keep))


def remove(workdir: Path, gone: Iterable[int]) -> None:
    """Remove the checkpoints of these steps."""
    for step in gone:
        shutil.rmtree(folder_of(workdir, step))


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file's tensors by name.

    Raises:
        Unreadable: the file is missing or broken.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise Unreadable(f"{path}: can't read it: {error}") from error


def values_by_path(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """Variables' values by path, of the first replica where they are mirrored."""
    strategy = tf.distribute.get_strategy()
    return {
        variable.path: np.asarray(strategy.experimental_local_results(variable.value)[0].numpy(), order="C")
        for variable in variables
    }


def assign_by_path(variables: Iterable[keras.Variable], tensors: dict[str, np.ndarray], where: Path) -> None:
    """Set variables from tensors of the same paths and shapes.

    Raises:
        UserError: names every path that is missing, left over or misshapen.
    """
    wanted = {variable.path: variable for variable in variables}
    problems = [f"{path} missing" for path in sorted(wanted.keys() - tensors.keys())]
    problems += [f"{path} unknown" for path in sorted(tensors.keys() - wanted.keys())]
    problems += [
        f"{path} has shape {list(tensors[path].shape)}, the model's {list(wanted[path].shape)}"
        for path in sorted(wanted.keys() & tensors.keys())
        if tuple(wanted[path].shape) != tensors[path].shape
    ]
    if problems:
        raise UserError(f"{where} doesn't fit this model: {'; '.join(problems)}")
    for path, variable in wanted.items():
        variable.assign(tensors[path])
