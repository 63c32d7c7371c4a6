"""A KerasHub preset's folder, or a .weights.h5 of one of its BERT models <-> settings, tokenizer, tensors.

KerasHub's BertBackbone computes gelu by the tanh approximation, with epsilon 1e-12; its head that guesses
words exactly, with 1e-5 (bert_backbone.py, masked_lm_head.py). Its tokenizer cuts some characters otherwise
than ours: it folds case by NFKC (½, ﬁ, ™), takes Hangul apart where accents go, ends words at control
characters and at punctuation of younger Unicode, and doesn't at spaces beyond ASCII, such as NBSP.

Of its files the JSON and HDF5 are read, and no Keras object is made of them.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert import rows, weight_files
from keras_bert_app.convert.hdf5 import read_h5
from keras_bert_app.convert.kerashub_names import short_name, theirs
from keras_bert_app.convert.kerashub_settings import (
    CLASSES,
    CONFIG,
    FIXED,
    KEYS,
    MASKED,
    TASK,
    encoder_settings,
    find_network,
    load_tokenizer,
    numbered_labels,
    tokenizer_problems,
)
from keras_bert_app.convert.pretrained import Pretrained, Tensor
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import Network

# Of the tokenizer's options, those that the files don't state.
UNSTATED = ()
WEIGHTS, SHARDS, TASK_WEIGHTS = "model.weights.h5", "model.weights.json", "task.weights.h5"


def load(path: str | Path, tokenizer: Mapping[str, Any] | None = {}) -> Pretrained:
    """Read a preset's folder, or a .weights.h5, whose shapes give the settings.

    Labels are numbered; KerasHub has no names for them.

    Args:
        tokenizer: TokenizerOptions, for a .weights.h5 that has but a vocabulary beside it; None: without a
            tokenizer.

    Raises:
        UserError: a file is missing or broken, or of another model than BERT; or tensors don't fit, and the
            message names all of them.
    """
    path = Path(path)
    if path.is_dir():
        files = dict.fromkeys(_backbone_files(path), "backbone:")
        files |= {path / TASK_WEIGHTS: "task:"} if os.path.lexists(path / TASK_WEIGHTS) else {}
        tensors = _tensors(files)
        encoder = encoder_settings(path / CONFIG)
        network = find_network(path / TASK)
    else:
        files = {path: "task:"}
        tensors = _tensors(files)
        if not any(short_name(name).startswith("backbone/") for name in tensors):
            tensors = {name.replace("task:", "backbone:", 1): tensor for name, tensor in tensors.items()}
        encoder, network = _shapes(tensors, path)
    try:
        whole = complete_encoder(EncoderConfig(), encoder)
    except UserError as error:
        raise UserError(f"{path}: can't be loaded as it is: {error}") from error
    if whole.num_layers > len(tensors):
        raise UserError(f"{path}: {whole.num_layers} layers, but there are {len(tensors)} tensors")
    found, missing, left_out = rows.match(
        theirs(network, whole), tensors, rows.sizes(whole, network), str(path)
    )
    vocabulary, options = (None, None) if tokenizer is None else load_tokenizer(path, tokenizer)
    if vocabulary and len(vocabulary) > whole.vocabulary_size:
        raise UserError(
            f"{vocabulary.where} has {len(vocabulary)} pieces, but {path} the vocabulary_size "
            f"{whole.vocabulary_size}; the two don't belong together"
        )
    provenance = {
        "path": str(path),
        "class": CLASSES[network.kind],
        "sha256": weight_files.sha256(files),
    }
    return Pretrained(network, encoder, vocabulary, options, found, missing, left_out, provenance)


def _backbone_files(folder: Path) -> list[Path]:
    """One, or the shards that an index names.

    Raises:
        UserError: the index is broken, or names files elsewhere.
    """
    index = folder / SHARDS
    if os.path.lexists(folder / WEIGHTS) or not os.path.lexists(index):
        return [folder / WEIGHTS]
    places = weight_files.read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{index}: can't read the weights: it has no weight_map")
    names = [name for each in places.values() for name in (each if isinstance(each, list) else [each])]
    return sorted({weight_files.beside(index, name, ".weights.h5") for name in names})


def _tensors(files: Mapping[Path, str]) -> dict[str, Tensor]:
    """The tensors of all files.

    Args:
        files: and what stands before the names in each.

    Raises:
        UserError: a file is missing or broken, or two have the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    for file, prefix in files.items():
        found = read_h5(file, prefix)
        if twice := sorted(found.keys() & tensors.keys()):
            raise UserError(f"{file}: can't read the weights: another shard has {', '.join(twice)} too")
        tensors |= found
    return tensors


