"""What files in configs/ return, and the frozen, validated object that every room reads.

A config file's `get_config()` starts from `default()`, a ConfigDict with every key there is, and sets some.
Flags (`--config.train.batch_size=16`) are applied to it; `freeze()` then makes and checks the `Config`.
The dataclasses below are the only list of keys, types and defaults.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_bert_app.errors import UserError


def _key(
    default: Any,
    help: str,
    one_of: Sequence[str] = (),
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    may_change: bool = False,
):
    """A key with its default, its meaning, what values are possible, whether a begun run may change it."""
    possible = {"one_of": one_of, "least": least, "below": below, "most": most}
    return field(default=default, metadata={"help": help, "may_change": may_change} | possible)


@dataclass(frozen=True)
class TextConfig:
    """How text becomes ids."""

    vocabulary: str | None = _key(None, "path of a vocab.txt; None: the one that comes with `init`")
    lower_case: bool | None = _key(None, "lower-case and strip accents; None: as `init` says")
    max_length: int = _key(128, "longest sequence, special tokens included, in tokens", least=5)


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's shape. None: what `init` says, else BERT's default (Devlin et al. 2019)."""

    vocabulary_size: int | None = _key(None, "entries of the vocabulary", least=1)
    num_layers: int | None = _key(None, "Transformer blocks", least=1)
    num_heads: int | None = _key(None, "attention heads; divides hidden_dim", least=1)
    hidden_dim: int | None = _key(None, "width of the residual stream", least=1)
    intermediate_dim: int | None = _key(None, "width of the feed-forward layer", least=1)
    max_positions: int | None = _key(None, "learned positions", least=1)
    num_segments: int | None = _key(None, "segment (token type) embeddings", least=1)
    activation: str | None = _key(None, "of the feed-forward layer", one_of=("gelu", "gelu_new", "relu"))
    epsilon: float | None = _key(None, "of layer normalisation", least=0)
    dropout: float | None = _key(None, "rate after embeddings, attention and feed-forward", least=0, below=1)
    attention_dropout: float | None = _key(None, "rate on attention probabilities", least=0, below=1)
    initializer_range: float | None = _key(None, "standard deviation of fresh weights", least=0)
    position_type: str | None = _key(None, "of position embeddings", one_of=("learned", "sinusoidal"))
    pooling: str | None = _key(
        None,
        "pooled output: first token through a dense tanh layer, masked mean, or max",
        one_of=("first", "mean", "max"),
    )


ENCODER_DEFAULTS = EncoderConfig(
    num_layers=12,
    num_heads=12,
    hidden_dim=768,
    intermediate_dim=3072,
    max_positions=512,
    num_segments=2,
    activation="gelu",
    epsilon=1e-12,
    dropout=0.1,
    attention_dropout=0.1,
    initializer_range=0.02,
    position_type="learned",
    pooling="first",
)


@dataclass(frozen=True)
class TaskConfig:
    """What the job is."""

    name: str = _key("classification", "a key of keras_bert_app.tasks.TASKS")
    class_weights: str = _key(
        "none", "balanced: weight each class by the inverse of its share", one_of=("none", "balanced")
    )


@dataclass(frozen=True)
class DataConfig:
    """Where text and labels come from: paths (.csv, .tsv, .jsonl, a folder per class) or packaged names."""

    train: str | None = _key(None, "trained on; for pretraining the folder that `run.py prepare` wrote")
    evaluation: str | None = _key(None, "chooses the checkpoint; None: held out of train by hash")
    test: str | None = _key(None, "reported, never chosen on; None: held out of train by hash")
    evaluation_fraction: float = _key(
        0.1, "of what is left of train, when evaluation isn't given", least=0, below=1
    )
    test_fraction: float = _key(0.1, "of train, when test isn't given", least=0, below=1)
    text_column: str = _key("text", "column of the text")
    pair_column: str | None = _key(None, "column of the second text, for pairs")
    label_column: str = _key("label", "column of the label")
    group_column: str | None = _key(None, "column whose equal values stay in one split")
    skip_bad_rows: bool = _key(False, "skip and count malformed rows instead of refusing the file")


