"""The model that goes into a bundle: its weights' precision and its answers' options, fitted and measured."""

from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bert_app import features
from keras_bert_app.config import TrainConfig
from keras_bert_app.errors import UserError
from keras_bert_app.export.calibration import abstention, calibration, fit_temperature
from keras_bert_app.export.options import ExportOptions
from keras_bert_app.tasks.answers import AnswerOptions
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.training import finetuning
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.loop import predict_examples
from keras_bert_app.training.progress import say
from keras_bert_app.training.step import make_predict_step
from keras_bert_app.training.strategy import make_strategy


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
    """Logits float [N, C] and labels int [N] of a split."""

    logits: np.ndarray
    label_ids: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.logits.argmax(axis=-1) == self.label_ids))


def prepare(workdir: Path, options: ExportOptions) -> Prepared:
    """Load a run's best checkpoint as `options` wish, fit on its evaluation split, measure on its test split.

    Raises:
        UserError: the options don't fit the run, it has no splits though they need them, or the precision
            costs more accuracy on the evaluation split than `options.max_loss`.
    """
    config = folders.read_config(workdir)
    description, reference = folders.load_best_model(workdir, folders.inference_precision(config))
    options.check_labels(len(description.task.labels))
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
    model = with_precision(workdir, reference, options.precision)
    evaluation = _ask(description.task, packer, model, parts.evaluation)
    if model is not reference:
        unchanged = _ask(description.task, packer, reference, parts.evaluation).accuracy
        figures["precision"] = _checked_precision(options, evaluation, unchanged)
    if options.calibrate or options.abstain is not None:
        temperature = fit_temperature(*evaluation)
        answers = AnswerOptions(temperature, options.top_k, options.abstain)
        test = _ask(description.task, packer, model, parts.test) if parts.test else None
        figures |= _calibration_figures(answers, evaluation, test)
    for name, values in figures.items():
        say(f"{name}: {values}")
    return Prepared(description, packer, model, answers, figures)


class _StoredAsBfloat16(keras.DTypePolicy):
    """Weights in bfloat16, which layers cast to float32 where they use them."""

    compute_dtype = "float32"


def with_precision(workdir: Path, model: keras.Model, precision: str) -> keras.Model:
    """The model itself where `precision` is float32, else another one with the weights so stored.

    bfloat16: all weights but the head's. int8: those of the encoder's dense layers and embedding tables, with
    a scale for each column or row, which is divided out when they are used. What is computed stays float32,
    which every processor has and which gives the same answers on all of them.
    """
    if precision == "float32":
        return model
    policy = _StoredAsBfloat16("bfloat16") if precision == "bfloat16" else "float32"
    _, stored = folders.load_best_model(workdir, policy)
    if precision == "int8":
        # Without an activation quantizer the products stay float32.
        config = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
        stored.quantize(config=config, filters=_is_stored_as_int8)
    return stored


def _is_stored_as_int8(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Dense | keras.layers.Embedding) and layer.name != "logits"


def _ask(task, packer, model, records) -> _Split:
    examples = finetuning.make_examples(packer, task, records)
    strategy = make_strategy(TrainConfig())
    step = make_predict_step(strategy, model, task)
    logits = predict_examples(strategy, step, examples)[features.LOGITS]
    return _Split(np.asarray(logits, "float64"), examples.targets[features.LABEL])


def _checked_precision(options: ExportOptions, evaluation: _Split, unchanged: float) -> dict[str, Any]:
    loss = unchanged - evaluation.accuracy
    if loss > options.max_loss:
        raise UserError(
            f"--precision={options.precision} loses {loss:.4f} of accuracy on the run's evaluation split "
            f"({unchanged:.4f} to {evaluation.accuracy:.4f}), more than --max_loss={options.max_loss:g}; "
            "take another precision, or allow more"
        )
    return {
        "num_examples": len(evaluation.label_ids),
        "float32_accuracy": unchanged,
        "accuracy": evaluation.accuracy,
        "max_loss": options.max_loss,
    }


def _calibration_figures(answers: AnswerOptions, evaluation: _Split, test: _Split | None) -> dict[str, Any]:
    temperature = answers.temperature
    figures = {
        "calibration": {
            "temperature": temperature,
            "fitted_on": len(evaluation.label_ids),
            "test_before": calibration(*test) if test else None,
            "test_after": calibration(*test, temperature) if test else None,
        }
    }
    if answers.abstain is not None:
        measured = abstention(*test, temperature, answers.abstain) if test else None
        figures["abstention"] = {"below": answers.abstain, "test": measured}
    return figures
