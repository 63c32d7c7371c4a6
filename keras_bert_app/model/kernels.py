"""The arithmetic of a layer for TensorFlow, on tokens without padding; portable.py has it in keras.ops.

Texts differ in length: of a batch padded to its longest, most places may be padding. Here its tokens stand
one after the other, [T, H], text by text and the shortest text first (as in ByteTransformer, Zhai et al.
2023). Attention alone makes rows of them again, of several groups of texts, each as long as its longest.

Stock operations alone, in forms of which TensorFlow's graph optimizer makes oneDNN's fused ones: a product
with bias and activation, scores with scale and mask.
"""

import contextlib
import math
import threading
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_bert_app.model import portable

# Where the groups of attention begin among the texts sorted by length, in twentieths: in most batches few
# texts are long, and it is they that waste most on padding.
_GROUPS = (0, 7, 12, 16, 18, 19, 20)
# Fewer texts are one group, as what each group costs is more than what they waste.
_FEW_TEXTS = 4
# See `_normalize_by_size`.
_FUSED_EPSILON, _FEW_TOKENS = 1e-3, 256


class _Scope(threading.local):
    static, recompute, observe = False, False, None


_scope = _Scope()


@contextlib.contextmanager
def _within(name, value):
    before = getattr(_scope, name)
    setattr(_scope, name, value)
    try:
        yield
    finally:
        setattr(_scope, name, before)


def static_shapes():
    """Within it layouts keep the padding: XLA compiles no tensors whose size follows from their values."""
    return _within("static", True)


def recomputation():
    """Within it blocks keep their inputs alone for the backward pass, which computes the rest again."""
    return _within("recompute", True)


def observing(observe):
    """Within it `dense` calls observe(layers, x, y) with what it takes and gives, but for integers."""
    return _within("observe", observe)


def run_block(block, x, **arguments):
    """As portable.run_block; within `recomputation` as in Chen et al. 2016, and without attention weights."""
    if not _scope.recompute:
        return block(x, **arguments)
    states = [
        generator.state
        for layer in block._flatten_layers()
        for generator in getattr(layer, "_seed_generators", ())
    ]
    seeds = [(state, state.value) for state in states]

    @tf.recompute_grad
    def computed(x):
        # Dropout has to draw the same again.
        with keras.StatelessScope(seeds):
            return block(x, **arguments)[0]

    return computed(x), None


def dense(x, layers, activation=None, training=False):
    """As portable.dense, or what the layers' `integers` make of x where they have it (see int8.py).

    In training, where nothing can be fused with it, GELU is one of our own.
    """
    if integers := getattr(layers[0], "integers", None):
        return integers(x)
    kernels = [tf.convert_to_tensor(layer.kernel) for layer in layers]
    biases = [tf.convert_to_tensor(layer.bias) for layer in layers]
    kernel = tf.concat(kernels, axis=1) if layers[1:] else kernels[0]
    bias = tf.concat(biases, axis=0) if layers[1:] else biases[0]
    # Of two dimensions, and BiasAdd: else nothing is fused.
    flat = tf.reshape(x, [-1, kernel.shape[0]])
    y = tf.nn.bias_add(tf.matmul(flat, kernel), bias)
    if activation:
        is_gelu = activation is portable.ACTIVATIONS["gelu"]
        y = _gelu(y) if training and is_gelu else activation(y)
    if _scope.observe:
        _scope.observe(layers, flat, y)
    return y if len(x.shape) == 2 else tf.reshape(y, tf.concat([tf.shape(x)[:-1], [kernel.shape[1]]], axis=0))


@tf.custom_gradient
def _gelu(x):
    """The exact one, its gradient in few passes, in float32 at least: of half precision erfc takes longer."""
    wide = tf.cast(x, portable.at_least_float32(x.dtype.name))
    probability = 0.5 * tf.math.erfc(wide * -(0.5**0.5))

    def gradient(upstream):
        density = tf.exp(-0.5 * tf.square(wide)) * (2 * math.pi) ** -0.5
        slope = probability + wide * density
        return tf.cast(tf.cast(upstream, wide.dtype) * slope, x.dtype)

    return tf.cast(wide * probability, x.dtype), gradient


