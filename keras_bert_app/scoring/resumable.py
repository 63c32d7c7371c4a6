"""Answers to files, in order, through all interruptions: what is done is done once.

.<output>.partial/answers.jsonl   what is answered so far
.<output>.partial/state.json      which texts those are, of which model; written after them
.<output>.partial/lock            held by the process that is at work

Only whole parts are recorded, and a part's answers follow from its texts and the model alone, so that the
output has the same bytes whatever happened on the way.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import tensorflow as tf

from keras_bert_app.config import differences
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file, locked_folder
from keras_bert_app.scoring.models import Model
from keras_bert_app.scoring.parts import Part, read_parts, total_bytes
from keras_bert_app.training.progress import Progress, say
from keras_bert_app.training.workdir import read_json

_ANSWERS, _STATE = "answers.jsonl", "state.json"


@dataclasses.dataclass(frozen=True)
class _State:
    """What is done: who was asked what, and how long the answers are."""

    identity: Mapping[str, Any]
    parts: int = 0
    texts: int = 0
    texts_sha256: str = ""
    output_bytes: int = 0

    def after(self, part: Part, num_bytes: int) -> "_State":
        """The state after one more part, whose answers have so many bytes."""
        return _State(
            self.identity,
            self.parts + 1,
            self.texts + len(part.texts),
            part.sha256_after(self.texts_sha256),
            self.output_bytes + num_bytes,
        )


def predict_files(model: Model, files: Sequence[Path], output: Path) -> int:
    """Answer each text of the files with a line of JSON, in order; returns how many.

    Goes on where a call with the same model, columns, texts and output was interrupted. Holds one part (see
    parts.py) and its answers in memory. The output appears when it is complete, and replaces what was there.

    Raises:
        UserError: a row can't be read (what was answered before it is kept), another process is at work on
            the same output, or what is there was begun with another model, other columns or other texts.
    """
    partial = output.with_name(f".{output.name}.partial")
    with locked_folder(partial, f"writing {output}"):
        try:
            state = _begin(partial, model)
            count = _answer(model, files, partial, state)
            os.replace(partial / _ANSWERS, output)
            (partial / _STATE).unlink(missing_ok=True)
        finally:
            if not (partial / _STATE).exists():
                shutil.rmtree(partial)
    return count


def _begin(partial: Path, model: Model) -> _State:
    """The state that is there, or that of a new start."""
    identity = {
        "model_sha256": model.sha256,
        "columns": dict(model.columns),
        "tensorflow": tf.__version__,
    }
    if not (partial / _STATE).exists():
        return _State(identity)
    state = _State(**read_json(partial / _STATE, ""))
    changed = differences(state.identity, identity, "predict")
    if changed:
        raise _refusal(partial, f"with another model or columns ({'; '.join(changed)})")
    answers = partial / _ANSWERS
    if not answers.exists() or answers.stat().st_size < state.output_bytes:
        say(f"predict: {answers} has lost answers that were in it; starting anew")
        (partial / _STATE).unlink()
        return _State(identity)
    say(f"predict: going on after {state.texts:,} texts, whose answers are in {partial}")
    return state


def _skip(parts: Iterator[tuple[Part, int]], state: _State, partial: Path) -> int:
    """Read the parts that are done, and make sure of that; returns the bytes until there."""
    digest, read = "", 0
    for _ in range(state.parts):
        part, read = next(parts, (Part([], 0), 0))
        digest = part.sha256_after(digest)
    if digest != state.texts_sha256:
        raise _refusal(partial, f"with an --input whose first {state.texts:,} texts were others")
    return read


def _refusal(partial: Path, how: str) -> UserError:
    return UserError(f"{partial} was begun {how}; put that back to go on, or remove the folder to start anew")


def _answer(model: Model, files: Sequence[Path], partial: Path, state: _State) -> int:
    """Append the answers to the parts that are left, and record each; returns the number of all texts."""
    parts, total = _all_parts(files, model.columns), max(1, total_bytes(files))
    share = _skip(parts, state, partial) / total
    with (
        open(partial / _ANSWERS, "ab") as answers,
        Progress("predict", None, state.parts, done_share=share) as progress,
    ):
        answers.truncate(state.output_bytes)
        try:
            for part, read in parts:
                state = _answer_part(model, part, answers, partial, state)
                progress.advance(len(part.texts), {"texts": state.texts}, share=read / total)
        except UserError as error:
            kept = f"; the answers to the first {state.texts:,} texts are kept, the same command goes on"
            raise UserError(f"{error}{kept if state.texts else ''}") from None
    return state.texts


def _answer_part(model: Model, part: Part, answers: IO[bytes], partial: Path, state: _State) -> _State:
    lines = model.answerer.lines(part.texts)
    answers.write(lines)
    _sync(answers)
    state = state.after(part, len(lines))
    with atomic_file(partial / _STATE) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(state), file)
        _sync(file)
    return state


def _all_parts(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[tuple[Part, int]]:
    """The parts of all files, each with the bytes read until its end."""
    before = 0
    for file in files:
        for part in read_parts(file, columns):
            yield part, before + part.end
        before += file.stat().st_size


def _sync(file: IO) -> None:
    """What a recorded state says must be on the disk before it is."""
    file.flush()
    os.fsync(file.fileno())
