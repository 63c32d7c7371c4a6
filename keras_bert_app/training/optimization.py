"""Optimizers, schedules and decay exclusions."""

import keras

from keras_bert_app.config import TrainConfig

# Biases and layer normalisation are not decayed (Devlin et al. 2019, appendix A.2).
_NOT_DECAYED = ("bias", "gamma", "beta")


class ReducedAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter 2019) for gradients that are summed over the replicas already.

    Keras' own sums them once more, after its clipping.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from `peak / warmup_steps` at step 0 to `peak`, then linear to zero after `total_steps`."""

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * keras.ops.clip(keras.ops.minimum(rising, falling), 0.0, 1.0)

    def get_config(self):
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}


def make_optimizer(train: TrainConfig, total_steps: int, model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer for `total_steps` updates of `model`; it makes variables, so call it in the scope."""
    warmup_steps = round(train.warmup_fraction * total_steps)
    optimizer = ReducedAdamW(
        WarmupLinearDecay(train.learning_rate, warmup_steps, total_steps),
        weight_decay=train.weight_decay,
        epsilon=1e-8,
        # Fixed, for checkpoints: otherwise Keras counts the optimizers of a process.
        name="optimizer",
    )
    optimizer.exclude_from_weight_decay(
        var_list=[variable for variable in model.trainable_variables if variable.name in _NOT_DECAYED]
    )
    optimizer.build(model.trainable_variables)
    return optimizer
