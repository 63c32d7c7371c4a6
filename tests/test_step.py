"""An update on two replicas against the same update on one."""

import itertools
import json
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.config import ENCODER_DEFAULTS, TrainConfig
from keras_bert_app.tasks.classification import ClassificationTask
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary
from keras_bert_app.training.optimization import make_optimizer
from keras_bert_app.training.step import make_predict_step, make_train_step
from keras_bert_app.training.strategy import make_strategy

_STEPS = 20
_CLIP = 0.05
_SIZES = [8] * 17 + [1, 2, 5]


def _tiny(**changes):
    wanted = {
        "vocabulary_size": 40,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 32,
        "intermediate_dim": 64,
    }
    wanted |= {"max_positions": 16, "dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.1}
    return type(ENCODER_DEFAULTS)(**vars(ENCODER_DEFAULTS) | wanted | changes)


def _task():
    return ClassificationTask(["a", "b", "c"], [features.TEXT])


def _strategy(replicas):
    return make_strategy(TrainConfig(strategy="none" if replicas == 1 else "mirrored", num_devices=replicas))


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


def _built(replicas, precision="float32", clip=_CLIP, step_of=make_train_step, **encoder):
    strategy, task = _strategy(replicas), _task()
    train = TrainConfig(learning_rate=1e-3, warmup_fraction=0.1, clip_norm=clip)
    with strategy.scope():
        keras.utils.set_random_seed(3)
        model = task.build_model(_tiny(**encoder), precision)
        optimizer = make_optimizer(train, _STEPS + 5, model)
    return strategy, model, optimizer, step_of(strategy, model, task, optimizer, clip, 11)


def _flat(strategy, variables):
    local = strategy.experimental_local_results
    return np.concatenate([local(v.value)[0].numpy().astype("float64").ravel() for v in variables])


def _train(replicas, precision, step_of=make_train_step):
    strategy, model, optimizer, step = _built(replicas, precision, step_of=step_of)
    start = _flat(strategy, model.weights)
    norms = []
    for number, size in enumerate(_SIZES):
        scalars = step(tf.constant(number, tf.int64), _batch(size, number))
        assert scalars["finite"]
        norms.append(float(scalars["gradient_norm"]))
    return start, _flat(strategy, model.weights), norms


def _relative_difference(precision, step_of=make_train_step):
    start, one, norms = _train(1, precision)
    other_start, two, _ = _train(2, precision, step_of)
    np.testing.assert_array_equal(start, other_start)
    assert sum(norm > _CLIP for norm in norms) >= 15
    movement = np.linalg.norm(one - start)
    assert movement > 0.01 * np.linalg.norm(start)
    return np.linalg.norm(two - one) / movement


@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-12), ("float32", 1e-4)])
def test_two_replicas_make_the_same_weights_as_one(precision, bound):
    assert _relative_difference(precision) <= bound


def _pretraining_batch(seed):
    """Nine rows, so that one of two replicas has one more, of lengths that leave uneven masked counts."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 17, 9)
    mask = np.arange(16)[None] < lengths[:, None]
    second = mask & (np.arange(16) >= lengths[:, None] // 2)
    return {
        features.TOKEN_IDS: tf.constant(np.where(mask, random.integers(5, 40, mask.shape), 0), tf.int32),
        features.SEGMENT_IDS: tf.constant(second, tf.int32),
        features.PADDING_MASK: tf.constant(mask),
        features.NEXT_SENTENCE_LABEL: tf.constant(random.integers(0, 2, 9), tf.int32),
        features.WEIGHT: tf.ones([9]),
    }


def _pretrain(replicas, precision):
    """-> weights before and after, the last step's scalars, metrics of the last batch; masking is on."""
    strategy, task = _strategy(replicas), PretrainingTask("nsp")
    with strategy.scope():
        keras.utils.set_random_seed(3)
        model = task.build_model(_tiny(), precision)
        optimizer = make_optimizer(TrainConfig(learning_rate=1e-3, clip_norm=_CLIP), _STEPS, model)
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *(f"word{number}" for number in range(35))))
    masker = TokenMasker(vocabulary, "word", rate=0.3)
    step = make_train_step(strategy, model, task, optimizer, _CLIP, 11, masker)
    start = _flat(strategy, model.weights)
    for number in range(_STEPS):
        batch = _pretraining_batch(number)
        scalars = step(tf.constant(number, tf.int64), batch)
        assert scalars["finite"] and scalars["gradient_norm"] > _CLIP
    rows = {}
    for name, parts in make_predict_step(strategy, model, task, masker)(batch).items():
        rows[name] = np.zeros(9)
        for replica, part in enumerate(parts):
            rows[name][replica::replicas] = part.numpy()
    # The two replicas' shares of the loss have other weights.
    assert rows["num_masked"][::2].sum() != rows["num_masked"][1::2].sum() > 0
    metrics = task.metrics(rows, {features.WEIGHT: np.ones(9)})
    return start, _flat(strategy, model.weights), scalars, metrics


