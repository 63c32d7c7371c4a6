"""Truncate, add [CLS] and [SEP], number the segments, pad: ragged ids -> the encoder's inputs."""

from collections.abc import Sequence

import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import CLASSIFY, PAD, SEPARATE


class TextPacker(tf.Module):
    """One or two texts -> packed ids, then features. Training, evaluation and the exported graph call this.

    Raises:
        UserError: `max_length` leaves no room for a token of each text beside [CLS] and [SEP].
    """

    def __init__(self, tokenizer: BertTokenizer, max_length: int):
        super().__init__(name="packer")
        if max_length < 5:
            raise UserError(
                f"config.text.max_length is {max_length}; it takes at least 5 to hold a pair of texts"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        ids = tokenizer.vocabulary.ids
        self._classify, self._separate, self._pad = ids[CLASSIFY], ids[SEPARATE], ids[PAD]

    def __call__(self, texts: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """One or two string [B] -> the encoder's inputs [B, S], S the longest of the batch."""
        return self.pad(*self.pack(texts))

    def pack(self, texts: Sequence[tf.Tensor]) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
        """One or two string [B] -> ragged token ids and segment ids, int32 [B, (T)], 2 <= T <= max_length.

        Raises:
            tf.errors.InvalidArgumentError: a text's shape isn't [B]; see `check_rank`.
        """
        names = (features.TEXT, features.TEXT_PAIR)
        segments = [
            self.tokenizer(check_rank(name, text, 1)) for name, text in zip(names, texts, strict=False)
        ]
        segments = truncate(segments, self.max_length - 1 - len(segments))
        rows = segments[0].nrows()

        def column(value):
            return tf.fill([rows, 1], value)

        ids, numbers = [column(self._classify)], [column(0)]
        for number, segment in enumerate(segments):
            ids += [segment, column(self._separate)]
            numbers += [tf.ones_like(segment) * number, column(number)]
        return tf.concat(ids, axis=1), tf.concat(numbers, axis=1)

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


def truncate(segments: Sequence[tf.RaggedTensor], room: int) -> list[tf.RaggedTensor]:
    """Cut one or two ragged [B, (T)] to `room` tokens in all, from the end of the longer one first.

    The lengths are those that transformers' `longest_first` gives: of two texts that are both too long, the
    first gets the smaller half if it is the shorter or they are equal, the second otherwise.
    """
    if len(segments) == 1:
        return [segments[0][:, :room]]
    first, second = segments
    first_length, second_length = first.row_lengths(), second.row_lengths()
    shorter = tf.minimum(first_length, second_length)
    longer = tf.maximum(first_length, second_length)
    longer = tf.where(shorter + longer > room, tf.maximum(shorter, room - shorter), longer)
    both = shorter + longer > room
    shorter = tf.where(both, tf.cast(room // 2, shorter.dtype), shorter)
    longer = tf.where(both, tf.cast(room - room // 2, longer.dtype), longer)
    first_is_shorter = first_length <= second_length
    return [
        _cut(first, tf.where(first_is_shorter, shorter, longer)),
        _cut(second, tf.where(first_is_shorter, longer, shorter)),
    ]


def _cut(ragged: tf.RaggedTensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """The first `lengths[b]` values of each row b."""
    places = tf.ragged.range(ragged.row_lengths()).flat_values
    keep = places < tf.gather(lengths, ragged.value_rowids())
    return tf.ragged.boolean_mask(ragged, ragged.with_flat_values(keep))


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
