"""Corpora -> documents -> sentences: a stream, never a corpus in memory."""

import glob
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from keras_bert_app.config import PrepareConfig
from keras_bert_app.data import sources
from keras_bert_app.data.rows import opened
from keras_bert_app.errors import UserError

_PIECE_BYTES = 2**18
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SEPARATORS = {"lines": re.compile(rb"\n"), "blank_lines": re.compile(rb"\n\s*\n")}
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
# What ends a sentence where a space follows, with the quotes and brackets it may be closed by; and what ends
# one without, in scripts that write no spaces.
_CLOSING = "[\"'”’»›)\\]}」』）】]*"
_END, _END_WITHOUT_SPACE = ".!?…؟۔।॥።։", "。！？｡"
# That it begins with one set of characters is what makes the search fast.
_SENTENCE_END = re.compile(
    rf"[{_END}{_END_WITHOUT_SPACE}]"
    rf"(?:(?<=[{_END}])[{_END}]*{_CLOSING}\s+|(?<=[{_END_WITHOUT_SPACE}])[{_END_WITHOUT_SPACE}]*{_CLOSING}\s*)"
)
# The same for ASCII, in one expression: it also says what doesn't end a sentence (see `split_sentences`).
_NO_INITIAL = r"(?:(?<!\.)|(?<![A-Z]\.)|(?<=[A-Za-z0-9][A-Z]\.))"
_ASCII_SENTENCE_END = re.compile(rf"[.!?](?<![.!?][.!?]){_NO_INITIAL}[.!?]*+[\"')\]}}]*+\s++(?![a-z])")
# Longer ones are tables, code or scripts without full stops; cut, all of them can be trained on.
_MAX_SENTENCE_CHARACTERS = 1000


@dataclass
class Skipped:
    """What of the input was left out: reason -> number of documents, and the place of the first."""

    counts: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count one document that can't be used."""
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {reason} (the first {self.first[reason]})"
            for reason, count in sorted(self.counts.items())
        )


def input_files(patterns: Sequence[str]) -> list[Path]:
    """Files, folders (every file below, but hidden ones), glob patterns -> files, each once, in order.

    The name of packaged documents (see sources.py) goes before a path spelled the same.

    Raises:
        UserError: a pattern matches no file.
    """
    files = set()
    for pattern in map(sources.documents, map(str, patterns)):
        found = [Path(name) for name in glob.glob(pattern, recursive=True)] or [Path(pattern)]
        for path in found:
            below = path.rglob("*") if path.is_dir() else [path]
            files |= {file for file in below if file.is_file() and not _hidden(file, path)}
        if not any(path.exists() for path in found):
            raise UserError(f"{pattern}: no such file; give files, folders or a pattern, 'corpus/*.txt'")
    if not files:
        raise UserError(f"{', '.join(map(str, patterns))}: no files there; give files, folders or patterns")
    return sorted(files)


def read_documents(
    files: Sequence[Path],
    skipped: Skipped,
    separation: str = PrepareConfig.separation,
    text_key: str = PrepareConfig.text_key,
    max_bytes: int = PrepareConfig.max_document_bytes,
) -> Iterator[bytes]:
    r"""Stream the documents of files, in order: UTF-8 without NUL, ended by \n, never empty.

    Names that end in .jsonl hold an object a line, whose `text_key` is a document; all others are plain text,
    with documents set apart by blank lines or, where `separation` is "files", one document a file. Either may
    be compressed as .gz or .bz2. At most `max_bytes` and a little are held at a time.

    What can't be used is counted in `skipped` and left out: empty files and texts, binary (with NUL bytes, as
    UTF-16 has), not UTF-8, over `max_bytes`, lines that are no JSON object with such a text.

    Raises:
        UserError: a file can't be read or uncompressed.
    """
    for path in files:
        is_json = ".jsonl" in path.suffixes[-2:]
        ends = "lines" if is_json else separation
        with opened(path) as file:
            if b"\0" in file.peek(_PIECE_BYTES)[:_PIECE_BYTES]:
                skipped.add("binary", str(path))
                continue
            empty = True
            for line, block in _blocks(file, ends, max_bytes):
                empty = False
                where = f"{path}:{line}"
                try:
                    yield _document(block, text_key if is_json else None)
                except _Unusable as problem:
                    skipped.add(str(problem), where)
            if empty:
                skipped.add("empty", str(path))