def normalize(layer, x):
    """As portable.normalize."""
    dtype = x.dtype
    wide = tf.as_dtype(portable.at_least_float32(dtype.name))
    gamma, beta = (tf.convert_to_tensor(variable) for variable in (layer.gamma, layer.beta))
    values = [tf.get_static_value(tensor) for tensor in (gamma, beta) if tf.is_symbolic_tensor(tensor)]
    x = tf.cast(x, wide)
    if values and all(value is not None for value in values):
        y = _normalize_by_size(x, *(value.astype(wide.as_numpy_dtype) for value in values), layer.epsilon)
    else:
        y = _normalize(x, tf.cast(gamma, wide), tf.cast(beta, wide), layer.epsilon)
    return tf.cast(y, dtype)


def _normalize(x, gamma, beta, epsilon):
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon) * gamma + beta


def _normalize_by_size(x, gamma, beta, epsilon):
    """The same of constants: but for few tokens, in the form that becomes one operation of oneDNN.

    The optimizer leaves that an epsilon of 0.001 whatever stands here (`AddMklLayerNorm` of grappler's
    remapper.cc). So the input is scaled, such that 0.001 is to it what the layer's epsilon is to x.
    """
    scaled = x * tf.constant((_FUSED_EPSILON / max(epsilon, 1e-12)) ** 0.5, x.dtype)

    def as_one():
        last = [len(x.shape) - 1]
        mean = tf.reduce_mean(scaled, axis=last, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(scaled, mean), axis=last, keepdims=True)
        factor = tf.math.rsqrt(variance + tf.constant(_FUSED_EPSILON, x.dtype)) * tf.constant(gamma)
        return scaled * factor + (tf.constant(beta) - mean * factor)

    # oneDNN's sets itself up anew at each call.
    is_small = tf.shape(x)[0] < _FEW_TOKENS
    return tf.cond(is_small, lambda: _normalize(scaled, gamma, beta, _FUSED_EPSILON), as_one)


class _Group(NamedTuple):
    """R texts next to each other in the order of all, as rows of the longest's length, Sg.

    num_tokens: int32 []. padded: int32 [3, R, N, Sg], where each place's query, key and value is among those
    of the group's tokens, [Tg * 3 * N, D]; after a text's end that of its last token. unpadded: int32
    [Tg, N], where each token stands in [R, N, Sg]. bias: float [R, 1, 1, Sg], MASKED after a text's end.
    """

    num_tokens: tf.Tensor
    padded: tf.Tensor
    unpadded: tf.Tensor
    bias: tf.Tensor


