"""Attention and the Transformer block of BERT (Devlin et al. 2019). Shapes: see features.py."""

import keras

from keras_bert_app.model.arithmetic import dense, normalize
from keras_bert_app.model.embeddings import PACKAGE
from keras_bert_app.model.portable import ACTIVATIONS, Rows, at_least_float32


def make_dense(units, initializer_range, policy, name):
    """A dense layer as BERT initialises it."""
    initializer = keras.initializers.TruncatedNormal(stddev=initializer_range)
    return keras.layers.Dense(units, kernel_initializer=initializer, dtype=policy, name=name)


class _AttentionLayer(keras.layers.Layer):
    """x [B, S, H] -> [B, S, H], with attention weights [B, N, S, S] where they are asked for.

    Where a `layout` is given (see portable.py), it has the mask, and x lies as it says.

    Shapes and dtypes are said outright: tracing `call` takes long, and JAX can't slice by an unknown length.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.supports_masking = True

    def compute_mask(self, x, previous_mask):
        """Hands on a mask [B, S]. One [B, S, S] doesn't say which places are padding."""
        return None if previous_mask is None or len(previous_mask.shape) == 3 else previous_mask

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, x, mask=None, layout=None, training=None, return_attention_weights=False):
        output = keras.KerasTensor(x.shape, self.compute_dtype)
        if not return_attention_weights:
            return output
        batch, length = x.shape[:2]
        shape = (batch, self.num_heads, length, length)
        return output, keras.KerasTensor(shape, at_least_float32(self.compute_dtype))


@keras.saving.register_keras_serializable(package=PACKAGE)
class SelfAttention(_AttentionLayer):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017), as BERT has it.

    Input: x [B, S, H] and mask: bool [B, S], True for a token, as Keras hands it on, or bool [B, S, S], True
    where the second place is seen from the first. Output: [B, S, H], and the attention weights [B, N, S, S]
    where `return_attention_weights`.
    """

    def __init__(self, num_heads, hidden_dim, dropout=0.1, initializer_range=0.02, **kwargs):
        super().__init__(num_heads, **kwargs)
        if hidden_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} doesn't divide hidden_dim {hidden_dim}")
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.query, self.key, self.value, self.output_dense = (
            make_dense(hidden_dim, initializer_range, self.dtype_policy, name)
            for name in ("query", "key", "value", "output")
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        for layer in (self.query, self.key, self.value, self.output_dense):
            layer.build(input_shape)

    def call(self, x, mask=None, layout=None, training=None, return_attention_weights=False):
        context, weights = self.attend(x, layout or Rows(self.num_heads, mask), training)
        output = dense(context, (self.output_dense,))  # [B, S, H]
        return (output, weights) if return_attention_weights else output

    def attend(self, x, layout, training=None):
        """-> what the output layer takes, [B, S, H], and the attention weights."""

        def dropout(weights):
            return self.dropout_layer(weights, training=training)

        projected = dense(x, (self.query, self.key, self.value))
        return layout.attend(projected, dropout if training else None)

    def get_config(self):
        return super().get_config() | {
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout,
            "initializer_range": self.initializer_range,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class TransformerBlock(_AttentionLayer):
    """Attention and feed-forward, each with residual and normalisation after it (post-LN, as BERT).

    Input: x [B, S, H] and mask: bool [B, S], True for a token, as Keras hands it on, or bool [B, S, S], True
    where the second place is seen from the first. Output: [B, S, H], and the attention weights [B, N, S, S]
    where `return_attention_weights`.
    """

    def __init__(
        self,
        num_heads,
        hidden_dim,
        intermediate_dim,
        activation="gelu",
        epsilon=1e-12,
        dropout=0.1,
        attention_dropout=0.1,
        initializer_range=0.02,
        **kwargs,
    ):
        super().__init__(num_heads, **kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it takes one of {', '.join(ACTIVATIONS)}")
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.epsilon = epsilon
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        policy = self.dtype_policy
        self.attention = SelfAttention(
            num_heads, hidden_dim, attention_dropout, initializer_range, dtype=policy, name="attention"
        )
        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=epsilon, dtype=policy, name="attention_norm"
        )
        self.intermediate = make_dense(intermediate_dim, initializer_range, policy, "intermediate")
        self.output_dense = make_dense(hidden_dim, initializer_range, policy, "output")
        self.output_norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="output_norm")
        self.attention_output_dropout = keras.layers.Dropout(
            dropout, dtype=policy, name="attention_output_dropout"
        )
        self.output_dropout = keras.layers.Dropout(dropout, dtype=policy, name="output_dropout")

    def build(self, input_shape):
        for layer in (self.attention, self.attention_norm, self.intermediate, self.output_norm):
            layer.build(input_shape)
        self.output_dense.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, x, mask=None, layout=None, training=None, return_attention_weights=False):
        layout = layout or Rows(self.num_heads, mask)
        context, weights = self.attention.attend(x, layout, training)
        x = self._finish(x, context, training)
        return (x, weights) if return_attention_weights else x

    def all_and_first(self, x, layout, training=None):
        """What a call gives, and what it gives at the rows' first places, [B, H], computed for them alone."""
        context, _ = self.attention.attend(x, layout, training)
        first = self._finish(layout.first(x), layout.first(context), training)
        return self._finish(x, context, training), first

    def _finish(self, x, context, training):
        """What follows on the attention of a block, for each place by itself."""
        attended = dense(context, (self.attention.output_dense,))
        attended = self.attention_output_dropout(attended, training=training)
        x = normalize(self.attention_norm, x + attended)  # [B, S, H]
        inner = dense(x, (self.intermediate,), ACTIVATIONS[self.activation], training=training)  # [B, S, F]
        inner = self.output_dropout(dense(inner, (self.output_dense,)), training=training)
        return normalize(self.output_norm, x + inner)  # [B, S, H]

    def get_config(self):
        return super().get_config() | {
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "epsilon": self.epsilon,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "initializer_range": self.initializer_range,
        }
