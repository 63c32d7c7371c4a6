"""Which batch each update takes, and when a run is over."""

import numpy as np
import pytest

from keras_bert_app.config import TrainConfig
from keras_bert_app.data.batches import Batches
from keras_bert_app.training.plan import Plan, State


class _Examples:
    def __init__(self, count):
        self.lengths = np.full(count, 3)

    def __len__(self):
        return len(self.lengths)


def _plan(*phases, **train):
    """phases: (share, examples, batch size)."""
    batches = [
        (share, Batches(_Examples(count), size, 5, False, number))
        for number, (share, count, size) in enumerate(phases)
    ]
    return Plan(TrainConfig(**{"epochs": 2} | train), batches)


def _steps(plan):
    """(phase, rows) of each update of a run with epochs."""
    state, found = State(), []
    while not plan.is_over(state):
        plan.enter_phase(state)
        batches, place = plan.batches(state)
        found.append((state.phase, batches.rows(place).tolist()))
        state.step += 1
    return found


def test_one_phase_is_all_epochs_and_each_has_every_example():
    steps = _steps(_plan((1.0, 10, 4)))
    assert [phase for phase, _ in steps] == [0] * 6
    for epoch in (steps[:3], steps[3:]):
        assert sorted(row for _, rows in epoch for row in rows) == list(range(10))
    assert steps[:3] != steps[3:]


def test_phases_follow_one_another_each_with_its_share_batch_size_and_order():
    plan = _plan((0.5, 12, 2), (0.25, 12, 4), (0.25, 6, 3))
    steps = _steps(plan)
    assert [phase for phase, _ in steps] == [0] * 6 + [1] * 2 + [2]
    assert [len(rows) for _, rows in steps] == [2] * 6 + [4] * 2 + [3]
    assert plan.total == 9
    first_rows = [rows for _, rows in steps[:2]]
    assert steps[6][1] != [*first_rows[0], *first_rows[1]]  # not the same order over again


def test_any_step_is_found_without_those_before_it():
    plan = _plan((1.0, 10, 4), epochs=10**7)
    batches, place = plan.batches(State(step=3 * 10**7 - 1))
    assert len(batches.rows(place)) == 2
    rows = [row for step in range(-3, 0) for row in batches.rows(3 * 10**7 + step)]
    assert sorted(rows) == list(range(10))


def test_a_budget_ends_phases_and_the_run_by_the_clock_and_the_rate_follows():
    plan = _plan((0.5, 10, 4), (0.5, 10, 2), budget_minutes=1, warmup_fraction=0.5, learning_rate=1.0)
    state = State(step=7, seconds=29.0)
    plan.enter_phase(state)
    assert (state.phase, state.phase_start) == (0, 0)
    assert plan.learning_rate(state) == pytest.approx(1.0)
    state.seconds = 30.0
    plan.enter_phase(state)
    assert (state.phase, state.phase_start) == (1, 7) and plan.batches(state)[1] == 0
    state.seconds = 45.0
    assert plan.learning_rate(state) == pytest.approx(0.5) and not plan.is_over(state)
    state.seconds = 60.0
    assert plan.is_over(state)
    assert plan.learning_rate(State()) == pytest.approx(1 / 30)


def test_evaluation_is_due_after_each_epoch_or_so_many_updates_and_at_the_end():
    plan = _plan((0.5, 10, 4), (0.5, 10, 2))

    def due(plan, step, phase=0, start=0):
        return plan.evaluation_is_due(State(step=step, phase=phase, phase_start=start))

    assert [step for step in range(1, 4) if due(plan, step)] == [3]
    assert [step for step in range(4, 9) if due(plan, step, 1, 3)] == [8]
    plan = _plan((1.0, 10, 4), evaluate_every=4)
    assert [step for step in range(1, 7) if due(plan, step)] == [4, 6]
