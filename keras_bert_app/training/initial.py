"""What a run starts from: weights and a tokenizer, wherever they come from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_bert_app.config import Config
from keras_bert_app.convert import huggingface_tokenizer, weight_files
from keras_bert_app.convert.formats import FORMATS, find_format
from keras_bert_app.convert.pretrained import Pretrained
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training import checkpoints
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.places import locate

RUN = "run"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights lie, once they are on this machine.

    format: RUN, or a key of convert.formats.FORMATS. origin: what is known of where they came from.
    """

    path: Path
    format: str
    origin: Mapping[str, Any]


def find(source: str) -> Source:
    """Fetch what a name stands for, and tell its format.

    Args:
        source: a packaged name, a run's folder, a handle (see convert/handles.py), or what
            convert.formats.find_format knows.

    Raises:
        UserError: there is no such thing.
    """
    path, origin = locate(source)
    if (path / "model.json").exists():
        return Source(path, RUN, origin)
    return Source(path, find_format(path), origin)


def load_pretrained(init: str | None) -> Pretrained | None:
    """What `find` finds, opened; None where there is nothing to find.

    Raises:
        UserError: there is no such thing, or it can't be read.
    """
    return None if init is None else load(find(init), {})


def load(source: Source, tokenizer: Mapping[str, Any] | None) -> Pretrained:
    """Open weights and what belongs to them.

    Args:
        tokenizer: options for formats that don't state them; None: without a tokenizer.

    Raises:
        UserError: anything in it that doesn't fit.
    """
    if source.format == RUN:
        pretrained = load_run(source.path)
        if tokenizer:
            raise UserError(f"--{min(tokenizer)}: {source.path} says itself what is done to text")
        if tokenizer is None:
            pretrained = dataclasses.replace(pretrained, vocabulary=None, tokenizer_options=None)
    else:
        pretrained = FORMATS[source.format].load(source.path, tokenizer)
    provenance = {"format": source.format, **pretrained.provenance, **source.origin}
    return dataclasses.replace(pretrained, provenance=provenance)


def load_run(workdir: Path) -> Pretrained:
    """The best checkpoint of a run.

    Raises:
        UserError: the folder is no run's, or has no evaluated checkpoint.
    """
    folders.read_config(workdir)
    description, step = folders.ModelDescription.load(workdir), folders.best_step(workdir)
    path = checkpoints.folder_of(workdir, step) / checkpoints.MODEL
    return Pretrained(
        network=description.task.network,
        encoder=vars(description.encoder),
        vocabulary=description.vocabulary,
        tokenizer_options=description.tokenizer_options,
        tensors=weight_files.safetensors(path),
        provenance={"path": str(workdir), "step": step},
    )


def load_tokenizer(source: str, options: Mapping[str, Any]) -> tuple[Vocabulary, TokenizerOptions]:
    """The tokenizer of a packaged name, a run's or Hugging Face folder, or a vocab.txt with options.

    Raises:
        UserError: there is no such thing, it can't be read, or options are given for what has its own.
    """
    path, _ = locate(source)
    if not path.is_dir():
        return Vocabulary.load(path), TokenizerOptions(**options)
    if options:
        raise UserError(f"--{min(options)} is for a vocab.txt; {source} says itself what is done to text")
    if (path / "model.json").exists():
        folders.read_config(path)
        description = folders.ModelDescription.load(path)
        if description.vocabulary is None:
            raise UserError(f"{source} was imported without a tokenizer")
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
    if pretrained and pretrained.vocabulary:
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
