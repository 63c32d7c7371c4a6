"""Files -> records: labelled .csv, .tsv, .jsonl and folders per class; and texts to predict, of any bytes."""

import base64
import bz2
import csv
import difflib
import gzip
import json
import os
import re
import reprlib
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from keras_bert_app import features
from keras_bert_app.errors import UserError

LABELLED_SUFFIXES = (".csv", ".tsv", ".jsonl")
TEXT_SUFFIXES = (".txt", *LABELLED_SUFFIXES)
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open}
_CONFIG_KEYS = {
    features.TEXT: "config.data.text_column",
    features.TEXT_PAIR: "config.data.pair_column",
    features.LABEL: "config.data.label_column",
    features.GROUP: "config.data.group_column",
}
_BYTE_ORDER_MARK = "\ufeff"
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and lone surrogates, which UTF-8 can't hold.


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled example: feature name -> value, and where it was found ("train.csv:12", for messages)."""

    values: Mapping[str, str]
    where: str


class _RowError(Exception):
    """What is wrong with one row, and what to write instead."""


# One row: its columns, or what is wrong with it.
_Row = Mapping[str, Any] | _RowError


def read_records(
    path: str | os.PathLike,
    columns: Mapping[str, str],
    skip_bad_rows: bool = False,
    *,
    keep: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Record], int]:
    """Read a labelled file, or a folder that holds a folder of documents per class.

    Files are UTF-8, with or without byte order mark: .csv (RFC 4180, with a header), .tsv (tabs, a header, no
    quoting), .jsonl (an object a line), each also compressed as .gz or .bz2. Blank lines mean nothing. For a
    folder, the names of the folders in it are the labels and every file in those a text, but for hidden ones.

    Args:
        path: the file or folder.
        columns: feature name -> column name, such as {"text": "body", "label": "topic"}.
        skip_bad_rows: leave rows out that can't be used, and count them, where they would raise.
        keep: column name -> values; rows with any other value there are left out, unchecked and uncounted.

    Returns:
        The records in the order of the file, none of their values empty, and the number of rows skipped.

    Raises:
        UserError: for whatever makes the file or, unless they are skipped, one of its rows unusable.
    """
    path = Path(path)
    records: list[Record] = []
    num_skipped, first_skipped = 0, ""
    for where, row in _labelled_rows(path, columns):
        try:
            if isinstance(row, _RowError):
                raise row
            if keep and any(row.get(column) not in allowed for column, allowed in keep.items()):
                continue
            values = {feature: _value(row, feature, column) for feature, column in columns.items()}
            records.append(Record(values, where))
        except _RowError as problem:
            if not skip_bad_rows:
                hint = "set config.data.skip_bad_rows=True to leave such rows out"
                raise UserError(f"{where}: {problem} (or {hint})") from None
            num_skipped += 1
            first_skipped = first_skipped or f"{where}: {problem}"
    if not records:
        reason = f"all {num_skipped} rows are bad, the first at {first_skipped}" if num_skipped else "no rows"
        raise UserError(f"{path}: nothing to read, {reason}; give a file with at least one good row")
    return records, num_skipped


def read_texts(path: str | os.PathLike, columns: Mapping[str, str]) -> Iterator[Mapping[str, bytes]]:
    r"""Stream the texts to predict: {"text": bytes}, with "text_pair" where `columns` names it.

    .txt is one text a line, ended by \n or \r\n, of any bytes; an empty line is an empty text. .csv and .tsv
    are as in `read_records`, but of any bytes. .jsonl is the lossless form: a value is a string, in which an
    escaped lone surrogate stands for the three bytes UTF-8 would give it, or {"b64": "..."}, base64 of any
    bytes, as in TensorFlow Serving's REST interface. All also compressed as .gz or .bz2. Labels are not read.

    Raises:
        UserError: for a path that can't be read, at once; for a row that can't, when it is reached.
    """
    path = Path(path)
    suffix = _suffix(path, TEXT_SUFFIXES)
    columns = {name: columns[name] for name in (features.TEXT, features.TEXT_PAIR) if name in columns}
    if suffix == ".txt" and features.TEXT_PAIR in columns:
        raise UserError(f"{path}: a .txt file holds one text a line, not pairs; give .jsonl, .csv or .tsv")
    return _texts(path, suffix, columns)


def _texts(path: Path, suffix: str, columns: Mapping[str, str]) -> Iterator[Mapping[str, bytes]]:
    with _opened(path) as file:
        if suffix == ".txt":
            for line in file:
                yield {features.TEXT: line.removesuffix(b"\n").removesuffix(b"\r")}
            return
        lines = _Lines(file)
        # JSON is UTF-8: a surrogate in it was escaped on purpose. Elsewhere it stands for a byte that isn't.
        errors = "surrogatepass" if suffix == ".jsonl" else "surrogateescape"
        for row in _PARSERS[suffix](path, lines, columns):
            try:
                if lines.fault and suffix == ".jsonl":
                    raise _RowError(f'{lines.fault}; write such a text as {{"b64": "..."}}')
                if isinstance(row, _RowError):
                    raise row
                yield {feature: _bytes(row, feature, column, errors) for feature, column in columns.items()}
            except _RowError as problem:
                raise UserError(f"{path}:{lines.first}: {problem}") from None


def _labelled_rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, _Row]]:
    with _reading(path):
        is_folder = path.is_dir()
    if is_folder:
        yield from _documents(path, columns)
        return
    suffix = _suffix(path, LABELLED_SUFFIXES)
    with _opened(path) as file:
        lines = _Lines(file)
        for row in _PARSERS[suffix](path, lines, columns):
            fault = _RowError(f"{lines.fault}; save the file as UTF-8 text") if lines.fault else None
            yield f"{path}:{lines.first}", fault or row


def _documents(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, _Row]]:
    for feature in columns:
        if feature not in (features.TEXT, features.LABEL):
            raise UserError(f"{path}: folders give text and label only; leave {_CONFIG_KEYS[feature]} unset")
    with _reading(path):
        folders = [entry for entry in _visible(path) if entry.is_dir()]
        if len(folders) < 2:
            raise UserError(f"{path}: {len(folders)} folders in it; two or more are needed, one per class")
        for folder in folders:
            files = _visible(folder)
            if not files:
                raise UserError(f"{folder}: no files; put texts of this class there or take the folder away")
            for file in files:
                if not file.is_file():
                    raise UserError(f"{file}: not a file; put every text of the class right into {folder}")
                yield str(file), _document(file, columns)


def _document(file: Path, columns: Mapping[str, str]) -> _Row:
    try:
        text = file.read_bytes().decode("utf-8").removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        return _RowError(f"byte {error.start} is not UTF-8; save the file as UTF-8 text")
    return {columns[features.TEXT]: text, columns[features.LABEL]: file.parent.name}


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


class _Lines:
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

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._pending.popleft() if self._pending else next(self._file)
        self._number += 1
        self._row.append(line)
        text = line.decode("utf-8", "surrogateescape")
        found = _NOT_TEXT.search(text)
        if found and not self.fault:
            byte = ord(found[0]) & 0xFF  # surrogateescape makes 0xNN of a stray byte U+DCNN.
            self.fault = f"byte 0x{byte:02x} in line {self._number} is no UTF-8 text"
        return text.removeprefix(_BYTE_ORDER_MARK) if self._number == 1 else text

    def begin_row(self) -> None:
        """Take the next line for the first of a row."""
        self.first, self.fault = self._number + 1, ""
        self._row.clear()

    def give_back_all_but_first(self) -> None:
        """Have the lines of the row read again, after its first: where it should have ended isn't known."""
        self._pending.extendleft(reversed(self._row[1:]))
        self._number, self.fault = self.first, ""


