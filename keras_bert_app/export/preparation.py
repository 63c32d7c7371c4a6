"""The model that goes into a bundle: its weights' precision and its answers' options, fitted and measured."""

from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bert_app import features
from keras_bert_app.config import TrainConfig
from keras_bert_app.data.batches import Examples, evaluation_order
from keras_bert_app.errors import UserError
from keras_bert_app.export.calibration import (
    abstention,
    calibration,
    fit_temperature,
    fit_thresholds,
    thresholding,
)
from keras_bert_app.export.options import ExportOptions
from keras_bert_app.model.int8 import compute_in_integers
from keras_bert_app.tasks.answers import AnswerOptions
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.training import finetuning
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.loop import predict_examples
from keras_bert_app.training.progress import say
from keras_bert_app.training.step import make_predict_step
from keras_bert_app.training.strategy import make_strategy

# Training texts whose activations give the ranges of integers, and how many are computed at once.
_TEXTS_SEEN, _BATCH = 512, 64


class Prepared(NamedTuple):
    """What goes into a bundle.

    figures: what was fitted and measured, ready for JSON.
    """

    description: folders.ModelDescription
    packer: TextPacker
    model: keras.Model
    answers: AnswerOptions
    figures: dict[str, Any]


class _Split(NamedTuple):
    """Logits float [N, C] and labels of a split, int [N], or [N, C] of 0 and 1."""

    logits: np.ndarray
    labels: np.ndarray


def prepare(workdir: Path, options: ExportOptions) -> Prepared:
    """Load a run's best checkpoint as `options` wish, fit on its evaluation split, measure on its test split.

    Raises:
        UserError: the options don't fit the run, it has no splits though they need them, or the precision
            costs more accuracy on the evaluation split than `options.max_loss`.
    """
    config = folders.read_config(workdir)
    description, reference = folders.load_best_model(workdir, folders.inference_precision(config))
    task = description.task
    options.check_labels(len(task.labels), task.several)
    packer = description.packer()
    answers, figures = AnswerOptions(top_k=options.top_k, abstain=options.abstain), {}
    if not options.measured:
        return Prepared(description, packer, reference, answers, figures)
    if config.data.train is None:
        raise UserError(
            f"{workdir} was imported and has no examples, which {', '.join(options.measured)} needs; "
            "fine-tune it, or export it without"
        )
    parts = finetuning.load_splits(config)
    seen = finetuning.make_examples(packer, task, parts.train[:_TEXTS_SEEN])
    model = with_precision(workdir, reference, options.precision, seen)
    evaluation = _ask(task, packer, model, parts.evaluation)
    if model is not reference:
        unchanged = _ask(task, packer, reference, parts.evaluation)
        figures["precision"] = _checked_precision(task, options, evaluation, unchanged)
    if options.calibrate or options.abstain is not None:
        test = _ask(task, packer, model, parts.test) if parts.test else None
        if task.several:
            answers = AnswerOptions(
                top_k=options.top_k,
                thresholds=fit_thresholds(task.probabilities(evaluation.logits), evaluation.labels),
            )
            figures |= _threshold_figures(task, answers, evaluation, test)
        else:
            answers = AnswerOptions(fit_temperature(*evaluation), options.top_k, options.abstain)
            figures |= _calibration_figures(answers, evaluation, test)
    for name, values in figures.items():
        say(f"{name}: {values}")
    return Prepared(description, packer, model, answers, figures)


class _StoredAsBfloat16(keras.DTypePolicy):
    """Weights in bfloat16, which layers cast to float32 where they use them."""

    compute_dtype = "float32"


def with_precision(workdir: Path, model: keras.Model, precision: str, examples: Examples) -> keras.Model:
    """The model itself where `precision` is float32, else another one that computes in it.

    bfloat16: all weights but the head's are stored in it; products too are in bfloat16 where this processor
    has them, else in float32. int8: the encoder's blocks multiply integers, weights with a scale for each
    column, activations with one for each product, the largest in `examples`; attention is as with bfloat16;
    the table of tokens is stored in integers, with a scale for each row; the rest is float32.

    Raises:
        UserError: int8, and this processor has no products of integers.
    """
    if precision == "float32":
        return model
    if precision == "int8" and not processor_has("avx512_vnni", "avx_vnni", "amx_int8"):
        raise UserError(
            "--precision=int8: this processor has no products of 8-bit integers (AVX512-VNNI, AVX-VNNI or "
            "AMX); export on one that has them, or take another precision"
        )
    has_bfloat16 = processor_has("avx512_bf16", "amx_bf16")
    if precision == "bfloat16":
        policy = "bfloat16" if has_bfloat16 else _StoredAsBfloat16("bfloat16")
        return folders.load_best_model(workdir, policy)[1]
    _, stored = folders.load_best_model(workdir, "float32")
    batches = (examples.batch(rows) for rows in evaluation_order(examples.lengths, _BATCH))
    compute_in_integers(stored.get_layer("encoder"), batches, "bfloat16" if has_bfloat16 else "float32")
    # Without an activation quantizer it is only stored in integers.
    config = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    stored.quantize(config=config, filters=lambda layer: layer.name == "token")
    return stored


def processor_has(*names: str) -> bool:
    """Whether this machine's processor has one of these instruction sets, as Linux calls them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    sets = next((line.split() for line in lines if line.startswith("flags")), [])
    return not set(names).isdisjoint(sets)


def _ask(task, packer, model, records) -> _Split:
    examples = finetuning.make_examples(packer, task, records)
    strategy = make_strategy(TrainConfig())
    step = make_predict_step(strategy, model, task)
    logits = predict_examples(strategy, step, examples, "export")[features.LOGITS]
    return _Split(np.asarray(logits, "float64"), examples.targets[features.LABEL])


def _checked_precision(
    task: Any, options: ExportOptions, evaluation: _Split, unchanged: _Split
) -> dict[str, Any]:
    name = task.selection_metrics[0]
    exact, found = (
        task.metrics({features.LOGITS: split.logits}, {features.LABEL: split.labels})[name]
        for split in (unchanged, evaluation)
    )
    if exact - found > options.max_loss:
        raise UserError(
            f"--precision={options.precision} loses {exact - found:.4f} of {name} on the run's evaluation "
            f"split ({exact:.4f} to {found:.4f}), more than --max_loss={options.max_loss:g}; "
            "take another precision, or allow more"
        )
    return {
        "num_examples": len(evaluation.labels),
        f"float32_{name}": exact,
        name: found,
        "max_loss": options.max_loss,
    }


def _calibration_figures(answers: AnswerOptions, evaluation: _Split, test: _Split | None) -> dict[str, Any]:
    temperature = answers.temperature
    figures = {
        "calibration": {
            "temperature": temperature,
            "fitted_on": len(evaluation.labels),
            "test_before": calibration(*test) if test else None,
            "test_after": calibration(*test, temperature) if test else None,
        }
    }
    if answers.abstain is not None:
        measured = abstention(*test, temperature, answers.abstain) if test else None
        figures["abstention"] = {"below": answers.abstain, "test": measured}
    return figures


def _threshold_figures(
    task: Any, answers: AnswerOptions, evaluation: _Split, test: _Split | None
) -> dict[str, Any]:
    def measured(*thresholds):
        if test is None:
            return None
        return thresholding(task.probabilities(test.logits), test.labels, task.labels, *thresholds)

    return {
        "thresholds": {
            "thresholds": dict(zip(task.labels, answers.thresholds, strict=True)),
            "fitted_on": len(evaluation.labels),
            "test_before": measured(),
            "test_after": measured(answers.thresholds),
        }
    }
