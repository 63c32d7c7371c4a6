"""Heads: what turns the encoder's vectors into a task's answer."""

import keras
from keras import ops

from keras_bert_app.model.embeddings import PACKAGE
from keras_bert_app.model.encoder import ACTIVATIONS


@keras.saving.register_keras_serializable(package=PACKAGE)
class ClassificationHead(keras.layers.Layer):
    """Dropout and a dense layer on the pooled vector: [B, H] -> logits [B, C] (Devlin et al. 2019, 4.1).

    Logits have at least float32, whatever the policy's compute dtype.
    """

    def __init__(self, num_classes, dropout=0.1, initializer_range=0.02, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.dense = keras.layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=initializer_range),
            dtype=keras.backend.result_type(self.variable_dtype, "float32"),
            name="logits",
        )

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, pooled, training=None):
        return self.dense(self.dropout_layer(pooled, training=training))  # [B, C]

    def get_config(self):
        return super().get_config() | {
            "num_classes": self.num_classes,
            "dropout": self.dropout,
            "initializer_range": self.initializer_range,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaskedLanguageModelHead(keras.layers.Layer):
    """What stood at some positions, by a decoder tied to the token embeddings (Devlin et al. 2019, 3.1).

    As google-research/bert has it: dense, activation and layer normalisation, then the product with the
    token embeddings, plus a bias of its own. Positions are gathered first, so nothing else is projected.

    Inputs: sequence [B, S, H], positions int [B, P] in [0, S), and token_embeddings [V, H], which the
    encoder gives with `return_token_embeddings`: the weights stay the encoder's, and so does their place in a
    saved model. Output: logits [B, P, V], at least float32; the product itself is in the compute dtype.
    """

    def __init__(self, activation="gelu", epsilon=1e-12, initializer_range=0.02, **kwargs):
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it takes one of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.epsilon = epsilon
        self.initializer_range = initializer_range
        self.supports_masking = True

    def build(self, sequence_shape, positions_shape, token_embeddings_shape):
        vocabulary_size, hidden_dim = token_embeddings_shape
        self.dense = keras.layers.Dense(
            hidden_dim,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=self.initializer_range),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name="norm"
        )
        self.dense.build((None, None, hidden_dim))
        self.norm.build((None, None, hidden_dim))
        wide = keras.backend.result_type(self.variable_dtype, "float32")
        self.bias = self.add_weight((vocabulary_size,), "zeros", dtype=wide, autocast=False, name="bias")

    def call(self, sequence, positions, token_embeddings):
        batch, length, hidden_dim = ops.shape(sequence)
        rows = ops.arange(batch, dtype=positions.dtype)[:, None] * length
        x = ops.take(ops.reshape(sequence, (-1, hidden_dim)), positions + rows, axis=0)  # [B, P, H]
        x = self.norm(ACTIVATIONS[self.activation](self.dense(x)))
        logits = ops.matmul(x, ops.transpose(token_embeddings))  # [B, P, V]
        return ops.cast(logits, self.bias.dtype) + self.bias

    def compute_mask(self, *inputs, previous_mask=None):
        """None: the mask that Keras hands on with the sequence is of other places than the logits'."""
        return None

    def get_config(self):
        return super().get_config() | {
            "activation": self.activation,
            "epsilon": self.epsilon,
            "initializer_range": self.initializer_range,
        }
