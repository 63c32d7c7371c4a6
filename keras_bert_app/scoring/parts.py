"""Files -> parts of them: what is answered, recorded and given to a worker at a time, and always the same."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from keras_bert_app.data.documents import input_files
from keras_bert_app.data.readers import read_texts
from keras_bert_app.data.rows import reading
from keras_bert_app.errors import UserError

_TEXTS = 4096
_BYTES = 16 * 2**20


class Part(NamedTuple):
    """Texts of one file that follow one another; `end` is how many of the file's bytes were read for them."""

    texts: list[Mapping[str, bytes]]
    end: int

    def sha256_after(self, before: str) -> str:
        """A digest of these texts and, through theirs, of those before."""
        digest = hashlib.sha256(before.encode())
        for row in self.texts:
            for value in row.values():
                digest.update(b"%d:" % len(value))
                digest.update(value)
        return digest.hexdigest()


def files_to_read(pattern: str, columns: Mapping[str, str], output: Path) -> list[Path]:
    """The files of a pattern (see data/documents.py), in order.

    Raises:
        UserError: one is of another kind than predict reads, or is the output; that is a folder.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; give a file as --output")
    files = input_files([pattern])
    for file in files:
        read_texts(file, columns)
        if file.resolve() == output.resolve():
            raise UserError(f"{file} is both --input and --output; write to another file")
    return files


def read_parts(path: Path, columns: Mapping[str, str]) -> Iterator[Part]:
    """Stream the parts of one file: 4,096 texts each, or fewer where they have more than 16 MB together.

    Raises:
        UserError: a row that can't be read, when it is reached; names file and line.
    """
    texts: list[Mapping[str, bytes]] = []
    size = 0
    with reading(path), open(path, "rb") as file:
        try:
            for row in read_texts(path, columns, file):
                texts.append(row)
                size += sum(map(len, row.values()))
                if len(texts) == _TEXTS or size >= _BYTES:
                    yield Part(texts, file.tell())
                    texts, size = [], 0
        except UserError as error:
            # The readers name the key of a config, which predict doesn't take.
            raise UserError(str(error).replace("set config.data.", "give --")) from None
        if texts:
            yield Part(texts, file.tell())


def total_bytes(files: Sequence[Path]) -> int:
    """The size of files together, as they lie on disk."""
    return sum(file.stat().st_size for file in files)
