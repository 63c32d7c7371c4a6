"""Records -> batches addressed by (seed, epoch, step), grouped by length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.data.readers import Record
from keras_bert_app.text.packing import TextPacker

# Within so many shuffled batches at a time, examples are sorted by length.
_BATCHES_SORTED_TOGETHER = 50
_TEXTS_PACKED_AT_ONCE = 4096


@dataclass(frozen=True)
class Examples:
    """Packed texts and their targets, in memory; rows are made into a padded batch on demand.

    token_ids, segment_ids: ragged int32 [N, (T)]. targets: feature name -> array [N, ...].
    """

    token_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor
    targets: Mapping[str, np.ndarray]
    pad: Callable[[tf.RaggedTensor, tf.RaggedTensor], dict[str, tf.Tensor]]

    def __len__(self) -> int:
        return int(self.token_ids.nrows())

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [N]."""
        return self.token_ids.row_lengths().numpy()

    def batch(self, rows: np.ndarray) -> dict[str, tf.Tensor]:
        """The encoder's inputs [B, S], S the longest of these rows, and the targets [B, ...]."""
        inputs = self.pad(tf.gather(self.token_ids, rows), tf.gather(self.segment_ids, rows))
        return inputs | {name: tf.constant(values[rows]) for name, values in self.targets.items()}


def pack_texts(
    packer: TextPacker, texts: Sequence[Sequence[str | bytes]], targets: Mapping[str, np.ndarray]
) -> Examples:
    """One or two sequences of N texts, packed by the graph's own packer -> Examples."""
    pack = tf.function(packer.pack)
    parts = []
    for start in range(0, max(1, len(texts[0])), _TEXTS_PACKED_AT_ONCE):
        part = [tf.constant(list(text[start : start + _TEXTS_PACKED_AT_ONCE]), tf.string) for text in texts]
        parts.append(pack(part))
    token_ids, segment_ids = (tf.concat(column, axis=0) for column in zip(*parts, strict=True))
    return Examples(token_ids, segment_ids, targets, packer.pad)


def record_texts(records: Sequence[Record]) -> list[list[bytes]]:
    """The one or two text columns of records, as UTF-8."""
    names = [name for name in (features.TEXT, features.TEXT_PAIR) if records and name in records[0].values]
    return [[record.values[name].encode("utf-8", "surrogatepass") for record in records] for name in names]


@dataclass(frozen=True)
class Batches:
    """An endless training order in which any step can be computed without those before it.

    phase: which stretch of the run this is; each has an order of its own.
    """

    examples: Examples
    batch_size: int
    seed: int
    group_by_length: bool
    phase: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; the last of them in the making may be smaller."""
        return -(-len(self.examples) // self.batch_size)

    def rows(self, step: int) -> np.ndarray:
        """The numbers of the examples of step `step`, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[place]

    def __getitem__(self, step: int) -> dict[str, tf.Tensor]:
        """The batch of these examples."""
        return self.examples.batch(self.rows(step))

    def _order(self, epoch: int) -> list[np.ndarray]:
        return _cached_order(self, (self.phase << 32) + epoch)

    def __hash__(self) -> int:
        return id(self)


def epoch_order(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, group_by_length: bool
) -> list[np.ndarray]:
    """Rows of each batch of one epoch: every row once; a function of the arguments alone.

    With `group_by_length` rows are shuffled, sorted by length within stretches of some batches, cut into
    batches, and the batches shuffled: batches of similar lengths in an order that tells nothing of length.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    rows = random.permutation(len(lengths))
    if not group_by_length:
        return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    stretch = batch_size * _BATCHES_SORTED_TOGETHER
    stretches = [rows[start : start + stretch] for start in range(0, len(rows), stretch)]
    rows = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in stretches])
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


@lru_cache(maxsize=2)
def _cached_order(batches: Batches, epoch: int) -> list[np.ndarray]:
    return epoch_order(
        batches.examples.lengths, batches.batch_size, batches.seed, epoch, batches.group_by_length
    )


def evaluation_order(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows of each batch, every row once, sorted by length so that little is padding."""
    rows = np.argsort(lengths, kind="stable")
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
