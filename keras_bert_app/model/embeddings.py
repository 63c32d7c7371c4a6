"""What goes into the encoder: token, position and segment embeddings. Shapes: see features.py."""

import keras
import numpy as np
from keras import ops

from keras_bert_app.model.arithmetic import dense, normalize

# Under this name Keras files know the layers.
PACKAGE = "keras_bert_app"


@keras.saving.register_keras_serializable(package=PACKAGE)
class BertEmbeddings(keras.layers.Layer):
    """Token + position + segment embeddings, normalised, and projected where `embedding_dim` is given.

    Inputs: token_ids and segment_ids, int [B, S], and positions, int [B, S], where they aren't 0, 1, 2, ...
    mask, bool [B, S], True for a token, isn't used here; the layers that take the output see it as Keras'
    mask. Output: [B, S, H]. With positions the inputs may be [T], and the output is [T, H].

    Args:
        num_segments: 0: there are none, as in DistilBERT; 1: it is every token's, whatever its id.
        position_type: "learned", or "sinusoidal" (Vaswani et al. 2017), which has no weights.
        position_offset: the row of the learned table that the first token has; there are so many more rows
            than `max_positions`. RoBERTa's is 2.
        embedding_dim: width E of the tables, from which a dense layer projects to H as in ELECTRA (Clark et
            al. 2020); None: H.
    """

    def __init__(
        self,
        vocabulary_size,
        hidden_dim,
        max_positions=512,
        num_segments=2,
        position_type="learned",
        epsilon=1e-12,
        dropout=0.1,
        initializer_range=0.02,
        position_offset=0,
        embedding_dim=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if position_type not in ("learned", "sinusoidal"):
            raise ValueError(f"position_type is {position_type!r}; it takes 'learned' or 'sinusoidal'")
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.supports_masking = True
        self.max_positions = max_positions
        self.num_segments = num_segments
        self.position_type = position_type
        self.epsilon = epsilon
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.position_offset = position_offset
        self.embedding_dim = embedding_dim
        self._width = embedding_dim or hidden_dim
        self.token = keras.layers.Embedding(
            vocabulary_size, self._width, self._initializer(), dtype=self.dtype_policy, name="token"
        )
        if num_segments:
            self.segment = keras.layers.Embedding(
                num_segments, self._width, self._initializer(), dtype=self.dtype_policy, name="segment"
            )
        self._is_projected = self._width != hidden_dim
        if self._is_projected:
            self.projection = keras.layers.Dense(
                hidden_dim,
                kernel_initializer=self._initializer(),
                dtype=self.dtype_policy,
                name="projection",
            )
        self.norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.dtype_policy, name="norm")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def _initializer(self):
        return keras.initializers.TruncatedNormal(stddev=self.initializer_range)

    def build(self, token_ids_shape, segment_ids_shape=None, positions_shape=None):
        if self.position_type == "learned":
            self.position = self.add_weight(
                shape=(self.position_offset + self.max_positions, self._width),
                initializer=self._initializer(),
                name="position",
            )
        else:
            self.position = sinusoidal_positions(self.max_positions, self._width)
        self.token.build((None, None))
        if self.num_segments:
            self.segment.build((None, None))
        self.norm.build((None, None, self._width))
        if self._is_projected:
            self.projection.build((None, None, self._width))

    def call(self, token_ids, segment_ids, positions=None, training=None, mask=None):
        table = ops.cast(self.position, self.compute_dtype)
        if self.position_type == "learned":
            table = table[self.position_offset :]  # [max_positions, E]
        if positions is None:
            position = table[: ops.shape(token_ids)[1]]  # [S, E]
        else:
            position = ops.take(table, positions, axis=0)  # [B, S, E]
        x = self.token(token_ids) + position  # [B, S, E]
        if self.num_segments:
            x = x + self.segment(segment_ids if self.num_segments > 1 else ops.zeros_like(segment_ids))
        x = self.dropout_layer(normalize(self.norm, x), training=training)  # [B, S, E]
        return dense(x, (self.projection,)) if self._is_projected else x  # [B, S, H]

    def compute_output_shape(self, token_ids_shape, segment_ids_shape=None, positions_shape=None):
        return (*token_ids_shape, self.hidden_dim)

    def get_config(self):
        return super().get_config() | {
            "vocabulary_size": self.vocabulary_size,
            "hidden_dim": self.hidden_dim,
            "max_positions": self.max_positions,
            "num_segments": self.num_segments,
            "position_type": self.position_type,
            "epsilon": self.epsilon,
            "dropout": self.dropout,
            "initializer_range": self.initializer_range,
            "position_offset": self.position_offset,
            "embedding_dim": self.embedding_dim,
        }


def sinusoidal_positions(max_positions, hidden_dim):
    """Fixed position embeddings, float32 [max_positions, H] (Vaswani et al. 2017, section 3.5)."""
    places = np.arange(hidden_dim)[None]  # [1, H]
    angles = np.arange(max_positions)[:, None] / 10000 ** (2 * (places // 2) / hidden_dim)
    return np.where(places % 2, np.cos(angles), np.sin(angles)).astype("float32")
