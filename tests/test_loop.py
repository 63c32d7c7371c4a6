"""The loop, on a model that is a handful of weights."""

import os
import shutil
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.config import TrainConfig
from keras_bert_app.data.batches import Batches, Examples
from keras_bert_app.errors import Stopped, UserError
from keras_bert_app.training import checkpoints, loop
from keras_bert_app.training.loop import Trainer, predict_examples
from keras_bert_app.training.optimization import make_optimizer
from keras_bert_app.training.plan import Plan
from keras_bert_app.training.step import make_predict_step
from keras_bert_app.training.strategy import make_strategy


class _Task:
    """The largest id against a number; its metric is what the test says."""

    inputs_dtypes = features.ENCODER_INPUTS
    targets_specs = {"target": tf.TensorSpec([None], "float32")}
    selection_metrics = ("accuracy",)

    def __init__(self, values):
        self.values = list(values)

    def build_model(self):
        inputs = {n: keras.Input((None,), dtype=d, name=n) for n, d in features.ENCODER_INPUTS.items()}
        largest = keras.ops.max(keras.ops.cast(inputs[features.TOKEN_IDS], "float32"), axis=1, keepdims=True)
        return keras.Model(inputs, {"y": keras.layers.Dense(1, name="dense")(largest)}, name="tiny")

    def losses(self, outputs, batch):
        error = outputs["y"][:, 0] - batch["target"]
        return {"loss": error * error}

    def weights(self, batch):
        return {"loss": tf.ones_like(batch["target"])}

    def measures(self, outputs, batch):
        return {}

    def predictions(self, outputs, batch):
        return dict(outputs)

    def metrics(self, outputs, targets):
        return {"accuracy": self.values.pop(0), "table": [1, 2]}


def _examples(count=8, bad=()):
    rows = tf.ragged.constant([[1 + number] * (2 + number % 3) for number in range(count)], dtype=tf.int32)
    targets = np.arange(count, dtype="float32")
    targets[list(bad)] = np.inf
    return Examples(rows, tf.zeros_like(rows), {"target": targets}, _pad)


def _pad(token_ids, segment_ids):
    return {
        features.TOKEN_IDS: token_ids.to_tensor(),
        features.SEGMENT_IDS: segment_ids.to_tensor(),
        features.PADDING_MASK: tf.ones_like(token_ids, tf.bool).to_tensor(),
    }


def _fit(workdir, values=(0.5,) * 99, examples=None, replicas=1, task=None, **changes):
    train = TrainConfig(**{"batch_size": 4, "epochs": 5, "learning_rate": 0.01} | changes)
    strategy = make_strategy(
        TrainConfig(strategy="none" if replicas == 1 else "mirrored", num_devices=replicas)
    )
    task = task or _Task(values)
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = task.build_model()
        optimizer = make_optimizer(train, model)
    trainer = Trainer(strategy, model, task, optimizer, train, 0, workdir)
    plan = Plan(train, [(1.0, Batches(examples or _examples(), 4, 0, False))])
    return trainer.fit(plan, _examples()), trainer


def test_it_evaluates_after_each_epoch_and_at_the_end(tmp_path):
    state, _ = _fit(tmp_path)
    assert [row["step"] for row in state.history if "evaluation/accuracy" in row] == [2, 4, 6, 8, 10]
    state, _ = _fit(tmp_path / "other", evaluate_every=4)
    assert [row["step"] for row in state.history if "evaluation/accuracy" in row] == [4, 8, 10]


def test_the_best_and_the_newest_checkpoints_stay(tmp_path):
    state, _ = _fit(tmp_path, [0.1, 0.9, 0.2, 0.9, 0.3], keep_checkpoints=1)
    assert (state.step, state.best_step, state.best_value) == (10, 4, 0.9)
    assert checkpoints.steps(tmp_path) == [4, 10]
    _fit(tmp_path / "more", [0.9, 0.1, 0.1, 0.1, 0.1], keep_checkpoints=2, checkpoint_every=3)
    assert checkpoints.steps(tmp_path / "more") == [2, 9, 10]


def test_it_stops_after_patience_evaluations_without_a_better_one(tmp_path, capsys):
    state, _ = _fit(tmp_path, [0.5, 0.6, 0.6, 0.1], patience=2)
    assert (state.step, state.best_step, state.stopped_early) == (8, 4, True)
    assert "no better one in 2 evaluations, stopping" in capsys.readouterr().err
    again, _ = _fit(tmp_path, [], patience=2)
    assert again == state


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_gradient_that_is_not_finite_ends_it_with_step_and_checkpoint(tmp_path, replicas):
    with pytest.raises(UserError, match=r"step 0 isn't finite; there is no checkpoint yet"):
        _fit(tmp_path, examples=_examples(bad=range(8)), replicas=replicas)
    _fit(tmp_path, epochs=1, replicas=replicas)
    bad = _examples(bad=[int(Batches(_examples(), 4, 0, False)._order(1)[0][0])])
    with pytest.raises(
        UserError, match=r"step 2 isn't finite; the last good checkpoint is of step 2.*learning_rate"
    ):
        _fit(tmp_path, examples=bad, replicas=replicas)


def test_going_on_gives_the_same_weights_as_going_through(tmp_path):
    schedule = {"schedule": "constant", "warmup_fraction": 0.0}
    _, through = _fit(tmp_path / "through", **schedule)
    _fit(tmp_path / "halves", epochs=2, **schedule)
    state, on = _fit(tmp_path / "halves", **schedule)
    assert state.step == 10
    _assert_equal(through, on)


