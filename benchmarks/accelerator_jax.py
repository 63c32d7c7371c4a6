"""These layers under Keras' JAX backend, for benchmarks/accelerator.py: one compiled step."""

from collections.abc import Mapping
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp
from keras import ops

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig
from keras_bert_app.model.networks import Network
from keras_bert_app.model.portable import Rows

INPUTS = (features.TOKEN_IDS, features.SEGMENT_IDS, features.PADDING_MASK)


def device_name() -> str:
    """Of the first accelerator that JAX sees."""
    return jax.devices()[0].device_kind


def versions() -> dict[str, str]:
    """Of what computes on this side."""
    return {"jax": jax.__version__, "keras": keras.__version__}


def fused_attention(rows, projected, dropout):
    """Rows.attend by keras.ops.dot_product_attention, without dropout, and without the attention weights."""
    batch, length, width = ops.shape(projected)
    split = ops.reshape(projected, (batch, length, 3, rows._num_heads, -1))
    query, key, value = (split[:, :, place] for place in range(3))  # [B, S, N, D]
    seen = rows._seen[:, None, None, :] if len(rows._seen.shape) == 2 else rows._seen[:, None]
    context = ops.dot_product_attention(query, key, value, mask=seen)  # [B, S, N, D]
    return ops.reshape(context, (batch, length, width // 3)), None


def masked_loss(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Mean cross entropy over the masked tokens, in nats; logits [B, P, V]."""
    losses = -jax.nn.log_softmax(logits)
    losses = jnp.take_along_axis(losses, batch[features.MASKED_IDS][..., None], axis=-1)[..., 0]  # [B, P]
    weights = batch[features.MASKED_WEIGHTS]
    return (losses * weights).sum() / weights.sum()


def make_forward(model: keras.Model, packed: bool):
    """-> forward(weights, fixed, batch), a function of arrays: sequence [B, S, H]."""

    def forward(weights, fixed, batch):
        outputs, _ = model.stateless_call(weights, fixed, inputs_of(batch, packed), training=False)
        return outputs[features.SEQUENCE]

    return forward


def make_train(model: keras.Model, optimizer: keras.optimizers.Optimizer, packed: bool):
    """-> train(weights, fixed, slots, batch), a function of arrays: their next values, and the loss."""

    def loss_of(weights, fixed, batch):
        inputs = inputs_of(batch, packed) | {features.MASKED_POSITIONS: batch[features.MASKED_POSITIONS]}
        outputs, fixed = model.stateless_call(weights, fixed, inputs, training=True)
        return masked_loss(outputs[features.MASKED_LOGITS], batch), fixed

    def train(weights, fixed, slots, batch):
        (loss, fixed), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, fixed, batch)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return weights, fixed, slots, loss

    return train


def inputs_of(batch: Mapping[str, Any], packed: bool) -> dict[str, Any]:
    """What of a batch an encoder takes."""
    return {name: batch[name] for name in (*INPUTS, *((features.SEQUENCE_IDS,) if packed else ()))}


def adamw(model: keras.Model) -> keras.optimizers.Optimizer:
    """With decay of all but biases and normalisations."""
    optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(model.trainable_variables)
    return optimizer


def values(variables: list[keras.Variable]) -> list[jax.Array]:
    """Copies of the arrays that variables hold, which may be donated."""
    return [jnp.array(variable.value) for variable in variables]


class Side:
    """One network, compiled.

    peak_bytes: what the compiled step holds at most, by XLA: arguments, results that aren't in their place,
    and temporary arrays.
    """

    def __init__(self, encoder: EncoderConfig, batch, work: str, packed: bool, fused: bool, steps: int):
        precision = "bfloat16" if work == "forward" else "mixed_bfloat16"
        self._model = Network("encoder" if work == "forward" else "masked_lm", packed=packed).build(
            encoder, precision
        )
        self._batch, self._steps = {name: jnp.array(array) for name, array in batch.items()}, steps
        self._fixed, weights = self._model.non_trainable_variables, self._model.trainable_variables
        own = Rows.attend
        Rows.attend = fused_attention if fused else own
        try:
            if work == "forward":
                arguments = (values(weights), values(self._fixed))
                traced = jax.jit(make_forward(self._model, packed)).lower(*arguments, self._batch)
            else:
                optimizer = adamw(self._model)
                arguments = (values(weights), values(self._fixed), values(optimizer.variables))
                step = jax.jit(make_train(self._model, optimizer, packed), donate_argnums=(0, 1, 2))
                traced = step.lower(*arguments, self._batch)
        finally:
            Rows.attend = own
        self._compiled, self._state, self._work = traced.compile(), arguments, work
        sizes = self._compiled.memory_analysis()
        self.peak_bytes = (
            sizes.argument_size_in_bytes
            + sizes.output_size_in_bytes
            - sizes.alias_size_in_bytes
            + sizes.temp_size_in_bytes
        )

    def weights(self) -> dict[str, np.ndarray]:
        """Our path -> array, as they were before any step."""
        return {variable.path: np.array(variable.value, "float32") for variable in self._model.weights}

    def answer(self) -> np.ndarray:
        """float32 [B, S, H] of the real tokens, 0 elsewhere; training: the loss of the first step."""
        if self._work == "train":
            *self._state, loss = self._compiled(*self._state, self._batch)
            return np.array(loss, "float32")
        sequence = self._compiled(*self._state, self._batch)
        return np.array(sequence, "float32") * np.array(self._batch[features.PADDING_MASK])[:, :, None]

    def run(self) -> None:
        """So many steps."""
        for _ in range(self._steps):
            result = self._compiled(*self._state, self._batch)
            if self._work == "train":
                *self._state, result = result
        jax.block_until_ready(result)