def split_sentences(document: str, rule: str = "split") -> list[str]:
    """One document -> its sentences, without space around them; none is empty.

    With "lines" every line is a sentence. With "split" lines are joined and a sentence ends at the full
    stops, question and exclamation marks of any script, unless a small letter follows or a capital on its own
    precedes (as in "J. Smith"); it also ends at a blank line. There is no list of abbreviations, so the rule
    is the same for all languages: next-sentence pairs need spans that follow one another, not perfect
    sentences. Sentences over 1,000 characters are cut, at a space where there is one.
    """
    if rule == "lines":
        sentences = document.split("\n")
    else:
        sentences = (part for block in _BLANK_LINE.split(document) for part in _split_block(block))
    stripped = [sentence.strip() for sentence in sentences]
    if max(map(len, stripped), default=0) > _MAX_SENTENCE_CHARACTERS:
        return [piece for sentence in stripped for piece in _cut_long(sentence)]
    return [sentence for sentence in stripped if sentence]


def _split_block(block: str) -> Iterator[str]:
    if block.isascii():
        ends = [end.end() for end in _ASCII_SENTENCE_END.finditer(block)]
    else:
        ends = _sentence_ends(block)
    return (block[start:end] for start, end in itertools.pairwise([0, *ends, len(block)]))


def _sentence_ends(block: str) -> Iterator[int]:
    for found in _SENTENCE_END.finditer(block):
        start, end = found.span()
        if not (block[end : end + 1].islower() or (block[start] == "." and _is_initial(block, start))):
            yield end


def _is_initial(block: str, stop: int) -> bool:
    """Whether the full stop there follows a capital on its own."""
    before = block[max(0, stop - 2) : stop]
    return before[-1:].isupper() and not before[:-1].isalnum()


def _cut_long(sentence: str) -> Iterator[str]:
    while len(sentence) > _MAX_SENTENCE_CHARACTERS:
        space = sentence.rfind(" ", 1, _MAX_SENTENCE_CHARACTERS)
        place = space if space > 0 else _MAX_SENTENCE_CHARACTERS
        yield sentence[:place]
        sentence = sentence[place:].lstrip()
    if sentence:
        yield sentence


class _Unusable(Exception):
    """Why a document is skipped."""


def _document(block: bytes | None, text_key: str | None) -> bytes:
    if block is None:
        raise _Unusable("too long")
    if b"\0" in block:
        raise _Unusable("binary")
    try:
        text = block.decode()
        if text_key is not None:
            row = json.loads(text)
            if not isinstance(row, dict) or not isinstance(row.get(text_key), str):
                raise _Unusable(f"without the text {text_key!r}")
            text = row[text_key]
        document = text.strip().encode()
    except UnicodeError:
        raise _Unusable("not UTF-8") from None
    except (ValueError, RecursionError):
        raise _Unusable("not JSON") from None
    if b"\r" in document:
        document = document.replace(b"\r\n", b"\n")
    if b"\0" in document:
        raise _Unusable("binary")
    if not document:
        raise _Unusable("empty")
    return document


def _blocks(file: BinaryIO, ends: str, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(first line, bytes) of each line, block between blank lines, or file; None for bytes over the limit."""
    if ends == "files":
        content = file.read(max_bytes + 1).removeprefix(_BYTE_ORDER_MARK)
        if content.strip() or len(content) > max_bytes:
            yield 1, content if len(content) <= max_bytes else None
        return
    separator, line, too_long = _SEPARATORS[ends], 1, None
    rest, at_end = file.read(_PIECE_BYTES).removeprefix(_BYTE_ORDER_MARK), False
    while not at_end:
        piece = file.read(_PIECE_BYTES)
        at_end = not piece
        content, start = rest + (piece or b"\n\n"), 0
        for found in separator.finditer(content):
            block = content[start : found.start()].lstrip()
            if too_long:
                yield too_long, None
            elif block:
                first = line + content.count(b"\n", start, found.start() - len(block))
                yield first, block if len(block) <= max_bytes else None
            line, too_long = line + content.count(b"\n", start, found.end()), None
            start = found.end()
        rest = content[start:].lstrip() if not too_long else content[start:]
        line += content.count(b"\n", start, len(content) - len(rest))
        if len(rest) > max_bytes:
            too_long = too_long or line
            # All that counts from here on is where it ends.
            kept = b"\n" * (b"\n" in rest[len(rest.rstrip()) :])
            line, rest = line + rest.count(b"\n") - len(kept), kept


def _hidden(file: Path, root: Path) -> bool:
    return file != root and any(part.startswith(".") for part in file.relative_to(root).parts)
