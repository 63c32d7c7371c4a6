"""What a version folder holds, as it states itself, and whether that is still so."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_bert_app.errors import UserError
from keras_bert_app.export import batching, operations, saved_model


def describe(path: Path) -> dict[str, Any]:
    """What is stated of a folder with everything in it but the statement itself, ready for JSON.

    signatures: see saved_model.py. operations: the names of TensorFlow's and of tensorflow_text's.
    minimum_server_version: see operations.py. files: {path: {"bytes", "sha256"}}, but for the batching
    parameters, which may be tuned.

    Raises:
        UserError: no SavedModel is there, or one that no stock server loads.
    """
    graph = saved_model.read(path)
    used = operations.used(graph)
    text = operations.of_text(used)
    return {
        "signatures": saved_model.signatures(graph),
        "operations": {"tensorflow": sorted(set(used) - set(text)), "tensorflow_text": text},
        "minimum_server_version": operations.minimum_server_version(graph),
        "files": identities(path),
    }


def identities(path: Path) -> dict[str, dict[str, Any]]:
    """The files of a folder that has no statement yet."""
    return {name: _identity(path / name) for name in _names(path) if name != batching.FILE}


def check_files(path: Path, stated: Mapping[str, Mapping[str, Any]], statement: str) -> int:
    """Compare a folder's files with those stated; return how many there are.

    `statement` is the name of the file that states them.

    Raises:
        UserError: one is missing, cut, changed, not of the bundle, or a link.
    """
    found = _names(path)
    links = [name for name in found if (path / name).is_symlink()]
    if links:
        raise UserError(f"{path / links[0]}: is a link, which breaks elsewhere; copy the version with cp -L")
    for name in found:
        if name not in stated and name not in (statement, batching.FILE):
            raise UserError(f"{path / name}: wasn't exported; remove it, or copy the version again")
    for name, identity in stated.items():
        if name not in found:
            raise UserError(f"{path / name}: is missing; copy the version again")
        size = (path / name).stat().st_size
        if size != identity["bytes"]:
            raise UserError(
                f"{path / name}: has {size:,} of {identity['bytes']:,} bytes; copy the version again"
            )
        if _identity(path / name) != identity:
            raise UserError(f"{path / name}: isn't as it was exported; copy the version again")
    return len(found)


def check_signatures(path: Path, found: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Compare a graph's signatures with those stated.

    Raises:
        UserError: there are others, or one has another method, input or output.
    """
    file = path / saved_model.FILE
    for name in sorted(found.keys() | stated.keys()):
        if name not in stated or name not in found:
            where = "isn't stated" if name in found else "is stated, but not there"
            raise UserError(f"{file}: signature {name} {where}; export it again")
        for key in stated[name].keys() | found[name].keys():
            if found[name].get(key) != stated[name].get(key):
                raise UserError(
                    f"{file}: signature {name} has {key} {found[name].get(key)!r}, stated is "
                    f"{stated[name].get(key)!r}; export it again"
                )


def _names(path: Path) -> list[str]:
    """All files and links below a folder, by their paths in it."""
    return sorted(
        str(each.relative_to(path)) for each in path.rglob("*") if each.is_symlink() or not each.is_dir()
    )


def _identity(file: Path) -> dict[str, Any]:
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
