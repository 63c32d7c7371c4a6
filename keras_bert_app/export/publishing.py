"""A run's best checkpoint in other people's formats, whole or not there, read back before it appears."""

import dataclasses
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from keras_bert_app.config import EncoderConfig, complete_encoder, to_dict
from keras_bert_app.convert.formats import FORMATS
from keras_bert_app.convert.pretrained import Pretrained
from keras_bert_app.errors import UserError
from keras_bert_app.files import atomic_directory, require_free
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS
from keras_bert_app.training import initial
from keras_bert_app.training import workdir as folders
from keras_bert_app.training.assembly import save_keras_model

KERAS = "keras"
# What transformers' pipelines and model hubs call the jobs of these networks.
_PIPELINES = {
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "pretraining": "fill-mask",
    "masked_lm": "fill-mask",
}
CARD = "README.md"
_IN_TRAINING_ALONE = ("dropout", "attention_dropout", "initializer_range")


def publish(workdir: Path, format: str, output: Path) -> str:
    """Write `output` and return what there is to say about it.

    Args:
        format: a key of convert.formats.FORMATS, which makes a folder, or KERAS, a .keras file.

    Raises:
        UserError: the folder is no run's, `output` is there already, or the format can't hold the network.
    """
    require_free(output)
    if format == KERAS:
        if output.suffix != ".keras" or output.is_dir():
            raise UserError(f"--output={output}: a Keras model is a file whose name ends in .keras")
        save_keras_model(workdir, output)
        return f"{output}: keras.saving.load_model reads it after `import keras_bert_app.model`"
    pretrained = initial.load_run(workdir)
    description = folders.ModelDescription.load(workdir)
    with atomic_directory(output) as temporary:
        FORMATS[format].save(pretrained, temporary, description.max_length)
        again = _check(temporary, format, pretrained)
        card = model_card(workdir, format, dataclasses.replace(pretrained, provenance=again.provenance))
        (temporary / CARD).write_text(card, encoding="utf-8")
        count = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    labels = pretrained.network.labels
    lost = f"; {format} has no names for labels, {CARD} lists them" * bool(
        labels and again.network.labels != labels
    )
    return f"{len(pretrained.tensors)} tensors, {count:,} bytes, read back and found equal{lost}: {output}"


def _check(folder: Path, format: str, pretrained: Pretrained) -> Pretrained:
    """Read what was written, as a stranger would.

    Raises:
        UserError: the tensors aren't the same, bit by bit, or settings that answers depend on.
    """
    options = None
    if pretrained.vocabulary:
        options = {name: getattr(pretrained.tokenizer_options, name) for name in FORMATS[format].UNSTATED}
    again = FORMATS[format].load(folder, options)
    different = [
        path
        for path in pretrained.tensors.keys() | again.tensors.keys()
        if path not in pretrained.tensors
        or path not in again.tensors
        or not np.array_equal(again.tensors[path].read(), pretrained.tensors[path].read())
    ]
    different += [
        name for name, value in _settings(pretrained).items() if value != _settings(again).get(name)
    ]
    if different:
        raise UserError(f"{format} changes {', '.join(sorted(different))}, so nothing was written")
    return again


def _settings(pretrained: Pretrained) -> dict[str, Any]:
    """What answers depend on beside the tensors."""
    encoder = pretrained.network.encoder(complete_encoder(EncoderConfig(), pretrained.encoder))
    settings = {key: value for key, value in to_dict(encoder).items() if key not in _IN_TRAINING_ALONE}
    settings["embedding_dim"] = encoder.embedding_dim or encoder.hidden_dim
    if encoder.pooling != "first":
        del settings["pooler_activation"]
    if pretrained.vocabulary:
        options = pretrained.tokenizer_options.get_config()
        # In the texts of others standard ones are always special, or never.
        options["never_split"] = set(options["never_split"]) - set(SPECIAL_TOKENS)
        settings |= {"vocabulary": pretrained.vocabulary.pieces} | options
    return settings


def model_card(workdir: Path, format: str, pretrained: Pretrained) -> str:
    """What someone who finds the files needs to know, as Markdown with a model hub's header."""
    text = importlib.resources.files(__package__).joinpath("model_card.md.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": True}
    template = environment.from_string(text)
    metrics_path = workdir / "metrics.json"
    metrics = folders.read_json(metrics_path, "")["metrics"] if metrics_path.exists() else {}
    starts = folders.read_json(workdir / "provenance.json", f"{workdir}/provenance.json is missing")["starts"]
    return template.render(
        format=format,
        pipeline=_PIPELINES.get(pretrained.network.kind),
        network=pretrained.network,
        encoder=pretrained.encoder,
        vocabulary=pretrained.vocabulary,
        options=pretrained.tokenizer_options,
        class_name=pretrained.provenance.get("class"),
        metrics={name: value for name, value in metrics.items() if isinstance(value, float | int)},
        origin=_origin(starts[-1]),
    )


def _origin(start: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's provenance what strangers may know: no paths of this machine."""
    weights = {key: value for key, value in (start["weights"] or {}).items() if key != "path"}
    data = {
        split: Path(value).name if isinstance(value, str) else value
        for split, value in start.get("data", {}).items()
        if value and split != "phases"
    }
    verb = " ".join(start["command"][1:2])
    return {"verb": verb, "commit": start["git"]["commit"], "weights": weights, "data": data}
