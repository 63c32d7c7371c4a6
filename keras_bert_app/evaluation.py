"""A run's best checkpoint on labelled texts: metrics and report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy
import tensorflow as tf

from keras_bert_app import features, report
from keras_bert_app.config import TrainConfig
from keras_bert_app.data import sources
from keras_bert_app.data.batches import Examples, evaluation_order
from keras_bert_app.data.examples_store import ExampleStore
from keras_bert_app.data.pretraining import HELD_OUT
from keras_bert_app.data.readers import Record
from keras_bert_app.tasks import TASKS
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.training import checkpoints, finetuning, pretraining
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.loop import predict_examples
from keras_bert_app.training.step import make_predict_step
from keras_bert_app.training.strategy import make_strategy

_EXAMPLES_AT_ONCE = 4096


class Predictor:
    """The best checkpoint of a run, ready to be evaluated.

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
    records, skipped = sources.load(
        path, predictor.task.columns(data), data.skip_bad_rows, label_separator=data.label_separator
    )
    name = path + (f", {skipped} malformed rows skipped" if skipped else "")
    return _evaluate_records(predictor, records, name, output or workdir / "evaluations" / Path(path).name)


def unigram_entropy(examples: ExampleStore, masker: TokenMasker) -> float:
    """Nats a token: the MLM loss of one who knows how frequent each maskable token is, and no more."""
    counts = np.zeros(len(masker.vocabulary), "int64")
    for rows in evaluation_order(examples.lengths, _EXAMPLES_AT_ONCE):
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
