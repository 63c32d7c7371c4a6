"""One contender in a process of its own, which answers lines of JSON with lines of JSON.

    python -m benchmarks.speed.worker NAME FOLDER

It has its own threads and memory, and computes only when asked, so that contenders can take turns.
"""

import functools
import importlib
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from benchmarks.speed import inputs
from benchmarks.speed.contenders import Contender

NUM_THREADS = len(os.sched_getaffinity(0))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


class Tokenizing:
    """For peers whose models take ids: the published tokenizer in front, padding to the longest."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        names = json.loads((folder / "huggingface" / "config.json").read_text())["id2label"]
        self._labels = {int(number): label for number, label in names.items()}
        self._tokenizer = Tokenizer.from_file(str(folder / "huggingface" / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(128)

    def label(self, texts: list[str]) -> list[str]:
        """Texts -> labels."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        batch = inputs.pad([encoding.ids for encoding in encodings])
        return [self._labels[number] for number in self.predict(batch).argmax(-1)]


def load(name: str, folder: Path):
    """The contender's Model: predict(batch) -> probabilities, label(texts) -> labels."""
    library, setting, precision = Contender.parse(name)
    module = library if library == "ours" else f"{library}_peer"
    return importlib.import_module(f"benchmarks.speed.{module}").Model(folder, setting, precision)


class Worker:
    """What can be asked of a contender; each method's arguments are a line's other values."""

    def __init__(self, name: str, folder: Path):
        self._model = load(name, folder)
        self._streams = hasattr(self._model, "concurrently")
        self._inputs = inputs.read(folder)

    def _passes(self, row: str, arrangement: str):
        """The calls that a row takes, as functions without arguments, and the places of their results."""
        row, texts = self._inputs[row.removesuffix(" texts")], row.endswith(" texts")
        places = inputs.groups(list(map(len, row["ids"])), arrangement)
        if texts:
            batches = [[row["texts"][place] for place in group] for group in places]
            return [lambda batch=batch: self._model.label(batch) for batch in batches], places
        batches = [inputs.pad([row["ids"][place] for place in group]) for group in places]
        return [lambda batch=batch: self._model.predict(batch) for batch in batches], places

    def _results(self, calls):
        """Of all calls, one after the other where the model has no streams."""
        return self._model.concurrently(calls) if self._streams else [call() for call in calls]

    def prepare(self, row: str, arrangement: str):
        """Compute a row, twice so that all is warm; give its results in the row's order and seconds."""
        calls, places = self._passes(row, arrangement)
        self._results(calls)
        started = time.perf_counter()
        results = np.concatenate(self._results(calls))
        seconds = time.perf_counter() - started
        return {"results": results[np.argsort(np.concatenate(places))].tolist(), "seconds": seconds}

    def first(self, row: str):
        """Labels of a row's texts, computed once."""
        return {"results": self._model.label(self._inputs[row]["texts"])}

    def time(self, row: str, arrangement: str, repeats: int):
        """Seconds of computing a row: the mean of some times."""
        calls, _ = self._passes(row, arrangement)
        started = time.perf_counter()
        for _ in range(repeats):
            self._results(calls)
        return {"seconds": (time.perf_counter() - started) / repeats}

    def reviews(self):
        """Probabilities of the reviews, in batches of the mixed row's shape."""
        ids, rows = self._inputs["reviews"]["ids"], []
        longest, size = max(inputs.MIXED), len(inputs.MIXED)
        for start in range(0, len(ids), size):
            # A first text of full length keeps the shape, so that nothing is compiled again.
            batch = inputs.pad([[0] * longest, *ids[start : start + size]])
            rows.append(self._model.predict({name: values[1:] for name, values in batch.items()}))
        return {"results": np.concatenate(rows).tolist()}

    def memory(self):
        """Most megabytes that the process has held."""
        status = Path("/proc/self/status").read_text()
        return {"megabytes": int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1000}


def main(name: str, folder: str) -> None:
    """Load, say so, answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print

    def answer(ask):
        try:
            result = ask()
        except Exception:
            result = {"error": traceback.format_exc()}
        print(json.dumps(result), file=answers, flush=True)

    def start():
        nonlocal worker
        worker = Worker(name, Path(folder))
        return {}

    def do(do, **arguments):
        return getattr(worker, do)(**arguments)

    worker = None
    answer(start)
    for line in sys.stdin:
        request = json.loads(line)
        answer(functools.partial(do, **request))


if __name__ == "__main__":
    main(*sys.argv[1:])
