"""What a run or someone's weights are made of, without reading the weights."""

import json
import math

from keras_bert_app.config import EncoderConfig, complete_encoder, to_dict
from keras_bert_app.convert.weight_files import sha256
from keras_bert_app.errors import UserError
from keras_bert_app.training import checkpoints, initial
from keras_bert_app.training import workdir as folders


def inspect(source: str) -> str:
    """Architecture, tokenizer, provenance, hashes and tensors, as text.

    Args:
        source: see `initial.find`.

    Raises:
        UserError: there is no such thing, or anything but its tokenizer doesn't fit.
    """
    found = initial.find(source)
    try:
        pretrained, problem = initial.load(found, {}), "none, so that it reads token ids alone"
    except UserError as error:
        pretrained, problem = initial.load(found, None), f"can't be taken: {error}"
    network = pretrained.network
    encoder = network.encoder(complete_encoder(EncoderConfig(), pretrained.encoder))
    provenance = dict(pretrained.provenance)
    if found.format == initial.RUN:
        path = checkpoints.folder_of(found.path, provenance["step"]) / checkpoints.MODEL
        provenance["sha256"] = sha256([path])
        record = folders.read_json(found.path / "provenance.json", f"{found.path} has no provenance.json")
        start = record["starts"][-1]
        provenance["made"] = {"command": " ".join(start["command"]), "git": start["git"]["commit"]}
        provenance["weights"], provenance["data"] = start["weights"], start.get("data")
    sections = {
        "network": {
            "kind": network.kind,
            "labels": ", ".join(network.labels) or None,
            "problem type": network.problem_type,
            "head dropout": network.head_dropout,
        },
        "encoder": to_dict(encoder),
        "tokenizer": _tokenizer(pretrained, problem),
        "provenance": provenance,
        "missing": dict.fromkeys(pretrained.missing.values(), "not in the source"),
        "left out": dict(pretrained.left_out),
    }
    lines = []
    for title, values in sections.items():
        stated = {key: value for key, value in values.items() if value is not None}
        if stated:
            lines += [title, *(f"  {key:<20} {_text(value)}" for key, value in stated.items()), ""]
    tensors = pretrained.tensors
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    lines.append(f"{len(tensors)} tensors, {count:,} weights")
    lines += [
        f"  {path:<45} {tensor.dtype:<8} {list(tensor.shape)}" for path, tensor in sorted(tensors.items())
    ]
    return "\n".join(lines)


def _tokenizer(pretrained, problem):
    if pretrained.vocabulary is None:
        return {"": problem}
    vocabulary = {"pieces": len(pretrained.vocabulary), "sha256": pretrained.vocabulary.sha256}
    return vocabulary | pretrained.tokenizer_options.get_config()


def _text(value):
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
