"""Which tokens masked language modelling hides, and behind what; in the graph, drawn at train time."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.text.vocabulary import MASK, SPECIAL_TOKENS, Vocabulary

UNITS = ("token", "word", "ngram")
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # Devlin et al. 2019, section 3.1; the rest stay as they are
_CONTINUATION = "##"
_UNUSED = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True)
class TokenMasker:
    """Hides tokens of packed rows and says which (Devlin et al. 2019, section 3.1).

    Never hidden are padding and special tokens: [PAD], [UNK], [CLS], [SEP], [MASK] and the [unusedN] that
    BERT's vocabularies keep free. None of them is a random replacement either.

    Units are drawn without replacement, in random order, until `rate` of the row's maskable tokens is
    reached. The unit that reaches beyond it is taken with the probability with which it lies within, so that
    the expected share is `rate` exactly, for short rows and long units too; a short row may have none. As
    with any such budget, a unit that is long beside it is drawn less often than a short one.

    Args:
        unit: "token"; "word", the pieces of a word together, as in google-research/bert's whole word masking;
            "ngram", spans of whole words, whose length n up to `max_ngram` has a probability proportional to
            1 / n (Lan et al. 2020, "ALBERT", section 3.1). A row is cut into such spans at random, and again
            at special tokens; the spans are then the units.
        rate: share of the maskable tokens.
        max_predictions: at most so many tokens of a row, and P is this number; None: P is what the batch
            needs. Units stay whole: one that doesn't fit is left out.

    Raises:
        UserError: an impossible setting, or a vocabulary without a piece to put in a token's place.
    """

    vocabulary: Vocabulary
    unit: str = "token"
    rate: float = 0.15
    max_ngram: int = 3
    max_predictions: int | None = None

    def __post_init__(self):
        if self.unit not in UNITS:
            raise UserError(f"the masking unit is {self.unit!r}; it takes one of {', '.join(UNITS)}")
        if not 0 < self.rate < 1:
            raise UserError(
                f"the masking rate is {self.rate}; it takes a share between 0 and 1, such as 0.15"
            )
        if self.max_ngram < 1:
            raise UserError(f"max_ngram is {self.max_ngram}; it takes at least 1")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise UserError(f"max_predictions is {self.max_predictions}; it takes at least 1, or None")
        if self._special.all():
            raise UserError(f"{self.vocabulary.where}: special tokens only; there is nothing to mask")

    def __call__(self, batch: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """The batch with tokens hidden, and which: a function of the arguments alone.

        Args:
            batch: `token_ids` int32 [B, S] and `padding_mask` bool [B, S], S > 0; the rest is passed on.
            seed: int64 [2].

        Returns:
            The batch with other `token_ids`, and `masked_positions` int32 [B, P], ascending, `masked_ids`
            int32 [B, P], what stood there, and `masked_weights` float32 [B, P], 1 for a masked token. Beyond
            a row's masked tokens all three are 0; P is at least 1.
        """
        token_ids = batch[features.TOKEN_IDS]
        unit_seed, choice_seed, replacement_seed = tf.unstack(
            tf.random.experimental.stateless_split(seed, 3, alg="philox")
        )
        maskable = self.maskable(batch)
        units = number_units(self._unit_starts(token_ids, maskable, unit_seed))
        chosen = choose_units(units, maskable, self.rate, choice_seed, self.max_predictions)
        positions, weights = masked_positions(chosen, self.max_predictions)
        return dict(batch) | {
            features.TOKEN_IDS: self._replace(token_ids, chosen, replacement_seed),
            features.MASKED_POSITIONS: positions,
            features.MASKED_IDS: tf.gather(token_ids, positions, batch_dims=1)
            * tf.cast(weights, token_ids.dtype),
            features.MASKED_WEIGHTS: weights,
        }

    def maskable(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Which tokens of a batch may be hidden, bool [B, S]."""
        return batch[features.PADDING_MASK] & ~tf.gather(self._special, batch[features.TOKEN_IDS])

    @cached_property
    def _special(self) -> np.ndarray:
        """Whether a piece is special, bool [V]."""
        return np.array(
            [piece in SPECIAL_TOKENS or bool(_UNUSED.fullmatch(piece)) for piece in self.vocabulary.pieces]
        )

    @cached_property
    def _continues(self) -> np.ndarray:
        """Whether a piece belongs to the word before, bool [V]."""
        return np.array([piece.startswith(_CONTINUATION) for piece in self.vocabulary.pieces])

    def _unit_starts(self, token_ids, maskable, seed):
        """Where a unit starts, bool [B, S]."""
        if self.unit == "token":
            return maskable
        goes_on = _before(maskable, False)
        words = maskable & ~(tf.gather(self._continues, token_ids) & goes_on)
        if self.unit == "word":
            return words
        spans = number_spans(number_units(words), self.max_ngram, seed)
        return maskable & ~((spans == _before(spans, -1)) & goes_on)

    def _replace(self, token_ids, chosen, seed):
        """Chosen tokens -> [MASK], a random ordinary piece, or themselves, each by its own draw; [B, S]."""
        share_seed, piece_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2, alg="philox"))
        ordinary = tf.constant(np.flatnonzero(~self._special), token_ids.dtype)
        draw = _uniform(token_ids, share_seed)
        pieces = tf.random.stateless_uniform(
            tf.shape(token_ids), piece_seed, 0, tf.size(ordinary), tf.int32, alg="philox"
        )
        replaced = tf.where(
            draw < MASKED_SHARE,
            tf.constant(self.vocabulary.ids[MASK], token_ids.dtype),
            tf.where(draw < MASKED_SHARE + RANDOM_SHARE, tf.gather(ordinary, pieces), token_ids),
        )
        return tf.where(chosen, replaced, token_ids)


