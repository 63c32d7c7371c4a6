"""A run's best checkpoint on texts: metrics and report for labelled ones, predictions for any."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import tensorflow as tf

from keras_bert_app import features, report
from keras_bert_app.config import TrainConfig
from keras_bert_app.data import sources
from keras_bert_app.data.batches import Examples, evaluation_order, pack_texts
from keras_bert_app.data.examples_store import ExampleStore
from keras_bert_app.data.pretraining import HELD_OUT
from keras_bert_app.data.readers import Record, read_texts
from keras_bert_app.files import atomic_file
from keras_bert_app.tasks import TASKS
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.training import checkpoints, finetuning, pretraining
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.loop import predict_examples
from keras_bert_app.training.progress import say
from keras_bert_app.training.step import make_predict_step
from keras_bert_app.training.strategy import make_strategy

_TEXTS_AT_ONCE = 4096


class Predictor:
    """The best checkpoint of a run, ready to answer.

    Raises:
        UserError: the folder is no run's, or has no evaluated checkpoint.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.config = folders.read_config(workdir)
        self.step = folders.best_step(workdir)
        self.description, self.model = folders.load_best_model(
            workdir, folders.inference_precision(self.config)
        )
        self.task = self.description.task
        if self.task.name not in TASKS or self.description.vocabulary is None:
            self.description.check_texts(workdir)
        self.packer = self.description.packer()
        self._strategy = make_strategy(TrainConfig())
        self.prepare = self.task.preparation(self.config, self.description.vocabulary)
        self._predict = make_predict_step(self._strategy, self.model, self.task, self.prepare)

    def outputs(self, examples: Examples, stage: str | None = None) -> dict[str, np.ndarray]:
        """Model outputs {name: float [N, ...]}; progress is shown where `stage` names one."""
        return predict_examples(self._strategy, self._predict, examples, stage)

    def answers(self, texts: Sequence[Mapping[str, bytes]]) -> list[dict[str, Any]]:
        """One row of named values a text, the same that the bundle's serving_default gives."""
        columns = [[row[name] for row in texts] for name in self.task.text_inputs]
        examples = pack_texts(self.packer, columns, self.task.no_targets(len(texts)))
        decoded = {name: value.numpy() for name, value in self.task.decode(self.outputs(examples)).items()}
        return [{name: _plain(values[row]) for name, values in decoded.items()} for row in range(len(texts))]


def evaluate_test(workdir: Path) -> str:
    """Metrics and report on the run's test set, written into `workdir`; returns a summary.

    A run without test examples gets no metrics; the summary says so. A pretraining run is evaluated on the
    examples that its own evaluation used: those of documents held out.
    """
    predictor = Predictor(workdir)
    if predictor.task.name == PretrainingTask.name and predictor.config.data.train:
        folder = pretraining.phase_folders(predictor.config)[-1]
        examples = pretraining.load_examples(folder, HELD_OUT)
        pretraining.check_examples(predictor.config, examples, predictor.description)
        more = {"unigram_entropy": unigram_entropy(examples, predictor.prepare)}
        return _evaluate(predictor, examples, f"held out of {folder}", workdir, more_metrics=more)
    if predictor.config.data.train is None:
        return f"no test metrics: {workdir} was imported; give a labelled file as --input"
    records = finetuning.load_splits(predictor.config).test
    name = predictor.config.data.test or f"held out of {predictor.config.data.train} by hash"
    if not records:
        return f"no test metrics: there are no examples {name}"
    return _evaluate_records(predictor, records, name, workdir)


def evaluate_file(workdir: Path, path: str, output: Path | None = None) -> str:
    """Metrics and report on a labelled file, written into `output`; returns a summary.

    Args:
        output: a folder; None: `evaluations/<name of the file>` in the workdir.
    """
    predictor = Predictor(workdir)
    predictor.description.check_texts(workdir)
    data = predictor.config.data
    records, skipped = sources.load(path, predictor.task.columns(data), data.skip_bad_rows)
    name = path + (f", {skipped} malformed rows skipped" if skipped else "")
    return _evaluate_records(predictor, records, name, output or workdir / "evaluations" / Path(path).name)


def predict_file(workdir: Path, path: Path, output: Path) -> int:
    """Answer each text of a .txt, .jsonl, .csv or .tsv file with a line of JSON; returns how many.

    Raises:
        UserError: the file can't be read, or has a malformed row.
    """
    predictor = Predictor(workdir)
    predictor.description.check_texts(workdir)
    rows = read_texts(path, predictor.task.columns(predictor.config.data, labelled=False))
    count, started = 0, time.monotonic()
    with atomic_file(output) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for part in _parts(rows, _TEXTS_AT_ONCE):
            for answer in predictor.answers(part):
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            count += len(part)
            say(f"predict: {count} texts, {count / (time.monotonic() - started):.0f} texts/s")
    return count


def unigram_entropy(examples: ExampleStore, masker: TokenMasker) -> float:
    """Nats a token: the MLM loss of one who knows how frequent each maskable token is, and no more."""
    counts = np.zeros(len(masker.vocabulary), "int64")
    for rows in evaluation_order(examples.lengths, _TEXTS_AT_ONCE):
        batch = examples.batch(rows)
        token_ids = tf.boolean_mask(batch[features.TOKEN_IDS], masker.maskable(batch))
        counts += np.bincount(token_ids, minlength=len(counts))
    return float(scipy.stats.entropy(counts)) if counts.any() else 0.0


def _evaluate_records(predictor: Predictor, records: Sequence[Record], data_name: str, output: Path) -> str:
    examples = finetuning.make_examples(predictor.packer, predictor.task, records)
    return _evaluate(predictor, examples, data_name, output, records)


def _evaluate(
    predictor: Predictor,
    examples: Examples | ExampleStore,
    data_name: str,
    output: Path,
    records: Sequence[Record] = (),
    more_metrics: Mapping[str, float] | None = None,
) -> str:
    task = predictor.task
    outputs = predictor.outputs(examples, "evaluate")
    metrics = task.metrics(outputs, examples.targets) | (more_metrics or {})
    facts = {
        "run": str(predictor.workdir),
        "checkpoint": f"step {predictor.step}",
        "data": data_name,
        "start": predictor.config.init or "random weights",
    }
    newest = checkpoints.steps(predictor.workdir)[-1]
    history = checkpoints.read_state(predictor.workdir, newest)["history"]
    mistakes = task.worst_mistakes(records, outputs, examples.targets) if records else []
    report.write_report(output, f"Evaluation of {predictor.workdir.name}", metrics, mistakes, facts, history)
    return f"{report.format_metrics(metrics)}\n\nreport: {output / report.REPORT_FILE}"


def _parts(rows: Iterator, size: int) -> Iterator[list]:
    while part := list(itertools.islice(rows, size)):
        yield part


def _plain(value: Any) -> Any:
    """A NumPy value as JSON has it; bytes are UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else np.asarray(value).tolist()
