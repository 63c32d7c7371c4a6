"""Examples on disk: TFRecord files, each with an index that lets any example be read by its number."""

import hashlib
import json
import mmap
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file

MANIFEST = "manifest.json"
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("tokens", "<u4"), ("label", "<i4")])

# A record: its length (8 bytes), a checksum of that (4), the data, a checksum of it (4).
_BEFORE, _AFTER = 12, 4


def index_path(records: Path) -> Path:
    """The index of a TFRecord file: beside it, as NumPy array of INDEX_DTYPE, an entry an example.

    offset, length: where in the file the serialised tf.train.Example is, in bytes; tokens: how many it has;
    label: next_sentence_label, or -1.
    """
    return records.with_suffix(".index.npy")


# Little-endian; how wide token ids are depends on the vocabulary, see `token_dtype`.
_SEGMENT_DTYPE, _SEQUENCE_DTYPE = np.dtype("u1"), np.dtype("<u2")


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest integers, little-endian, that hold every id; of those that tf.io.decode_raw knows."""
    return np.dtype("<u2" if vocabulary_size <= 2**16 else "<i4")


def dtypes(vocabulary_size: int) -> dict[str, str]:
    """What the bytes of each feature of a record are, as tf.io.decode_raw names it; for the manifest."""
    kinds = {
        features.TOKEN_IDS: token_dtype(vocabulary_size),
        features.SEGMENT_IDS: _SEGMENT_DTYPE,
        features.SEQUENCE_IDS: _SEQUENCE_DTYPE,
    }
    return {name: dtype.name for name, dtype in kinds.items()}


class Example(NamedTuple):
    """One row, with [CLS] and [SEP], without padding or masks; all but the label are the bytes of integers.

    token_ids: of `token_dtype`. segment_ids: uint8. label: next_sentence_label, or -1 where there is none.
    sequence_ids: the number of each token's text in its row, from 1, uint16; empty unless rows are packed.
    """

    token_ids: bytes
    segment_ids: bytes
    label: int = -1
    sequence_ids: bytes = b""


def write_records(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as TFRecord of tf.train.Example, and the index beside it.

    Features: token_ids, segment_ids and, unless it is empty, sequence_ids, each one string of bytes for
    tf.io.decode_raw, as `dtypes` says; next_sentence_label, int64, unless the label is negative. All examples
    have the same ones. Once `path` is there, both files are whole.
    """
    lengths, tokens, labels = array("q"), array("q"), array("q")
    with atomic_file(path) as records, atomic_file(index_path(path)) as index:
        with tf.io.TFRecordWriter(str(records)) as writer:
            for example in examples:
                record = _serialise(example)
                writer.write(record)
                lengths.append(len(record))
                tokens.append(len(example.segment_ids))
                labels.append(example.label)
        entries = np.zeros(len(lengths), INDEX_DTYPE)
        entries["length"], entries["tokens"], entries["label"] = lengths, tokens, labels
        sizes = _BEFORE + np.array(lengths) + _AFTER
        entries["offset"] = _BEFORE + np.cumsum(sizes) - sizes
        with index.open("wb") as file:
            np.save(file, entries)


def _serialise(example: Example) -> bytes:
    """The bytes of an example's tf.train.Example; what many examples share is made once."""
    token_ids, segment_ids, label, sequence_ids = example
    # A map's entries follow one another, sorted by name where bytes are to be the same every time.
    entries = _before(features.SEGMENT_IDS, len(segment_ids)) + segment_ids
    if label >= 0:
        entries = _label(label) + entries
    if sequence_ids:
        entries += _before(features.SEQUENCE_IDS, len(sequence_ids)) + sequence_ids
    entries += _before(features.TOKEN_IDS, len(token_ids)) + token_ids
    return b"\x0a" + _varint(len(entries)) + entries


