"""Contenders' processes, and taking turns among them."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.contenders import TOLERANCES, Contender

SECONDS_A_TURN, MOST_REPEATS = 0.4, 40
# Threads of some libraries look for work for a while before they sleep (Intel's OpenMP: 0.2 s).
SECONDS_TO_SLEEP = 0.25


class ContenderError(Exception):
    """A contender could not do what it was asked; the message is its traceback."""


class Process:
    """A contender at work; what it prints goes to a log of its name."""

    def __init__(self, contender: Contender, folder: Path, program: str = "worker", arguments: Sequence = ()):
        self.contender = contender
        self._log = (folder / f"{'-'.join((contender.name, *arguments))}.log").open("w")
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "TOKENIZERS_PARALLELISM": "true",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.speed.{program}", contender.name, str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self._answer()
        except ContenderError:
            self.stop()
            raise

    def ask(self, do: str, **arguments) -> dict[str, Any]:
        """What the contender's Worker gives.

        Raises:
            ContenderError: it can't, or is gone.
        """
        try:
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderError("the process is gone") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process is gone"}')
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def difference(results: Sequence, expected: Sequence) -> float:
    """The largest difference of two sets of numbers; infinite where shapes differ or one isn't finite.

    Of labels, the share that differs.
    """
    one, other = np.asarray(results), np.asarray(expected)
    if one.shape != other.shape:
        return math.inf
    if one.dtype.kind == "U":
        return float((one != other).mean())
    if not np.isfinite(one).all():
        return math.inf
    return float(np.abs(one - other).max())


def is_equal(largest: float, precision: str) -> bool:
    """Whether a contender that is so far off does the work it is measured at."""
    return largest <= TOLERANCES[precision]


def measure(
    processes: Sequence[Process],
    row: str,
    expected: Sequence,
    rounds: int,
    repeats: int | None = None,
) -> list[dict[str, Any]]:
    """Let all compute a row in turns; a dict for each contender and arrangement.

    In each round everyone takes a turn, in another order each time. Whoever fails has an `error`; whose
    results differ is timed, but is not `equal`.

    Args:
        repeats: of a turn; None: as many as take some tenths of a second.
    """
    entries, turns = [], []
    for process in processes:
        for arrangement in process.contender.arrangements(row):
            entry = process.contender._asdict() | {"contender": process.contender.name, "row": row}
            entry |= {"arrangement": arrangement, "seconds": []}
            entries.append(entry)
            try:
                answer = process.ask("prepare", row=row, arrangement=arrangement)
            except ContenderError as error:
                entry["error"] = str(error)
                continue
            entry["difference"] = difference(answer["results"], expected)
            entry["equal"] = is_equal(entry["difference"], process.contender.precision)
            enough = min(math.ceil(SECONDS_A_TURN / max(answer["seconds"], 1e-6)), MOST_REPEATS)
            turns.append((process, entry, repeats or enough))
    for number in range(rounds):
        take_turns(turns, row, number)
    return entries


def take_turns(turns: list[tuple[Process, dict[str, Any], int]], row: str, number: int) -> None:
    """One round: everyone once."""
    turns = [turn for turn in turns if "error" not in turn[1]]
    random.Random(number).shuffle(turns)
    for process, entry, repeats in turns:
        time.sleep(SECONDS_TO_SLEEP)
        try:
            answer = process.ask("time", row=row, arrangement=entry["arrangement"], repeats=repeats)
        except ContenderError as error:
            entry.update(error=str(error), seconds=[])
        else:
            entry["seconds"].append(answer["seconds"])
