"""What a person sees of a long stage: a bar on a terminal, plain lines anywhere else."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0
_WINDOW_SECONDS = 30.0  # that rates are of
_SECONDS_BETWEEN_MARKS = 1.0
_quiet = False


def be_quiet() -> None:
    """Show nothing more in this process: of several workers the first one speaks."""
    global _quiet
    _quiet = True


@dataclass(frozen=True)
class _Mark:
    """What was done when: `time` in seconds, `active` without pauses; the rest are sums since the start."""

    time: float
    active: float
    share: float
    examples: int = 0
    tokens: int = 0
    slots: int = 0
    flops: float = 0.0
    waited: float = 0.0


class Progress:
    """Counts the steps of one stage and shows them with scalars, speed, padding, utilisation and time left.

    A context manager; on leaving, the last state is shown. Rates are those of the last half minute, without
    pauses, and time left goes by the mean speed, with them; the first step, in which graphs are compiled,
    counts for neither once there is a second.

    Args:
        total: steps of the stage; None where something else ends it, and each advance says the share done.
        done: steps, and `done_share` the share of the stage, that were done before.
        peak_flops: floating-point operations a second that all devices together can do.
    """

    def __init__(
        self,
        stage: str,
        total: int | None,
        done: int = 0,
        peak_flops: float | None = None,
        done_share: float | None = None,
    ):
        self.stage, self.total, self.done, self.first, self.peak_flops = stage, total, done, done, peak_flops
        self._scalars: Mapping[str, float] = {}
        self._paused = 0.0
        self._is_fed = False
        self._begun = now = time.monotonic()
        self._start = self._now = _Mark(now, now, self._share(done_share))
        self._marks = deque([self._start])
        self._shown, self._shown_step = now, done
        self._bar = None
        if sys.stderr.isatty() and not _quiet:
            self._bar = tqdm(
                total=1.0,
                initial=self._start.share,
                desc=stage,
                bar_format="{percentage:3.0f}%|{bar:10}| {desc}",
                miniters=0,
                dynamic_ncols=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._shown_step:
            self._print()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Within it time passes that rates don't count, such as an evaluation's."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - begun

    def advance(
        self,
        examples: int,
        scalars: Mapping[str, float] | None = None,
        *,
        tokens: int = 0,
        slots: int = 0,
        flops: float = 0.0,
        share: float | None = None,
        waited: float | None = None,
    ) -> None:
        """One step is done.

        Args:
            scalars: replace those shown.
            tokens: in its examples, without padding; `slots`: with padding.
            flops: floating-point operations that the step needed.
            share: of the whole stage, done by now, from 0 to 1; None: by the number of steps.
            waited: seconds for which the step had to wait for its batch; None: not measured.
        """
        self.done += 1
        self._scalars = scalars or self._scalars
        before, now = self._now, time.monotonic()
        self._now = _Mark(
            now,
            now - self._paused,
            self._share(share),
            before.examples + examples,
            before.tokens + tokens,
            before.slots + slots,
            before.flops + flops,
            before.waited + (waited or 0.0),
        )
        self._is_fed = waited is not None
        self._mark(before)
        if self._bar is not None:
            self._bar.set_description_str(self._state(), refresh=False)
            self._bar.update(self._now.share - self._bar.n)
        elif now - self._shown >= _SECONDS_BETWEEN_LINES and self.done != self.total:
            self._print()

    def rates(self) -> dict[str, float]:
        """`examples_per_second`, and where known `tokens_per_second`, `padding_share` of the slots,
        `model_flop_utilisation`, the needed operations a second as a share of the peak (PaLM, appendix B),
        and `input_wait_share`, the share of the time in which steps waited for their batches.
        """
        first, last = self._marks[0], self._now
        seconds = max(1e-9, last.active - first.active)
        tokens, slots = last.tokens - first.tokens, last.slots - first.slots
        rates = {"examples_per_second": (last.examples - first.examples) / seconds}
        if tokens:
            rates["tokens_per_second"] = tokens / seconds
        if slots:
            rates["padding_share"] = 1 - tokens / slots
        if self.peak_flops and last.flops > first.flops:
            rates["model_flop_utilisation"] = (last.flops - first.flops) / seconds / self.peak_flops
        if self._is_fed:
            rates["input_wait_share"] = (last.waited - first.waited) / seconds
        return rates

    def _share(self, share: float | None) -> float:
        if share is None:
            share = self.done / self.total if self.total else 0.0
        return min(1.0, share)

    def _mark(self, before: _Mark) -> None:
        """Keep what rates and time left are counted from; `before` is the state a step ago."""
        if self.done == self.first + 2:
            self._start = before
            self._marks = deque([before])
        if self._now.active - self._marks[-1].active >= _SECONDS_BETWEEN_MARKS:
            self._marks.append(self._now)
        while len(self._marks) > 1 and self._marks[1].active <= self._now.active - _WINDOW_SECONDS:
            self._marks.popleft()

    def _print(self) -> None:
        self._shown, self._shown_step = time.monotonic(), self.done
        if not _quiet:
            print(self._state(), file=sys.stderr, flush=True)

    def _state(self) -> str:
        """What matters most first: a narrow terminal cuts the end off."""
        if self.total is None:
            parts = [f"{self.stage}: step {self.done}", f"{100 * self._now.share:.0f} % done"]
        else:
            parts = [f"{self.stage}: step {self.done}/{self.total}"]
        share = self._now.share - self._start.share
        if share > 0 and self._now.share < 1:
            left = (self._now.time - self._start.time) / share * (1 - self._now.share)
            parts.append(f"{_clock(left)} left")
        parts += [
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
            for name, value in self._scalars.items()
        ]
        rates = self.rates()
        unit = "tokens" if "tokens_per_second" in rates else "examples"
        parts.append(f"{rates[f'{unit}_per_second']:,.0f} {unit}/s")
        if "padding_share" in rates:
            parts.append(f"{100 * rates['padding_share']:.0f} % padding")
        if "model_flop_utilisation" in rates:
            parts.append(f"{100 * rates['model_flop_utilisation']:.1f} % of peak FLOP/s")
        if "input_wait_share" in rates:
            parts.append(f"{100 * rates['input_wait_share']:.1f} % waiting for batches")
        return ", ".join([*parts, f"{_clock(self._now.time - self._begun)} gone"])


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
    if not _quiet:
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    return tqdm.format_interval(round(seconds))
