"""From the start of a process to its first answer, text in, label out; and the memory of the mixed batch."""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import team
from benchmarks.speed.contenders import Contender

ROW, ROUNDS = "start-up", 3


def measure(
    contenders: Sequence[Contender], folder: Path, expected: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Start all in turns; `megabytes` of an entry are the most that its process held."""
    entries = {
        contender: contender._asdict()
        | {"contender": contender.name, "row": ROW, "arrangement": "padded", "seconds": [], "megabytes": []}
        for contender in contenders
    }
    for number in range(min(rounds, ROUNDS)):
        take_turns(entries, folder, expected, number)
    return list(entries.values())


def take_turns(
    entries: dict[Contender, dict[str, Any]], folder: Path, expected: Sequence[str], number: int
) -> None:
    """One round: everyone once."""
    order = list(entries)
    random.Random(number).shuffle(order)
    for contender in order:
        entry, started = entries[contender], time.perf_counter()
        process = team.Process(contender, folder)
        try:
            answer = process.ask("first", row="single")
            entry["seconds"].append(time.perf_counter() - started)
            entry["difference"] = team.difference(answer["results"], expected)
            entry["equal"] = team.is_equal(entry["difference"], contender.precision)
            process.ask("time", row="mixed", arrangement="padded", repeats=1)
            entry["megabytes"].append(process.ask("memory")["megabytes"])
        finally:
            process.stop()