@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-12), ("float32", 1e-4)])
def test_two_replicas_pretrain_the_same_weights_as_one_with_uneven_masked_counts(precision, bound):
    start, one, scalars, metrics = _pretrain(1, precision)
    other_start, two, other_scalars, other_metrics = _pretrain(2, precision)
    np.testing.assert_array_equal(start, other_start)
    movement = np.linalg.norm(one - start)
    assert movement > 0.01 * np.linalg.norm(start)
    assert np.linalg.norm(two - one) <= bound * movement
    for name, value in scalars.items():
        assert float(other_scalars[name]) == pytest.approx(float(value), rel=1e-3), name
    assert other_metrics == pytest.approx(metrics, rel=1e-3)


def test_clipping_before_the_sum_would_be_noticed(monkeypatch):
    clip = tf.clip_by_global_norm

    def clipped_before_the_sum(*arguments):
        all_reduce = tf.distribute.ReplicaContext.all_reduce

        def clip_then_reduce(replica, operation, value, options=None):
            if isinstance(value, tuple):
                value = (clip(value[0], _CLIP)[0], value[1])
            return all_reduce(replica, operation, value, options)

        monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", clip_then_reduce)
        monkeypatch.setattr(
            tf, "clip_by_global_norm", lambda values, _: (values, tf.linalg.global_norm(values))
        )
        return make_train_step(*arguments)

    assert _relative_difference("float64", clipped_before_the_sum) > 1e-3


def test_the_learning_rate_is_not_zero_at_the_first_update():
    strategy, model, _, step = _built(1)
    start = _flat(strategy, model.weights)
    step(tf.constant(0, tf.int64), _batch(8, 0))
    assert np.linalg.norm(_flat(strategy, model.weights) - start) > 1e-4


@pytest.mark.parametrize("replica", [0, 1])
def test_a_gradient_that_is_not_finite_on_one_replica_is_not_applied(replica):
    strategy, model, optimizer, step = _built(2)
    step(tf.constant(0, tf.int64), _batch(8, 0))
    before = _flat(strategy, [*model.weights, *optimizer.variables])
    batch = _batch(8, 1)
    weights = batch[features.WEIGHT].numpy()
    weights[2 + replica] = np.inf
    scalars = step(tf.constant(1, tf.int64), batch | {features.WEIGHT: tf.constant(weights)})
    assert not scalars["finite"]
    np.testing.assert_array_equal(_flat(strategy, [*model.weights, *optimizer.variables]), before)


def test_the_loss_is_the_weighted_mean_over_the_global_batch():
    strategy, model, _, step = _built(2)
    batch = _batch(7, 4)
    logits = (
        model({name: batch[name] for name in features.ENCODER_INPUTS})[features.LOGITS]
        .numpy()
        .astype("float64")
    )
    labels, weights = batch[features.LABEL].numpy(), batch[features.WEIGHT].numpy()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]
    scalars = step(tf.constant(0, tf.int64), batch)
    assert float(scalars["loss"]) == pytest.approx((losses * weights).sum() / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_predictions_of_two_replicas_are_those_of_one_row_by_row(rows):
    strategy, model, _, _ = _built(2)
    batch = _batch(rows, 2)
    parts = make_predict_step(strategy, model, _task())(batch)[features.LOGITS]
    expected = model({name: batch[name] for name in features.ENCODER_INPUTS})[features.LOGITS].numpy()
    for replica, part in enumerate(parts):
        np.testing.assert_allclose(part.numpy(), expected[replica::2], rtol=1e-4, atol=1e-6)


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