@dataclass(frozen=True)
class PrepareConfig:
    """How documents become examples for pretraining (`run.py prepare`)."""

    objective: str = _key(
        "nsp",
        "what is asked of two texts: whether the second follows the first, their order, or nothing",
        one_of=("nsp", "sop", "none"),
    )
    short_fraction: float = _key(
        0.1, "of examples made shorter than max_length on purpose; not with pack", least=0, most=1
    )
    pack: bool = _key(False, "for objective none: rows filled with one document after another")
    held_out: float = _key(
        0.01, "share of documents set apart, on which pretraining is evaluated", least=0, most=0.5
    )
    separation: str = _key(
        "blank_lines", "what sets documents of plain text apart", one_of=("blank_lines", "files")
    )
    sentences: str = _key("split", "split at full stops, or one a line", one_of=("split", "lines"))
    text_key: str = _key("text", "key of the text in .jsonl")
    near_duplicates: float = _key(
        0.8,
        "documents whose token 5-grams agree by so much with an earlier one's are dropped; 1 keeps them",
        least=0.5,
        most=1,
    )
    max_document_bytes: int = _key(
        16 * 2**20, "longer documents are skipped and counted", least=1, most=2**31
    )
    memory_bytes: int = _key(2**30, "held at most while duplicates are sought", least=2**20, most=2**50)


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens pretraining hides; see text/masking.py."""

    unit: str = _key("token", "what is hidden whole", one_of=("token", "word", "ngram"))
    rate: float = _key(0.15, "share of the tokens that can be hidden", least=0, below=1)
    max_ngram: int = _key(3, "words of the longest n-gram", least=1)
    max_predictions: int | None = _key(None, "hidden tokens a row at most; None: no limit", least=1)


@dataclass(frozen=True)
class TrainConfig:
    """How weights move."""

    strategy: str = _key(
        "none",
        "one device, a replica per device of this machine, or of all machines in TF_CONFIG",
        one_of=("none", "mirrored", "multi_worker"),
        may_change=True,
    )
    num_devices: int | None = _key(
        None,
        "for mirrored: how many GPUs, or logical CPU devices where there is no GPU; None: all GPUs",
        least=1,
        may_change=True,
    )
    precision: str = _key(
        "float32",
        "dtype policy of the layers",
        one_of=("float32", "mixed_bfloat16", "mixed_float16", "float64"),
    )
    batch_size: int = _key(32, "examples an update, over all replicas", least=1)
    accumulation: int = _key(
        1,
        "parts in which each replica computes its share of an update, to save memory",
        least=1,
        may_change=True,
    )
    jit: bool = _key(
        False, "compile forward and backward pass by XLA, anew for each shape of a batch", may_change=True
    )
    epochs: int = _key(3, "passes over the training set", least=1)
    budget_minutes: float | None = _key(
        None, "train for so long by the clock instead, evaluations included; the schedule follows", least=1e-3
    )
    optimizer: str = _key(
        "adamw", "of Loshchilov and Hutter 2019, or You et al. 2020", one_of=("adamw", "lamb")
    )
    schedule: str = _key(
        "linear", "of the learning rate after the warm-up", one_of=("linear", "cosine", "constant")
    )
    learning_rate: float = _key(5e-5, "peak", least=0)
    warmup_fraction: float = _key(0.1, "of the run, before the decay to zero", least=0, below=1)
    weight_decay: float = _key(0.01, "decoupled; biases and layer normalisation excluded", least=0)
    clip_norm: float = _key(1.0, "global norm that the summed gradient is clipped to", least=1e-6)
    group_by_length: bool = _key(True, "batches of similar lengths, in random order")
    metric: str | None = _key(
        None, "evaluation metric that chooses the checkpoint, higher is better; None: the task's first"
    )
    patience: int | None = _key(None, "stop after so many evaluations without a better metric", least=1)
    evaluate_every: int | None = _key(None, "updates between evaluations; None: every epoch", least=1)
    checkpoint_every: int | None = _key(
        None, "updates between checkpoints beside those of evaluations", least=1, may_change=True
    )
    keep_checkpoints: int = _key(2, "newest checkpoints kept, beside the best", least=1, may_change=True)
    deterministic: bool = _key(False, "TensorFlow's op determinism: slower, the same bits on every run")
    peak_flops: float | None = _key(
        None,
        "of all devices together in this precision, a second; shows the model FLOP utilisation",
        least=1,
        may_change=True,
    )


@dataclass(frozen=True)
class PhaseConfig:
    """One of the stretches that a run is made of, such as short sequences first, or small batches."""

    share: float = _key(1.0, "of the run: of its epochs, or of its time; all together are 1", least=0, most=1)
    train: str | None = _key(None, "trained on meanwhile; None: data.train")
    batch_size: int | None = _key(None, "examples an update; None: train.batch_size", least=1)


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    seed: int = _key(0, "of fresh weights, order and dropout", least=0)
    init: str | None = _key(
        None,
        "weights to start from: a packaged name (minilm-l6), folder, .safetensors file, workdir; None: fresh",
    )
    text: TextConfig = TextConfig()
    encoder: EncoderConfig = EncoderConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    masking: MaskingConfig = MaskingConfig()
    train: TrainConfig = TrainConfig()
    phases: tuple[PhaseConfig, ...] = _key(
        (), "for pretraining, in the config file: ({'share': 0.9, 'train': 'examples-128'}, {...}); (): one"
    )


def default():
    """Every key with its default, as a ConfigDict (ml_collections) for a config file to change and return."""
    from ml_collections import config_dict

    def convert(section):
        result = config_dict.ConfigDict()
        for key in dataclasses.fields(section):
            value = getattr(section, key.name)
            if value is None:
                value = config_dict.placeholder(_value_type(type(section), key.name))
            result[key.name] = convert(value) if dataclasses.is_dataclass(value) else value
        return result

    return convert(Config())


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse `--config.KEY` flags whose KEY doesn't exist.

    Raises:
        UserError: names the key and the nearest right one.
    """
    for argument in arguments:
        if argument == "--":
            break
        flag = argument.split("=", 1)[0].lstrip("-")
        if not (argument.startswith("-") and flag.startswith("config.")):
            continue
        section: Any = Config
        for name in flag.removeprefix("config.").split("."):
            keys = (
                {key.name for key in dataclasses.fields(section)} if dataclasses.is_dataclass(section) else ()
            )
            if name not in keys:
                raise UserError(f"unknown flag --{flag}{_nearest(flag.removeprefix('config.'))}")
            section = typing.get_type_hints(section)[name]
        if dataclasses.is_dataclass(section):
            first = dataclasses.fields(section)[0].name
            raise UserError(
                f"--{flag} is a section, not a key; set one of its keys, such as --{flag}.{first}"
            )


