"""Someone's weights -> a run's folder that has trained for no steps, which every verb takes."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import save_file

from keras_bert_app import config as configuration
from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, TextConfig, complete_encoder
from keras_bert_app.convert import weight_files
from keras_bert_app.convert.pretrained import OPTIONAL, Pretrained, assign, layer_of
from keras_bert_app.convert.reference import Reference, largest_differences, random_batch
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_directory, require_free
from keras_bert_app.model.networks import Network
from keras_bert_app.tasks import BareNetwork, ClassificationTask, PretrainingTask
from keras_bert_app.tasks.classification import ONE_LABEL, SEVERAL_LABELS
from keras_bert_app.training import checkpoints, initial
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.plan import State
from keras_bert_app.training.progress import say


def import_weights(
    source: str,
    output: Path,
    fresh: Sequence[str] = (),
    pairs: bool = False,
    tokenizer: Mapping[str, Any] | None = None,
) -> str:
    """Write a run's folder `output`, and return what there is to say about it.

    Args:
        source: see `initial.load_pretrained`.
        fresh: heads, or the pooler, that the source lacks and that start fresh.
        pairs: a classifier is asked about pairs of texts.
        tokenizer: options for a source that doesn't state them; None: no tokenizer is wanted.

    Raises:
        UserError: the source can't be read, something is missing in it, or `output` is there already.
    """
    started = time.monotonic()
    require_free(output)
    found = initial.find(source)
    with Reference(found.format) as reference:
        pretrained = _load(found, tokenizer)
        encoder = complete_encoder(EncoderConfig(), pretrained.encoder)
        description = _describe(found, pretrained, encoder, pairs)
        _check_fresh(pretrained, fresh)
        with atomic_directory(output) as temporary:
            _write(temporary, source, pretrained, description, fresh)
            seconds = time.monotonic() - started
            proof = _prove(temporary, pretrained, encoder, reference, fresh)
    return "\n".join(
        [
            *_summary(pretrained, encoder, fresh),
            proof,
            f"weights: {output} ({seconds:.1f} s)",
        ]
    )


def _load(found: initial.Source, tokenizer: Mapping[str, Any] | None) -> Pretrained:
    try:
        return initial.load(found, tokenizer)
    except UserError as error:
        if tokenizer is None or tokenizer:
            raise
        initial.load(found, None)  # If this raises, it isn't the tokenizer.
        raise UserError(f"{error}; --notokenizer takes the weights without it") from error


def _describe(found, pretrained, encoder, pairs) -> folders.ModelDescription:
    """What the folder holds: of a run what the run does, else what such a network is for."""
    tokenizer = {"vocabulary": pretrained.vocabulary, "tokenizer_options": pretrained.tokenizer_options}
    if found.format == initial.RUN and not pairs:
        return dataclasses.replace(folders.ModelDescription.load(found.path), **tokenizer)
    return folders.ModelDescription(
        task_of(pretrained.network, pairs),
        encoder,
        max_length=max(5, encoder.max_positions),
        truncation=TextConfig().truncation,
        **tokenizer,
    )


def task_of(network: Network, pairs: bool = False):
    """What such a network is for: a task of TASKS, else none.

    Raises:
        UserError: pairs, of what isn't a classifier of texts.
    """
    problem_type = network.problem_type or ONE_LABEL
    gives_labels = problem_type == SEVERAL_LABELS or (problem_type == ONE_LABEL and len(network.labels) > 1)
    if network.kind == "sequence_classification" and gives_labels:
        texts = (features.TEXT, *([features.TEXT_PAIR] if pairs else []))
        return ClassificationTask(network.labels, texts, network.head_dropout, problem_type)
    if pairs:
        raise UserError(f"--pairs is for a classifier that gives labels to texts; this is {network.kind}")
    if network.kind in ("pretraining", "masked_lm"):
        objective = "nsp" if network.kind == "pretraining" else "none"
        head = {"masked_activation": network.masked_activation, "masked_epsilon": network.masked_epsilon}
        return PretrainingTask(objective, **head)
    return BareNetwork(network.kind, network.labels, network.problem_type, network.head_dropout)


def _check_fresh(pretrained: Pretrained, fresh: Sequence[str]) -> None:
    lacking: dict[str, list[str]] = {}
    for path, theirs in pretrained.missing.items():
        lacking.setdefault(layer_of(path), []).append(theirs)
    needless = [name for name in fresh if name not in lacking]
    if needless:
        known = ", ".join(sorted(OPTIONAL))
        raise UserError(
            f"--fresh has {', '.join(needless)}, which {pretrained.where} doesn't lack; it takes those of "
            f"{known} that are missing"
        )
    names = [name for name in lacking if name not in fresh]
    if names:
        parts = "; ".join(f"{name}: {', '.join(lacking[name])}" for name in names)
        every = ",".join((*fresh, *names))
        raise UserError(
            f"{pretrained.where}: missing for a {pretrained.network.kind} network ({parts}); "
            f"to begin with fresh ones: --fresh={every}"
        )


def _write(folder, source, pretrained, description, fresh) -> None:
    values, task = configuration.default(), description.task
    values.init = source
    values.fresh = tuple(fresh)
    values.text.max_length, values.text.truncation = description.max_length, description.truncation
    values.task.name = "pretraining" if isinstance(task, PretrainingTask) else "classification"
    if isinstance(task, PretrainingTask):
        values.prepare.objective = task.pair_objective
    if features.TEXT_PAIR in task.text_inputs:
        values.data.pair_column = features.TEXT_PAIR
    if isinstance(task, ClassificationTask) and task.several:
        values.data.label_separator = "|"
    config = configuration.freeze(values)
    folders.write_json(
        folder / "config.json",
        {"format_version": folders.FORMAT_VERSION, "config": configuration.to_dict(config)},
    )
    description.save(folder, None)
    entry = folders.provenance() | {"weights": dict(pretrained.provenance)}
    entry["weights"] |= {"left_out": dict(pretrained.left_out), "fresh": list(fresh)}
    folders.write_json(folder / "provenance.json", {"starts": [entry]})
    checkpoint = checkpoints.folder_of(folder, 0)
    checkpoint.mkdir(parents=True)
    state = dataclasses.asdict(State(best_step=0))
    (checkpoint / checkpoints.STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    arrays = pretrained.arrays()
    if fresh:
        keras.utils.set_random_seed(config.seed)
        weights = task.build_model(description.encoder, "float32").weights
        arrays |= {one.path: np.asarray(one.value) for one in weights if layer_of(one.path) in fresh}
    save_file(arrays, checkpoint / checkpoints.MODEL)


def _prove(folder, pretrained, encoder, reference, fresh) -> str:
    """Load what was written into the network, as every verb will, and compare it with the source library.

    The library's process goes first: when it ends its memory is free, before the network takes as much.
    """
    network, name = pretrained.network, reference.library
    batch = random_batch(network, encoder)
    if reference.is_there and not fresh:
        say(f"comparing with {name}")
    theirs = reference.outputs(pretrained, encoder, batch) if reference.is_there and not fresh else None
    model = network.build(encoder, "float32")
    written = checkpoints.folder_of(folder, 0) / checkpoints.MODEL
    assign(model, dataclasses.replace(pretrained, tensors=weight_files.safetensors(written)))
    if not reference.is_there:
        return f"not compared: {name} isn't installed" if name else "not compared: there is no library to ask"
    if fresh:
        return f"not compared with {name}: {', '.join(fresh)} started fresh"
    if isinstance(theirs, str):
        return f"not compared: {name} couldn't load it: {theirs}"
    ours = {key: np.asarray(value) for key, value in model(batch).items()}
    differences = largest_differences(ours, theirs, batch[features.PADDING_MASK])
    text = ", ".join(f"{key} {value:.1e}" for key, value in sorted(differences.items()))
    return f"largest difference to {name}'s {pretrained.provenance['class']} on random inputs: {text}"


def _summary(pretrained, encoder, fresh):
    network, provenance = pretrained.network, pretrained.provenance
    count = sum(int(np.prod(tensor.shape)) for tensor in pretrained.tensors.values())
    lines = [
        f"{provenance['format']}: {network.kind}, {encoder.num_layers} layers of {encoder.hidden_dim}, "
        f"{encoder.num_heads} heads, {encoder.activation}, epsilon {encoder.epsilon:g}",
        f"taken: {len(pretrained.tensors)} tensors, {count:,} weights",
    ]
    if network.labels:
        lines.append(f"labels: {', '.join(network.labels[:20])}{', …' if len(network.labels) > 20 else ''}")
    lines += [f"left out: {name} ({reason})" for name, reason in pretrained.left_out.items()]
    lines += [f"freshly initialised: {', '.join(fresh)}"] if fresh else []
    if pretrained.vocabulary:
        options = pretrained.tokenizer_options.get_config()
        settings = ", ".join(f"{key} {value}" for key, value in options.items() if value != [])
        lines.append(f"tokenizer: {len(pretrained.vocabulary):,} pieces, {settings}")
    else:
        lines.append("tokenizer: none, so that it reads token ids alone")
    return lines
