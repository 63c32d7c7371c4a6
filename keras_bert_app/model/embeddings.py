"""What goes into the encoder: token, position and segment embeddings. Shapes: see features.py."""

import keras
import numpy as np
from keras import ops

# Under this name Keras files know the layers.
PACKAGE = "keras_bert_app"


@keras.saving.register_keras_serializable(package=PACKAGE)
class BertEmbeddings(keras.layers.Layer):
    """Token + position + segment embeddings, normalised.

    Inputs: token_ids and segment_ids, int [B, S], and positions, int [B, S], where they aren't 0, 1, 2, ...
    Output: [B, S, H].

    Args:
        position_type: "learned", or "sinusoidal" (Vaswani et al. 2017), which has no weights.
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
        **kwargs,
    ):
        super().__init__(**kwargs)
        if position_type not in ("learned", "sinusoidal"):
            raise ValueError(f"position_type is {position_type!r}; it takes 'learned' or 'sinusoidal'")
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.max_positions = max_positions
        self.num_segments = num_segments
        self.position_type = position_type
        self.epsilon = epsilon
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.token = keras.layers.Embedding(
            vocabulary_size, hidden_dim, self._initializer(), dtype=self.dtype_policy, name="token"
        )
        self.segment = keras.layers.Embedding(
            num_segments, hidden_dim, self._initializer(), dtype=self.dtype_policy, name="segment"
        )
        self.norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.dtype_policy, name="norm")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def _initializer(self):
        return keras.initializers.TruncatedNormal(stddev=self.initializer_range)

    def build(self, token_ids_shape, segment_ids_shape=None, positions_shape=None):
        if self.position_type == "learned":
            self.position = self.add_weight(
                shape=(self.max_positions, self.hidden_dim), initializer=self._initializer(), name="position"
            )
        else:
            self.position = sinusoidal_positions(self.max_positions, self.hidden_dim)
        self.token.build((None, None))
        self.segment.build((None, None))
        self.norm.build((None, None, self.hidden_dim))

    def call(self, token_ids, segment_ids, positions=None, training=None):
        table = ops.cast(self.position, self.compute_dtype)  # [max_positions, H]
        if positions is None:
            position = table[: ops.shape(token_ids)[1]]  # [S, H]
        else:
            position = ops.take(table, positions, axis=0)  # [B, S, H]
        x = self.token(token_ids) + position + self.segment(segment_ids)  # [B, S, H]
        return self.dropout_layer(self.norm(x), training=training)  # [B, S, H]

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
        }


def sinusoidal_positions(max_positions, hidden_dim):
    """Fixed position embeddings, float32 [max_positions, H] (Vaswani et al. 2017, section 3.5)."""
    places = np.arange(hidden_dim)[None]  # [1, H]
    angles = np.arange(max_positions)[:, None] / 10000 ** (2 * (places // 2) / hidden_dim)
    return np.where(places % 2, np.cos(angles), np.sin(angles)).astype("float32")
