"""Documents -> token ids on disk: written in chunks by many processes, read by document number."""

import hashlib
import itertools
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bert_app.data.array_files import ArrayFile, array_writer
from keras_bert_app.data.documents import split_sentences
from keras_bert_app.data.duplicates import NUM_HASHES, signatures
from keras_bert_app.data.examples_store import token_dtype
from keras_bert_app.files import atomic_directory
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import UNKNOWN

_SENTENCES_AT_ONCE = 16384
_NOT_ASCII = re.compile(r"([^ ]*[^\x00-\x7F][^ ]*)")
# The ASCII characters that the tokenizer deletes, but NUL, which no document has.
_DELETED = bytes({*range(1, 32), 127} - {ord("\t"), ord("\n"), ord("\r")})
# Held-out documents are told by their content's hash alone: the same ones with any seed, engine or order.
_CONTENT, _HELD_OUT = 0, 1


def document_digest(document: bytes) -> bytes:
    """16 bytes that name a document by its content."""
    return hashlib.blake2b(document, digest_size=16).digest()


class ChunkTokenizer:
    """Tokenises chunks of documents with the graph's own tokenizer and writes what training needs of them."""

    def __init__(self, tokenizer: BertTokenizer, sentence_rule: str):
        self._sentence_rule, self._literals = sentence_rule, tokenizer.options.never_split
        self._unknown = tokenizer.vocabulary.ids[UNKNOWN]
        self._dtype = token_dtype(len(tokenizer.vocabulary))
        signature = [tf.TensorSpec([None], tf.string)]
        self._pieces = tf.function(tokenizer.__call__, signature, autograph=False)
        self._plain_pieces = tf.function(tokenizer.plain_pieces, signature, autograph=False)

    def write(self, documents: Sequence[bytes], digests: Sequence[bytes], folder: Path) -> None:
        """Write what `tokenise` gives as a folder of arrays, whole or not at all."""
        columns = self.tokenise(documents, digests)
        with atomic_directory(folder) as temporary:
            for name, column in columns.items():
                np.save(temporary / f"{name}.npy", column)

    def tokenise(self, documents: Sequence[bytes], digests: Sequence[bytes]) -> dict[str, np.ndarray]:
        """One chunk of documents, and the `document_digest` of each, as arrays.

        tokens [T]; sentence_lengths int32 [N], tokens of each sentence, none 0; document_lengths int32 [D],
        sentences of each document, 0 where it has no tokens; digests uint64 [D, 2]; signatures uint32 [D, K].
        """
        sentences, owners = [], []
        for number, document in enumerate(documents):
            found = split_sentences(document.decode(), self._sentence_rule)
            sentences += found
            owners += [number] * len(found)
        tokens, lengths = self._token_ids(sentences)
        full = lengths > 0
        lengths, owners = lengths[full], np.asarray(owners, np.int64)[full]
        document_lengths = np.bincount(owners, minlength=len(documents))
        starts = _starts(np.bincount(owners, weights=lengths, minlength=len(documents)).astype(np.int64))
        return {
            "tokens": tokens,
            "sentence_lengths": lengths.astype(np.int32),
            "document_lengths": document_lengths.astype(np.int32),
            "digests": np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2),
            "signatures": signatures(tokens, starts, self._unknown),
        }

    def _token_ids(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Sentences -> (token ids [T], tokens of each [N])."""
        tokens, lengths = [np.zeros(0, self._dtype)], [np.zeros(0, np.int64)]
        for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
            found = self._pieces_of(sentences[start : start + _SENTENCES_AT_ONCE])
            tokens.append(found[0])
            lengths.append(found[1])
        return np.concatenate(tokens), np.concatenate(lengths)

    def _pieces_of(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same of some."""
        if self._literals:
            return self._arrays(self._pieces(tf.constant(sentences)))
        return self._ascii_apart(sentences, self._pieces_of_words)

    def _pieces_of_words(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Between spaces nothing depends on what else there is, so words that are ASCII go the short way."""
        parts = [_NOT_ASCII.split(sentence) for sentence in sentences]
        tokens, lengths = self._ascii_apart(
            list(itertools.chain.from_iterable(parts)),
            lambda words: self._arrays(self._pieces(tf.constant(words))),
        )
        return tokens, np.add.reduceat(lengths, np.cumsum([0, *map(len, parts[:-1])]))

    def _ascii_apart(self, texts: list[str], pieces_of: Callable) -> tuple[np.ndarray, np.ndarray]:
        """ASCII is cleaned here, at a tenth of the graph's cost; other texts are those of `pieces_of`."""
        others = [number for number, text in enumerate(texts) if not text.isascii()]
        plain = list(texts)
        for number in others:
            plain[number] = ""
        plain = "\0".join(plain).encode().translate(None, _DELETED).split(b"\0")
        tokens, lengths = self._arrays(self._plain_pieces(tf.constant(plain)))
        if others:
            added, counts = pieces_of([texts[number] for number in others])
            tokens = np.insert(tokens, np.repeat(np.cumsum(lengths)[others], counts), added)
            lengths[others] = counts
        return tokens, lengths

    def _arrays(self, pieces: tf.RaggedTensor) -> tuple[np.ndarray, np.ndarray]:
        return pieces.flat_values.numpy().astype(self._dtype), pieces.row_lengths().numpy().copy()


@dataclass(frozen=True)
class TokenizedDocuments:
    """Token ids of documents; all but document_starts may be an `ArrayFile`.

    tokens [T]; sentence_starts int64 [N + 1], places in tokens; document_starts int64 [D + 1], places in
    sentence_starts; digests uint64 [D, 2].
    """

    tokens: np.ndarray | ArrayFile
    sentence_starts: np.ndarray | ArrayFile
    document_starts: np.ndarray
    digests: np.ndarray | ArrayFile

    def __len__(self) -> int:
        return len(self.document_starts) - 1

    def token_bounds(self, document: int) -> Sequence[int]:
        """Where in `tokens` the sentences of a document begin, and where the last ends."""
        first, last = self.document_starts[document : document + 2].tolist()
        if isinstance(self.sentence_starts, ArrayFile):
            return array("q", self.sentence_starts.read(first, last + 1))
        return self.sentence_starts[first : last + 1].tolist()

    def digest(self, document: int) -> bytes:
        """The document's `document_digest`."""
        return self.digests[document : document + 1].tobytes()

    def document_tokens(self, document: int) -> np.ndarray:
        """All token ids of a document."""
        bounds = self.token_bounds(document)
        return self.tokens[bounds[0] : bounds[-1]]

    def load(self, numbers: range) -> "TokenizedDocuments":
        """These documents alone, in memory."""
        document_starts = self.document_starts[numbers.start : numbers.stop + 1]
        sentence_starts = self.sentence_starts[document_starts[0] : document_starts[-1] + 1]
        return TokenizedDocuments(
            self.tokens[sentence_starts[0] : sentence_starts[-1]],
            sentence_starts - sentence_starts[0],
            document_starts - document_starts[0],
            self.digests[numbers.start : numbers.stop],
        )

    @classmethod
    def open(cls, folder: Path) -> "TokenizedDocuments":
        """The arrays that `gather` wrote."""
        tokens, sentence_starts, digests = (
            ArrayFile(folder / f"{name}.npy") for name in ("tokens", "sentence_starts", "digests")
        )
        return cls(tokens, sentence_starts, np.load(folder / "document_starts.npy"), digests)


def held_out(digests: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are held out, bool [D], by their content alone."""
    return digests[:, _HELD_OUT] < np.uint64(int(fraction * (2**64 - 1)))


def contents(digests: np.ndarray) -> np.ndarray:
    """One hash of each document's content, uint64 [D]."""
    return np.ascontiguousarray(digests[:, _CONTENT])


def load_column(chunks: Sequence[Path], name: str) -> np.ndarray:
    """One array of all chunks, one after the other."""
    return np.concatenate([np.load(chunk / f"{name}.npy") for chunk in chunks])


def gather_signatures(chunks: Sequence[Path], num_documents: int, path: Path) -> ArrayFile:
    """The signatures of all chunks in one file at `path`, uint32 [D, K]."""
    with array_writer(path, np.uint32, (num_documents, NUM_HASHES)) as write:
        for chunk in chunks:
            write(np.load(chunk / "signatures.npy"))
    return ArrayFile(path)


def gather(chunks: Sequence[Path], kept: np.ndarray, folder: Path) -> None:
    """Write the documents that `kept` (bool [D]) names into `folder`, for `TokenizedDocuments.open`."""
    document_lengths = load_column(chunks, "document_lengths").astype(np.int64)
    np.save(folder / "document_starts.npy", _starts(document_lengths[kept]))
    np.save(folder / "digests.npy", load_column(chunks, "digests")[kept])
    ends = np.cumsum([len(np.load(chunk / "digests.npy", mmap_mode="r")) for chunk in chunks])[:-1]

    def of_chunks():
        """For each chunk which of its sentences are kept, and how many tokens each sentence has."""
        parts = zip(chunks, np.split(kept, ends), np.split(document_lengths, ends), strict=True)
        for chunk, mask, lengths in parts:
            yield chunk, np.repeat(mask, lengths), np.load(chunk / "sentence_lengths.npy")

    num_sentences, num_tokens = int(document_lengths[kept].sum()), 0
    with array_writer(folder / "sentence_starts.npy", np.int64, (num_sentences + 1,)) as write:
        write(np.zeros(1, np.int64))
        for _, mask, lengths in of_chunks():
            write(num_tokens + np.cumsum(lengths[mask], dtype=np.int64))
            num_tokens += int(lengths[mask].sum())
    dtype = np.load(chunks[0] / "tokens.npy", mmap_mode="r").dtype
    with array_writer(folder / "tokens.npy", dtype, (num_tokens,)) as write:
        for chunk, mask, lengths in of_chunks():
            write(np.load(chunk / "tokens.npy")[np.repeat(mask, lengths)])


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
