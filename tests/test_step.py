"""An update on two replicas, by two workers and in two parts against the same update at once."""

import itertools
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import updates

from keras_bert_app import features
from keras_bert_app.config import TrainConfig
from keras_bert_app.tasks.classification import ClassificationTask
from keras_bert_app.training.loop import Trainer
from keras_bert_app.training.optimization import learning_rate, make_optimizer
from keras_bert_app.training.plan import State
from keras_bert_app.training.step import Controls, make_predict_step, make_train_step, replica_major
from keras_bert_app.training.strategy import make_strategy

OPTIMIZERS = ("adamw", "lamb")
BOUNDS = [("float64", 1e-12), ("float32", 1e-4)]
_SLOW = pytest.mark.slow
_REPOSITORY = Path(__file__).parents[1]


def _relative_difference(optimizer, precision, **other):
    """L2 of the difference after all updates over that of the movement, in all weights."""
    start, one, _ = updates.run(optimizer, precision)
    other_start, two, _ = updates.run(optimizer, precision, **other)
    np.testing.assert_array_equal(start, other_start)
    return np.linalg.norm(two - one) / np.linalg.norm(one - start)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("precision", "bound"), [BOUNDS[0], pytest.param(*BOUNDS[1], marks=_SLOW)])
@pytest.mark.parametrize(
    "other",
    [
        {"replicas": 2},
        {"accumulation": 2},
        pytest.param({"replicas": 2, "accumulation": 3}, marks=_SLOW),
    ],
    ids=str,
)
def test_replicas_and_parts_make_the_update_of_one_with_uneven_masked_counts(
    optimizer, precision, bound, other
):
    assert _relative_difference(optimizer, precision, **other) <= bound


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=_SLOW)])
def test_a_compiled_step_makes_the_same_update(replicas):
    assert _relative_difference("adamw", "float64", replicas=replicas, jit=True) <= 1e-12


@pytest.mark.parametrize(
    "other",
    [{}, pytest.param({"jit": True}, marks=_SLOW), pytest.param({"replicas": 2}, marks=_SLOW)],
    ids=str,
)
def test_a_step_that_computes_blocks_again_makes_the_same_update_with_the_same_dropout(other):
    start, one, _ = updates.run("adamw", "float64", dropout=0.1, **other)
    _, again, _ = updates.run("adamw", "float64", dropout=0.1, recompute=True, **other)
    _, without, _ = updates.run("adamw", "float64")
    assert np.linalg.norm(one - without) > 1e-3 * np.linalg.norm(one - start)
    assert np.linalg.norm(again - one) <= 1e-12 * np.linalg.norm(one - start)


def run_workers(folder, program, *arguments):
    """Run a Python program as two workers on this machine; their outputs go to FOLDER/INDEX.log."""
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (one, other)]
    workers = []
    for index in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        with open(folder / f"{index}.log", "wb") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, program, *arguments],
                    cwd=_REPOSITORY,
                    env=os.environ | {"TF_CONFIG": json.dumps(cluster), "PYTHONPATH": str(_REPOSITORY)},
                    stdout=log,
                    stderr=log,
                )
            )
    codes = [worker.wait(timeout=300) for worker in workers]
    assert codes == [0, 0], [(folder / f"{index}.log").read_text()[-2000:] for index in range(2)]