def number_units(starts: tf.Tensor) -> tf.Tensor:
    """Where units start, bool [B, S] -> the number of each token's unit in its row, from 0, int32 [B, S]."""
    return tf.maximum(tf.cumsum(tf.cast(starts, tf.int32), axis=1) - 1, 0)


def number_spans(words: tf.Tensor, max_ngram: int, seed: tf.Tensor) -> tf.Tensor:
    """Numbers of words in their row -> numbers of the spans they fall into, both int32 [B, S], from 0.

    Spans follow one another; each has n words with a probability proportional to 1 / n, n <= max_ngram.
    """
    shares = 1 / np.arange(1, max_ngram + 1)
    below = np.cumsum(shares / shares.sum())[:-1].astype("float32")  # the last of them is 1
    lengths = 1 + tf.reduce_sum(tf.cast(_uniform(words, seed)[:, :, None] >= below, tf.int32), axis=-1)
    return tf.searchsorted(tf.cumsum(lengths, axis=1), words, side="right")


def choose_units(
    units: tf.Tensor, maskable: tf.Tensor, rate: float, seed: tf.Tensor, most: int | None = None
) -> tf.Tensor:
    """Draw whole units, without replacement, that hold `rate` of each row's maskable tokens in expectation.

    Args:
        units: int32 [B, S], the number of each token's unit in its row; read where maskable.
        maskable: bool [B, S].
        most: at most so many tokens of a row.

    Returns:
        bool [B, S], True for the tokens of the units drawn.
    """
    order_seed, end_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2, alg="philox"))
    batch, length = tf.unstack(tf.shape(units))
    flat = units + tf.range(batch)[:, None] * length
    sizes = tf.math.unsorted_segment_sum(tf.cast(maskable, tf.int32), flat, batch * length)
    sizes = tf.reshape(sizes, [batch, length])  # 0 where a row has no unit of that number
    order = tf.argsort(_uniform(units, order_seed), axis=1, stable=True)
    ordered = tf.gather(sizes, order, batch_dims=1)
    start = tf.cumsum(ordered, axis=1, exclusive=True)
    wanted = rate * tf.reduce_sum(tf.cast(maskable, tf.float32), axis=1, keepdims=True)  # [B, 1]
    # True for units within what is wanted, False for those beyond, and in proportion for the one across.
    end = tf.cast(start, tf.float32) + _uniform(wanted, end_seed) * tf.cast(ordered, tf.float32)
    taken = end < wanted
    if most is not None:
        taken &= start + ordered <= most
    by_unit = tf.gather(taken, tf.argsort(order, axis=1, stable=True), batch_dims=1)
    return tf.gather(by_unit, units, batch_dims=1) & maskable


def masked_positions(chosen: tf.Tensor, size: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """bool [B, S] -> positions of True, int32 [B, P], ascending, and weights, float32 [B, P]; padded with 0.

    Args:
        size: P, no row having more; None: as many as the fullest row has, at least 1.
    """
    length = tf.shape(chosen)[1]
    counts = tf.reduce_sum(tf.cast(chosen, tf.int32), axis=1)
    longest = tf.maximum(tf.reduce_max(counts), 1) if size is None else size
    weights = tf.sequence_mask(counts, longest)
    positions = tf.sort(tf.where(chosen, tf.range(length), length), axis=1)[:, :longest]
    positions = tf.pad(positions, [[0, 0], [0, tf.maximum(longest - length, 0)]])
    return tf.where(weights, positions, 0), tf.cast(weights, tf.float32)


def _uniform(like: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """float32 in [0, 1) of that shape; the algorithm is named so that every device draws the same."""
    return tf.random.stateless_uniform(tf.shape(like), seed, alg="philox")


def _before(values: tf.Tensor, first) -> tf.Tensor:
    """Each token's predecessor's value, [B, S]; `first` where there is none."""
    return tf.pad(values[:, :-1], [[0, 0], [1, 0]], constant_values=first)