def freeze(values: Mapping[str, Any]) -> Config:
    """A mapping of sections to keys to values (a ConfigDict or parsed JSON) -> the frozen, validated Config.

    Raises:
        UserError: unknown key, wrong type or impossible value; the message names the key.
    """
    config = _freeze(Config, values.to_dict() if hasattr(values, "to_dict") else values, "config")
    _check_heads(config.encoder)
    total = sum(phase.share for phase in config.phases)
    if config.phases and not math.isclose(total, 1.0, abs_tol=1e-6):
        raise UserError(f"the shares of config.phases add up to {total:g}; they have to make 1")
    return config


def check(section: Any, path: str) -> None:
    """Refuse a section made by hand as `freeze` would.

    Raises:
        UserError: wrong type or impossible value; the message names the key below `path`.
    """
    hints = typing.get_type_hints(type(section))
    for key in dataclasses.fields(section):
        if key.metadata:
            _checked(f"{path}.{key.name}", getattr(section, key.name), hints[key.name], key.metadata)


def documented_keys(section: type = Config, path: str = "") -> list[tuple[str, Any, str]]:
    """(key with its sections, default, meaning) of every key there is."""
    hints, keys = typing.get_type_hints(section), []
    for key in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[key.name]):
            keys += documented_keys(hints[key.name], f"{path}{key.name}.")
        else:
            choices = f" ({', '.join(key.metadata['one_of'])})" if key.metadata["one_of"] else ""
            keys.append((path + key.name, key.default, key.metadata["help"] + choices))
    return keys


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, ready for JSON."""
    return dataclasses.asdict(config)


def fixed_keys(config: Mapping[str, Any], section: type = Config) -> dict[str, Any]:
    """A config as plain dicts without the keys that a run which goes on may change: devices and upkeep."""
    hints = typing.get_type_hints(section)
    fixed = {}
    for key in dataclasses.fields(section):
        if key.name in config and not key.metadata.get("may_change"):
            nested = dataclasses.is_dataclass(hints[key.name])
            fixed[key.name] = fixed_keys(config[key.name], hints[key.name]) if nested else config[key.name]
    return fixed


def differences(first: Mapping[str, Any], second: Mapping[str, Any], path: str = "config") -> list[str]:
    """Lines `config.a.b: 1 -> 2` for the keys in which two plain dicts differ."""
    lines = []
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name), second.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differences(one, other, f"{path}.{name}")
        elif one != other:
            lines.append(f"{path}.{name}: {one!r} -> {other!r}")
    return lines


def complete_encoder(wanted: EncoderConfig, given: Mapping[str, Any]) -> EncoderConfig:
    """What the config asks for, else what the weights say (`given`), else BERT's defaults; checked.

    Raises:
        UserError: no vocabulary size is known, or the heads don't divide the hidden size.
    """
    values = {
        key.name: next(
            (
                value
                for value in (
                    getattr(wanted, key.name),
                    given.get(key.name),
                    getattr(ENCODER_DEFAULTS, key.name),
                )
                if value is not None
            ),
            None,
        )
        for key in dataclasses.fields(EncoderConfig)
    }
    encoder = _freeze(EncoderConfig, values, "config.encoder")
    if encoder.vocabulary_size is None:
        raise UserError("config.encoder.vocabulary_size is not set; set it, or give config.text.vocabulary")
    _check_heads(encoder)
    return encoder


def _check_heads(encoder: EncoderConfig) -> None:
    if encoder.num_heads and encoder.hidden_dim and encoder.hidden_dim % encoder.num_heads:
        near = [heads for heads in range(1, encoder.hidden_dim + 1) if encoder.hidden_dim % heads == 0]
        nearest = min(near, key=lambda heads: abs(heads - encoder.num_heads))
        raise UserError(
            f"config.encoder.num_heads is {encoder.num_heads}, which doesn't divide "
            f"config.encoder.hidden_dim {encoder.hidden_dim}; the nearest that does is {nearest}"
        )


def _freeze(section: type, values: Mapping[str, Any], path: str):
    known = {key.name for key in dataclasses.fields(section)}
    for name in values:
        if name not in known:
            raise UserError(f"unknown key {path}.{name}{_nearest(f'{path}.{name}'.removeprefix('config.'))}")
    hints = typing.get_type_hints(section)
    result = {}
    for key in dataclasses.fields(section):
        if key.name not in values:
            continue
        where, value = f"{path}.{key.name}", values[key.name]
        if dataclasses.is_dataclass(hints[key.name]):
            result[key.name] = _frozen_section(hints[key.name], value, where)
        elif typing.get_origin(hints[key.name]) is tuple:
            if not isinstance(value, list | tuple):
                raise UserError(f"{where} is {value!r}; it takes a tuple of sections")
            part_type = typing.get_args(hints[key.name])[0]
            result[key.name] = tuple(
                _frozen_section(part_type, part, f"{where}[{place}]") for place, part in enumerate(value)
            )
        else:
            result[key.name] = _checked(where, value, hints[key.name], key.metadata)
    return section(**result)


def _frozen_section(section: type, value: Any, where: str):
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {value!r}; it takes a section of keys")
    return _freeze(section, value, where)


def _checked(where: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    # A flag of a string can say None only as text.
    if value in (None, "None") and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} is {value!r}; it takes {_KINDS[kind]} ({metadata['help']})")
    if metadata["one_of"] and value not in metadata["one_of"]:
        near = difflib.get_close_matches(str(value), metadata["one_of"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where} is {value!r}; it takes one of {', '.join(metadata['one_of'])}{hint}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{where} is {value}; it takes a finite number ({metadata['help']})")
    least, below, most = metadata["least"], metadata["below"], metadata["most"]
    if least is not None and not value >= least:
        raise UserError(f"{where} is {value}; it takes at least {least}")
    if below is not None and not value < below:
        raise UserError(f"{where} is {value}; it takes less than {below}")
    if most is not None and not value <= most:
        raise UserError(f"{where} is {value}; it takes at most {most}")
    return value


_KINDS = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def _value_type(section: type, name: str) -> type:
    hint = typing.get_type_hints(section)[name]
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def _nearest(key: str) -> str:
    """The right key nearest to a wrong one: by the whole path, else by the last word anywhere."""
    keys = [known for known, _, _ in documented_keys()]
    by_name = {known.rsplit(".", 1)[-1]: known for known in keys}
    near = difflib.get_close_matches(key, keys, 1, 0.7)
    if not near:
        near = [by_name[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], by_name, 1, 0.7)]
    if near:
        return f"; did you mean config.{near[0]}?"
    return f"; at the top there are {', '.join(dict.fromkeys(known.split('.')[0] for known in keys))}"
