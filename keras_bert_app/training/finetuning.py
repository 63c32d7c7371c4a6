"""One run from config to a trained folder: records, splits, weights to start from, the loop."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from keras_bert_app.config import Config, complete_encoder
from keras_bert_app.convert import huggingface
from keras_bert_app.convert.pretrained import Pretrained, assign
from keras_bert_app.data import sources, splits
from keras_bert_app.data.batches import Batches, Examples, pack_texts, record_texts
from keras_bert_app.data.readers import Record
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file
from keras_bert_app.tasks import TASKS
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training import checkpoints
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.loop import State, Trainer
from keras_bert_app.training.optimization import make_optimizer
from keras_bert_app.training.progress import say
from keras_bert_app.training.strategy import make_strategy


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
    strategy = make_strategy(config.train)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    parts = load_splits(config)
    pretrained = load_pretrained(config.init) if config.init else None
    description = describe(config, parts.train, pretrained)
    folders.open_for_training(workdir, config)
    description.save(workdir, records_sha256(parts.train))
    write_provenance(workdir, config, pretrained)

    packer, task = description.packer(), description.task
    train = make_examples(packer, task, parts.train, config.task.class_weights)
    evaluation = make_examples(packer, task, parts.evaluation)
    batches = Batches(train, config.train.batch_size, config.seed, config.train.group_by_length)
    with strategy.scope():
        model = task.build_model(description.encoder, config.train.precision)
        if pretrained:
            initialise(model, pretrained)
        optimizer = make_optimizer(config.train, batches.steps_per_epoch * config.train.epochs, model)
    say(
        f"{len(train)} training, {len(evaluation)} evaluation, {len(parts.test)} test examples; "
        f"{model.count_params():,} weights; {strategy.num_replicas_in_sync} replica(s), "
        f"{config.train.precision}"
    )
    trainer = Trainer(strategy, model, task, optimizer, config.train, config.seed, workdir)
    state = trainer.fit(batches, evaluation)
    save_keras_model(workdir)
    return state


def load_splits(config: Config) -> Splits:
    """Read what the config names; hold evaluation and test out of train by hash where they aren't given.

    Raises:
        UserError: data can't be read, or a part has no examples.
    """
    data = config.data
    if not data.train:
        raise UserError(
            "config.data.train is not set; give a .csv, .tsv or .jsonl file, a folder per class, or a "
            "packaged name such as reviews"
        )
    columns = TASKS[config.task.name].columns(data)

    def read(path):
        records, skipped = sources.load(path, columns, data.skip_bad_rows)
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


def load_pretrained(init: str) -> Pretrained:
    """Weights to start from: a packaged name, a run's folder, a Hugging Face folder or .safetensors file.

    Raises:
        UserError: there is no such thing, or it can't be read.
    """
    package = sources.PACKAGES.get(init)
    if package and not package.table:
        pretrained = huggingface.load(sources.fetch(init))
        origin = {"name": init, "package": package.requirement, "license": package.license}
        return Pretrained(**vars(pretrained) | {"provenance": pretrained.provenance | origin})
    path = Path(init)
    if not path.exists():
        names = ", ".join(name for name, package in sources.PACKAGES.items() if not package.table)
        raise UserError(f"config.init is {init!r}: no such file or folder, nor a packaged name ({names})")
    return _load_run(path) if (path / "model.json").exists() else huggingface.load(path)


def _load_run(workdir: Path) -> Pretrained:
    folders.read_config(workdir)
    description, step = folders.ModelDescription.load(workdir), folders.best_step(workdir)
    tensors = checkpoints.read_tensors(checkpoints.folder_of(workdir, step) / checkpoints.MODEL)
    return Pretrained(
        encoder=vars(description.encoder),
        vocabulary=description.vocabulary,
        lower_case=description.lower_case,
        tensors={
            path.removeprefix("encoder/"): tensor
            for path, tensor in tensors.items()
            if path.startswith("encoder/")
        },
        left_out={path: "a head" for path in tensors if not path.startswith("encoder/")},
        provenance={"format": "run", "path": str(workdir), "step": step},
    )


def describe(
    config: Config, records: Sequence[Record], pretrained: Pretrained | None
) -> folders.ModelDescription:
    """What the network will be: what the config wishes, the weights say and the training labels are.

    Raises:
        UserError: the wishes don't fit the weights, or each other.
    """
    vocabulary = Vocabulary.load(config.text.vocabulary) if config.text.vocabulary else None
    if pretrained:
        if vocabulary and vocabulary.sha256 != pretrained.vocabulary.sha256:
            raise UserError(
                "config.text.vocabulary isn't the one that config.init was trained with; leave it unset"
            )
        if config.text.lower_case not in (None, pretrained.lower_case):
            raise UserError(
                f"config.text.lower_case is {config.text.lower_case}, but config.init was trained with "
                f"{pretrained.lower_case}; leave it unset"
            )
        vocabulary = pretrained.vocabulary
    if vocabulary is None:
        raise UserError(
            "neither config.init nor config.text.vocabulary is set; one of them has to bring a vocabulary"
        )
    lower_case = pretrained.lower_case if pretrained else config.text.lower_case in (None, True)
    given = dict(pretrained.encoder) if pretrained else {"vocabulary_size": len(vocabulary)}
    encoder = complete_encoder(config.encoder, given)
    if encoder.vocabulary_size < len(vocabulary):
        raise UserError(
            f"config.encoder.vocabulary_size is {encoder.vocabulary_size}, but {vocabulary.where} has "
            f"{len(vocabulary)} pieces"
        )
    if config.text.max_length > encoder.max_positions:
        raise UserError(
            f"config.text.max_length is {config.text.max_length}, but the encoder has "
            f"{encoder.max_positions} positions"
        )
    task = TASKS[config.task.name].from_records(config, records)
    if config.train.metric not in task.selection_metrics:
        known = ", ".join(task.selection_metrics)
        raise UserError(f"config.train.metric is {config.train.metric!r}; {task.name} has {known}")
    return folders.ModelDescription(task, encoder, vocabulary, lower_case, config.text.max_length)


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


def initialise(model: keras.Model, pretrained: Pretrained) -> None:
    """Set the model's encoder; the head stays fresh, and so does a pooler that the source doesn't have.

    Raises:
        UserError: the tensors don't fit.
    """
    where = pretrained.provenance["path"]
    assign(model.get_layer("encoder"), pretrained.tensors, where, optional=("pooler/",))
    taken = {f"encoder/{path}" for path in pretrained.tensors}
    fresh = [weight.path for weight in model.weights if weight.path not in taken]
    unused = sorted(taken - {weight.path for weight in model.weights})
    left_out = [f"{name} ({reason})" for name, reason in pretrained.left_out.items()]
    left_out += [f"{path} (the model has no pooler)" for path in unused]
    say(f"encoder weights from {where}; freshly initialised: {', '.join(fresh)}")
    if left_out:
        say(f"left out: {', '.join(left_out)}")


def write_provenance(workdir: Path, config: Config, pretrained: Pretrained | None) -> None:
    """Record versions, git state and where weights and data came from; each start adds its own entry."""
    path = workdir / "provenance.json"
    starts = folders.read_json(path, "")["starts"] if path.exists() else []
    data = {}
    for name in ("train", "evaluation", "test"):
        source = getattr(config.data, name)
        package = sources.PACKAGES.get(source)
        data[name] = {"package": package.requirement, "license": package.license} if package else source
    entry = folders.provenance() | {
        "seed": config.seed,
        "weights": dict(pretrained.provenance) if pretrained else None,
        "data": data,
    }
    folders.write_json(path, {"starts": [*starts, entry]})


def save_keras_model(workdir: Path) -> None:
    """Write model.keras, the best checkpoint's model in float32 (float64 where trained in it)."""
    path = workdir / "model.keras"
    precision = folders.inference_precision(folders.read_config(workdir))
    _, model = folders.load_best_model(workdir, precision)
    with atomic_file(path) as temporary:
        # Keras goes by the suffix.
        whole = temporary.with_suffix(".keras")
        try:
            model.save(whole)
            os.replace(whole, temporary)
        finally:
            whole.unlink(missing_ok=True)
