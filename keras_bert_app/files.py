"""Files and folders that are either whole or not there."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_bert_app.errors import UserError

_LOCK = "lock"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        os.chmod(temporary, 0o666 & ~_umask())
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, remove it on any failure.

    Raises:
        FileExistsError: `path` exists already (and is not an empty folder).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked_folder(folder: Path, work: str) -> Iterator[None]:
    """Make a folder for what is unfinished, or go on with it; an empty one is removed at the end.

    work: what is done there, for the message: "preparing these examples".

    Raises:
        UserError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is {work}; wait for it") from None
        try:
            yield
        finally:
            if [path.name for path in folder.glob("*")] == [_LOCK]:
                shutil.rmtree(folder)


def is_taken(path: str | os.PathLike) -> bool:
    """Whether anything but an empty folder is there already."""
    return os.path.lexists(path) and (not os.path.isdir(path) or bool(os.listdir(path)))


def require_free(output: Path) -> None:
    """Refuse an output that is there already, but for an empty folder.

    Raises:
        UserError: it is.
    """
    if is_taken(output):
        raise UserError(f"{output} is there already; give another --output")


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
