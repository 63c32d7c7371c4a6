"""One update that means the same on any number of replicas, computed at once or in parts.

Each replica takes every R-th row of the global batch, divides its summed loss by the global sum of weights,
and takes the gradient, adding it up over the parts where the update is accumulated. The gradients are summed
over the replicas once, then clipped by their global norm, checked to be finite, and applied once. Dropout
masks are a function of (seed, step, replica, part, layer).
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.config import TrainConfig
from keras_bert_app.model.kernels import recomputation, static_shapes

# Second halves of the seeds that rows are prepared with; dropout's is 0.
_PREPARE_TRAINING, _PREPARE_EVALUATION = 1, 2

Preparation = Callable[[Mapping[str, tf.Tensor], tf.Tensor], Mapping[str, tf.Tensor]]


class Controls(NamedTuple):
    """What a process tells the step beside the batch, each float32 [].

    The learning rate and the loss scale (1 but for float16) are the same in every process. `seconds`, how
    long the run has taken, and `stop`, 1 where the process was asked to stop, may differ: the step gives all
    processes their mean and their sum, so that all go on, or stop, alike.
    """

    learning_rate: float | tf.Tensor
    loss_scale: float | tf.Tensor = 1.0
    seconds: float | tf.Tensor = 0.0
    stop: float | tf.Tensor = 0.0


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    task: Any,
    optimizer: keras.optimizers.Optimizer,
    train: TrainConfig,
    seed: int,
    prepare: Preparation | None = None,
) -> Callable[[tf.Tensor, Mapping[str, tf.Tensor], Controls], dict[str, tf.Tensor]]:
    """-> step(number: int64 [], batch: the global batch, controls) -> scalars.

    The scalars: each of the task's losses and measures averaged over the global batch, `loss`, the sum of the
    losses, `gradient_norm` before clipping, `finite`, where that is False nothing has been applied, and
    `seconds` and `stop` of the controls.

    Args:
        prepare: called as prepare(batch, seed: int64 [2]) with the global batch before it is divided, so that
            what it draws depends on the step and a row's place alone, however many replicas there are.
    """
    part_gradients = _make_part_gradients(model, task, train, seed)
    wide = model.trainable_variables[0].dtype  # float64 where the policy is

    def gradients_on_replica(number, batch, controls):
        replica = tf.distribute.get_replica_context()
        batch = rows_of_replica(batch)
        weights = {name: tf.reduce_sum(tf.cast(value, wide)) for name, value in task.weights(batch).items()}
        totals = replica.all_reduce(tf.distribute.ReduceOp.SUM, weights)
        first_place = tf.cast(replica.replica_id_in_sync_group, tf.int64) * train.accumulation

        def part(place):
            rows = {name: values[place :: train.accumulation] for name, values in batch.items()}
            place = first_place + tf.cast(place, tf.int64)
            return part_gradients(rows, totals, number, place, controls.loss_scale)

        sums = part(0)
        if train.accumulation > 1:
            _, sums = tf.while_loop(
                lambda place, _: place < train.accumulation,
                lambda place, sums: (place + 1, tf.nest.map_structure(tf.add, sums, part(place))),
                (tf.constant(1), sums),
                parallel_iterations=1,
            )
        # A reduction takes one dtype, and tensors made on the replica's device: a cast alone may be nothing.
        told = {
            "seconds": tf.cast(controls.seconds / replica.num_replicas_in_sync, wide),
            "stop": tf.cast(controls.stop * 1.0, wide),
        }
        gradients, scalars, told = replica.all_reduce(tf.distribute.ReduceOp.SUM, (*sums, told))
        norm = tf.linalg.global_norm(gradients)
        scale = tf.cast(controls.loss_scale, norm.dtype)
        norm = norm / scale
        # A clip before the sum would be another for any number of replicas.
        factor = train.clip_norm / (tf.maximum(norm, train.clip_norm) * scale)
        gradients = [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]
        return gradients, scalars | told | {"gradient_norm": norm}

    def apply_on_replica(gradients):
        optimizer.apply(gradients)

    controls_spec = Controls(*[tf.TensorSpec([], tf.float32)] * len(Controls._fields))

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64), batch_spec(task), controls_spec])
    def step(number, batch, controls):
        if prepare:
            fold_in = tf.random.experimental.stateless_fold_in
            batch = prepare(batch, fold_in(tf.constant([seed, _PREPARE_TRAINING], tf.int64), number))
        gradients, scalars = strategy.run(gradients_on_replica, args=(number, batch, controls))
        scalars = {name: first_replica(strategy, value) for name, value in scalars.items()}
        finite = tf.math.is_finite(scalars["gradient_norm"])

        def apply():
            optimizer.learning_rate.assign(controls.learning_rate)
            strategy.run(apply_on_replica, args=(gradients,))
            return True

        # A branch in cross-replica context: inside a replica, merging for the update would not be allowed.
        tf.cond(finite, apply, lambda: True)
        return scalars | {"finite": finite}

    return step


def _make_part_gradients(
    model: keras.Model, task: Any, train: TrainConfig, seed: int
) -> Callable[..., tuple]:
    """-> part_gradients(rows, totals, number, place, loss_scale), for one part of a replica's rows.

    It gives the gradients of the scaled loss, and the rows' shares of the global means of losses and
    measures, of which `totals` are the sums of weights.
    """

    def part_gradients(batch, totals, number, place, loss_scale):
        weights = task.weights(batch)

        def shares_of_means(columns):
            return {
                name: tf.math.divide_no_nan(
                    tf.reduce_sum(values * tf.cast(weights[name], values.dtype)),
                    tf.cast(totals[name], values.dtype),
                )
                for name, values in columns.items()
            }

        with contextlib.ExitStack() as scopes:
            if train.jit:
                scopes.enter_context(static_shapes())
            if train.recompute:
                scopes.enter_context(recomputation())
            tape = scopes.enter_context(tf.GradientTape())
            scopes.enter_context(dropout_seeds(model, seed, number, place))
            outputs = model(inputs_of(model, batch), training=True)
            sums = shares_of_means(task.losses(outputs, batch))
            loss = tf.add_n(list(sums.values()))
            scaled = loss * tf.cast(loss_scale, loss.dtype)
        sums |= shares_of_means(task.measures(outputs, batch)) | {"loss": loss}
        gradients = tape.gradient(scaled, [variable.value for variable in model.trainable_variables])
        return [tf.convert_to_tensor(gradient) for gradient in gradients], sums

    return tf.function(part_gradients, jit_compile=True, autograph=False) if train.jit else part_gradients


def make_predict_step(
    strategy: tf.distribute.Strategy, model: keras.Model, task: Any, prepare: Preparation | None = None
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """-> predict(the global batch) -> the task's predictions, {name: [B, ...]}, in `replica_major` order.

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
        return {name: strategy.gather(value, axis=0) for name, value in outputs.items()}

    return predict


