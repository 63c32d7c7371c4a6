"""A Hugging Face BERT folder or safetensors file -> encoder settings, tokenizer, tensors under our names."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert.huggingface_tokenizer import load_tokenizer, read_json
from keras_bert_app.convert.pretrained import Pretrained
from keras_bert_app.errors import UserError


def _same(tensor):
    return tensor


def _transposed(tensor):
    return tensor.T


# Our variable's path, their tensor's name, ours from theirs, theirs from ours. {i} counts the blocks.
# PyTorch's linear layers hold [out, in], Keras' dense layers [in, out].
EMBEDDING_ROWS = (
    ("embeddings/token/embeddings", "embeddings.word_embeddings.weight", _same, _same),
    ("embeddings/position", "embeddings.position_embeddings.weight", _same, _same),
    ("embeddings/segment/embeddings", "embeddings.token_type_embeddings.weight", _same, _same),
    ("embeddings/norm/gamma", "embeddings.LayerNorm.weight", _same, _same),
    ("embeddings/norm/beta", "embeddings.LayerNorm.bias", _same, _same),
)
_BLOCK_LAYERS = (
    ("attention/query", "attention.self.query"),
    ("attention/key", "attention.self.key"),
    ("attention/value", "attention.self.value"),
    ("attention/output", "attention.output.dense"),
    ("intermediate", "intermediate.dense"),
    ("output", "output.dense"),
)
_BLOCK_NORMS = (("attention_norm", "attention.output.LayerNorm"), ("output_norm", "output.LayerNorm"))
BLOCK_ROWS = (
    *(
        (f"block_{{i}}/{ours}/kernel", f"encoder.layer.{{i}}.{theirs}.weight", _transposed, _transposed)
        for ours, theirs in _BLOCK_LAYERS
    ),
    *(
        (f"block_{{i}}/{ours}/bias", f"encoder.layer.{{i}}.{theirs}.bias", _same, _same)
        for ours, theirs in _BLOCK_LAYERS
    ),
    *(
        (f"block_{{i}}/{ours}/gamma", f"encoder.layer.{{i}}.{theirs}.weight", _same, _same)
        for ours, theirs in _BLOCK_NORMS
    ),
    *(
        (f"block_{{i}}/{ours}/beta", f"encoder.layer.{{i}}.{theirs}.bias", _same, _same)
        for ours, theirs in _BLOCK_NORMS
    ),
)
POOLER_ROWS = (
    ("pooler/kernel", "pooler.dense.weight", _transposed, _transposed),
    ("pooler/bias", "pooler.dense.bias", _same, _same),
)

# Names that the oldest files spell differently, google-bert/bert-base-uncased among them.
OLD_SPELLINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

# Tensors that are left out on purpose, with the reason that the user is told.
LEFT_OUT = (
    (r"embeddings\.position_ids", "a constant"),
    (r"(cls|classifier|qa_outputs)\..*", "a head; only the encoder is taken"),
)

# Their config.json's key for each of ours.
CONFIG_KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}
# Their settings that change what the network computes, and the only value that ours computes.
FIXED = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}
ACTIVATION_NAMES = {"gelu_pytorch_tanh": "gelu_new"}


def load(path: str | Path) -> Pretrained:
    """Read a folder with config.json, model.safetensors and a tokenizer's files, or that .safetensors file.

    Every tensor is taken, or left out for a stated reason. Their shapes are `pretrained.assign`'s to check.

    Raises:
        UserError: a file is missing or broken, the architecture isn't BERT's, the tokenizer does what ours
            doesn't, or tensors are unknown or missing; the message names all of them.
    """
    path = Path(path)
    weights = path / "model.safetensors" if path.is_dir() else path
    folder = weights.parent
    settings = read_json(folder / "config.json")
    encoder = encoder_settings(settings, folder / "config.json")
    vocabulary, options = load_tokenizer(folder)
    # Some pad the embedding beyond the vocabulary.
    if len(vocabulary) > encoder["vocabulary_size"]:
        raise UserError(
            f"{vocabulary.where} has {len(vocabulary)} pieces, but {folder / 'config.json'} says "
            f"vocab_size {encoder['vocabulary_size']}; the two don't belong together"
        )
    tensors, left_out = _read_tensors(weights, encoder["num_layers"])
    return Pretrained(
        encoder=encoder,
        vocabulary=vocabulary,
        tokenizer_options=options,
        tensors=tensors,
        left_out=left_out,
        provenance={"format": "huggingface", "path": str(path), "sha256": _sha256(weights)},
    )


def encoder_settings(settings: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Their config.json -> the keys of config.EncoderConfig.

    Raises:
        UserError: a key is missing, its value impossible, or a setting asks for another network than BERT's.
    """
    for key, allowed in FIXED.items():
        if settings.get(key) not in allowed and not (key == "model_type" and key not in settings):
            raise UserError(f"{where}: {key} is {settings[key]!r}; only {allowed[0]!r} can be loaded")
    missing = [theirs for theirs in CONFIG_KEYS.values() if settings.get(theirs) is None]
    if missing:
        raise UserError(f"{where}: not a BERT configuration, {', '.join(missing)} missing")
    encoder = {ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()}
    encoder["activation"] = ACTIVATION_NAMES.get(str(encoder["activation"]), encoder["activation"])
    try:
        complete_encoder(EncoderConfig(), encoder)
    except UserError as error:
        raise UserError(f"{where}: can't be loaded as it is: {error}") from error
    return encoder


def name_rows(num_layers: int) -> Iterable[tuple]:
    """The rows above for an encoder of so many blocks."""
    yield from EMBEDDING_ROWS
    for i in range(num_layers):
        for ours, theirs, transform, inverse in BLOCK_ROWS:
            yield ours.format(i=i), theirs.format(i=i), transform, inverse
    yield from POOLER_ROWS


def _read_tensors(path: Path, num_layers: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            theirs = {name: _modern_name(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            rows = {name: (ours, transform) for ours, name, transform, _ in name_rows(num_layers)}
            taken, left_out, unknown = {}, {}, []
            for full_name, name in theirs.items():
                reason = next((why for pattern, why in LEFT_OUT if re.fullmatch(pattern, name)), None)
                if name in rows:
                    ours, transform = rows.pop(name)
                    taken[ours] = np.ascontiguousarray(transform(file.get_tensor(full_name)), "float32")
                elif reason:
                    left_out[full_name] = reason
                else:
                    unknown.append(full_name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't read the weights: {error}") from error
    missing = [name for name in rows if not name.startswith("pooler.")]
    if unknown or missing:
        parts = [f"unknown: {', '.join(sorted(unknown))}"] if unknown else []
        parts += [f"missing: {', '.join(sorted(missing))}"] if missing else []
        raise UserError(
            f"{path}: the tensors aren't those of a BERT encoder of {num_layers} layers; {'; '.join(parts)}"
        )
    return taken, left_out


def _modern_name(name: str) -> str:
    """A tensor's name in their file -> the name in the rows above."""
    for old, new in OLD_SPELLINGS.items():
        name = name.replace(old, new)
    return name.removeprefix("bert.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