@lru_cache(maxsize=16384)
def _before(name: str, num_bytes: int) -> bytes:
    """What precedes the value of an entry of that length."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes(num_bytes)]))
    return tf.train.Features(feature={name: feature}).SerializeToString()[: -num_bytes or None]


@lru_cache
def _label(label: int) -> bytes:
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Features(feature={features.NEXT_SENTENCE_LABEL: feature}).SerializeToString()


@lru_cache(maxsize=16384)
def _varint(number: int) -> bytes:
    """A length as protocol buffers write it."""
    low = number & 0x7F
    return bytes([low]) if number < 128 else bytes([low | 0x80]) + _varint(number >> 7)


def describe(records: Path) -> dict:
    """What the manifest says of a file: its name, counts, sizes and hashes."""
    index = np.load(index_path(records))
    return {
        "records": records.name,
        "records_sha256": _sha256(records),
        "index": index_path(records).name,
        "index_sha256": _sha256(index_path(records)),
        "num_examples": len(index),
        "num_tokens": int(index["tokens"].sum()),
        "num_labelled_1": int((index["label"] == 1).sum()),
        "num_bytes": records.stat().st_size,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class ExampleStore:
    """The examples of one split of a prepared folder, by number; opened files are mapped, not read.

    Has what training asks of examples: len, lengths, targets and batch. Only lengths, labels, weights and
    offsets are held in memory, some 30 bytes an example.

    Raises:
        UserError: the folder wasn't prepared to the end, has no such split, or lacks a file of it.
    """

    folder: Path
    split: str = "train"

    def __post_init__(self):
        self.manifest  # noqa: B018 - an unusable folder is refused here, not at the first batch
        for files in self._files:
            for name in (files["records"], files["index"]):
                if not (self.folder / name).is_file():
                    raise UserError(f"{self.folder / name}: missing, but in {MANIFEST}; prepare anew")

    @cached_property
    def manifest(self) -> dict:
        """What `prepare_examples` says of the folder."""
        path = Path(self.folder) / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError:
            message = f"{self.folder}: no {MANIFEST} there; give a folder that `prepare` finished"
            raise UserError(message) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: can't be read ({error}); prepare the examples again") from None
        if "dtypes" not in manifest:
            raise UserError(f"{path}: of an earlier version of this program; prepare the examples again")
        if self.split not in manifest["splits"]:
            raise UserError(f"{path}: no split {self.split!r}; it has {', '.join(manifest['splits'])}")
        return manifest

    @property
    def _files(self) -> list[dict]:
        return self.manifest["splits"][self.split]["files"]

    @cached_property
    def _indexes(self) -> list[np.ndarray]:
        return [np.load(self.folder / files["index"]) for files in self._files]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0] + [len(index) for index in self._indexes])

    @cached_property
    def _maps(self) -> list[mmap.mmap]:
        maps = []
        for files in self._files:
            with (self.folder / files["records"]).open("rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return maps

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [N]."""
        return np.concatenate([index["tokens"] for index in self._indexes]).astype(np.int64)

    @cached_property
    def targets(self) -> dict[str, np.ndarray]:
        """next_sentence_label int32 [N], for pairs, and weight float32 [N], 1 for each."""
        labels = np.concatenate([index["label"] for index in self._indexes])
        pairs = {features.NEXT_SENTENCE_LABEL: labels} if self._pairs else {}
        return pairs | {features.WEIGHT: np.ones(len(self), "float32")}

    @property
    def _pairs(self) -> bool:
        return self.manifest["options"]["objective"] != "none"

    @property
    def packed(self) -> bool:
        """Whether rows hold several texts, told apart by sequence_ids."""
        return self.manifest["options"].get("pack", False)

    @property
    def _sequences(self) -> tuple[str, ...]:
        """The features that have a value a token."""
        packed = (features.SEQUENCE_IDS,) if self.packed else ()
        return (features.TOKEN_IDS, features.SEGMENT_IDS, *packed)

    def records(self, rows: Sequence[int]) -> list[bytes]:
        """The serialised tf.train.Examples of these numbers."""
        result = []
        for row in rows:
            number = int(np.searchsorted(self._starts, row, side="right")) - 1
            entry = self._indexes[number][row - self._starts[number]]
            offset = int(entry["offset"])
            result.append(self._maps[number][offset : offset + int(entry["length"])])
        return result

    def read(self, rows: Sequence[int]) -> dict[str, tf.RaggedTensor | tf.Tensor]:
        """token_ids, segment_ids, ragged int32 [B, (T)], and for pairs next_sentence_label, int32 [B].

        Packed rows have sequence_ids as well, ragged int32 [B, (T)].
        """
        wanted = {name: tf.io.FixedLenFeature([], tf.string) for name in self._sequences}
        if self._pairs:
            wanted[features.NEXT_SENTENCE_LABEL] = tf.io.FixedLenFeature([], tf.int64)
        parsed = tf.io.parse_example(tf.constant(self.records(rows), tf.string), wanted)
        for name in self._sequences:
            flat = tf.io.decode_raw(tf.strings.reduce_join(parsed[name]), self.manifest["dtypes"][name])
            parsed[name] = tf.RaggedTensor.from_row_lengths(flat, self.lengths[rows])
        return {name: tf.cast(value, tf.int32) for name, value in parsed.items()}

    def batch(self, rows: Sequence[int]) -> dict[str, tf.Tensor]:
        """The encoder's inputs [B, S], S the longest of these rows, and the targets [B].

        Packed rows have sequence_ids as well, int32 [B, S], 0 for padding.
        """
        values = self.read(rows) | {features.WEIGHT: tf.constant(self.targets[features.WEIGHT][rows])}
        lengths = values[features.TOKEN_IDS].row_lengths()
        padding = {features.TOKEN_IDS: self.manifest["pad_id"]}
        sequences = {name: values[name].to_tensor(padding.get(name, 0)) for name in self._sequences}
        return values | sequences | {features.PADDING_MASK: tf.sequence_mask(lengths)}

    def verify(self) -> None:
        """Read every file of the split and compare it with its hash.

        Raises:
            UserError: a file is not what the manifest says.
        """
        for files in self._files:
            for kind in ("records", "index"):
                path = self.folder / files[kind]
                if _sha256(path) != files[f"{kind}_sha256"]:
                    raise UserError(f"{path}: changed since it was prepared (other SHA-256); prepare anew")
