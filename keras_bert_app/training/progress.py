"""What a person sees of a long stage: a bar on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts steps and examples of one stage and shows them with scalars, speed and time left.

    A context manager; on leaving, the last state is shown.
    """

    def __init__(self, stage: str, total: int, done: int = 0):
        self.stage, self.total, self.done, self.first = stage, total, done, done
        self._examples = 0
        self._shown_step = done
        self._scalars: Mapping[str, float] = {}
        self._started = self._shown = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=stage, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._shown_step:
            self._print()

    def advance(self, examples: int, scalars: Mapping[str, float] | None = None) -> None:
        """One step of so many examples is done; `scalars` replace those shown."""
        self.done += 1
        self._examples += examples
        self._scalars = scalars or self._scalars
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._speed():.0f} examples/s{self._shown_scalars()}", refresh=False)
            self._bar.update()
        elif time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES and self.done < self.total:
            self._print()

    def _print(self) -> None:
        self._shown, self._shown_step = time.monotonic(), self.done
        elapsed = self._shown - self._started
        left = elapsed / (self.done - self.first) * (self.total - self.done)
        print(
            f"{self.stage}: step {self.done}/{self.total}{self._shown_scalars()}, "
            f"{self._speed():.0f} examples/s, {_clock(elapsed)} gone, {_clock(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def _speed(self) -> float:
        return self._examples / max(1e-9, time.monotonic() - self._started)

    def _shown_scalars(self) -> str:
        return "".join(f", {name} {value:.4g}" for name, value in self._scalars.items())


class StagesProgress:
    """Shows stages, one after another, that say themselves what is done and to be done; a context manager."""

    def __init__(self):
        self._stage: str | None = None
        self._bar = None
        self._shown = 0.0

    def __enter__(self) -> "StagesProgress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of this stage; a total of 0 is unknown."""
        starts, self._stage = stage != self._stage, stage
        if sys.stderr.isatty():
            if starts:
                self.__exit__()
                self._bar = tqdm(desc=stage, unit_scale=True, dynamic_ncols=True)
            self._bar.total = total or None
            self._bar.n = done
            self._bar.refresh()
        elif starts or done == total or time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            share = f"{100 * done / total:.0f} %" if total else f"{done:,}"
            print(f"{stage}: {share}", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """One line for the person at the terminal, where progress goes as well."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
