"""One update that means the same on any number of replicas.

Each replica takes every R-th row of the global batch, divides its summed loss by the global sum of weights,
and takes the gradient. The gradients are summed over the replicas once, then clipped by their global norm,
checked to be finite, and applied once. Dropout masks are a function of (seed, step, replica, layer).
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_bert_app import features

# Second halves of the seeds that rows are prepared with; dropout's is 0.
_PREPARE_TRAINING, _PREPARE_EVALUATION = 1, 2


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    task: Any,
    optimizer: keras.optimizers.Optimizer,
    clip_norm: float,
    seed: int,
    prepare: Callable[[Mapping[str, tf.Tensor], tf.Tensor], Mapping[str, tf.Tensor]] | None = None,
) -> Callable[[tf.Tensor, Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """-> step(number: int64 [], batch: the global batch) -> scalars.

    The scalars: each of the task's losses and measures averaged over the global batch, `loss`, the sum of the
    losses, `gradient_norm` before clipping, and `finite`; where that is False nothing has been applied.

    Args:
        prepare: called as prepare(batch, seed: int64 [2]) with the global batch before it is divided, so that
            what it draws depends on the step and a row's place alone, however many replicas there are.
    """

    def gradients_on_replica(number, batch):
        replica = tf.distribute.get_replica_context()
        batch = rows_of_replica(batch)
        with tf.GradientTape() as tape, dropout_seeds(model, seed, number, replica.replica_id_in_sync_group):
            outputs = model(inputs_of(model, batch), training=True)
            sums = {name: share_of_mean(*column) for name, column in task.losses(outputs, batch).items()}
            loss = tf.add_n(list(sums.values()))
        sums |= {name: share_of_mean(*column) for name, column in task.measures(outputs, batch).items()}
        sums["loss"] = loss
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        gradients, sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, (gradients, sums))
        gradients, norm = tf.clip_by_global_norm(gradients, clip_norm)
        return gradients, sums | {"gradient_norm": norm}

    def apply_on_replica(gradients):
        optimizer.apply(gradients)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64), batch_spec(task)])
    def step(number, batch):
        if prepare:
            fold_in = tf.random.experimental.stateless_fold_in
            batch = prepare(batch, fold_in(tf.constant([seed, _PREPARE_TRAINING], tf.int64), number))
        gradients, scalars = strategy.run(gradients_on_replica, args=(number, batch))
        scalars = {name: first_replica(strategy, value) for name, value in scalars.items()}
        finite = tf.math.is_finite(scalars["gradient_norm"])
        # A branch in cross-replica context: inside a replica, merging for the update would not be allowed.
        tf.cond(finite, lambda: strategy.run(apply_on_replica, args=(gradients,)) or True, lambda: True)
        return scalars | {"finite": finite}

    return step


def make_predict_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    task: Any,
    prepare: Callable[[Mapping[str, tf.Tensor], tf.Tensor], Mapping[str, tf.Tensor]] | None = None,
):
    """-> predict(the global batch) -> the task's predictions, {name: list of a tensor [b, ...] a replica}.

    Args:
        prepare: as in `make_train_step`, but with a seed that depends on the batch's token ids alone.
    """

    def predict_on_replica(batch):
        batch = rows_of_replica(batch)
        return task.predictions(model(inputs_of(model, batch), training=False), batch)

    @tf.function(input_signature=[batch_spec(task)])
    def predict(batch):
        if prepare:
            total = tf.reduce_sum(tf.cast(batch[features.TOKEN_IDS], tf.int64))
            batch = prepare(batch, tf.stack([total, _PREPARE_EVALUATION]))
        outputs = strategy.run(predict_on_replica, args=(batch,))
        return {name: strategy.experimental_local_results(value) for name, value in outputs.items()}

    return predict


def batch_spec(task: Any) -> dict[str, tf.TensorSpec]:
    """The specs of the tensors in a batch of this task."""
    inputs = {name: tf.TensorSpec([None, None], dtype) for name, dtype in task.inputs_dtypes.items()}
    return inputs | {name: tf.TensorSpec([None], dtype) for name, dtype in task.targets_dtypes.items()}


def inputs_of(model: keras.Model, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What of a batch the model takes."""
    return {name: batch[name] for name in model.input}


def share_of_mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """This replica's summand of the global batch's weighted mean; 0 where the weights are."""
    replica = tf.distribute.get_replica_context()
    total_weight = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(weights))
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights), total_weight)


def rows_of_replica(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Every R-th row of the global batch; a replica may get no row of a small one."""
    replica = tf.distribute.get_replica_context()
    start, step = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
    return {name: values[start::step] for name, values in batch.items()}


def first_replica(strategy: tf.distribute.Strategy, value: Any) -> tf.Tensor:
    """One replica's value of something that is the same on all."""
    return strategy.experimental_local_results(value)[0]


def dropout_seeds(
    model: keras.Model, seed: int, step: tf.Tensor, replica_id: tf.Tensor
) -> keras.StatelessScope:
    """A scope in which every dropout layer's seed is a function of (seed, step, replica, layer) alone.

    Keras' own seeds are mirrored variables, equal on all replicas.
    """
    generators = [
        generator for layer in model._flatten_layers() for generator in getattr(layer, "_seed_generators", ())
    ]
    fold_in = tf.random.experimental.stateless_fold_in
    base = fold_in(fold_in(tf.constant([seed, 0], tf.int64), step), tf.cast(replica_id, tf.int64))
    return keras.StatelessScope(
        [(generator.state, fold_in(base, place)) for place, generator in enumerate(generators)]
    )
