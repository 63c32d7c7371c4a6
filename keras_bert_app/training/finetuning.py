"""Fine-tuning, from config to a trained folder: records, splits, labels."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_bert_app.config import Config
from keras_bert_app.convert.pretrained import Pretrained
from keras_bert_app.data import sources, splits
from keras_bert_app.data.batches import Examples, pack_texts, record_texts
from keras_bert_app.data.readers import Record
from keras_bert_app.errors import UserError
from keras_bert_app.tasks import TASKS
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.training import assembly, initial
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.places import require_texts
from keras_bert_app.training.plan import State
from keras_bert_app.training.progress import say


@dataclass(frozen=True)
class Splits:
    """The three parts of a run's records; none shares a text with another."""

    train: Sequence[Record]
    evaluation: Sequence[Record]
    test: Sequence[Record]


def finetune(config: Config, workdir: Path) -> State:
    """Train what the config describes in `workdir`, or go on there; ends with the best model as model.keras.

    Raises:
        UserError: anything in config, data, weights or workdir that the user can mend.
    """
    if config.task.name == PretrainingTask.name:
        raise UserError(f"config.task.name is {config.task.name}; that is what `run.py pretrain` does")
    if config.task.name not in TASKS:
        known = ", ".join(name for name in TASKS if name != PretrainingTask.name)
        raise UserError(f"config.task.name is {config.task.name!r}; there is {known}")
    if any(phase.train for phase in config.phases):
        raise UserError("config.phases[].train is for pretraining; fine-tuning has config.data.train")
    strategy = assembly.start(config)
    parts = load_splits(config)
    pretrained = initial.load_pretrained(config.init)
    description = describe(config, parts.train, pretrained)
    assembly.open_run(workdir, config, strategy, description, records_sha256(parts.train), pretrained)
    packer, task = description.packer(), description.task
    train = make_examples(packer, task, parts.train, config.task.class_weights)
    evaluation = make_examples(packer, task, parts.evaluation)
    trains = [train] * len(assembly.phases_of(config))
    return assembly.fit(workdir, config, strategy, description, pretrained, trains, evaluation)


def load_splits(config: Config) -> Splits:
    """Read what the config names; hold evaluation and test out of train by hash where they aren't given.

    Raises:
        UserError: data can't be read, or a part has no examples.
    """
    data = config.data
    require_texts(data)
    columns = TASKS[config.task.name].columns(data)

    def read(path):
        records, skipped = sources.load(
            path, columns, data.skip_bad_rows, label_separator=data.label_separator
        )
        if skipped:
            say(f"{path}: skipped {skipped} malformed rows")
        return records

    train = read(data.train)
    test = read(data.test) if data.test else None
    evaluation = read(data.evaluation) if data.evaluation else None
    if test and evaluation:
        evaluation = splits.drop_shared_texts(evaluation, test)
    given = [part for part in (test, evaluation) if part]
    kept = splits.drop_shared_texts(train, *given)
    if len(kept) < len(train):
        left_out = len(train) - len(kept)
        say(f"{data.train}: left out {left_out} rows whose text is in the evaluation or test data too")
    train = kept
    if test is None:
        train, test = splits.hold_out(train, data.test_fraction, "test")
    if evaluation is None:
        train, evaluation = splits.hold_out(train, data.evaluation_fraction, "evaluation")
    if not train:
        raise UserError(f"{data.train} has no examples left to train on")
    if not evaluation:
        raise UserError(
            "there is nothing to evaluate on; give config.data.evaluation, or change "
            "config.data.evaluation_fraction"
        )
    return Splits(train, evaluation, test)


def describe(
    config: Config, records: Sequence[Record], pretrained: Pretrained | None
) -> folders.ModelDescription:
    """What the network will be: what the config wishes, the weights say and the training labels are.

    Raises:
        UserError: the wishes don't fit the weights, or each other.
    """
    return assembly.describe(config, TASKS[config.task.name].from_records(config, records), pretrained)


def records_sha256(records: Sequence[Record]) -> str:
    """SHA-256 of the records' values in their order: what a run was trained on."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(sorted(record.values.items())).encode())
    return digest.hexdigest()


def make_examples(
    packer: TextPacker, task, records: Sequence[Record], class_weights: str = "none"
) -> Examples:
    """Labelled records -> packed examples with the task's targets."""
    return pack_texts(packer, record_texts(records), task.targets(records, class_weights))
