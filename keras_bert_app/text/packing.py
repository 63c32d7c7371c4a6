"""Truncate, add [CLS] and [SEP], number the segments, pad: ragged ids -> the encoder's inputs."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import CLASSIFY, PAD, SEPARATE

_ONLY = ("only_first", "only_second")
_TEXTS = (features.TEXT, features.TEXT_PAIR)
TRUNCATIONS = ("longest_first", *_ONLY, "head_tail")


class TextPacker(tf.Module):
    """One or two texts -> packed ids, then features. Training, evaluation and the exported graph call this.

    `truncation` is one of those of `truncate`. For windows use `windows`, then `join` and `pad`.

    Raises:
        UserError: `max_length` leaves no room for a token of each text beside [CLS] and [SEP].
    """

    def __init__(self, tokenizer: BertTokenizer, max_length: int, truncation: str = "longest_first"):
        super().__init__(name="packer")
        if max_length < 5:
            raise UserError(
                f"config.text.max_length is {max_length}; it takes at least 5 to hold a pair of texts"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        ids = tokenizer.vocabulary.ids
        self._classify, self._separate, self._pad = ids[CLASSIFY], ids[SEPARATE], ids[PAD]

    def __call__(self, texts: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """One or two string [B] -> the encoder's inputs [B, S], S the longest of the batch."""
        return self.pad(*self.pack(texts))

    def pack(self, texts: Sequence[tf.Tensor]) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """One or two string [B] -> ragged token ids and segment ids, int32 [B, (T)], 2 <= T <= max_length.

        Raises:
            UserError: the truncation wants two texts, and there is one.
            tf.errors.InvalidArgumentError: a text's shape isn't [B]; see `check_rank`.
        """
        return self.join(self._kept(self._tokens(texts)))

    def read(self, texts: Sequence[tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """What a call gives, and how much of the texts that is: num_tokens int32 [B], truncated bool [B]."""
        segments = self._tokens(texts)
        kept = self._kept(segments)
        missing = sum(
            whole.row_lengths() - part.row_lengths() for whole, part in zip(segments, kept, strict=True)
        )
        token_ids, segment_ids = self.join(kept)
        return self.pad(token_ids, segment_ids), {
            features.NUM_TOKENS: tf.cast(token_ids.row_lengths(), tf.int32),
            features.TRUNCATED: missing > 0,
        }

    def locate(self, texts: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """What a call gives, and where in the texts the tokens are: starts, ends, int32 [B, S]; takes longer.

        The places are half-open, in bytes of the text that segment_ids names; both are 0 for special tokens
        and padding.
        """
        segments = [
            self.tokenizer.tokenize_with_spans(check_rank(name, text, 1))
            for name, text in zip(_TEXTS, texts, strict=False)
        ]
        windows = self._windows([spans.token_ids for spans in segments])
        token_ids, starts, ends = (
            [windows.take(text, getattr(spans, field)) for text, spans in enumerate(segments)]
            for field in ("token_ids", "byte_starts", "byte_ends")
        )
        inputs = self.pad(*self.join(token_ids))
        shape = tf.shape(inputs[features.TOKEN_IDS])
        return inputs | {
            features.STARTS: _surrounded(starts, 0, [0] * len(starts)).to_tensor(0, shape=shape),
            features.ENDS: _surrounded(ends, 0, [0] * len(ends)).to_tensor(0, shape=shape),
        }

    def _tokens(self, texts):
        """One or two string [B] -> all their ids, ragged int32 [B, (T)] each."""
        return [self.tokenizer(check_rank(name, text, 1)) for name, text in zip(_TEXTS, texts, strict=False)]

    def _windows(self, segments):
        return truncate([segment.row_lengths() for segment in segments], self.max_length, self.truncation)

    def _kept(self, segments):
        """What of the texts has room."""
        windows = self._windows(segments)
        return [windows.take(text, segment) for text, segment in enumerate(segments)]

    def join(self, segments: Sequence[tf.RaggedTensor]) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """Ids of one or two texts, ragged int32 [B, (T)] each -> token ids and segment ids, int32 [B, (T)].

        [CLS] first [SEP] second [SEP]: the first text begins at place 1, the second right after its [SEP].
        """
        numbers = [tf.ones_like(segment) * number for number, segment in enumerate(segments)]
        return (
            _surrounded(segments, self._classify, [self._separate] * len(segments)),
            _surrounded(numbers, 0, range(len(segments))),
        )

    def pad(self, token_ids: tf.RaggedTensor, segment_ids: tf.RaggedTensor) -> dict[str, tf.Tensor]:
        """Ragged int32 [B, (T)] twice -> the encoder's inputs [B, S]; S is 1 where there are no rows."""
        lengths = token_ids.row_lengths()
        longest = tf.maximum(tf.reduce_max(lengths), 1)
        shape = tf.stack([-1, longest])
        return {
            features.TOKEN_IDS: token_ids.to_tensor(self._pad, shape=shape),
            features.SEGMENT_IDS: segment_ids.to_tensor(0, shape=shape),
            features.PADDING_MASK: tf.sequence_mask(lengths, longest),
        }


class Windows(NamedTuple):
    """Which tokens every packed sequence takes of its row: one sequence a row, or several (W >= B).

    rows: int32 [W], the row of the batch that each was taken from, ascending.
    places: for each text ragged int32 [W, (T)], where its tokens are among those of that row's text.
    """

    rows: tf.Tensor
    places: tuple[tf.RaggedTensor, ...]

    def take(self, text: int, values: tf.RaggedTensor) -> tf.RaggedTensor:
        """Ids, spans or labels of all tokens of text 0 or 1, ragged [B, (T), ...] -> ragged [W, (T), ...]."""
        places = self.places[text]
        starts = tf.gather(values.row_starts(), self.rows)
        at = tf.gather(starts, places.value_rowids()) + tf.cast(places.values, starts.dtype)
        return places.with_values(tf.gather(values.values, at))


def truncate(lengths: Sequence[tf.Tensor], max_length: int, truncation: str) -> Windows:
    """Tokens of one or two texts, int [B] each -> those that stay, one sequence a row (W = B).

    longest_first: from the end of the longer text first, as transformers does: of two that are both too long
    the first gets the smaller half if it is the shorter or they are equal, the second otherwise.
    only_first, only_second: from the end of that text, as transformers does. Where the other text leaves no
    room, transformers raises; here the other is cut as well, so that one token of that text stays.
    head_tail: as many as longest_first leaves each text, but a quarter of them from its beginning and the
    others from its end, as the 128 and 382 of 510 tokens of Sun et al. 2019, "How to Fine-Tune BERT for Text
    Classification?".

    Raises:
        UserError: no such truncation, or only_second with one text.
        tf.errors.InvalidArgumentError: the texts have different numbers of rows.
    """
    lengths = _checked(lengths, truncation, TRUNCATIONS)
    kept = _kept(lengths, room(max_length, len(lengths)), truncation, least=1)
    places = [tf.ragged.range(length) for length in kept]
    if truncation == "head_tail":
        places = [_ends(*text) for text in zip(places, kept, lengths, strict=True)]
    return Windows(tf.range(tf.size(lengths[0])), tuple(places))


def windows(lengths: Sequence[tf.Tensor], max_length: int, truncation: str, stride: int) -> Windows:
    """Tokens of one or two texts, int [B] each -> windows over all of them; neighbours share `stride` tokens.

    `truncation` (only_first, only_second) says which text is cut into windows; the other is in each of them.
    The windows are those of transformers' `return_overflowing_tokens`. Where the other text leaves no more
    room than `stride`, transformers raises or panics; here the other is cut, so that stride + 1 tokens have
    room. Such windows advance by one token each, so a text that may be that long should be cut before.

    Raises:
        UserError: no such truncation, only_second with one text, or `stride` isn't less than a window holds.
        tf.errors.InvalidArgumentError: the texts have different numbers of rows.
    """
    lengths = _checked(lengths, truncation, _ONLY)
    cut, space = _ONLY.index(truncation), room(max_length, len(lengths))
    if not 0 <= stride < space:
        raise UserError(
            f"stride is {stride}, but a window of max_length {max_length} holds {space} tokens of texts; "
            f"give 0 to {space - 1}, or a greater max_length"
        )
    kept = _kept(lengths, space, truncation, least=stride + 1)
    # A text that fits may be shorter than the stride.
    advance = tf.maximum(kept[cut] - stride, 1)
    further = -((kept[cut] - lengths[cut]) // advance)
    numbers = tf.ragged.range(1 + further)
    rows = tf.cast(numbers.value_rowids(), tf.int32)
    starts = [tf.zeros_like(rows)] * len(lengths)
    starts[cut] = numbers.values * tf.gather(advance, rows)
    places = [
        tf.ragged.range(start, tf.minimum(start + tf.gather(stays, rows), tf.gather(length, rows)))
        for start, stays, length in zip(starts, kept, lengths, strict=True)
    ]
    return Windows(rows, tuple(places))


def room(max_length: int, num_texts: int) -> int:
    """Tokens of texts that a sequence of `max_length` holds beside [CLS] and a [SEP] after each text."""
    return max_length - 1 - num_texts


def _surrounded(segments: Sequence[tf.RaggedTensor], first: int, after: Sequence[int]) -> tf.RaggedTensor:
    """Ragged [B, (T)] one after another, with `first` before all of them and one of `after` behind each."""
    rows = segments[0].nrows()
    parts = [tf.fill([rows, 1], first)]
    for segment, value in zip(segments, after, strict=True):
        parts += [segment, tf.fill([rows, 1], value)]
    return tf.concat(parts, axis=1)


def _checked(lengths: Sequence[tf.Tensor], truncation: str, possible: Sequence[str]) -> list[tf.Tensor]:
    """The same in int32, once they are seen to fit each other and the truncation."""
    if truncation not in possible:
        raise UserError(f"truncation is {truncation!r}; here it takes one of {', '.join(possible)}")
    if len(lengths) == 1 and truncation == "only_second":
        raise UserError("truncation is 'only_second', but there is one text; use 'only_first'")
    for length in lengths[1:]:
        tf.debugging.assert_equal(
            tf.size(length), tf.size(lengths[0]), "there have to be as many second texts as first ones"
        )
    return [tf.cast(length, tf.int32) for length in lengths]


def _kept(lengths: Sequence[tf.Tensor], space: int, truncation: str, least: int) -> list[tf.Tensor]:
    """Tokens that stay of each text, int32 [B]; of the one that only_... names at least `least`, or all."""
    if len(lengths) == 1:
        return [tf.minimum(lengths[0], space)]
    if truncation not in _ONLY:
        return _longest_first(*lengths, space)
    cut = _ONLY.index(truncation)
    other = tf.minimum(lengths[1 - cut], space - tf.minimum(lengths[cut], least))
    kept = [other, other]
    kept[cut] = tf.minimum(lengths[cut], space - other)
    return kept


def _ends(places: tf.RaggedTensor, kept: tf.Tensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """The first `kept` places of each row -> a quarter of them, rounded up, and the row's last places."""
    rows, values = places.value_rowids(), places.values
    in_tail = values >= tf.gather((kept + 3) // 4, rows)
    return places.with_values(tf.where(in_tail, values + tf.gather(lengths - kept, rows), values))


def _longest_first(first: tf.Tensor, second: tf.Tensor, space: int) -> list[tf.Tensor]:
    shorter, longer = tf.minimum(first, second), tf.maximum(first, second)
    longer = tf.where(shorter + longer > space, tf.maximum(shorter, space - shorter), longer)
    both = shorter + longer > space
    shorter = tf.where(both, space // 2, shorter)
    longer = tf.where(both, space - space // 2, longer)
    first_is_shorter = first <= second
    return [tf.where(first_is_shorter, shorter, longer), tf.where(first_is_shorter, longer, shorter)]


def check_rank(name: str, tensor: tf.Tensor, rank: int) -> tf.Tensor:
    """The tensor itself, once it is seen to have so many dimensions, also inside an exported graph.

    A model server feeds a placeholder any shape, whatever the signature says, and most ops take any.

    Raises:
        tf.errors.InvalidArgumentError: when the graph runs; the message gives `name` and the shape fed.
    """
    # A placeholder with default has no static shape, so nothing can fold the check away.
    fed = tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None))
    shape = tf.raw_ops.Shape(input=fed)
    sizes = tf.strings.reduce_join(tf.strings.as_string(shape), separator=",")
    message = tf.strings.join(
        [f"{name}: expected {tensor.dtype.name} of rank {rank}, got shape [", sizes, "]"]
    )
    with tf.control_dependencies([tf.debugging.Assert(tf.size(shape) == rank, [message])]):
        return tf.identity(tensor)
