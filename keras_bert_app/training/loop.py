"""Steps, evaluation, checkpoints, summaries, progress, stopping: the one loop that trains every task."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert_app.config import TrainConfig
from keras_bert_app.data.batches import Batches, Examples, evaluation_order
from keras_bert_app.errors import UserError
from keras_bert_app.training import checkpoints
from keras_bert_app.training.progress import Progress, say
from keras_bert_app.training.step import make_predict_step, make_train_step

_POINTS_ON_A_CURVE = 200
_EVALUATION_BATCH = 64


@dataclass
class State:
    """What a run knows beside weights: enough to go on as if it had never stopped.

    history: rows of scalars, each with its `step`; the curves of the report.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_better: int = 0
    stopped_early: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Trainer:
    """One model in training.

    `optimizer` has been built for the model's variables, both in the strategy's scope. `prepare` is what
    step.py says, such as a TokenMasker.
    """

    strategy: tf.distribute.Strategy
    model: keras.Model
    task: Any
    optimizer: keras.optimizers.Optimizer
    train: TrainConfig
    seed: int
    workdir: Path
    prepare: Callable[[Mapping[str, tf.Tensor], tf.Tensor], Mapping[str, tf.Tensor]] | None = None

    def fit(self, batches: Batches, evaluation: Examples) -> State:
        """Train from the newest checkpoint, or from the start, to the end.

        Raises:
            UserError: a gradient isn't finite.
        """
        total = batches.steps_per_epoch * self.train.epochs
        state = self._restore()
        step = make_train_step(
            self.strategy,
            self.model,
            self.task,
            self.optimizer,
            self.train.clip_norm,
            self.seed,
            self.prepare,
        )
        predict = make_predict_step(self.strategy, self.model, self.task, self.prepare)
        evaluate_every = self.train.evaluate_every or batches.steps_per_epoch
        log_every = max(1, total // _POINTS_ON_A_CURVE)
        writer = tf.summary.create_file_writer(str(self.workdir / "summaries"))
        with Progress("train", total, state.step) as progress, contextlib.closing(writer):
            while state.step < total and not state.stopped_early:
                batch = batches[state.step]
                scalars = {
                    name: value.numpy()
                    for name, value in step(tf.constant(state.step, tf.int64), batch).items()
                }
                if not scalars.pop("finite"):
                    raise UserError(self._not_finite(state))
                state.step += 1
                shown = {name: float(value) for name, value in scalars.items()}
                seen = {name: shown[name] for name in shown if name == "loss" or name.endswith("_accuracy")}
                progress.advance(len(batch[next(iter(self.task.targets_dtypes))]), seen)
                if state.step % log_every == 0:
                    rate = float(self.optimizer.learning_rate.numpy())
                    self._record(state, writer, shown | {"learning_rate": rate})
                if state.step % evaluate_every == 0 or state.step == total:
                    self._evaluate(state, writer, predict, evaluation)
                    self._save(state)
                elif self.train.checkpoint_every and state.step % self.train.checkpoint_every == 0:
                    self._save(state)
        return state

    def _restore(self) -> State:
        saved = checkpoints.steps(self.workdir)
        if not saved:
            return State()
        with self.strategy.scope():
            checkpoints.restore(self.workdir, saved[-1], self.model, self.optimizer)
        say(f"going on from the checkpoint of step {saved[-1]}")
        return State(**checkpoints.read_state(self.workdir, saved[-1]))

    def _evaluate(self, state: State, writer, predict, evaluation: Examples) -> None:
        outputs = predict_examples(self.strategy, predict, evaluation)
        metrics = self.task.metrics(outputs, evaluation.targets)
        scalars = {f"evaluation/{name}": value for name, value in metrics.items() if isinstance(value, float)}
        self._record(state, writer, scalars)
        metric = self.train.metric or self.task.selection_metrics[0]
        value = metrics[metric]
        if state.best_value is None or value > state.best_value:
            state.best_step, state.best_value, state.evaluations_without_better = state.step, value, 0
        else:
            state.evaluations_without_better += 1
            state.stopped_early = state.evaluations_without_better == self.train.patience
        say(
            f"evaluation at step {state.step}: {metric} {value:.4f}"
            + (", the best so far" if state.best_step == state.step else f" (best {state.best_value:.4f})")
            + (
                f"; no better one in {self.train.patience} evaluations, stopping"
                if state.stopped_early
                else ""
            )
        )

    def _record(self, state: State, writer, scalars: Mapping[str, float]) -> None:
        state.history.append({"step": state.step} | dict(scalars))
        with writer.as_default(step=state.step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
        writer.flush()

    def _save(self, state: State) -> None:
        with self.strategy.scope():
            checkpoints.save(self.workdir, state.step, self.model, self.optimizer, dataclasses.asdict(state))
        newest = checkpoints.steps(self.workdir)[-self.train.keep_checkpoints :]
        checkpoints.prune(self.workdir, {*newest, state.best_step})

    def _not_finite(self, state: State) -> str:
        saved = checkpoints.steps(self.workdir)
        last = f"the last good checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint yet"
        return (
            f"the gradient of step {state.step} isn't finite; {last}. "
            "Try a lower config.train.learning_rate, a longer config.train.warmup_fraction, or float32"
        )


def predict_examples(
    strategy: tf.distribute.Strategy, predict, examples: Examples, stage: str | None = None
) -> dict[str, np.ndarray]:
    """Model outputs of all examples, {name: float [N, ...]}, in the examples' order.

    Args:
        predict: what `make_predict_step` returns.
        stage: show progress under this name.
    """
    results: dict[str, np.ndarray] = {}
    order = evaluation_order(examples.lengths, _EVALUATION_BATCH)
    with Progress(stage, len(order)) if stage else contextlib.nullcontext() as progress:
        for rows in order:
            for name, parts in predict(examples.batch(rows)).items():
                for replica, part in enumerate(parts):
                    part = part.numpy()
                    if name not in results:
                        results[name] = np.zeros((len(examples), *part.shape[1:]), part.dtype)
                    results[name][rows[replica :: strategy.num_replicas_in_sync]] = part
            if progress:
                progress.advance(len(rows))
    return results