def _csv_rows(path: Path, lines: _Lines, columns: Mapping[str, str]) -> Iterator[_Row]:
    # The module's limit of 131,072 characters a field would refuse long documents.
    csv.field_size_limit(2**31 - 1)
    return _table_rows(path, lines, columns, csv.reader(lines, strict=True))


def _tsv_rows(path: Path, lines: _Lines, columns: Mapping[str, str]) -> Iterator[_Row]:
    reader = (line.removesuffix("\n").removesuffix("\r").split("\t") for line in lines)
    return _table_rows(path, lines, columns, reader)


def _table_rows(
    path: Path, lines: _Lines, columns: Mapping[str, str], reader: Iterator[list[str]]
) -> Iterator[_Row]:
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
            yield _RowError(problem)
            continue
        if not any(fields) and (not header or len(fields) != len(header)):
            continue  # A blank line, which only in .tsv of one column is a row.
        if not header:
            header = _header(path, lines, fields, columns)
        elif len(fields) == len(header):
            yield dict(zip(header, fields, strict=True))
        else:
            advice = "quote fields with commas in .csv, have no tabs in the texts of .tsv"
            yield _RowError(f"{len(fields)} fields where the header names {len(header)}; {advice}")
    if not header:
        raise UserError(f"{path}: empty; the first line must name the columns, each of the next hold a row")


