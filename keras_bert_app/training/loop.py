"""Steps, evaluation, checkpoints, summaries, progress, stopping: the one loop that trains every task."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.config import TrainConfig
from keras_bert_app.data.batches import Examples, evaluation_order
from keras_bert_app.errors import Stopped, UserError
from keras_bert_app.model.flops import text_lengths
from keras_bert_app.training import checkpoints, heartbeat
from keras_bert_app.training.plan import Plan, State
from keras_bert_app.training.prefetch import Prefetcher
from keras_bert_app.training.progress import Progress, say
from keras_bert_app.training.step import (
    Controls,
    Preparation,
    make_predict_step,
    make_train_step,
    replica_major,
)
from keras_bert_app.training.stopping import StopRequests
from keras_bert_app.training.strategy import is_chief, mean_over_replicas

_POINTS_ON_A_CURVE = 200
_EVALUATION_BATCH = 64
# Dynamic loss scaling (Micikevicius et al. 2018, section 3.2), with the usual figures.
_FIRST_LOSS_SCALE, _GOOD_STEPS_TO_DOUBLE, _LARGEST_LOSS_SCALE = 2.0**15, 2000, 2.0**24


@dataclass(frozen=True)
class Trainer:
    """One model in training.

    `optimizer` has been built for the model's variables, both in the strategy's scope. `prepare` is what
    step.py says, such as a TokenMasker. `flops` gives the operations that a step needs for texts of some
    lengths; for the eye alone.
    """

    strategy: tf.distribute.Strategy
    model: keras.Model
    task: Any
    optimizer: keras.optimizers.Optimizer
    train: TrainConfig
    seed: int
    workdir: Path
    prepare: Preparation | None = None
    flops: Callable[[np.ndarray], float] = lambda lengths: 0.0

    def fit(self, plan: Plan, evaluation: Examples) -> State:
        """Train from the newest checkpoint, or from the start, to the end.

        Raises:
            UserError: a gradient isn't finite, or no checkpoint can be read.
            Stopped: SIGTERM or SIGINT came; there is a checkpoint of the step that was under way.
            SystemExit: another worker is gone.
        """
        state = self._restore()
        arguments = (self.strategy, self.model, self.task)
        step = make_train_step(*arguments, self.optimizer, self.train, self.seed, self.prepare)
        predict = make_predict_step(*arguments, self.prepare)
        started = time.monotonic() - state.seconds
        writer = tf.summary.create_file_writer(str(self.workdir / "summaries")) if self._is_chief else None
        total = None if plan.has_budget else int(plan.total)
        share = plan.done(state) / plan.total
        with (
            _one_line_for_lost_workers(self.strategy, state),
            StopRequests() as requests,
            Prefetcher() as prefetcher,
            contextlib.closing(writer) if writer else contextlib.nullcontext(),
            Progress("train", total, state.step, self.train.peak_flops, share) as progress,
        ):
            while not (plan.is_over(state) or state.stopped_early):
                plan.enter_phase(state)
                batch, waited = prefetcher.take(*plan.batches(state))
                controls = Controls(
                    plan.learning_rate(state),
                    state.loss_scale,
                    time.monotonic() - started,
                    float(requests.signal is not None),
                )
                scalars = self._update(step, state, batch, controls)
                stopping = scalars.pop("stop") > 0
                seconds, done_before = scalars.pop("seconds"), plan.done(state)
                state.step += 1
                state.seconds = seconds if plan.has_budget else 0.0
                heartbeat.beat()
                self._show(progress, batch, scalars, plan.done(state) / plan.total, waited)
                if _point(plan.total, done_before) != _point(plan.total, plan.done(state)):
                    self._record(state, writer, scalars | {"learning_rate": controls.learning_rate})
                    self._summarise(state, writer, progress.rates())
                with progress.pause():
                    every = self.train.checkpoint_every
                    due = stopping or (every and state.step % every == 0)
                    if plan.evaluation_is_due(state):
                        self._evaluate(state, writer, predict, evaluation)
                        due = True
                    if due:
                        self._save(state)
                if stopping and not plan.is_over(state):
                    raise Stopped(requests.signal, state.step)
        return state

    def _show(
        self,
        progress: Progress,
        batch: Mapping[str, tf.Tensor],
        scalars: Mapping[str, float],
        share: float,
        waited: float,
    ) -> None:
        lengths = text_lengths(batch)
        num_rows, num_columns = batch[features.PADDING_MASK].shape  # [B, S]
        progress.advance(
            num_rows,
            {name: value for name, value in scalars.items() if name == "loss" or name.endswith("_accuracy")},
            tokens=int(lengths.sum()),
            slots=num_rows * num_columns,
            flops=self.flops(lengths),
            share=share,
            waited=waited,
        )

    @property
    def _is_chief(self) -> bool:
        return is_chief(self.strategy)

    def _update(
        self,
        step: Callable[..., dict[str, tf.Tensor]],
        state: State,
        batch: Mapping[str, tf.Tensor],
        controls: Controls,
    ) -> dict[str, float]:
        """Make one update, or skip it where float16 overflowed; keep the loss scale.

        Raises:
            UserError: the gradient isn't finite, whatever the loss scale.
        """
        controls = Controls(*(tf.constant(value, tf.float32) for value in controls))
        scalars = step(tf.constant(state.step, tf.int64), batch, controls)
        scalars = {name: float(value.numpy()) for name, value in scalars.items()}
        scaled = self.train.precision == "mixed_float16"
        if scalars.pop("finite"):
            state.good_steps += scaled
            if state.good_steps == _GOOD_STEPS_TO_DOUBLE:
                state.good_steps, state.loss_scale = 0, min(2 * state.loss_scale, _LARGEST_LOSS_SCALE)
        elif scaled and state.loss_scale > 1:
            state.good_steps, state.loss_scale = 0, state.loss_scale / 2
        else:
            raise UserError(self._not_finite(state))
        return scalars | ({"loss_scale": state.loss_scale} if scaled else {})

    def _restore(self) -> State:
        """The newest checkpoint that can be read, or the start; the same in every process.

        Raises:
            UserError: there are checkpoints, but none can be read; or they aren't of this model.
        """
        state, broken = None, []
        for step in reversed(checkpoints.steps(self.workdir)):
            try:
                with self.strategy.scope():
                    state = State(**checkpoints.restore(self.workdir, step, self.model, self.optimizer))
            except checkpoints.Unreadable as error:
                say(f"{error}; going back to the checkpoint before")
                broken.append(step)
            else:
                say(f"going on from the checkpoint of step {step}")
                break
        if broken and state is None:
            raise UserError(
                f"none of the checkpoints in {self.workdir} can be read; give another --workdir to begin anew"
            )
        if state is None:
            scaled = self.train.precision == "mixed_float16"
            state = State(loss_scale=_FIRST_LOSS_SCALE if scaled else 1.0)
        if mean_over_replicas(self.strategy, state.step) != state.step:
            raise UserError(
                f"the workers found different checkpoints in {self.workdir}; it has to be one folder for all"
            )
        if self._is_chief:
            # Else the same step couldn't be saved again.
            checkpoints.remove(self.workdir, broken)
        return state

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
        self._summarise(state, writer, scalars)

    def _summarise(self, state: State, writer, scalars: Mapping[str, float]) -> None:
        """For TensorBoard alone; the history is the same on every rerun, which speed isn't."""
        if writer is None:
            return
        with writer.as_default(step=state.step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
        writer.flush()

    def _save(self, state: State) -> None:
        if not self._is_chief:
            return
        with self.strategy.scope():
            checkpoints.save(self.workdir, state.step, self.model, self.optimizer, dataclasses.asdict(state))
        newest = checkpoints.steps(self.workdir)[-self.train.keep_checkpoints :]
        checkpoints.prune(self.workdir, {*newest, state.best_step})

    def _not_finite(self, state: State) -> str:
        saved = checkpoints.steps(self.workdir)
        last = f"the last good checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint yet"
        wider = "" if self.train.precision.startswith("float") else ", or config.train.precision=float32"
        return (
            f"the gradient of step {state.step} isn't finite; {last}. Try a lower "
            f"config.train.learning_rate, a longer config.train.warmup_fraction{wider}, in another --workdir"
        )


@contextlib.contextmanager
def _one_line_for_lost_workers(strategy: tf.distribute.Strategy, state: State) -> Iterator[None]:
    """End in one line where several workers compute together and one is gone.

    As SystemExit with code 1: after a UserError `run.py launch` would start none again.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if strategy.cluster_resolver is None:
            raise
        reason = (error.message or str(error)).strip().splitlines()[0]
        raise SystemExit(f"this worker or another one failed at step {state.step}: {reason}") from error


def _point(total: float, done: float) -> int:
    """Which of the curve's points a run has reached."""
    return int(done * _POINTS_ON_A_CURVE / total)


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
            heartbeat.beat()
            places = replica_major(rows, strategy.num_replicas_in_sync)
            for name, values in predict(examples.batch(rows)).items():
                values = values.numpy()
                if name not in results:
                    results[name] = np.zeros((len(examples), *values.shape[1:]), values.dtype)
                results[name][places] = values
            if progress:
                progress.advance(len(rows))
    return results
