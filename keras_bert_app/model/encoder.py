"""The BERT encoder (Devlin et al. 2019): attention, block, encoder. Shapes: see features.py."""

import keras
from keras import ops

from keras_bert_app import features
from keras_bert_app.model.embeddings import PACKAGE, BertEmbeddings

# transformers' names for the feed-forward activations; its "gelu" is the exact one (erf).
ACTIVATIONS = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_new": lambda x: ops.gelu(x, approximate=True),
    "relu": ops.relu,
}

# Added to the attention scores of padding: exp() of it is exactly 0 in every float type in use.
_MASKED = -1e9


@keras.saving.register_keras_serializable(package=PACKAGE)
class SelfAttention(keras.layers.Layer):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017), as BERT has it.

    Input: x [B, S, H] and mask: bool [B, S], True for a token, or bool [B, S, S], True where the second
    place is seen from the first. Output: [B, S, H], and the attention weights [B, N, S, S] where
    `return_attention_weights`.
    """

    def __init__(self, num_heads, hidden_dim, dropout=0.1, initializer_range=0.02, **kwargs):
        super().__init__(**kwargs)
        if hidden_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} doesn't divide hidden_dim {hidden_dim}")
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.supports_masking = True
        self.query, self.key, self.value, self.output_dense = (
            _dense(hidden_dim, initializer_range, self.dtype_policy, name)
            for name in ("query", "key", "value", "output")
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        for layer in (self.query, self.key, self.value, self.output_dense):
            layer.build(input_shape)

    def call(self, x, mask=None, training=None, return_attention_weights=False):
        head_dim = self.hidden_dim // self.num_heads
        query = self._split(self.query(x) * head_dim**-0.5)  # [B, N, S, D]
        key, value = self._split(self.key(x)), self._split(self.value(x))  # [B, N, S, D]
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))  # [B, N, S, S]
        # Half-precision sums over S are too coarse for a softmax.
        scores = ops.cast(scores, keras.backend.result_type(self.compute_dtype, "float32"))
        if mask is not None:
            bias = (1.0 - ops.cast(mask, scores.dtype)) * _MASKED
            scores = scores + (bias[:, None, None, :] if len(mask.shape) == 2 else bias[:, None])
        weights = ops.softmax(scores)  # [B, N, S, S]
        dropped = self.dropout_layer(ops.cast(weights, self.compute_dtype), training=training)
        context = ops.transpose(ops.matmul(dropped, value), (0, 2, 1, 3))  # [B, S, N, D]
        batch, length = ops.shape(x)[:2]
        output = self.output_dense(ops.reshape(context, (batch, length, self.hidden_dim)))  # [B, S, H]
        return (output, weights) if return_attention_weights else output

    def _split(self, x):
        """[B, S, H] -> [B, N, S, D]"""
        batch, length = ops.shape(x)[:2]
        x = ops.reshape(x, (batch, length, self.num_heads, self.hidden_dim // self.num_heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def get_config(self):
        return super().get_config() | {
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout,
            "initializer_range": self.initializer_range,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class TransformerBlock(keras.layers.Layer):
    """Attention and feed-forward, each with residual and normalisation after it (post-LN, as BERT).

    Input: x [B, S, H] and mask: bool [B, S], True for a token, or bool [B, S, S], True where the second
    place is seen from the first. Output: [B, S, H], and the attention weights [B, N, S, S] where
    `return_attention_weights`.
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
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it takes one of {', '.join(ACTIVATIONS)}")
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.epsilon = epsilon
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.supports_masking = True
        policy = self.dtype_policy
        self.attention = SelfAttention(
            num_heads, hidden_dim, attention_dropout, initializer_range, dtype=policy, name="attention"
        )
        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=epsilon, dtype=policy, name="attention_norm"
        )
        self.intermediate = _dense(intermediate_dim, initializer_range, policy, "intermediate")
        self.output_dense = _dense(hidden_dim, initializer_range, policy, "output")
        self.output_norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="output_norm")
        self.attention_output_dropout = keras.layers.Dropout(
            dropout, dtype=policy, name="attention_output_dropout"
        )
        self.output_dropout = keras.layers.Dropout(dropout, dtype=policy, name="output_dropout")

    def build(self, input_shape):
        for layer in (self.attention, self.attention_norm, self.intermediate, self.output_norm):
            layer.build(input_shape)
        self.output_dense.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, x, mask=None, training=None, return_attention_weights=False):
        attended, weights = self.attention(x, mask=mask, training=training, return_attention_weights=True)
        x = self.attention_norm(x + self.attention_output_dropout(attended, training=training))  # [B, S, H]
        inner = ACTIVATIONS[self.activation](self.intermediate(x))  # [B, S, F]
        inner = self.output_dropout(self.output_dense(inner), training=training)
        x = self.output_norm(x + inner)  # [B, S, H]
        return (x, weights) if return_attention_weights else x

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