def test_two_workers_make_the_update_of_one_process(tmp_path):
    run_workers(tmp_path, updates.__file__, str(tmp_path))
    for optimizer, (precision, bound) in itertools.product(OPTIMIZERS, BOUNDS):
        start, one, _ = updates.run(optimizer, precision)
        movement = np.linalg.norm(one - start)
        for index in range(2):
            two = np.load(tmp_path / f"{optimizer}-{precision}-{index}.npy")
            assert np.linalg.norm(two - one) <= bound * movement, (optimizer, precision, index)


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=_SLOW), 2])
def test_scalars_are_those_of_the_global_batch(replicas):
    _, _, expected = updates.run("adamw", "float64")
    _, _, scalars = updates.run("adamw", "float64", replicas=replicas, accumulation=2)
    assert scalars == pytest.approx(expected, rel=1e-9)
    assert {"loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "gradient_norm"} < scalars.keys()


def test_clipping_before_the_sum_would_be_noticed(monkeypatch):
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def clip_then_reduce(replica, operation, value, options=None):
        if isinstance(value, tuple):
            value = (tf.clip_by_global_norm(value[0], 2 * updates.CLIP)[0], *value[1:])
        return all_reduce(replica, operation, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", clip_then_reduce)
    run = updates.run.__wrapped__
    # What was clipped before the sum is left as it is after it.
    step_of = updates.make_train_step
    monkeypatch.setattr(
        updates,
        "make_train_step",
        lambda s, m, t, o, train, *rest: step_of(s, m, t, o, _unclipped(train), *rest),
    )
    start, one, _ = run("adamw", "float64")
    _, two, _ = run("adamw", "float64", replicas=2)
    assert np.linalg.norm(two - one) / np.linalg.norm(one - start) > 1e-3


def _unclipped(train):
    return TrainConfig(**vars(train) | {"clip_norm": 1e9})


def test_the_learning_rate_is_not_zero_at_the_first_update():
    train = updates.settings()
    strategy, _, model, optimizer, step = updates.built(train)
    start = updates.flat(strategy, model.weights)
    step(tf.constant(0, tf.int64), updates.batch(0), updates.controls(train, 0))
    assert np.linalg.norm(updates.flat(strategy, model.weights) - start) > 1e-4
    assert float(optimizer.learning_rate.numpy()) == np.float32(learning_rate(train, 0, updates.STEPS)) > 0


@pytest.mark.parametrize("replica", [pytest.param(0, marks=_SLOW), 1])
def test_a_gradient_that_is_not_finite_on_one_replica_is_not_applied(replica):
    train = updates.settings(replicas=2)
    strategy, _, model, optimizer, step = updates.built(train)
    step(tf.constant(0, tf.int64), updates.batch(0), updates.controls(train, 0))
    variables = [*model.weights, *optimizer.variables]
    before = updates.flat(strategy, variables)
    weights = np.ones(updates.ROWS, "float32")
    weights[2 + replica] = np.inf
    batch = updates.batch(1) | {features.WEIGHT: tf.constant(weights)}
    scalars = step(tf.constant(1, tf.int64), batch, updates.controls(train, 1))
    assert not scalars["finite"]
    np.testing.assert_array_equal(updates.flat(strategy, variables), before)


@pytest.mark.parametrize("replica", [pytest.param(0, marks=_SLOW), 1])
def test_an_overflow_of_float16_on_one_replica_skips_the_update_on_both_and_lowers_the_scale(
    replica, tmp_path
):
    train = updates.settings(precision="mixed_float16", replicas=2)
    strategy, task, model, optimizer, step = updates.built(train)
    trainer = Trainer(strategy, model, task, optimizer, train, 11, tmp_path)
    state = State(loss_scale=2.0**15)
    trainer._update(step, state, updates.batch(0), Controls(1e-3, state.loss_scale))
    assert (state.loss_scale, state.good_steps) == (2.0**15, 1)
    local = strategy.experimental_local_results
    before = [[part.numpy() for part in local(v.value)] for v in [*model.weights, *optimizer.variables]]
    # A weight so large that the scaled gradient of this row, on this replica, leaves float16's range.
    weights = np.ones(updates.ROWS, "float32")
    weights[2 + replica] = 1e9
    batch = updates.batch(1) | {features.WEIGHT: tf.constant(weights)}
    state.loss_scale = 2.0**24
    state.step = 1
    trainer._update(step, state, batch, Controls(1e-3, state.loss_scale))
    assert (state.loss_scale, state.good_steps) == (2.0**23, 0)
    for variable, values in zip([*model.weights, *optimizer.variables], before, strict=True):
        for part, value in zip(local(variable.value), values, strict=True):
            np.testing.assert_array_equal(part.numpy(), value, err_msg=variable.path)


def _task():
    return ClassificationTask(["a", "b", "c"], [features.TEXT])


def _batch(size, seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 12, size)
    mask = np.arange(11)[None] < lengths[:, None]
    labels = random.integers(0, 3, size)
    # Every other row, so one of two replicas, has by far the heavier class.
    labels[::2] = 2
    return {
        features.TOKEN_IDS: tf.constant(np.where(mask, random.integers(5, 40, mask.shape), 0), tf.int32),
        features.SEGMENT_IDS: tf.zeros(mask.shape, tf.int32),
        features.PADDING_MASK: tf.constant(mask),
        features.LABEL: tf.constant(labels, tf.int32),
        features.WEIGHT: tf.constant(np.array([0.3, 1.0, 7.0])[labels], tf.float32),
    }


def _classifier(replicas, precision="float32", **changes):
    train = updates.settings(precision=precision, replicas=replicas, **changes)
    strategy, task = make_strategy(train), _task()
    with strategy.scope():
        keras.utils.set_random_seed(3)
        model = task.build_model(updates.tiny_encoder(), precision)
        optimizer = make_optimizer(train, model)
    return train, strategy, model, make_train_step(strategy, model, task, optimizer, train, 11)


def test_two_replicas_train_the_same_classifier_as_one_with_weighted_rows_and_few():
    ends = {}
    for replicas in (1, 2):
        train, strategy, model, step = _classifier(replicas, "float64")
        start = updates.flat(strategy, model.weights)
        for number, size in enumerate([8, 8, 5, 2, 1, 8]):
            step(tf.constant(number, tf.int64), _batch(size, number), updates.controls(train, number))
        ends[replicas] = updates.flat(strategy, model.weights)
    assert np.linalg.norm(ends[2] - ends[1]) <= 1e-12 * np.linalg.norm(ends[1] - start)


def test_the_loss_is_the_weighted_mean_over_the_global_batch():
    train, _, model, step = _classifier(2)
    batch = _batch(7, 4)
    logits = model({name: batch[name] for name in features.ENCODER_INPUTS})[features.LOGITS]
    logits = logits.numpy().astype("float64")
    labels, weights = batch[features.LABEL].numpy(), batch[features.WEIGHT].numpy()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]
    scalars = step(tf.constant(0, tf.int64), batch, updates.controls(train, 0))
    assert float(scalars["loss"]) == pytest.approx((losses * weights).sum() / weights.sum(), rel=1e-5)


def test_what_processes_say_is_summed_or_averaged_over_the_replicas():
    train, _, _, step = _classifier(2)
    controls = updates.controls(train, 0, seconds=12.5, stop=1.0)
    scalars = step(tf.constant(0, tf.int64), _batch(4, 0), controls)
    assert (float(scalars["seconds"]), float(scalars["stop"])) == (12.5, 2.0)


@pytest.mark.parametrize("rows", [1, 5])
def test_predictions_of_two_replicas_are_those_of_one_row_by_row(rows):
    _, strategy, model, _ = _classifier(2)
    batch = _batch(rows, 2)
    values = make_predict_step(strategy, model, _task())(batch)[features.LOGITS].numpy()
    expected = model({name: batch[name] for name in features.ENCODER_INPUTS})[features.LOGITS].numpy()
    order = replica_major(range(rows), 2)
    np.testing.assert_allclose(values, expected[order], rtol=1e-4, atol=1e-6)


_MASKS = """
    import json, sys
    import keras, numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(1)
    from keras_bert_app.training.step import dropout_seeds

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        inputs = keras.Input((64,))
        layers = [keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)]
        model = keras.Model(inputs, [layer(inputs) for layer in layers])

    def on_replica(number):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        with dropout_seeds(model, int(sys.argv[1]), number, replica):
            return model(tf.ones([1, 64]), training=True)

    @tf.function
    def run(number):
        return strategy.run(on_replica, args=(number,))

    masks = {}
    for number in (0, 1):
        for layer, value in enumerate(run(tf.constant(number, tf.int64))):
            for replica, mask in enumerate(strategy.experimental_local_results(value)):
                kept = (mask.numpy() > 0).astype(int).tolist()
                masks[f"step {number} layer {layer} replica {replica}"] = kept
    print(json.dumps(masks))
"""


def _masks(seed):
    command = [sys.executable, "-c", textwrap.dedent(_MASKS), str(seed)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def test_dropout_masks_differ_by_replica_step_and_layer_and_repeat_in_another_process():
    masks = _masks(5)
    assert len(masks) == 8
    for one, other in itertools.combinations(masks, 2):
        assert masks[one] != masks[other], (one, other)
    assert _masks(5) == masks
