"""Heads: what turns the encoder's vectors into a task's answer."""

import keras

from keras_bert_app.model.embeddings import PACKAGE


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