class _Stopping(_Task):
    """Sends this process a signal while step `at` is under way."""

    def __init__(self, number, at):
        super().__init__([0.5] * 99)
        self.number, self.at = number, at

    def losses(self, outputs, batch):
        def send():
            self.at -= 1
            if self.at == 0:
                os.kill(os.getpid(), self.number)
            return np.float32(0)

        with tf.control_dependencies([tf.numpy_function(send, [], tf.float32)]):
            return {name: tf.identity(value) for name, value in super().losses(outputs, batch).items()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_under_way_and_going_on_gives_the_same_weights(tmp_path, number):
    _, through = _fit(tmp_path / "through")
    with pytest.raises(Stopped, match="the checkpoint of step 4 is saved") as stopped:
        _fit(tmp_path / "run", task=_Stopping(number, at=3))
    # The signal that arrives in the third step is told to the fourth.
    assert (stopped.value.signal, stopped.value.step) == (number, 4)
    assert checkpoints.steps(tmp_path / "run")[-1] == 4
    _, on = _fit(tmp_path / "run")
    _assert_equal(through, on)


def _assert_equal(one, other):
    ours, theirs = (trainer.model.weights + trainer.optimizer.variables for trainer in (one, other))
    for variable, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(variable.numpy(), wanted.numpy(), err_msg=variable.path)


@pytest.mark.parametrize("name", [checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.STATE])
def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, name):
    _, through = _fit(tmp_path / "through")
    _fit(tmp_path / "run")
    shutil.rmtree(checkpoints.folder_of(tmp_path / "run", 2), ignore_errors=True)
    broken = checkpoints.folder_of(tmp_path / "run", 10) / name
    broken.write_bytes(broken.read_bytes()[:-9])
    capsys.readouterr()
    _, on = _fit(tmp_path / "run")
    said = capsys.readouterr().err
    assert f"{broken}: can't read it" in said and "going back to the checkpoint before" in said
    assert "going on from the checkpoint of step 8" in said
    _assert_equal(through, on)


def test_checkpoints_that_are_all_broken_are_refused_not_begun_anew(tmp_path):
    _fit(tmp_path)
    for step in checkpoints.steps(tmp_path):
        (checkpoints.folder_of(tmp_path, step) / checkpoints.MODEL).unlink()
    with pytest.raises(UserError, match="none of the checkpoints in .* can be read; give another --workdir"):
        _fit(tmp_path)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_replicas(tmp_path, first, then):
    _, through = _fit(tmp_path / "through")
    with pytest.raises(Stopped):
        _fit(tmp_path / "run", task=_Stopping(signal.SIGTERM, at=3 * first), replicas=first)
    state, on = _fit(tmp_path / "run", replicas=then)
    assert state.step == 10
    local = on.strategy.experimental_local_results
    for one, other in zip(through.model.weights, on.model.weights, strict=True):
        for part in local(other.value):
            np.testing.assert_allclose(part.numpy(), one.numpy(), rtol=1e-5, err_msg=one.path)


def test_a_budget_ends_the_run_and_is_not_given_twice(tmp_path, monkeypatch):
    clock = iter(np.arange(0, 1000, 2.0))
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    state, _ = _fit(tmp_path, budget_minutes=0.5, evaluate_every=6)
    assert (state.seconds, state.step) == (30.0, 15)
    assert [row["step"] for row in state.history if "evaluation/accuracy" in row] == [6, 12, 15]
    again, _ = _fit(tmp_path, budget_minutes=0.5, evaluate_every=6)
    assert again == state


def test_float16_lowers_its_scale_until_updates_succeed_and_raises_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_FIRST_LOSS_SCALE", 2.0**127)
    monkeypatch.setattr(loop, "_GOOD_STEPS_TO_DOUBLE", 2)
    state, _ = _fit(tmp_path, precision="mixed_float16", keep_checkpoints=9)
    states = [checkpoints.read_state(tmp_path, step) for step in checkpoints.steps(tmp_path)]
    scales = [saved["loss_scale"] for saved in states]
    assert scales[0] < 2.0**126 and scales == sorted(scales, reverse=True)
    assert state.step == 10


def test_summaries_hold_the_scalars(tmp_path):
    state, _ = _fit(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5])
    found = {}
    for file in (tmp_path / "summaries").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    expected = {
        (row["step"], name): value for row in state.history for name, value in row.items() if name != "step"
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    history = {"loss", "gradient_norm", "learning_rate", "evaluation/accuracy"}
    assert {name for _, name in expected} == history
    # What differs from run to run isn't in the history, which is the same on every rerun.
    assert {name for _, name in found} - history == {
        "examples_per_second",
        "tokens_per_second",
        "padding_share",
        "input_wait_share",
    }


@pytest.mark.parametrize("replicas", [1, 2])
def test_predictions_come_in_the_order_of_the_examples(replicas):
    strategy = make_strategy(
        TrainConfig(strategy="none" if replicas == 1 else "mirrored", num_devices=replicas)
    )
    with strategy.scope():
        model = _Task([]).build_model()
    examples = _examples(7)
    outputs = predict_examples(strategy, make_predict_step(strategy, model, _Task([])), examples, "predict")
    singly = [
        model({n: v for n, v in examples.batch(np.array([row])).items() if n != "target"})["y"].numpy()[0]
        for row in range(7)
    ]
    np.testing.assert_allclose(outputs["y"], singly, rtol=1e-4)
