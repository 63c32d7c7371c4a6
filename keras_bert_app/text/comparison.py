"""What the tokenizer makes of a text, for people to see, and where a Hugging Face tokenizer differs."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import BertTokenizer

_TEXTS_AT_ONCE = 1024


class Tokens(NamedTuple):
    """A text's tokens, without those that only packing adds."""

    ids: Sequence[int]
    pieces: Sequence[str]


class Difference(NamedTuple):
    """A text, its number from 1 on, and what two tokenizers make of it."""

    number: int
    text: str
    ours: Tokens
    theirs: Tokens

    def __str__(self) -> str:
        # Where the pieces are the same, the ids aren't.
        shown = "ids" if list(self.ours.pieces) == list(self.theirs.pieces) else "pieces"
        ours, theirs = (" ".join(map(str, getattr(tokens, shown))) for tokens in (self.ours, self.theirs))
        return f"text {self.number}: {self.text!r}\n  ours:   {ours}\n  theirs: {theirs}"


Reference = Callable[[list[str]], list[Tokens]]


def table(tokenizer: BertTokenizer, texts: Sequence[bytes]) -> str:
    """The tokens of each text, a line each: id, place in the text in bytes and in characters, piece.

    Places are half-open, from 0 on.
    """
    spans = tokenizer.tokenize_with_spans(tf.constant(list(texts), tf.string))
    tables = []
    for text, *columns in zip(texts, *(column.to_list() for column in spans), strict=True):
        rows = [("id", "bytes", "characters", "piece")]
        for token_id, byte, byte_end, character, character_end in zip(*columns, strict=True):
            piece = tokenizer.vocabulary.pieces[token_id]
            shown = piece if piece.isprintable() else repr(piece)
            rows.append((str(token_id), f"{byte}:{byte_end}", f"{character}:{character_end}", shown))
        # The piece is last, since how wide a terminal draws it isn't known.
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]] + [0]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        tables.append("\n".join([repr(text.decode("utf-8", "replace")), *lines]))
    return "\n\n".join(tables)


def differences(
    tokenizer: BertTokenizer, reference: Reference, texts: Iterable[bytes]
) -> Iterator[Difference | None]:
    """For each text None, or how the ids of the two differ. The reference gets invalid UTF-8 as U+FFFD."""
    encode = tf.function(tokenizer.__call__, input_signature=[tf.TensorSpec([None], tf.string)])
    numbers, texts = itertools.count(1), iter(texts)
    while part := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        decoded = [text.decode("utf-8", "replace") for text in part]
        ids = encode(tf.constant(part, tf.string)).to_list()
        for text, ours, theirs, number in zip(decoded, ids, reference(decoded), numbers, strict=False):
            same = ours == list(theirs.ids)
            pieces = [tokenizer.vocabulary.pieces[token_id] for token_id in ours]
            yield None if same else Difference(number, text, Tokens(ours, pieces), theirs)


def load_reference(folder: Path) -> Reference:
    """The tokenizer of a Hugging Face folder: of its tokenizer.json, else what transformers makes of it.

    Raises:
        UserError: there is none, it can't be read, or transformers isn't installed.
    """
    return _rust_reference(folder / "tokenizer.json") or _transformers_reference(folder)


def _rust_reference(path: Path) -> Reference | None:
    import tokenizers

    if not path.exists():
        return None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{path}: no tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts):
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [Tokens(encoding.ids, encoding.tokens) for encoding in encodings]

    return encode


def _transformers_reference(folder: Path) -> Reference:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one with tokenizer.json or vocab.txt")
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise UserError(
            f"{folder} has no tokenizer.json, and transformers, which reads what it has, isn't installed; "
            "pip install transformers"
        ) from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no tokenizer: {' '.join(str(error).split())}") from error

    def encode(texts):
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [Tokens(ids, tokenizer.convert_ids_to_tokens(ids)) for ids in rows]

    return encode
