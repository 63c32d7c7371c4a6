"""Flags of run.py's verbs: defined by absl, read, and a user's mistakes told in one line."""

import inspect
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from keras_bert_app import config as configuration
from keras_bert_app.errors import UserError

FLAGS = flags.FLAGS
# A name, what defines it given the command line, its meaning, its default.
Flag = tuple[str, Callable[[list[str]], Any], str, Any]
CONFIG_FILE = "a get_config() that returns keras_bert_app.config.default(), changed"


def string(name: str, help: str, default: str | None = None) -> Flag:
    """Any text."""
    return name, lambda _: flags.DEFINE_string(name, default, help, flag_values=FLAGS), help, default


def whole_number(
    name: str, help: str, default: int | None = None, least: int = 0, most: int | None = None
) -> Flag:
    """A number from `least` to `most`."""

    def define(_):
        flags.DEFINE_integer(name, default, help, least, most, flag_values=FLAGS)

    return name, define, help, default


def real_number(
    name: str, help: str, default: float | None = None, least: float = 0.0, most: float | None = None
) -> Flag:
    """A finite number from `least` to `most`."""

    def define(_):
        flags.DEFINE_float(name, default, help, least, most, flag_values=FLAGS)
        flags.register_validator(
            name,
            lambda value: value is None or math.isfinite(value),
            "give a finite number",
            flag_values=FLAGS,
        )

    return name, define, help, default


def yes_or_no(name: str, help: str, default: bool | None = None) -> Flag:
    """--name, --noname, or neither: the default."""
    return name, lambda _: flags.DEFINE_bool(name, default, help, flag_values=FLAGS), help, default


def listed(name: str, help: str) -> Flag:
    """Texts with commas between; None where not given."""
    return name, lambda _: flags.DEFINE_list(name, None, help, flag_values=FLAGS), help, None


def _config_file(arguments):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "a file of configs/", flag_values=FLAGS, sys_argv=arguments
    )


CONFIG = (
    "config",
    _config_file,
    "a Python file such as configs/sentiment.py; --config.KEY=VALUE changes a key",
    None,
)


def parse(
    verb: str, arguments: list[str], verb_flags: Sequence[Flag], required: Sequence[str], takes: str = ""
) -> list[str]:
    """Define a verb's flags, read them, and return what isn't a flag.

    takes: "texts" where others may follow; "verb" where the first of them ends the verb's own flags.

    Raises:
        UserError: an unknown or missing flag, an unknown key, or a value of the wrong type.
    """
    for _, define, _, _ in verb_flags:
        define(arguments)
    path = config_path(verb, arguments) if CONFIG in verb_flags else None
    FLAGS.set_gnu_getopt(takes != "verb")
    try:
        rest = FLAGS([f"run.py {verb}", *arguments])[1:]
        if path is not None:
            # What ml_collections gives for a file that opens a missing one raises only when it is looked at.
            getattr(FLAGS.config, "lock", None)
    except Exception as error:
        if path is not None and (problem := config_file_problem(path, error)):
            raise UserError(problem) from error
        if isinstance(error, flags.Error):
            if takes == "verb" and isinstance(error, flags.UnrecognizedFlagError):
                raise UserError(
                    f"--{error.flagname} is no flag of {verb}; write those of the verb after it"
                ) from error
            raise UserError(f"{error}; see run.py {verb} --help") from error
        raise
    if path is not None:
        if not isinstance(FLAGS.config, Mapping) and not hasattr(FLAGS.config, "to_dict"):
            raise UserError(
                f"{path}: get_config() gives {FLAGS.config!r}; a config file is Python with {CONFIG_FILE}"
            )
        configuration.freeze(FLAGS.config)
    missing = [f"--{name}" for name in required if not FLAGS[name].value]
    if missing:
        raise UserError(f"{verb} needs {', '.join(missing)}; see run.py {verb} --help")
    if rest and not takes:
        raise UserError(f"{verb} takes no {rest[0]!r}; flags are written --name=value")
    return rest


def config_path(verb: str, arguments: list[str]) -> str | None:
    """The path given as --config=PATH or --config PATH, None where there is none.

    Raises:
        UserError: no such file, a `--config.KEY` that doesn't exist, or one without --config.
    """
    configuration.check_flags(arguments)
    path = None
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            path = value if equals else "".join(arguments[place + 1 : place + 2])
    if path is not None and not Path(path).is_file():
        there_are = sorted(
            str(file) for file in Path("configs").glob("*.py") if "def get_config(" in file.read_text("utf-8")
        )
        raise UserError(
            f"--config={path}: no such file; there is {', '.join(there_are) or 'none in configs/'}"
        )
    if path is None and any(argument.startswith("--config.") for argument in arguments):
        raise UserError(f"{verb} needs --config=FILE before --config.KEY=VALUE; see run.py {verb} --help")
    return path


def config_file_problem(path: str, error: BaseException) -> str | None:
    """One line on what went wrong in a config file; None where the error didn't come from it."""
    chain = [error]  # from the one caught to the first one raised
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    first = chain[-1]
    if isinstance(first, SyntaxError):
        return f"{first.filename}:{first.lineno}: {first.msg}"
    if isinstance(first, AttributeError) and first.name == "get_config":
        return f"{path} has no get_config(); a config file is Python with {CONFIG_FILE}"
    for error in reversed(chain):
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if _same(frame.filename, path)]
        if lines:
            return f"{path}:{lines[-1]}: {type(error).__name__}: {' '.join(str(error).split())}"
    # ml_collections keeps no more of an OSError than its text.
    return f"{path}: {str(first).strip().splitlines()[-1].strip()}" if isinstance(first, OSError) else None


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def usage(verb: str, documentation: str, verb_flags: Sequence[Flag], required: Sequence[str]) -> str:
    """One verb's documentation and flags; the config's keys where it has one."""
    lines = [f"run.py {verb}: {inspect.cleandoc(documentation)}", ""]
    for name, _, help, default in verb_flags:
        note = " (required)" if name in required else f" (default {default})" if default is not None else ""
        lines.append(f"  --{name:<13} {help}{note}")
    if CONFIG in verb_flags:
        lines += ["", "keys of the config, with their defaults:", ""]
        for key, default, help in configuration.documented_keys():
            lines.append(f"  --config.{key}={default}: {help}")
    return "\n".join(lines)
