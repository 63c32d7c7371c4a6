"""KerasHub's classifier and masked language model in Keras' `fit`, as graph or compiled by XLA."""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

from benchmarks.speed.contenders import Contender
from benchmarks.speed.kerashub_peer import load, load_backbone
from benchmarks.speed.training import (
    CLIP_NORM,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Pacer,
    classification_batch,
    pretraining_batch,
)

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def train(folder: Path, row: str, contender: Contender, pacer: Pacer) -> None:
    """Train on a row for ever."""
    keras.utils.set_random_seed(0)
    dtype = PRECISIONS[contender.precision]
    model, x, y = (pretraining if row == "pretraining" else classification)(folder, dtype, row)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, global_clipnorm=CLIP_NORM),
        loss=dict.fromkeys(y, cross_entropy) if isinstance(y, dict) else cross_entropy,
        jit_compile=contender.setting == "xla",
    )
    outputs = model(x, training=False)
    pairs = [(y[name], outputs[name]) for name in y] if isinstance(y, dict) else [(y, outputs)]
    pacer.begin(float(sum(np.mean(cross_entropy(label, tf.cast(out, "float32"))) for label, out in pairs)))
    step_done = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: pacer.step_done())
    data = tf.data.Dataset.from_tensors((x, y)).cache().repeat().prefetch(2)
    model.fit(data, steps_per_epoch=10**9, verbose=0, callbacks=[step_done])


def classification(folder: Path, dtype: str, row: str):
    """BertTextClassifier, and a batch for it."""
    batch = classification_batch(folder, row)
    labels = batch.pop("labels")
    return load(folder, dtype), batch | {"segment_ids": np.zeros_like(batch["token_ids"])}, labels


def pretraining(folder: Path, dtype: str, row: str):
    """BertMaskedLM with a classifier of the pooled vector beside it, and a batch for it."""
    batch = pretraining_batch(folder)
    y = {"masked": batch.pop("masked_ids"), "pairs": batch.pop("labels")}
    batch["mask_positions"] = batch.pop("masked_positions")
    backbone = load_backbone(folder / "pretraining_model", dtype)
    masked = keras_hub.models.BertMaskedLM(backbone, dtype=dtype)
    inputs = masked.input
    sequence_and_pooled = backbone({name: inputs[name] for name in backbone.input})
    pair_head = keras.layers.Dense(2, dtype=dtype)
    outputs = {
        "masked": masked.masked_lm_head(sequence_and_pooled["sequence_output"], inputs["mask_positions"]),
        "pairs": pair_head(sequence_and_pooled["pooled_output"]),
    }
    model = keras.Model(inputs, outputs)
    tensors = load_file(folder / "pretraining_model" / "model.safetensors")
    head, prefix = masked.masked_lm_head, "cls.predictions"
    head._intermediate_dense.set_weights(
        [tensors[f"{prefix}.transform.dense.weight"].T, tensors[f"{prefix}.transform.dense.bias"]]
    )
    head._intermediate_layer_norm.set_weights(
        [tensors[f"{prefix}.transform.LayerNorm.{name}"] for name in ("weight", "bias")]
    )
    head._bias.assign(tensors[f"{prefix}.bias"])
    pair_head.set_weights([tensors["cls.seq_relationship.weight"].T, tensors["cls.seq_relationship.bias"]])
    return model, batch, y
