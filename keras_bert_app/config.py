"""What files in configs/ return, and the frozen, validated object that every room reads.

A config file's `get_config()` starts from `default()`, a ConfigDict with every key there is, and sets some.
Flags (`--config.train.batch_size=16`) are applied to it; `freeze()` then makes and checks the `Config`.
The dataclasses of schema.py, which come from here as well, are the only list of keys, types and defaults.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from keras_bert_app.errors import UserError
from keras_bert_app.schema import (
    ENCODER_DEFAULTS,
    Config,
    DataConfig,
    EncoderConfig,
    MaskingConfig,
    PhaseConfig,
    PrepareConfig,
    TaskConfig,
    TextConfig,
    TrainConfig,
)

__all__ = [
    "ENCODER_DEFAULTS",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "MaskingConfig",
    "PhaseConfig",
    "PrepareConfig",
    "TaskConfig",
    "TextConfig",
    "TrainConfig",
    "default",
    "check_flags",
    "freeze",
    "check",
    "documented_keys",
    "to_dict",
    "fixed_keys",
    "differences",
    "complete_encoder",
]


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
        result[key.name] = _frozen(hints[key.name], values[key.name], f"{path}.{key.name}", key.metadata)
    return section(**result)


def _frozen(hint: Any, value: Any, where: str, metadata: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; it takes a section of keys")
        return _freeze(hint, value, where)
    if typing.get_origin(hint) is tuple:
        part = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            parts = "sections" if dataclasses.is_dataclass(part) else "values"
            raise UserError(f"{where} is {value!r}; it takes a tuple of {parts}")
        return tuple(_frozen(part, one, f"{where}[{place}]", metadata) for place, one in enumerate(value))
    return _checked(where, value, hint, metadata)


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
