"""What every run is put together from: devices, the network, the folder, the loop."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_bert_app.config import Config, PhaseConfig, complete_encoder
from keras_bert_app.convert.pretrained import Pretrained, assign
from keras_bert_app.data import sources
from keras_bert_app.data.batches import Batches, Examples
from keras_bert_app.data.examples_store import ExampleStore
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_file
from keras_bert_app.model.flops import TRAINING_PASSES
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.initial import choose_tokenizer
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
            initialise(model, pretrained, config, task)
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
        save_keras_model(workdir, workdir / "model.keras")
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


def initialise(model: keras.Model, pretrained: Pretrained, config: Config, task: Any) -> None:
    """Set the model's weights; what `config.fresh` names stays fresh, and a classifier but with init_head.

    Raises:
        UserError: the tensors don't fit, or the head is of other labels.
    """
    if config.init_head and pretrained.network.labels != task.network.labels:
        raise UserError(
            f"config.init_head: {pretrained.where} has the labels {', '.join(pretrained.network.labels)}, "
            f"the training data {', '.join(task.network.labels)}; leave it unset"
        )
    fresh = dict.fromkeys((*config.fresh, *(() if config.init_head else task.fresh)))
    kept, over = assign(model, pretrained, tuple(fresh))
    say(f"weights from {pretrained.where}; freshly initialised: {', '.join(kept) or 'none'}")
    left_out = [f"{name} ({reason})" for name, reason in pretrained.left_out.items()]
    left_out += [f"{path} (the model has none)" for path in over]
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


def save_keras_model(workdir: Path, path: Path) -> None:
    """Write a .keras file, the best checkpoint's model in float32 (float64 where trained in it)."""
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
