"""Load and save a WordPiece vocabulary."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file

PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNKNOWN, CLASSIFY, SEPARATE, MASK)


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a WordPiece vocabulary; a piece's id is its place.

    Raises:
        UserError: a special token is missing, or a piece stands twice or is empty.
    """

    pieces: Sequence[str]
    where: str = "vocabulary"

    def __post_init__(self):
        if "" in self.ids:
            raise UserError(
                f"{self.where}:{self.ids[''] + 1}: an empty line; remove it, or put its piece there"
            )
        missing = [token for token in SPECIAL_TOKENS if token not in self.ids]
        if missing:
            raise UserError(
                f"{self.where}: not a BERT vocabulary, {', '.join(missing)} missing; "
                "give a vocab.txt with one piece a line"
            )
        if len(self.ids) != len(self.pieces):
            double = next(piece for place, piece in enumerate(self.pieces) if self.ids[piece] != place)
            raise UserError(f"{self.where}: the piece {double!r} stands there twice; remove one of the lines")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece -> id."""
        return {piece: place for place, piece in enumerate(self.pieces)}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the pieces, one a line: the vocabulary's identity, whatever its file's line ends."""
        return hashlib.sha256("".join(f"{piece}\n" for piece in self.pieces).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read one piece a line, UTF-8.

        Raises:
            UserError: the file can't be read, isn't UTF-8, or isn't a BERT vocabulary.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise UserError(f"{path}: can't read the vocabulary: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: not UTF-8 at byte {error.start}; save the vocabulary as UTF-8"
            ) from error
        # Not splitlines(): pieces may hold U+2028 and the like.
        return cls(tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")), str(path))

    def save(self, path: str | Path) -> None:
        """Write one piece a line, UTF-8, whole or not at all."""
        with atomic_file(path) as temporary:
            temporary.write_bytes("".join(f"{piece}\n" for piece in self.pieces).encode())