def batch_spec(task: Any) -> dict[str, tf.TensorSpec]:
    """The specs of the tensors in a batch of this task."""
    inputs = {name: tf.TensorSpec([None, None], dtype) for name, dtype in task.inputs_dtypes.items()}
    return inputs | task.targets_specs


def inputs_of(model: keras.Model, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What of a batch the model takes."""
    return {name: batch[name] for name in model.input}


def rows_of_replica(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Every R-th row of the global batch; a replica may get no row of a small one."""
    replica = tf.distribute.get_replica_context()
    start, step = replica.replica_id_in_sync_group, replica.num_replicas_in_sync
    return {name: values[start::step] for name, values in batch.items()}


def replica_major(rows: Any, num_replicas: int) -> list:
    """The order in which the replicas' parts of some rows come, one replica's after the other's."""
    return [row for replica in range(num_replicas) for row in rows[replica::num_replicas]]


def first_replica(strategy: tf.distribute.Strategy, value: Any) -> tf.Tensor:
    """One replica's value of something that is the same on all."""
    return strategy.experimental_local_results(value)[0]


def dropout_seeds(model: keras.Model, seed: int, step: tf.Tensor, place: tf.Tensor) -> keras.StatelessScope:
    """A scope in which every dropout layer's seed is a function of (seed, step, place, layer) alone.

    Args:
        place: int64 [], which part of the batch on which replica. Keras' own seeds are mirrored variables,
            equal on all replicas.
    """
    generators = [
        generator for layer in model._flatten_layers() for generator in getattr(layer, "_seed_generators", ())
    ]
    fold_in = tf.random.experimental.stateless_fold_in
    base = fold_in(fold_in(tf.constant([seed, 0], tf.int64), step), tf.cast(place, tf.int64))
    return keras.StatelessScope(
        [(generator.state, fold_in(base, number)) for number, generator in enumerate(generators)]
    )
