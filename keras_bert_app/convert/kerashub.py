"""A KerasHub preset's folder, or a .weights.h5 of one of its BERT models <-> settings, tokenizer, tensors.

KerasHub's BertBackbone computes gelu by the tanh approximation, with epsilon 1e-12; its head that guesses
words exactly, with 1e-5 (bert_backbone.py, masked_lm_head.py). Its tokenizer folds case by NFKC, so that some
characters, such as ½ or ﬁ, are cut otherwise there than here.

Of its files the JSON and HDF5 are read, and no Keras object is made of them.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert import rows, weight_files
from keras_bert_app.convert.kerashub_names import short_name, theirs
from keras_bert_app.convert.pretrained import Pretrained, Tensor
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import Network
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

CONFIG, TASK, TOKENIZER = "config.json", "task.json", "tokenizer.json"
WEIGHTS, TASK_WEIGHTS, VOCABULARY = "model.weights.h5", "task.weights.h5", "assets/tokenizer/vocabulary.txt"
_BACKBONE = "BertBackbone"
CLASSES = {
    "encoder": _BACKBONE,
    "sequence_classification": "BertTextClassifier",
    "masked_lm": "BertMaskedLM",
}
# What KerasHub's code computes and its files don't say.
FIXED = {"activation": "gelu_new", "epsilon": 1e-12}
MASKED = {"masked_activation": "gelu", "masked_epsilon": 1e-5}
KEYS = {
    "vocabulary_size": "vocabulary_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "hidden_dim": "hidden_dim",
    "intermediate_dim": "intermediate_dim",
    "dropout": "dropout",
    "max_positions": "max_sequence_length",
    "num_segments": "num_segments",
}
# Settings of the tokenizer that ours has not, and the only value that is honoured.
_FIXED_TOKENIZER = {"split": True, "suffix_indicator": "##", "oov_token": "[UNK]", "sequence_length": None}


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
        files = [path / WEIGHTS, *([path / TASK_WEIGHTS] if (path / TASK_WEIGHTS).exists() else [])]
        tensors = read_h5(path / WEIGHTS, "backbone")
        tensors |= read_h5(path / TASK_WEIGHTS, "task") if len(files) > 1 else {}
        encoder = _settings(path / CONFIG)
        network = _task(path / TASK)
    else:
        files, tensors = [path], read_h5(path, "task")
        if not any(short_name(name).startswith("backbone/") for name in tensors):
            tensors = {name.replace("task:", "backbone:", 1): tensor for name, tensor in tensors.items()}
        encoder, network = _shapes(tensors, path)
    if encoder["num_layers"] > len(tensors):
        raise UserError(f"{path}: {encoder['num_layers']} layers, but there are {len(tensors)} tensors")
    try:
        whole = complete_encoder(EncoderConfig(), encoder)
    except UserError as error:
        raise UserError(f"{path}: can't be loaded as it is: {error}") from error
    found, missing, left_out = rows.match(
        theirs(network, whole), tensors, rows.sizes(whole, network), str(path)
    )
    vocabulary, options = (None, None) if tokenizer is None else _tokenizer(path, tokenizer)
    provenance = {
        "path": str(path),
        "class": CLASSES[network.kind],
        "sha256": weight_files.sha256(files),
    }
    return Pretrained(network, encoder, vocabulary, options, found, missing, left_out, provenance)


def read_h5(path: Path, place: str) -> dict[str, Tensor]:
    """The datasets of an HDF5 file, none of them read yet; links to elsewhere aren't followed.

    Args:
        place: what stands, with a colon, before their names.

    Raises:
        UserError: it isn't there or is broken, or a dataset isn't whole in it.
    """
    weight_files.regular_file(path)

    def read(name):
        try:
            with h5py.File(path) as file:
                return np.asarray(file[name])
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: can't read the weights: {error}") from error

    tensors = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual or item.id.get_storage_size() < item.nbytes:
                raise UserError(f"{path}: can't read the weights: {name} isn't whole in it")
            tensors[f"{place}:{name}"] = Tensor(item.shape, item.dtype.name, lambda: read(name))

    try:
        with h5py.File(path) as file:
            file.visititems(visit)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: can't read the weights: {error}") from error
    return tensors


def _config_of(path: Path, *classes: str) -> tuple[str, dict[str, Any]]:
    """The name and settings of a Keras object's file.

    Raises:
        UserError: it is of another class.
    """
    content = weight_files.read_json(path)
    name, config = content.get("class_name"), content.get("config")
    if name not in classes or not isinstance(config, dict):
        raise UserError(f"{path}: class_name is {name!r}; it takes one of {', '.join(classes)}")
    return name, config


def _settings(path: Path) -> dict[str, Any]:
    _, config = _config_of(path, _BACKBONE)
    missing = [theirs for theirs in KEYS.values() if theirs not in config]
    unknown = [key for key in config if key not in (*KEYS.values(), "name", "trainable", "dtype")]
    if missing or unknown:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [
            f"unknown: {', '.join(unknown)}"
        ] * bool(unknown)
        raise UserError(f"{path}: not the settings of a {_BACKBONE}; {'; '.join(parts)}")
    encoder = {ours: config[theirs] for ours, theirs in KEYS.items()}
    return encoder | FIXED | {"attention_dropout": encoder["dropout"]}


def _task(path: Path) -> Network:
    if not path.exists():
        return Network("encoder")
    kinds = {name: kind for kind, name in CLASSES.items() if kind != "encoder"}
    name, config = _config_of(path, *kinds)
    if kinds[name] == "masked_lm":
        return Network("masked_lm", **MASKED)
    count, dropout = config.get("num_classes"), config.get("dropout", 0.1)
    if not isinstance(count, int) or not isinstance(dropout, int | float) or not 0 < count < 10**6:
        raise UserError(f"{path}: num_classes is {count!r}, dropout {dropout!r}; neither of a classifier")
    return Network("sequence_classification", _numbered(count), head_dropout=float(dropout))


def _numbered(count: int) -> list[str]:
    return [f"LABEL_{number}" for number in range(count)]


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
            labels = _numbered(shapes["task/dense/vars/1"][0])
            return encoder | FIXED, Network("sequence_classification", labels)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{where}: not the weights of a BERT: no {error} in it") from error
    return encoder | FIXED, Network("encoder")


def _tokenizer(path: Path, wanted: Mapping[str, Any]) -> tuple[Vocabulary, TokenizerOptions]:
    folder = path if path.is_dir() else path.parent
    if not (folder / TOKENIZER).exists():
        places = [folder / VOCABULARY, folder / "vocabulary.txt", folder / "vocab.txt"]
        place = next((place for place in places if place.exists()), places[0])
        return Vocabulary.load(weight_files.regular_file(place, folder)), TokenizerOptions(**wanted)
    if wanted:
        raise UserError(f"--{min(wanted)}: {folder / TOKENIZER} says itself what is done to text")
    vocabulary = Vocabulary.load(weight_files.regular_file(folder / VOCABULARY, folder))
    _, config = _config_of(folder / TOKENIZER, "BertTokenizer")
    for key, value in _FIXED_TOKENIZER.items():
        if config.get(key, value) != value:
            raise UserError(f"{folder / TOKENIZER}: {key} is {config[key]!r}; only {value!r} can be honoured")
    options = {
        "lower_case": config.get("lowercase", False),
        "strip_accents": config.get("strip_accents", False),
        "split_chinese": config.get("split_on_cjk", True),
    }
    for key, value in options.items():
        if not isinstance(value, bool):
            raise UserError(f"{folder / TOKENIZER}: {key} is {value!r}; it has to be true or false")
    literals = SPECIAL_TOKENS if config.get("special_tokens_in_strings") else ()
    return vocabulary, TokenizerOptions(**options, never_split=literals)


def save(pretrained: Pretrained, folder: Path, max_length: int) -> None:
    """Write a preset's folder: KerasHub's own model and tokenizer, with these weights put into its files.

    Its `dropout` is the encoder's; the rate on attention probabilities is the same there.

    Raises:
        UserError: KerasHub computes another network; says in what.
    """
    encoder, network = complete_encoder(EncoderConfig(), pretrained.encoder), pretrained.network
    problems = list(_problems(encoder, network))
    if problems:
        raise UserError(f"{pretrained.where}: KerasHub has {'; '.join(problems)}")
    table = theirs(network, encoder)
    arrays = rows.unmatch(table.rows, pretrained, rows.sizes(encoder, network), "KerasHub")
    _write_preset(folder, encoder, network, pretrained, max_length)
    for name, place in ((WEIGHTS, "backbone"), (TASK_WEIGHTS, "task")):
        if (folder / name).exists():
            with h5py.File(folder / name, "r+") as file:
                for full_name in read_h5(folder / name, place):
                    if short_name(full_name) in arrays:
                        file[full_name.partition(":")[2]][...] = arrays[short_name(full_name)]


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
            split_on_cjk=options.split_chinese,
            special_tokens_in_strings=bool(options.never_split),
        )
    if tokenizer and network.kind != "encoder":
        maker = getattr(keras_hub.models, f"{CLASSES[network.kind]}Preprocessor")
        preprocessor = maker(tokenizer, sequence_length=max_length)
    make_model(encoder, network, preprocessor).save_to_preset(str(folder))
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
    getattr(model, "backbone", model).load_weights(path / WEIGHTS)
    if (path / TASK_WEIGHTS).exists():
        model.load_task_weights(path / TASK_WEIGHTS)
