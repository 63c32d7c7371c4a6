"""The versions of a bundle: folders named by numbers, the highest the newest."""

import re
from pathlib import Path

from keras_bert_app.errors import UserError


def version_folders(export_dir: Path) -> list[Path]:
    """Those of the versions in a folder, lowest first: what TensorFlow Serving would see there."""
    entries = export_dir.iterdir() if export_dir.is_dir() else ()
    found = (path for path in entries if path.is_dir() and re.fullmatch(r"\d+", path.name))
    return sorted(found, key=lambda path: int(path.name))


def newest_version(export_dir: Path) -> Path:
    """The folder of the newest version, or `export_dir` itself where it is one.

    Raises:
        UserError: there is none.
    """
    if (export_dir / "saved_model.pb").exists():
        return export_dir
    folders = version_folders(export_dir)
    if not folders:
        raise UserError(f"{export_dir} has no version folder; `run.py export` writes one")
    return export_dir / str(int(folders[-1].name))
