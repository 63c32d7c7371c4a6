"""One file's bytes -> rows of .csv, .tsv and .jsonl, each with its line and what is wrong with it."""

import bz2
import csv
import difflib
import gzip
import json
import os
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from keras_bert_app import features
from keras_bert_app.errors import UserError

_OPENERS = {".gz": gzip.open, ".bz2": bz2.open}
CONFIG_KEYS = {
    features.TEXT: "config.data.text_column",
    features.TEXT_PAIR: "config.data.pair_column",
    features.LABEL: "config.data.label_column",
    features.GROUP: "config.data.group_column",
}
BYTE_ORDER_MARK = "\ufeff"
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and lone surrogates, which UTF-8 can't hold.


class RowError(Exception):
    """What is wrong with one row, and what to write instead."""


# One row: its columns, or what is wrong with it.
Row = Mapping[str, Any] | RowError


class Lines:
    r"""The lines of a file, cut at \n alone, decoded without loss; remembers those of the row being read.

    `first` is the number of that row's first line, `fault` what makes its bytes no text, if anything.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._pending: deque[bytes] = deque()
        self._row: list[bytes] = []
        self._number = 0
        self.first = 1
        self.fault = ""

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self._pending.popleft() if self._pending else next(self._file)
        self._number += 1
        self._row.append(line)
        text = line.decode("utf-8", "surrogateescape")
        found = NOT_TEXT.search(text)
        if found and not self.fault:
            byte = ord(found[0]) & 0xFF  # surrogateescape makes 0xNN of a stray byte U+DCNN.
            self.fault = f"byte 0x{byte:02x} in line {self._number} is no UTF-8 text"
        return text.removeprefix(BYTE_ORDER_MARK) if self._number == 1 else text

    def begin_row(self) -> None:
        """Take the next line for the first of a row."""
        self.first, self.fault = self._number + 1, ""
        self._row.clear()

    def give_back_all_but_first(self) -> None:
        """Have the lines of the row read again, after its first: where it should have ended isn't known."""
        self._pending.extendleft(reversed(self._row[1:]))
        self._number, self.fault = self.first, ""


def _csv_rows(path: Path, lines: Lines, columns: Mapping[str, str]) -> Iterator[Row]:
    # The module's limit of 131,072 characters a field would refuse long documents.
    csv.field_size_limit(2**31 - 1)
    return _table_rows(path, lines, columns, csv.reader(lines, strict=True))


def _tsv_rows(path: Path, lines: Lines, columns: Mapping[str, str]) -> Iterator[Row]:
    reader = (line.removesuffix("\n").removesuffix("\r").split("\t") for line in lines)
    return _table_rows(path, lines, columns, reader)


def _table_rows(
    path: Path, lines: Lines, columns: Mapping[str, str], reader: Iterator[list[str]]
) -> Iterator[Row]:
    header: list[str] = []
    while True:
        lines.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            advice = "quote fields with commas, quotes or line breaks, and double the quotes in them"
            problem = f"broken CSV ({error}); {advice}"
            if not header:
                raise UserError(f"{path}:{lines.first}: {problem}") from None
            lines.give_back_all_but_first()
            yield RowError(problem)
            continue
        if not any(fields) and (not header or len(fields) != len(header)):
            continue  # A blank line, which only in .tsv of one column is a row.
        if not header:
            header = _header(path, lines, fields, columns)
        elif len(fields) == len(header):
            yield dict(zip(header, fields, strict=True))
        else:
            advice = "quote fields with commas in .csv, have no tabs in the texts of .tsv"
            yield RowError(f"{len(fields)} fields where the header names {len(header)}; {advice}")
    if not header:
        raise UserError(f"{path}: empty; the first line must name the columns, each of the next hold a row")


def _jsonl_rows(path: Path, lines: Lines, columns: Mapping[str, str]) -> Iterator[Row]:
    while True:
        lines.begin_row()
        line = next(lines, None)
        if line is None:
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield RowError(f"not JSON ({error}); write one object a line")
            continue
        yield row if isinstance(row, dict) else RowError('not an object; write {"column": "value", ...}')


PARSERS = {".csv": _csv_rows, ".tsv": _tsv_rows, ".jsonl": _jsonl_rows}


def _header(path: Path, lines: Lines, names: list[str], columns: Mapping[str, str]) -> list[str]:
    where = f"{path}:{lines.first}"
    if lines.fault:
        raise UserError(f"{where}: {lines.fault} in the header; save the file as UTF-8 text")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: {count} columns are named {name!r}; give each a name of its own")
    for feature, column in columns.items():
        if column not in names:
            raise UserError(f"{where}: {no_column(feature, column, names)}")
    return names


def no_column(feature: str, column: str, names: list[str]) -> str:
    """What to say of a column that isn't there."""
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.4)
    value = nearest[0] if nearest else "NAME"
    present = ", ".join(map(repr, names))[:200] or "none"
    return f"no column {column!r} for {feature}, there is: {present}; set {CONFIG_KEYS[feature]}={value}"


def suffix_of(path: Path, known: Sequence[str]) -> str:
    """The suffix that says what is in a file, compression apart; UserError where it is none of `known`."""
    with reading(path):
        path.stat()
    stem, suffix = os.path.splitext(path.name.lower())
    if suffix in _OPENERS:
        suffix = os.path.splitext(stem)[1]
    if path.is_dir() or suffix not in known:
        kind = "a folder" if path.is_dir() else f"of unknown kind {suffix!r}"
        raise UserError(f"{path}: {kind}; give a file ending in {', '.join(known)} (and maybe .gz or .bz2)")
    return suffix


@contextmanager
def opened(path: Path, raw: BinaryIO | None = None) -> Iterator[BinaryIO]:
    """The file's bytes, uncompressed; UserError for whatever goes wrong while it is read.

    raw: the file, open already, for who wants to know by its position how much of it has been read.
    """
    opener = _OPENERS.get(path.suffix.lower())
    with (
        reading(path),
        nullcontext(raw) if raw else open(path, "rb") as raw,
        opener(raw, "rb") if opener else nullcontext(raw) as file,
    ):
        yield file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a path inside into UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or folder") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from error
