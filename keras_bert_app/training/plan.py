"""What a run is made of: which batch each update takes, how far the run is, when it is over."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from keras_bert_app.config import TrainConfig
from keras_bert_app.data.batches import Batches
from keras_bert_app.training.optimization import learning_rate


@dataclass
class State:
    """What a run knows beside weights: enough to go on as if it had never stopped.

    seconds: how long it has trained, of a run with a budget. phase_start: the step at which the phase began.
    good_steps: updates since the loss scale changed. history: rows of scalars, each with its `step`; the
    curves of the report.
    """

    step: int = 0
    seconds: float = 0.0
    phase: int = 0
    phase_start: int = 0
    loss_scale: float = 1.0
    good_steps: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_better: int = 0
    stopped_early: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Phases one after the other, each for its share of the epochs or of the budget.

    phases: (share, batches) of each; the shares make 1.
    """

    train: TrainConfig
    phases: Sequence[tuple[float, Batches]]

    @property
    def has_budget(self) -> bool:
        """Whether the run ends by the clock."""
        return self.train.budget_minutes is not None

    @property
    def total(self) -> float:
        """Of the whole run: updates or, with a budget, seconds."""
        return self.train.budget_minutes * 60 if self.has_budget else sum(map(self._steps, self.phases))

    def done(self, state: State) -> float:
        """Of these, how many are over."""
        return state.seconds if self.has_budget else state.step

    def is_over(self, state: State) -> bool:
        """Whether the last phase has ended."""
        return self._phase_is_over(state) and state.phase == len(self.phases) - 1

    def enter_phase(self, state: State) -> None:
        """Go on to the next phase where one has ended; call it before each update."""
        while self._phase_is_over(state) and state.phase < len(self.phases) - 1:
            state.phase, state.phase_start = state.phase + 1, state.step

    def batches(self, state: State) -> tuple[Batches, int]:
        """The batches of this phase, and which of them is the next."""
        return self.phases[state.phase][1], state.step - state.phase_start

    def learning_rate(self, state: State) -> float:
        """Of the next update."""
        return learning_rate(self.train, self.done(state), self.total)

    def evaluation_is_due(self, state: State) -> bool:
        """Whether the model is to be evaluated at this step: every so often, and at the end."""
        batches, number = self.batches(state)
        often = self.train.evaluate_every
        due = state.step % often == 0 if often else number % batches.steps_per_epoch == 0
        return due or self.is_over(state)

    def _phase_is_over(self, state: State) -> bool:
        if self.has_budget:
            is_last = state.phase == len(self.phases) - 1
            share = 1.0 if is_last else sum(share for share, _ in self.phases[: state.phase + 1])
            return state.seconds >= self.total * share
        return state.step - state.phase_start >= self._steps(self.phases[state.phase])

    def _steps(self, phase: tuple[float, Batches]) -> int:
        share, batches = phase
        return max(1, round(share * self.train.epochs * batches.steps_per_epoch))
