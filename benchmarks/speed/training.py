"""A contender that trains, in a process of its own: its own loop, which waits for its turn between steps.

    python -m benchmarks.speed.training NAME FOLDER ROW

finetuning: on the reviews' training split in batches of 32, as each library groups and pads them; a turn is
    50 steps, over which both this project and transformers sort by length.
finetuning-128: on texts of 128 tokens.
pretraining: masked tokens and next sentences, 128 tokens, 20 of them hidden.

All start from the same weights, with AdamW, dropout 0.1 and clipping. Before the first step a loss without
dropout is compared.
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import inputs
from benchmarks.speed.contenders import Contender

BATCH, LENGTH, PREDICTIONS = 32, 128, 20
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 5e-5, 0.01, 1.0
WARM_STEPS = 3
# Steps of a turn.
STEPS = {"finetuning": 50, "finetuning-128": 2, "pretraining": 2}
MODULES = {"ours": "training_ours", "kerashub": "training_kerashub"}


class Pacer:
    """Lets a training loop take steps when asked; the loop calls `step_done` after each."""

    def __init__(self, requests: Iterator[str], answers: Any):
        self._requests, self._answers = requests, answers
        self._left, self._started, self._steps = 0, 0.0, 0
        self._result: dict[str, Any] = {}

    def begin(self, loss: float) -> None:
        """The loss without dropout is known; wait for the request for the first steps."""
        self.answer({})
        self._next()
        self._result = {"results": [loss]}

    def step_done(self) -> None:
        """A step is over; once all that were asked for are, answer and wait."""
        self._left -= 1
        if self._left == 0:
            seconds = (time.perf_counter() - self._started) / self._steps
            self.answer(self._result | {"seconds": seconds})
            self._result = {}
            self._next()

    def answer(self, result: dict[str, Any]) -> None:
        print(json.dumps(result), file=self._answers, flush=True)

    def _next(self) -> None:
        line = next(self._requests, None)
        if line is None:
            raise SystemExit
        self._steps = self._left = json.loads(line).get("repeats", WARM_STEPS)
        self._started = time.perf_counter()


def classification_batch(folder: Path, row: str) -> dict[str, np.ndarray]:
    """The batch whose loss is compared: token_ids, padding_mask [B, S], labels [B]."""
    rows = inputs.read(folder)["reviews" if row == "finetuning" else "fixed"]
    return inputs.pad(rows["ids"][:BATCH]) | {"labels": np.array(rows["labels"][:BATCH], np.int32)}


def make_pretraining_batch(pieces: int, ids: list[list[int]]) -> dict[str, np.ndarray]:
    """A batch of pairs of 64 tokens: token_ids, segment_ids [B, S], masked_positions, masked_ids [B, P].

    And labels [B]. Each of `ids` is cut in two by a [SEP]; as in BERT, 8 of 10 hidden tokens are [MASK].
    """
    generator = np.random.default_rng(0)
    token_ids = np.array(ids[:BATCH], np.int32)
    token_ids[:, LENGTH // 2 - 1] = token_ids[:, -1]
    segment_ids = np.broadcast_to(np.arange(LENGTH) >= LENGTH // 2, token_ids.shape).astype(np.int32)
    places = np.setdiff1d(np.arange(LENGTH), [0, LENGTH // 2 - 1, LENGTH - 1])
    positions = np.stack([np.sort(generator.choice(places, PREDICTIONS, replace=False)) for _ in token_ids])
    masked_ids = np.take_along_axis(token_ids, positions, 1)
    chance, mask = generator.random(positions.shape), 103
    hidden = np.where(
        chance < 0.8, mask, np.where(chance < 0.9, generator.integers(1000, pieces), masked_ids)
    )
    np.put_along_axis(token_ids, positions, hidden.astype(np.int32), 1)
    return {
        "token_ids": token_ids,
        "segment_ids": segment_ids,
        "padding_mask": np.ones_like(token_ids),
        "masked_positions": positions.astype(np.int32),
        "masked_ids": masked_ids,
        "labels": generator.integers(0, 2, BATCH).astype(np.int32),
    }


def pretraining_batch(folder: Path) -> dict[str, np.ndarray]:
    """What `make_pretraining_batch` gave, as the preparation wrote it."""
    with np.load(folder / "pretraining.npz") as arrays:
        return dict(arrays)


def main(name: str, folder: str, row: str) -> None:
    """Train until nobody asks for steps any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    pacer, contender = Pacer(sys.stdin, answers), Contender.parse(name)
    try:
        module = MODULES.get(contender.library, "training_torch")
        train = importlib.import_module(f"benchmarks.speed.{module}").train
        train(Path(folder), row, contender, pacer)
    except Exception:
        pacer.answer({"error": traceback.format_exc()})


if __name__ == "__main__":
    main(*sys.argv[1:])
