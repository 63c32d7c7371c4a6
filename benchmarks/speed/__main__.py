"""This project and its peers side by side, on the same cores, at equal work.

    make bench
    python -m benchmarks.speed [--rows=mixed,single] [--contenders=ours,openvino] [--rounds=7]

Each contender is a process of its own; all are kept to the same cores and take turns, in another order each
round. Before they are timed, what they give is compared with transformers in float64. Results go to
results.json and results.png in --folder, tables to standard output; docs/speed.md says how to read them.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.speed import (
    grpc_row,
    inputs,
    preparation,
    report,
    startup_row,
    team,
    tokenization_row,
    training,
)
from benchmarks.speed.contenders import CONTENDERS, LOWER, TRAINERS, Contender

INFERENCE = (*inputs.LENGTHS, "mixed texts")
ALL_ROWS = (*INFERENCE, grpc_row.ROW, startup_row.ROW, tokenization_row.ROW, *TRAINERS)
FOLDER = flags.DEFINE_string("folder", "runs/speed", "what is measured, and the results")
WORKDIR = flags.DEFINE_string("workdir", None, "a run of configs/sentiment.py; None: one of an epoch is made")
EXPORT = flags.DEFINE_boolean("export", True, "make this project's bundles anew")
ROWS = flags.DEFINE_list("rows", list(ALL_ROWS), "what to measure")
NAMES = flags.DEFINE_list("contenders", [""], "beginnings of the names of those who take part")
ROUNDS = flags.DEFINE_integer("rounds", 7, "turns of each", 1)
ACCURACY = flags.DEFINE_boolean("accuracy", True, "measure the accuracy on reviews too")
CORES = flags.DEFINE_integer("cores", 2, "cores that all are kept to", 1)
LIBRARIES = ("tensorflow", "keras", "keras-hub", "torch", "transformers", "onnxruntime", "openvino", "nncf")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    processor = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # the first one
    flags_ = processor["flags"].split()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor["model name"],
        "cores": sorted(os.sched_getaffinity(0)),
        "features": [name for name in flags_ if name.startswith(("avx512", "amx", "avx_vnni"))],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


@contextlib.contextmanager
def running(contenders: Iterable[Contender], *arguments: Any) -> Iterator[list[team.Process]]:
    """Processes of all of them, ended at the end; who can't start is named and left out."""
    processes = []
    try:
        for contender in contenders:
            print(f"starting {contender.name}", file=sys.stderr, flush=True)
            try:
                processes.append(team.Process(contender, *arguments))
            except team.ContenderError as error:
                print(f"{contender.name} can't start: {error}", file=sys.stderr, flush=True)
        yield processes
    finally:
        for process in processes:
            process.stop()


def accuracy(process: team.Process, labels: list[int]) -> float:
    """The share of the reviews that a contender is right about."""
    return float(np.mean(np.argmax(process.ask("reviews")["results"], -1) == np.array(labels)))


def measure_inference(
    folder: Path, rows: list[str], expected: dict[str, Any], results: dict[str, Any]
) -> None:
    """All contenders at once, so that every precision is compared with every other."""
    with running(chosen(CONTENDERS.values()), folder) as processes:
        for row in rows:
            results["entries"] += team.measure(processes, row, expected[row], ROUNDS.value)
            results["load_average"].append(os.getloadavg()[0])
        if ACCURACY.value:
            labels = inputs.read(folder)["reviews"]["labels"]
            results["accuracy"] = {one.contender.name: accuracy(one, labels) for one in processes}


def measure_training(folder: Path, row: str, expected: list[float], results: dict[str, Any]) -> None:
    """Each precision for itself, as training takes memory."""
    for precision in LOWER:
        contenders = chosen(Contender.parse(beginning + precision) for beginning in TRAINERS[row])
        with running(contenders, folder, "training", [row]) as processes:
            results["entries"] += team.measure(
                processes, row, expected, min(ROUNDS.value, 5), training.STEPS[row]
            )
            results["load_average"].append(os.getloadavg()[0])


def chosen(contenders: Iterable[Contender]) -> list[Contender]:
    """Those that the flag names."""
    return [one for one in contenders if one.name.startswith(tuple(NAMES.value))]


def main(_) -> None:
    """Prepare, measure, report."""
    if unknown := set(ROWS.value) - set(ALL_ROWS):
        raise app.UsageError(f"--rows has {', '.join(unknown)}; there are {', '.join(ALL_ROWS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended
    folder = Path(FOLDER.value).absolute()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: CORES.value])
    taking_part = chosen(CONTENDERS.values())
    ours = [one.precision for one in taking_part if one.is_ours] if EXPORT.value else []
    workdir = Path(WORKDIR.value).absolute() if WORKDIR.value else None
    preparation.prepare(folder, workdir, ours, {one.library for one in taking_part})
    expected = json.loads((folder / "expected.json").read_text())
    rounds = ROUNDS.value
    results = {"machine": machine(), "load_average": [os.getloadavg()[0]], "accuracy": {}, "entries": []}
    if inference := [row for row in ROWS.value if row in INFERENCE]:
        measure_inference(folder, inference, expected, results)
    if grpc_row.ROW in ROWS.value:
        texts = inputs.read(folder)["mixed"]["texts"]
        contenders = [one for one in taking_part if one.library in grpc_row.LIBRARIES]
        results["entries"] += grpc_row.measure(contenders, folder, texts, expected["mixed texts"], rounds)
    if startup_row.ROW in ROWS.value:
        contenders = [one for one in taking_part if one.setting != "streams"]
        results["entries"] += startup_row.measure(contenders, folder, expected["single texts"], rounds)
    if tokenization_row.ROW in ROWS.value:
        results["entries"] += tokenization_row.measure(folder, rounds)
    for row in TRAINERS:
        if row in ROWS.value:
            measure_training(folder, row, expected[row], results)
    results["bars"] = report.judge(results["entries"])
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    report.plot(results["entries"], folder / "results.png")
    print(report.table(results["entries"], results["accuracy"]))
    print("\n" + report.bars_table(results["bars"]))
    print("\nload averages:", ", ".join(f"{load:.1f}" for load in results["load_average"]))


if __name__ == "__main__":
    app.run(main)
