"""Optimizers, schedules and decay exclusions."""

import math

import keras
import tensorflow as tf
from keras import ops

from keras_bert_app.config import TrainConfig

# Biases and layer normalisation are not decayed (Devlin et al. 2019, appendix A.2).
_NOT_DECAYED = ("bias", "gamma", "beta")


class _AlreadySummed:
    """For gradients that are summed over the replicas: Keras' own `apply` sums them, once more."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


class ReducedAdamW(_AlreadySummed, keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter 2019) for gradients that are summed over the replicas already.

    It computes what Keras' own does, in two passes over the weights where that makes some twenty.
    """

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` has it."""

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable, or one replica's copy of it, in place."""
        if isinstance(variable, keras.Variable):
            variable = variable.value
        dtype = variable.dtype
        rate, step = tf.cast(learning_rate, dtype), tf.cast(self.iterations + 1, dtype)
        place = self._get_variable_index(variable)
        if self._use_weight_decay(variable):
            variable.assign(variable * (1 - rate * tf.cast(self.weight_decay, dtype)))
        # TensorFlow's kernel goes over weights, moments and gradient once.
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].value.handle,
            v=self._velocities[place].value.handle,
            # As Keras has it, the powers are those of betas rounded to float32; tf.cast rounds.
            beta1_power=tf.cast(self.beta_1, dtype) ** step,
            beta2_power=tf.cast(self.beta_2, dtype) ** step,
            lr=rate,
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=gradient,
        )


class ReducedLamb(_AlreadySummed, keras.optimizers.Lamb):
    """LAMB (You et al. 2020, algorithm 2), for gradients that are summed over the replicas already.

    Unlike in Keras' own, the decay is part of the update whose norm the trust ratio has below the line, and
    variables that aren't decayed aren't adapted to their norm either: theirs is Adam's update.
    """

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` has it."""

    def update_step(self, gradient, variable, learning_rate):
        dtype = variable.dtype
        rate, step = ops.cast(learning_rate, dtype), ops.cast(self.iterations + 1, dtype)
        beta_1, beta_2 = ops.cast(self.beta_1, dtype), ops.cast(self.beta_2, dtype)
        place = self._get_variable_index(variable)
        mean, square = self._momentums[place], self._velocities[place]
        self.assign(mean, beta_1 * mean + (1 - beta_1) * gradient)
        self.assign(square, beta_2 * square + (1 - beta_2) * ops.square(gradient))
        update = (mean / (1 - ops.power(beta_1, step))) / (
            ops.sqrt(square / (1 - ops.power(beta_2, step))) + self.epsilon
        )
        if self._use_weight_decay(variable):
            update = update + ops.cast(self.weight_decay, dtype) * variable
            weight_norm = ops.sqrt(ops.sum(ops.square(variable)))
            update_norm = ops.sqrt(ops.sum(ops.square(update)))
            both = ops.logical_and(weight_norm > 0, update_norm > 0)
            rate = rate * ops.where(both, weight_norm / ops.where(both, update_norm, 1.0), 1.0)
        self.assign_sub(variable, rate * update)


_OPTIMIZERS = {"adamw": (ReducedAdamW, 1e-8), "lamb": (ReducedLamb, 1e-6)}


def learning_rate(train: TrainConfig, done: float, total: float) -> float:
    """The rate of the update that begins when `done` of `total` updates, or seconds, are over.

    Linear from peak / warm-up to the peak, then linear, or along half a cosine, to zero, or constant. It is
    never 0 at the first update.
    """
    warmup = round(train.warmup_fraction * total)
    rising = (done + 1) / max(1, warmup)
    left = min(1.0, max(0.0, (total - done) / max(1, total - warmup)))
    falling = {
        "linear": left,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "constant": 1.0,
    }[train.schedule]
    return train.learning_rate * min(1.0, rising, falling)


def make_optimizer(train: TrainConfig, model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer for updates of `model`; it makes variables, so call it in the strategy's scope.

    Its learning rate is a variable, which the training step sets.
    """
    kind, epsilon = _OPTIMIZERS[train.optimizer]
    optimizer = kind(
        train.learning_rate,
        weight_decay=train.weight_decay,
        epsilon=epsilon,
        # Fixed, for checkpoints: otherwise Keras counts the optimizers of a process.
        name="optimizer",
    )
    optimizer.exclude_from_weight_decay(
        var_list=[variable for variable in model.trainable_variables if variable.name in _NOT_DECAYED]
    )
    optimizer.build(model.trainable_variables)
    return optimizer
