"""Heads: what turns the encoder's vectors into a task's answer."""

import keras
from keras import ops

from keras_bert_app.model.arithmetic import dense, normalize
from keras_bert_app.model.attention import make_dense
from keras_bert_app.model.embeddings import PACKAGE
from keras_bert_app.model.portable import ACTIVATIONS, at_least_float32


@keras.saving.register_keras_serializable(package=PACKAGE)
class ClassificationHead(keras.layers.Layer):
    """Dropout and a dense layer: [B, H] -> logits [B, C], or [B, S, H] -> [B, S, C] (Devlin et al. 2019, 4).

    Logits have at least float32, whatever the policy's compute dtype.
    """

    def __init__(self, num_classes, dropout=0.1, initializer_range=0.02, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.dropout = dropout
        self.supports_masking = True
        self.initializer_range = initializer_range
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        wide = at_least_float32(self.variable_dtype)
        self.dense = make_dense(num_classes, initializer_range, wide, "logits")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, pooled, training=None):
        return self.dense(self.dropout_layer(pooled, training=training))  # [B, C]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.num_classes)

    def compute_output_spec(self, pooled, training=None):
        return keras.KerasTensor(self.compute_output_shape(pooled.shape), self.dense.compute_dtype)

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

    Inputs: sequence [B, S, H], positions int [B, P] in [0, S), and token_embeddings [V, E], which the
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
        vocabulary_size, embedding_dim = token_embeddings_shape
        self.dense = make_dense(embedding_dim, self.initializer_range, self.dtype_policy, "dense")
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name="norm"
        )
        self.dense.build((None, None, sequence_shape[-1]))
        self.norm.build((None, None, embedding_dim))
        wide = at_least_float32(self.variable_dtype)
        self.bias = self.add_weight((vocabulary_size,), "zeros", dtype=wide, autocast=False, name="bias")

    def call(self, sequence, positions, token_embeddings):
        batch, length, hidden_dim = ops.shape(sequence)
        rows = ops.arange(batch, dtype=positions.dtype)[:, None] * length
        x = ops.take(ops.reshape(sequence, (-1, hidden_dim)), positions + rows, axis=0)  # [B, P, H]
        x = normalize(self.norm, dense(x, (self.dense,), ACTIVATIONS[self.activation]))
        logits = ops.matmul(x, ops.transpose(token_embeddings))  # [B, P, V]
        return ops.cast(logits, self.bias.dtype) + self.bias

    def compute_output_shape(self, sequence_shape, positions_shape, token_embeddings_shape):
        return (*positions_shape, token_embeddings_shape[0])

    def compute_output_spec(self, sequence, positions, token_embeddings):
        shape = self.compute_output_shape(sequence.shape, positions.shape, token_embeddings.shape)
        return keras.KerasTensor(shape, self.bias.dtype)

    def compute_mask(self, *inputs, previous_mask=None):
        """None: the mask that Keras hands on with the sequence is of other places than the logits'."""
        return None

    def get_config(self):
        return super().get_config() | {
            "activation": self.activation,
            "epsilon": self.epsilon,
            "initializer_range": self.initializer_range,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class MergeChoices(keras.layers.Layer):
    """[B, K, S] -> [B * K, S]: the choices of all rows one after the other."""

    def call(self, x):
        return ops.reshape(x, (-1, ops.shape(x)[2]))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, x.shape[2]), x.dtype)


@keras.saving.register_keras_serializable(package=PACKAGE)
class SplitChoices(keras.layers.Layer):
    """[B * K, 1] and the inputs that MergeChoices took, [B, K, S] -> [B, K] (Radford et al. 2018, 3.3)."""

    def call(self, logits, inputs):
        return ops.reshape(logits, ops.shape(inputs)[:2])

    def compute_output_spec(self, logits, inputs):
        return keras.KerasTensor(inputs.shape[:2], logits.dtype)
