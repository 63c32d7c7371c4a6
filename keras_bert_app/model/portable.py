"""The arithmetic of a layer in keras.ops, for every backend of Keras; kernels.py is TensorFlow's.

Both have `dense`, `normalize` and a layout. A layout says how a batch's texts lie in the tensors between two
blocks: here as they come, `...` being [B, S].
"""

import keras
from keras import ops

# transformers' names for the feed-forward activations; its "gelu" is the exact one (erf).
ACTIVATIONS = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_new": lambda x: ops.gelu(x, approximate=True),
    "relu": ops.relu,
}

# Added to the attention scores of padding: exp() of it is exactly 0 in every float type in use.
MASKED = -1e9


def at_least_float32(dtype):
    """The dtype for what half precision is too coarse for: float64 if that is it, else float32."""
    # Keras' result_type makes float64 float32 on JAX, even where JAX has it.
    return "float64" if dtype == "float64" else "float32"


def run_block(block, x, **arguments):
    """What a block returns."""
    return block(x, **arguments)


def dense(x, layers, activation=None, training=False):
    """What the dense layers make of x, side by side: [..., H] -> [..., sum of their units].

    activation: applied to it, such as one of ACTIVATIONS.
    """
    kernel = ops.concatenate([layer.kernel for layer in layers], axis=1) if layers[1:] else layers[0].kernel
    bias = ops.concatenate([layer.bias for layer in layers]) if layers[1:] else layers[0].bias
    y = ops.matmul(x, kernel) + bias
    return activation(y) if activation else y


def normalize(layer, x):
    """What the layer normalisation makes of x, [..., H]."""
    return layer(x)


class Rows:
    """Texts as rows [B, S], padding included, which no token sees.

    Args:
        seen: bool [B, S], True for a token, or bool [B, S, S], True where the second place is seen from the
            first; None: all see all.
        mask: bool [B, S], True for a token, where `put` is used.
        positions: int [B, S], where they aren't 0, 1, 2, ...
    """

    def __init__(self, num_heads, seen=None, mask=None, positions=None):
        self._num_heads = num_heads
        self._seen = seen
        self._mask = mask
        self.positions = positions

    def take(self, x):
        """[B, S] -> [...]"""
        return x

    def put(self, x):
        """[..., H] -> [B, S, H], 0 for padding"""
        return ops.where(self._mask[:, :, None], x, ops.zeros_like(x))

    def first(self, x):
        """[..., H] -> the first vector of each of `put`'s rows, [B, H]"""
        return ops.where(self._mask[:, :1], x[:, 0], ops.zeros_like(x[:, 0]))

    def attend(self, projected, dropout):
        """Queries, keys and values side by side [..., 3H] -> context [..., H], weights [B, N, S, S].

        dropout: what makes the weights that values are added up with of the attention weights; None: they
            are the same.
        """
        batch, length, width = ops.shape(projected)
        head_dim = width // 3 // self._num_heads
        split = ops.reshape(projected, (batch, length, 3, self._num_heads, head_dim))
        query, key, value = (split[:, :, place] for place in range(3))  # [B, S, N, D]
        scores = ops.einsum("bsnd,btnd->bnst", query * head_dim**-0.5, key)
        # Half-precision sums over S are too coarse for a softmax.
        dtype = keras.backend.standardize_dtype(projected.dtype)
        scores = ops.cast(scores, at_least_float32(dtype))
        if self._seen is not None:
            bias = (1.0 - ops.cast(self._seen, scores.dtype)) * MASKED
            scores = scores + (bias[:, None, None, :] if len(bias.shape) == 2 else bias[:, None])
        weights = ops.softmax(scores)  # [B, N, S, S]
        dropped = ops.cast(weights, dtype)
        dropped = dropout(dropped) if dropout else dropped
        context = ops.einsum("bnst,btnd->bsnd", dropped, value)
        return ops.reshape(context, (batch, length, width // 3)), weights


def lay_out(num_heads, mask, sequence_ids=None, as_rows=True):
    """The layout of a batch of texts: rows, whatever `as_rows` says.

    Args:
        mask: bool [B, S], True for a token.
        sequence_ids: int [B, S], where rows hold several texts: places of one text have one number and stand
            side by side, padding has 0; None: a row is a text.
    """
    if sequence_ids is None:
        return Rows(num_heads, mask, mask)
    same = sequence_ids[:, :, None] == sequence_ids[:, None, :]  # [B, S, S]
    first = ops.argmax(ops.cast(same, "int8"), axis=-1)  # [B, S]
    places = ops.arange(ops.shape(sequence_ids)[1], dtype="int32")
    return Rows(num_heads, same, mask, places - ops.cast(first, "int32"))