def _jsonl_rows(path: Path, lines: _Lines, columns: Mapping[str, str]) -> Iterator[_Row]:
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
            yield _RowError(f"not JSON ({error}); write one object a line")
            continue
        yield row if isinstance(row, dict) else _RowError('not an object; write {"column": "value", ...}')


_PARSERS = {".csv": _csv_rows, ".tsv": _tsv_rows, ".jsonl": _jsonl_rows}


def _header(path: Path, lines: _Lines, names: list[str], columns: Mapping[str, str]) -> list[str]:
    where = f"{path}:{lines.first}"
    if lines.fault:
        raise UserError(f"{where}: {lines.fault} in the header; save the file as UTF-8 text")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: {count} columns are named {name!r}; give each a name of its own")
    for feature, column in columns.items():
        if column not in names:
            raise UserError(f"{where}: {_no_column(feature, column, names)}")
    return names


def _value(row: Mapping[str, Any], feature: str, column: str) -> str:
    value = _cell(row, feature, column)
    where = f"{feature} (column {column!r})"
    is_text = feature in (features.TEXT, features.TEXT_PAIR)
    if type(value) is int and not is_text:
        value = str(value)
    if not isinstance(value, str):
        wanted = "a string" if is_text else "a string or a whole number"
        raise _RowError(f"{where} is {reprlib.repr(value)}; write {wanted}")
    if not value.strip():
        raise _RowError(f"{where} is empty; fill it in or take the row out")
    if _NOT_TEXT.search(value):
        raise _RowError(f"{where} has a NUL character or half a surrogate pair in it; take that out")
    return value


def _bytes(row: Mapping[str, Any], feature: str, column: str, errors: str) -> bytes:
    value = _cell(row, feature, column)
    where = f"{feature} (column {column!r})"
    if isinstance(value, str):
        return value.encode("utf-8", errors)
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError as error:
            raise _RowError(f"{where} is no base64 ({error}); encode the bytes again") from None
    raise _RowError(f'{where} is {reprlib.repr(value)}; write a string or {{"b64": "..."}}')


def _cell(row: Mapping[str, Any], feature: str, column: str) -> Any:
    if column not in row:
        raise _RowError(_no_column(feature, column, list(row)))
    return row[column]


def _no_column(feature: str, column: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.4)
    value = nearest[0] if nearest else "NAME"
    present = ", ".join(map(repr, names))[:200] or "none"
    return f"no column {column!r} for {feature}, there is: {present}; set {_CONFIG_KEYS[feature]}={value}"


def _suffix(path: Path, known: Sequence[str]) -> str:
    with _reading(path):
        path.stat()
    stem, suffix = os.path.splitext(path.name.lower())
    if suffix in _OPENERS:
        suffix = os.path.splitext(stem)[1]
    if path.is_dir() or suffix not in known:
        kind = "a folder" if path.is_dir() else f"of unknown kind {suffix!r}"
        raise UserError(f"{path}: {kind}; give a file ending in {', '.join(known)} (and maybe .gz or .bz2)")
    return suffix


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with _reading(path), _OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or folder") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from error
