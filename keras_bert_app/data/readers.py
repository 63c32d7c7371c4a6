"""Files -> records: labelled .csv, .tsv, .jsonl and folders per class; and texts to predict, of any bytes."""

import base64
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from keras_bert_app import features
from keras_bert_app.data.rows import (
    BYTE_ORDER_MARK,
    CONFIG_KEYS,
    NOT_TEXT,
    PARSERS,
    Lines,
    Row,
    RowError,
    no_column,
    opened,
    reading,
    suffix_of,
)
from keras_bert_app.errors import UserError

LABELLED_SUFFIXES = (".csv", ".tsv", ".jsonl")
TEXT_SUFFIXES = (".txt", *LABELLED_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled example: feature name -> value, and where it was found ("train.csv:12", for messages).

    The label is a tuple of labels where a text may have several.
    """

    values: Mapping[str, str | tuple[str, ...]]
    where: str


def read_records(
    path: str | os.PathLike,
    columns: Mapping[str, str],
    skip_bad_rows: bool = False,
    label_separator: str | None = None,
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
        label_separator: what stands between the labels of a text; an empty value is a text with none. None: a
            text has one.
        keep: column name -> values; rows with any other value there are left out, unchecked and uncounted.

    Returns:
        The records in the order of the file, no value empty but for labels, and the number of rows skipped.

    Raises:
        UserError: for whatever makes the file or, unless they are skipped, one of its rows unusable.
    """
    path = Path(path)
    records: list[Record] = []
    num_skipped, first_skipped = 0, ""
    for where, row in _labelled_rows(path, columns):
        try:
            if isinstance(row, RowError):
                raise row
            if keep and any(row.get(column) not in allowed for column, allowed in keep.items()):
                continue
            values = {name: _value(row, name, column, label_separator) for name, column in columns.items()}
            records.append(Record(values, where))
        except RowError as problem:
            if not skip_bad_rows:
                hint = "set config.data.skip_bad_rows=True to leave such rows out"
                raise UserError(f"{where}: {problem} (or {hint})") from None
            num_skipped += 1
            first_skipped = first_skipped or f"{where}: {problem}"
    if not records:
        reason = f"all {num_skipped} rows are bad, the first at {first_skipped}" if num_skipped else "no rows"
        raise UserError(f"{path}: nothing to read, {reason}; give a file with at least one good row")
    return records, num_skipped


def read_texts(
    path: str | os.PathLike, columns: Mapping[str, str], raw: BinaryIO | None = None
) -> Iterator[Mapping[str, bytes]]:
    r"""Stream the texts to predict: {"text": bytes}, with "text_pair" where `columns` names it.

    .txt is one text a line, ended by \n or \r\n, of any bytes; an empty line is an empty text. .csv and .tsv
    are as in `read_records`, but of any bytes. .jsonl is the lossless form: a value is a string, in which an
    escaped lone surrogate stands for the three bytes UTF-8 would give it, or {"b64": "..."}, base64 of any
    bytes, as in TensorFlow Serving's REST interface. All also compressed as .gz or .bz2. Labels are not read.

    raw: the file, open already; see `opened`.

    Raises:
        UserError: for a path that can't be read, at once; for a row that can't, when it is reached.
    """
    path = Path(path)
    suffix = suffix_of(path, TEXT_SUFFIXES)
    columns = {name: columns[name] for name in (features.TEXT, features.TEXT_PAIR) if name in columns}
    if suffix == ".txt" and features.TEXT_PAIR in columns:
        raise UserError(f"{path}: a .txt file holds one text a line, not pairs; give .jsonl, .csv or .tsv")
    return _texts(path, suffix, columns, raw)


def _texts(
    path: Path, suffix: str, columns: Mapping[str, str], raw: BinaryIO | None
) -> Iterator[Mapping[str, bytes]]:
    with opened(path, raw) as file:
        if suffix == ".txt":
            for line in file:
                yield {features.TEXT: line.removesuffix(b"\n").removesuffix(b"\r")}
            return
        lines = Lines(file)
        # JSON is UTF-8: a surrogate in it was escaped on purpose. Elsewhere it stands for a byte that isn't.
        errors = "surrogatepass" if suffix == ".jsonl" else "surrogateescape"
        for row in PARSERS[suffix](path, lines, columns):
            try:
                if lines.fault and suffix == ".jsonl":
                    raise RowError(f'{lines.fault}; write such a text as {{"b64": "..."}}')
                if isinstance(row, RowError):
                    raise row
                yield {feature: _bytes(row, feature, column, errors) for feature, column in columns.items()}
            except RowError as problem:
                raise UserError(f"{path}:{lines.first}: {problem}") from None


def _labelled_rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    with reading(path):
        is_folder = path.is_dir()
    if is_folder:
        yield from _documents(path, columns)
        return
    suffix = suffix_of(path, LABELLED_SUFFIXES)
    with opened(path) as file:
        lines = Lines(file)
        for row in PARSERS[suffix](path, lines, columns):
            fault = RowError(f"{lines.fault}; save the file as UTF-8 text") if lines.fault else None
            yield f"{path}:{lines.first}", fault or row


def _documents(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    for feature in columns:
        if feature not in (features.TEXT, features.LABEL):
            raise UserError(f"{path}: folders give text and label only; leave {CONFIG_KEYS[feature]} unset")
    with reading(path):
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


def _document(file: Path, columns: Mapping[str, str]) -> Row:
    try:
        text = file.read_bytes().decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        return RowError(f"byte {error.start} is not UTF-8; save the file as UTF-8 text")
    return {columns[features.TEXT]: text, columns[features.LABEL]: file.parent.name}


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _value(
    row: Mapping[str, Any], feature: str, column: str, label_separator: str | None
) -> str | tuple[str, ...]:
    value = _cell(row, feature, column)
    where = f"{feature} (column {column!r})"
    is_text = feature in (features.TEXT, features.TEXT_PAIR)
    if type(value) is int and not is_text:
        value = str(value)
    if not isinstance(value, str):
        wanted = "a string" if is_text else "a string or a whole number"
        raise RowError(f"{where} is {reprlib.repr(value)}; write {wanted}")
    several = feature == features.LABEL and label_separator is not None
    if not value.strip() and not several:
        raise RowError(f"{where} is empty; fill it in or take the row out")
    if NOT_TEXT.search(value):
        raise RowError(f"{where} has a NUL character or half a surrogate pair in it; take that out")
    return _labels(value, where, label_separator) if several else value


def _labels(value: str, where: str, separator: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in value.split(separator)) if value.strip() else ()
    if "" in labels:
        raise RowError(
            f"{where} is {value!r}, with an empty label in it; write labels with {separator} between"
        )
    return labels


def _bytes(row: Mapping[str, Any], feature: str, column: str, errors: str) -> bytes:
    value = _cell(row, feature, column)
    where = f"{feature} (column {column!r})"
    if isinstance(value, str):
        return value.encode("utf-8", errors)
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError as error:
            raise RowError(f"{where} is no base64 ({error}); encode the bytes again") from None
    raise RowError(f'{where} is {reprlib.repr(value)}; write a string or {{"b64": "..."}}')


def _cell(row: Mapping[str, Any], feature: str, column: str) -> Any:
    if column not in row:
        raise RowError(no_column(feature, column, list(row)))
    return row[column]