class Tokens:
    """The texts' tokens, one after the other, T of them, text by text, the shortest first.

    Args:
        mask: bool [B, S], True for a token.
        sequence_ids: int [B, S], where rows hold several texts: places of one text have one number, and stand
            side by side; None: a row is a text.
    """

    def __init__(self, num_heads, mask, sequence_ids=None):
        self._batch, self._length = tf.unstack(tf.shape(mask))
        places = tf.cast(tf.where(tf.reshape(mask, [-1])), tf.int32)[:, 0]  # [T] in [0, B * S)
        rows, columns = places // self._length, places % self._length
        begins = tf.not_equal(rows[1:], rows[:-1])
        if sequence_ids is not None:
            texts = tf.gather(tf.reshape(sequence_ids, [-1]), places)
            begins |= tf.not_equal(texts[1:], texts[:-1])
        numbers = tf.cumsum(tf.concat([tf.zeros_like(places[:1]), tf.cast(begins, tf.int32)], axis=0))  # [T]
        lengths = tf.math.segment_sum(tf.ones_like(places), numbers)  # [texts]
        if sequence_ids is not None:
            columns = tf.range(tf.size(places)) - tf.gather(tf.cumsum(lengths, exclusive=True), numbers)
        order = tf.argsort(tf.gather(lengths, numbers), stable=True)
        self._places = tf.gather(places, order)
        self.positions = tf.gather(columns, order)
        lengths = tf.sort(lengths)
        count = tf.size(lengths)
        bounds = [count * part // _GROUPS[-1] for part in _GROUPS]
        self._few = count < _FEW_TEXTS
        self._all = _group(lengths, num_heads)
        self._groups = [
            _group(lengths[first:last], num_heads) for first, last in zip(bounds, bounds[1:], strict=False)
        ]

    def take(self, x):
        """[B, S] -> [T]"""
        return tf.gather(tf.reshape(x, [-1]), self._places)

    def put(self, x):
        """[T, H] -> [B, S, H], 0 for padding"""
        shape = [self._batch * self._length, x.shape[-1]]
        rows = tf.scatter_nd(self._places[:, None], x, shape)
        return tf.reshape(rows, [self._batch, self._length, x.shape[-1]])

    def first(self, x):
        """[T, H] -> the first vector of each of `put`'s rows, [B, H]"""
        at = tf.where(tf.equal(self._places % self._length, 0))  # [B, 1]
        rows = tf.gather(self._places, at) // self._length
        return tf.scatter_nd(rows, tf.gather(x, at[:, 0]), [self._batch, x.shape[-1]])

    def attend(self, projected, dropout):
        """As portable.Rows, without giving the weights."""

        def in_groups():
            parts = tf.split(projected, [group.num_tokens for group in self._groups], axis=0)
            contexts = [_attend(*part, dropout) for part in zip(parts, self._groups, strict=True)]
            return tf.concat(contexts, axis=0)

        # Seeds of dropout mustn't follow from what one branch did.
        if dropout:
            return in_groups(), None
        return tf.cond(self._few, lambda: _attend(projected, self._all, None), in_groups), None


def _group(lengths, num_heads):
    """The group of texts of these lengths, int32 [R]."""
    longest = tf.reduce_max(tf.concat([lengths, [1]], axis=0))
    columns, heads = tf.range(longest), tf.range(num_heads)
    starts = tf.cumsum(lengths, exclusive=True)
    tokens = starts[:, None] + tf.minimum(columns, lengths[:, None] - 1)  # [R, Sg]
    kinds = tf.range(3)[:, None, None, None]
    padded = (tokens[:, None] * 3 + kinds) * num_heads + heads[:, None]
    is_token = tf.sequence_mask(lengths, longest)  # [R, Sg]
    rows = tf.range(tf.size(lengths))
    first_heads = tf.boolean_mask(rows[:, None] * (num_heads * longest) + columns, is_token)  # [Tg]
    bias = tf.where(is_token, 0.0, portable.MASKED)[:, None, None]
    return _Group(tf.reduce_sum(lengths), padded, first_heads[:, None] + heads * longest, bias)


def _attend(projected, group, dropout):
    """[Tg, 3H] -> [Tg, H]"""
    head_dim = projected.shape[-1] // group.padded.shape[0] // group.padded.shape[2]
    query, key, value = tf.unstack(_pad(projected, group, head_dim))  # [R, N, Sg, D]
    scores = tf.matmul(query, key, transpose_b=True) * tf.constant(head_dim**-0.5, query.dtype)
    if dropout:
        # Half precision is too coarse for the sums of its gradient; those of its value oneDNN makes wide.
        scores = tf.cast(scores, portable.at_least_float32(scores.dtype.name))
    weights = tf.nn.softmax(scores + tf.cast(group.bias, scores.dtype))  # [R, N, Sg, Sg]
    weights = dropout(weights) if dropout else weights
    return _unpad(tf.matmul(tf.cast(weights, value.dtype), value), group)


def _pad(projected, group, head_dim):
    """[Tg, 3H] -> [3, R, N, Sg, D]"""
    shape = tf.shape(projected)

    @tf.custom_gradient
    def pad(projected):
        padded = tf.gather(tf.reshape(projected, [-1, head_dim]), group.padded)

        def gradient(upstream):
            # What comes from places after a text's end is 0, as nothing is made of them.
            size = tf.size(group.padded) // 3
            each = group.unpadded[:, None] + tf.range(3)[:, None] * size  # [Tg, 3, N]
            return tf.reshape(tf.gather(tf.reshape(upstream, [-1, head_dim]), each), shape)

        return padded, gradient

    return pad(projected)


def _unpad(context, group):
    """[R, N, Sg, D] -> [Tg, H]"""
    head_dim = context.shape[-1]
    shape = tf.shape(context)

    @tf.custom_gradient
    def unpad(context):
        tokens = tf.gather(tf.reshape(context, [-1, head_dim]), group.unpadded)  # [Tg, N, D]

        def gradient(upstream):
            places = tf.reshape(group.unpadded, [-1, 1])
            parts = tf.reshape(upstream, [-1, head_dim])
            return tf.reshape(tf.scatter_nd(places, parts, [tf.reduce_prod(shape[:-1]), head_dim]), shape)

        return tf.reshape(tokens, [-1, group.unpadded.shape[1] * head_dim]), gradient

    return unpad(context)


def lay_out(num_heads, mask, sequence_ids=None, as_rows=False):
    """As portable.lay_out, but tokens where neither `as_rows` nor `static_shapes` is in the way."""
    if as_rows or _scope.static:
        return portable.lay_out(num_heads, mask, sequence_ids)
    return Tokens(num_heads, mask, sequence_ids)
