"""What the JSON files of a KerasHub preset say, and what they don't because KerasHub's code has it fixed."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_bert_app.convert.weight_files import read_json, regular_file
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import Network
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import CLASSIFY, MASK, PAD, SEPARATE, Vocabulary

CONFIG, TASK, TOKENIZER = "config.json", "task.json", "tokenizer.json"
VOCABULARY = "assets/tokenizer/vocabulary.txt"
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
_TOKENIZER_DEFAULTS = {
    "lowercase": False,
    "strip_accents": False,
    "split_on_cjk": True,
    "special_tokens_in_strings": False,
}
# What the settings of the classes have, beside what is in every layer's.
_KNOWN = {
    _BACKBONE: set(KEYS.values()),
    "BertTextClassifier": {"backbone", "preprocessor", "num_classes", "activation", "dropout"},
    "BertMaskedLM": {"backbone", "preprocessor"},
    "BertTokenizer": {
        *("config_file", "vocabulary", "special_tokens"),
        *_FIXED_TOKENIZER,
        *_TOKENIZER_DEFAULTS,
    },
}
# With special_tokens_in_strings these stand for themselves; [UNK] doesn't.
_LITERALS = (CLASSIFY, SEPARATE, PAD, MASK)


def _config_of(path: Path, *classes: str) -> tuple[str, dict[str, Any]]:
    """The name and settings of a Keras object's file.

    Raises:
        UserError: it is of another class, or has settings that we don't know.
    """
    content = read_json(path)
    name, config = content.get("class_name"), content.get("config")
    if name not in classes or not isinstance(config, dict):
        raise UserError(f"{path}: class_name is {name!r}; it takes one of {', '.join(classes)}")
    unknown = sorted(config.keys() - _KNOWN[name] - {"name", "trainable", "dtype"})
    if unknown:
        raise UserError(f"{path}: not the settings of a {name}; unknown: {', '.join(map(repr, unknown))}")
    return name, config


def encoder_settings(path: Path) -> dict[str, Any]:
    """config.json -> the keys of config.EncoderConfig, unchecked.

    Raises:
        UserError: it isn't a BertBackbone's.
    """
    _, config = _config_of(path, _BACKBONE)
    missing = [theirs for theirs in KEYS.values() if config.get(theirs) is None]
    if missing:
        raise UserError(f"{path}: not the settings of a {_BACKBONE}; missing: {', '.join(missing)}")
    encoder = {ours: config[theirs] for ours, theirs in KEYS.items()}
    return encoder | FIXED | {"attention_dropout": encoder["dropout"]}


def find_network(path: Path) -> Network:
    """task.json -> what is on top of the encoder; nothing, where there is no such file.

    Raises:
        UserError: it is none of CLASSES, or its settings are impossible.
    """
    if not os.path.lexists(path):
        return Network("encoder")
    kinds = {name: kind for kind, name in CLASSES.items() if kind != "encoder"}
    name, config = _config_of(path, *kinds)
    if kinds[name] == "masked_lm":
        return Network("masked_lm", **MASKED)
    count, dropout = config.get("num_classes"), config.get("dropout", 0.1)
    if type(count) is not int or not 0 < count < 10**6:
        raise UserError(f"{path}: num_classes is {count!r}; it takes a whole number from 1 on")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UserError(f"{path}: dropout is {dropout!r}; it takes a number from 0 to below 1")
    return Network("sequence_classification", numbered_labels(count), head_dropout=float(dropout))


def numbered_labels(count: int) -> list[str]:
    """KerasHub has no names for labels."""
    return [f"LABEL_{number}" for number in range(count)]


def load_tokenizer(path: Path, wanted: Mapping[str, Any]) -> tuple[Vocabulary, TokenizerOptions]:
    """Read tokenizer.json and its vocabulary, or a vocabulary alone, from a folder or from beside a file.

    Args:
        wanted: TokenizerOptions, where there is no tokenizer.json.

    Raises:
        UserError: a file is missing or broken, or asks for what our tokenizer doesn't do.
    """
    folder = path if path.is_dir() else path.parent
    if not os.path.lexists(folder / TOKENIZER):
        places = [folder / VOCABULARY, folder / "vocabulary.txt", folder / "vocab.txt"]
        place = next((place for place in places if place.exists()), places[0])
        return Vocabulary.load(regular_file(place, folder)), TokenizerOptions(**wanted)
    if wanted:
        raise UserError(f"--{min(wanted)}: {folder / TOKENIZER} says itself what is done to text")
    vocabulary = Vocabulary.load(regular_file(folder / VOCABULARY, folder))
    _, config = _config_of(folder / TOKENIZER, "BertTokenizer")
    for key, value in _FIXED_TOKENIZER.items():
        if config.get(key, value) != value:
            raise UserError(f"{folder / TOKENIZER}: {key} is {config[key]!r}; only {value!r} can be honoured")
    config = _TOKENIZER_DEFAULTS | config
    for key in _TOKENIZER_DEFAULTS:
        if not isinstance(config[key], bool):
            raise UserError(f"{folder / TOKENIZER}: {key} is {config[key]!r}; it has to be true or false")
    never_split = {}
    if config["special_tokens_in_strings"]:
        more = config.get("special_tokens") or []
        if not isinstance(more, list) or not all(token in vocabulary.pieces for token in more):
            raise UserError(f"{folder / TOKENIZER}: special_tokens is {more!r}; it takes a list of pieces")
        never_split = dict.fromkeys((*more, *_LITERALS))
    stated = config["lowercase"], config["strip_accents"], config["split_on_cjk"]
    return vocabulary, TokenizerOptions(*stated, never_split=tuple(never_split))


def tokenizer_problems(options: TokenizerOptions) -> Iterator[str]:
    """What its tokenizer does, or its file has no key for (word_piece_tokenizer.py), and ours not."""
    if not options.split_chinese:
        yield "no place in a preset for split_chinese False"
    if options.never_split and not set(_LITERALS) <= set(options.never_split):
        yield f"never_split with all of {', '.join(_LITERALS)} or none, not {', '.join(options.never_split)}"
