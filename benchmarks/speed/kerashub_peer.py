"""KerasHub's BertTextClassifier, as a TensorFlow graph and compiled by XLA; bfloat16 is its dtype policy.

Its GELU is the approximate one whatever the weights want; it is set to theirs, so that the work is equal.
"""

import os
from pathlib import Path

import numpy as np

from benchmarks.speed.worker import Tokenizing, softmax

os.environ["KERAS_BACKEND"] = "tensorflow"


class Model(Tokenizing):
    """Padded ids in, probabilities out."""

    def __init__(self, folder: Path, setting: str, precision: str):
        import tensorflow as tf

        super().__init__(folder)
        classifier = load(folder, precision)
        self._predict = tf.function(
            lambda batch: classifier(batch, training=False), jit_compile=setting == "xla", autograph=False
        )

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """token_ids, padding_mask [B, S] -> probabilities [B, C]."""
        batch = batch | {"segment_ids": np.zeros_like(batch["token_ids"])}
        return softmax(self._predict(batch).numpy().astype(np.float64))


def load_backbone(source: Path, precision: str):
    """Published weights, with the exact GELU."""
    import keras
    import keras_hub

    backbone = keras_hub.models.BertBackbone.from_preset(str(source), dtype=precision)
    for layer in backbone.transformer_layers:
        layer._feedforward_intermediate_dense.activation = keras.activations.gelu
    return backbone


def load(folder: Path, precision: str):
    """The published classifier."""
    import keras_hub
    from safetensors.numpy import load_file

    backbone = load_backbone(folder / "huggingface", precision)
    tensors = load_file(folder / "huggingface" / "model.safetensors")
    kernel, bias = tensors["classifier.weight"].T, tensors["classifier.bias"]
    classifier = keras_hub.models.BertTextClassifier(backbone, num_classes=len(bias), dtype=precision)
    classifier.get_layer("logits").set_weights([kernel, bias])
    return classifier