@keras.saving.register_keras_serializable(package=PACKAGE)
class BertEncoder(keras.layers.Layer):
    """Token ids -> contextual vectors.

    Input: a dict of `token_ids` int [B, S], `segment_ids` int [B, S], `padding_mask` bool [B, S], and where
    rows hold several texts `sequence_ids` int [B, S], the number of the text that a token is of, 0 for
    padding: each text then sees itself alone, and its positions start at 0.
    Output: a dict of `sequence` [B, S, H] and `pooled` [B, H]; with `return_all` also `hidden_states`, the
    L + 1 states [B, S, H] from the embeddings on, and `attention_weights`, L times [B, N, S, S]; with
    `return_token_embeddings` also `token_embeddings` [V, H], for a decoder tied to them.

    Args:
        pooling: "first" passes the first token through a dense tanh layer, as the paper; "mean" and "max"
            pool over tokens, padding excluded, and have no weights.
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_positions=512,
        num_segments=2,
        activation="gelu",
        epsilon=1e-12,
        dropout=0.1,
        attention_dropout=0.1,
        initializer_range=0.02,
        position_type="learned",
        pooling="first",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if pooling not in ("first", "mean", "max"):
            raise ValueError(f"pooling is {pooling!r}; it takes 'first', 'mean' or 'max'")
        self.pooling = pooling
        self.hidden_dim = hidden_dim
        self._own_config = {
            "vocabulary_size": vocabulary_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": intermediate_dim,
            "max_positions": max_positions,
            "num_segments": num_segments,
            "activation": activation,
            "epsilon": epsilon,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "initializer_range": initializer_range,
            "position_type": position_type,
            "pooling": pooling,
        }
        policy = self.dtype_policy
        self.embeddings = BertEmbeddings(
            vocabulary_size,
            hidden_dim,
            max_positions,
            num_segments,
            position_type,
            epsilon,
            dropout,
            initializer_range,
            dtype=policy,
            name="embeddings",
        )
        self.blocks = [
            TransformerBlock(
                num_heads,
                hidden_dim,
                intermediate_dim,
                activation,
                epsilon,
                dropout,
                attention_dropout,
                initializer_range,
                dtype=policy,
                name=f"block_{number}",
            )
            for number in range(num_layers)
        ]
        if pooling == "first":
            self.pooler = _dense(hidden_dim, initializer_range, policy, "pooler", activation="tanh")

    def build(self, input_shape):
        self.embeddings.build((None, None), (None, None))
        for block in self.blocks:
            block.build((None, None, self.hidden_dim))
        if self.pooling == "first":
            self.pooler.build((None, self.hidden_dim))

    def call(self, inputs, training=None, return_all=False, return_token_embeddings=False):
        mask = seen = inputs[features.PADDING_MASK]
        positions = None
        if features.SEQUENCE_IDS in inputs:
            seen, positions = within_texts(inputs[features.SEQUENCE_IDS])
        x = self.embeddings(
            inputs[features.TOKEN_IDS], inputs[features.SEGMENT_IDS], positions, training=training
        )
        states, attention_weights = [x], []
        for block in self.blocks:
            if return_all:
                x, weights = block(x, mask=seen, training=training, return_attention_weights=True)
                attention_weights.append(weights)
            else:
                x = block(x, mask=seen, training=training)
            states.append(x)
        outputs = {features.SEQUENCE: x, features.POOLED: self._pool(x, mask)}
        if return_all:
            outputs |= {features.HIDDEN_STATES: states, features.ATTENTION_WEIGHTS: attention_weights}
        if return_token_embeddings:
            outputs[features.TOKEN_EMBEDDINGS] = ops.convert_to_tensor(self.embeddings.token.embeddings)
        return outputs

    def _pool(self, x, mask):
        """[B, S, H] -> [B, H]"""
        if self.pooling == "first":
            return self.pooler(x[:, 0])
        mask = mask[:, :, None]
        if self.pooling == "max":
            return ops.max(ops.where(mask, x, ops.cast(_MASKED, x.dtype)), axis=1)
        # Half precision can't even count to S.
        wide = keras.backend.result_type(x.dtype, "float32")
        mask = ops.cast(mask, wide)
        mean = ops.sum(ops.cast(x, wide) * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1)
        return ops.cast(mean, x.dtype)

    def get_config(self):
        return super().get_config() | self._own_config


def within_texts(sequence_ids):
    """Which places see each other, bool [B, S, S], and positions within the text, int32 [B, S].

    Args:
        sequence_ids: int [B, S]; places of one text have one number and stand side by side.
    """
    same = sequence_ids[:, :, None] == sequence_ids[:, None, :]  # [B, S, S]
    first = ops.argmax(ops.cast(same, "int8"), axis=-1)  # [B, S]
    places = ops.arange(ops.shape(sequence_ids)[1], dtype="int32")
    return same, places - ops.cast(first, "int32")


def _dense(units, initializer_range, policy, name, activation=None):
    initializer = keras.initializers.TruncatedNormal(stddev=initializer_range)
    return keras.layers.Dense(units, activation, kernel_initializer=initializer, dtype=policy, name=name)