def _shapes(tensors: Mapping[str, Tensor], where: Path) -> tuple[dict[str, Any], Network]:
    """Settings and network that shapes tell."""
    shapes = {short_name(name): tensor.shape for name, tensor in tensors.items()}
    numbers = [re.match(r"backbone/transformer_encoder_(\d+)/", name) for name in shapes]
    try:
        vocabulary_size, hidden_dim = shapes["backbone/reversible_embedding/vars/0"]
        block = "backbone/transformer_encoder_0"
        encoder = {
            "vocabulary_size": vocabulary_size,
            "hidden_dim": hidden_dim,
            "num_layers": 1 + max(int(number[1]) for number in numbers if number),
            "num_heads": shapes[f"{block}/_self_attention_layer/query_dense/vars/0"][1],
            "intermediate_dim": shapes[f"{block}/_feedforward_intermediate_dense/vars/1"][0],
            "max_positions": shapes["backbone/position_embedding/vars/0"][0],
            "num_segments": shapes["backbone/embedding/vars/0"][0],
        }
        if "task/masked_lm_head/vars/0" in shapes:
            return encoder | FIXED, Network("masked_lm", **MASKED)
        if "task/dense/vars/1" in shapes:
            labels = numbered_labels(shapes["task/dense/vars/1"][0])
            return encoder | FIXED, Network("sequence_classification", labels)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{where}: not the weights of a BERT: no {error} in it") from error
    return encoder | FIXED, Network("encoder")


def save(pretrained: Pretrained, folder: Path, max_length: int) -> None:
    """Write a preset's folder: KerasHub's own model and tokenizer, with these weights put into its files.

    Its `dropout` is the encoder's; the rate on attention probabilities is the same there.

    Raises:
        UserError: KerasHub computes another network; says in what.
    """
    encoder, network = complete_encoder(EncoderConfig(), pretrained.encoder), pretrained.network
    problems = list(_problems(encoder, network))
    if pretrained.vocabulary:
        problems += tokenizer_problems(pretrained.tokenizer_options)
    if problems:
        raise UserError(f"{pretrained.where}: KerasHub has {'; '.join(problems)}")
    table = theirs(network, encoder)
    arrays = rows.unmatch(table.rows, pretrained, rows.sizes(encoder, network), "KerasHub")
    _write_preset(folder, encoder, network, pretrained, max_length)
    for name, prefix in ((WEIGHTS, "backbone:"), (TASK_WEIGHTS, "task:")):
        if (folder / name).exists():
            with h5py.File(folder / name, "r+") as file:
                for full_name in read_h5(folder / name, prefix):
                    if short_name(full_name) in arrays:
                        file[full_name.removeprefix(prefix)][...] = arrays.pop(short_name(full_name))
    if arrays:
        raise RuntimeError(f"KerasHub's files have no place for {', '.join(arrays)}")


def _problems(encoder: EncoderConfig, network: Network) -> Iterator[str]:
    """What KerasHub has, where the network has something else."""
    if network.kind not in CLASSES:
        yield f"no {network.kind} network"
    fixed = FIXED | {"position_type": "learned", "position_offset": 0, "pooler_activation": "tanh"}
    if network.kind != "masked_lm":
        fixed |= {"pooling": "first"}
    for key, value in fixed.items():
        if getattr(encoder, key) != value:
            yield f"{key} {value!r}, not {getattr(encoder, key)!r}"
    if encoder.embedding_dim not in (None, encoder.hidden_dim):
        yield f"no embedding_dim but hidden_dim, not {encoder.embedding_dim}"
    if not encoder.num_segments:
        yield "segments"
    if network.kind == "masked_lm":
        for key, value in MASKED.items():
            wanted = getattr(network, key)
            wanted = getattr(encoder, key.removeprefix("masked_")) if wanted is None else wanted
            if wanted != value:
                yield f"{key} {value!r}, not {wanted!r}"


def _write_preset(folder, encoder, network, pretrained, max_length) -> None:
    import keras_hub

    tokenizer = preprocessor = None
    if pretrained.vocabulary:
        options = pretrained.tokenizer_options
        tokenizer = keras_hub.models.BertTokenizer(
            vocabulary=list(pretrained.vocabulary.pieces),
            lowercase=options.lower_case,
            strip_accents=options.strip_accents,
            special_tokens=list(options.never_split) or None,
            special_tokens_in_strings=bool(options.never_split),
        )
    if tokenizer and network.kind != "encoder":
        maker = getattr(keras_hub.models, f"{CLASSES[network.kind]}Preprocessor")
        preprocessor = maker(tokenizer, sequence_length=max_length)
    make_model(encoder, network, preprocessor).save_to_preset(str(folder), max_shard_size=None)
    if tokenizer and network.kind == "encoder":
        tokenizer.save_to_preset(str(folder))


def make_model(encoder: EncoderConfig, network: Network, preprocessor=None):
    """KerasHub's own model of this kind and size, with fresh weights."""
    import keras_hub

    settings = {theirs: getattr(encoder, ours) for ours, theirs in KEYS.items()}
    backbone = keras_hub.models.BertBackbone(**settings)
    if network.kind == "encoder":
        return backbone
    more = {}
    if network.kind == "sequence_classification":
        dropout = encoder.dropout if network.head_dropout is None else network.head_dropout
        more = {"num_classes": len(network.labels), "dropout": dropout}
    model_class = getattr(keras_hub.models, CLASSES[network.kind])
    return model_class(backbone=backbone, preprocessor=preprocessor, **more)


def load_into(model, path: Path) -> None:
    """Set the weights of such a model from a preset's folder or a .weights.h5, by Keras alone.

    KerasHub's from_preset would make whatever objects the folder's JSON describes.
    """
    if not path.is_dir():
        model.load_weights(path)
        return
    name = WEIGHTS if (path / WEIGHTS).exists() else SHARDS
    getattr(model, "backbone", model).load_weights(path / name)
    if (path / TASK_WEIGHTS).exists():
        model.load_task_weights(path / TASK_WEIGHTS)
