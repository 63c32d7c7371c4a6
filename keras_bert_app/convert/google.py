"""Checkpoints of google-research/bert and of TensorFlow's model garden <-> settings, vocabulary, tensors.

Both compute "gelu" by the tanh approximation, ours and transformers' gelu_new (the former's modeling.py since
February 2019, the exact function before; the latter's official/modeling/activations/gelu.py), and normalise
layers with epsilon 1e-12. What is read is what that code computes. transformers reads the same files with the
exact function; config.encoder.activation="gelu" does as it does.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert import rows, weight_files
from keras_bert_app.convert.google_names import GARDEN, GARDEN_LOGITS, RELEASE, Style
from keras_bert_app.convert.huggingface_families import BERT_KEYS
from keras_bert_app.convert.pretrained import Pretrained, Tensor
from keras_bert_app.convert.tensorflow_checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import Network
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary

CHECKPOINT, CONFIG, VOCABULARY = "bert_model.ckpt", "bert_config.json", "vocab.txt"
# Of the tokenizer's options, those that the files don't state.
UNSTATED = ("lower_case",)
EPSILON = 1e-12
# Their names of activations -> ours.
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu"}
# transformers took its names from bert_config.json, which has no epsilon.
KEYS = {ours: theirs for ours, theirs in BERT_KEYS.items() if ours != "epsilon"}
# Keys that none of their code reads; the Chinese and multilingual releases have them.
_IDLE = re.compile(r"pooler_\w+|directionality")
# Keys of others, and the values with which the network is BERT's.
_FIXED = {"layer_norm_eps": (EPSILON,), "model_type": ("bert",), "embedding_size": (None,)}
# What is on top of the pooled vector, or of each token's, in run_classifier.py and run_squad.py.
_DROPOUTS = {"sequence_classification": 0.1, "question_answering": 0.0}
_KINDS = ("encoder", "pretraining", "masked_lm", "next_sentence", *_DROPOUTS)


def load(path: str | Path, tokenizer: Mapping[str, Any] | None = {}) -> Pretrained:
    """Read a folder with a checkpoint, bert_config.json and vocab.txt, a SavedModel's variables, or a prefix.

    Labels are numbered; the files have no names. Of the model garden's, which may come without
    bert_config.json, shapes give the settings.

    Args:
        tokenizer: TokenizerOptions that aren't the default; None: without a tokenizer. Lower-casing is stated
            nowhere but in SavedModels: if it isn't given, a vocabulary with capitals is of cased text.

    Raises:
        UserError: a file is missing or broken, or tensors don't fit; the message names all of them.
    """
    checkpoint = find_checkpoint(Path(path))
    files, tensors = read_checkpoint(checkpoint)
    style = _style(tensors, checkpoint.prefix)
    shapes = {style.rename(name): tensor.shape for name, tensor in tensors.items()}
    network = _network(style, tensors, shapes, checkpoint.prefix)
    encoder, where = _encoder(style, shapes, checkpoint)
    if network.kind == "encoder" and not style.has_pooler(shapes):
        encoder |= {"pooling": "mean"}
    try:
        whole = complete_encoder(EncoderConfig(), encoder)
    except UserError as error:
        raise UserError(f"{where}: can't be loaded as it is: {error}") from error
    if whole.num_layers > len(tensors):
        raise UserError(f"{where}: {whole.num_layers} layers, but there are {len(tensors)} tensors")
    found, missing, left_out = rows.match(
        style.theirs(network, whole, shapes), tensors, rows.sizes(whole, network), str(checkpoint.prefix)
    )
    vocabulary, options = None, None
    if tokenizer is not None:
        vocabulary, options = _tokenizer(checkpoint.folder, tensors, tokenizer)
        # Some pad the embedding beyond the vocabulary.
        if len(vocabulary) > whole.vocabulary_size:
            raise UserError(
                f"{vocabulary.where} has {len(vocabulary)} pieces, but {where} {whole.vocabulary_size}; "
                "the two don't belong together"
            )
    provenance = {
        "format": "model_garden" if style is GARDEN else "google",
        "path": str(path),
        "sha256": weight_files.sha256(files),
    }
    return Pretrained(network, encoder, vocabulary, options, found, missing, left_out, provenance)


def encoder_settings(settings: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """bert_config.json -> the keys of config.EncoderConfig.

    Raises:
        UserError: a key is missing, or unknown and so of consequence, or an activation that ours hasn't.
    """
    missing = [theirs for theirs in KEYS.values() if settings.get(theirs) is None]
    if missing:
        raise UserError(f"{where}: not a BERT configuration, {', '.join(missing)} missing")
    fixed = _FIXED | {"embedding_size": (None, settings["hidden_size"])}
    unknown = [
        key
        for key, value in settings.items()
        if key not in KEYS.values() and not _IDLE.fullmatch(key) and value not in fixed.get(key, ())
    ]
    if unknown:
        text = ", ".join(f"{key} {settings[key]!r}" for key in unknown)
        raise UserError(f"{where}: {text}: a network that isn't BERT's; remove what changes nothing")
    encoder = {ours: settings[theirs] for ours, theirs in KEYS.items()} | {"epsilon": EPSILON}
    if str(encoder["activation"]) not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{where}: hidden_act is {encoder['activation']!r}; it takes one of {known}")
    encoder["activation"] = ACTIVATIONS[encoder["activation"]]
    return encoder


def _style(tensors: Mapping[str, Tensor], where: Path) -> Style:
    for style in (RELEASE, GARDEN):
        if any(style.rename(name) == style.words for name in tensors):
            return style
    some = ", ".join(sorted(tensors)[:3])
    raise UserError(
        f"{where}: no BERT of google-research/bert or the model garden, which would have one variable "
        f"{RELEASE.words} or {GARDEN.words}; it has {len(tensors)}, such as {some}"
    )


def _network(style: Style, tensors, names: Mapping[str, tuple[int, ...]], where: Path) -> Network:
    """What is on top of the encoder, by the names that are there."""
    there = {head for head, head_rows in style.heads.items() if any(row.theirs in names for row in head_rows)}
    if "sequence_classification" in there:
        bias = style.heads["sequence_classification"][1].theirs
        count = (names.get(bias) or (2,))[0]
        if not count:
            raise UserError(f"{where}: {bias} is of no label")
        labels = [f"LABEL_{number}" for number in range(count)]
        return Network("sequence_classification", labels, head_dropout=_DROPOUTS["sequence_classification"])
    if "question_answering" in there:
        return Network("question_answering", head_dropout=_DROPOUTS["question_answering"])
    if "masked_head" in there:
        # With a pooler it may lack the other head, but without that a pooler would be lost.
        return Network("pretraining" if "pair_head" in there or style.has_pooler(names) else "masked_lm")
    if style is GARDEN and any(f"/{GARDEN_LOGITS}/" in f"/{name}" for name in tensors):
        raise UserError(
            f"{where}: {GARDEN_LOGITS} may be a classifier of texts or of tokens, or find answers; the files "
            "don't tell which. Save the encoder alone: tf.train.Checkpoint(encoder=encoder).write(path)"
        )
    return Network("next_sentence" if there else "encoder")


def _encoder(style: Style, shapes, checkpoint: Checkpoint) -> tuple[dict[str, Any], Path]:
    """The settings, by the shapes and by bert_config.json, and which of the two says more."""
    config = checkpoint.folder / CONFIG
    encoder = _settings_by_shape(shapes, checkpoint.prefix) if style is GARDEN else {}
    if os.path.lexists(config):
        return encoder | encoder_settings(weight_files.read_json(config), config), config
    if style is RELEASE:
        raise UserError(
            f"{config} isn't there, and without it the number of heads isn't known; copy that of the release "
            f"here, or write one with {', '.join(KEYS.values())}"
        )
    return encoder, checkpoint.prefix


def _settings_by_shape(shapes: Mapping[str, tuple[int, ...]], where: Path) -> dict[str, Any]:
    """What the model garden's shapes tell."""
    wanted = {
        GARDEN.words: ("vocabulary_size", "hidden_dim"),
        "position_embedding/embeddings": ("max_positions", None),
        "type_embeddings/embeddings": ("num_segments", None),
        "transformer/layer_0/self_attention/query/kernel": (None, "num_heads", None),
        "transformer/layer_0/intermediate/kernel": (None, "intermediate_dim"),
    }
    wrong = [
        f"{name} {list(shapes[name]) if name in shapes else 'missing'}"
        for name, keys in wanted.items()
        if len(shapes.get(name, ())) != len(keys)
    ]
    if wrong:
        raise UserError(f"{where}: can't read the settings off the tensors' shapes: {', '.join(wrong)}")
    layers = [int(found[1]) for name in shapes if (found := re.match(r"transformer/layer_(\d{1,9})/", name))]
    encoder = {"num_layers": max(layers) + 1, "activation": ACTIVATIONS["gelu"], "epsilon": EPSILON}
    for name, keys in wanted.items():
        encoder |= {key: size for key, size in zip(keys, shapes[name], strict=True) if key}
    return encoder


def _tokenizer(folder: Path, tensors, wanted: Mapping[str, Any]) -> tuple[Vocabulary, TokenizerOptions]:
    places = [folder / VOCABULARY, folder / "assets" / VOCABULARY]
    path = next((place for place in places if place.exists()), places[0])
    vocabulary = Vocabulary.load(weight_files.regular_file(path, folder))
    # Pieces in brackets are special.
    pieces = [piece for piece in vocabulary.pieces if not re.fullmatch(r"\[.*\]", piece)]
    lower_case = all(piece == piece.lower() for piece in pieces)
    for name, tensor in tensors.items():
        if name.split("/")[-1] == "do_lower_case" and (tensor.dtype, tensor.shape) == ("bool", ()):
            lower_case = bool(tensor.read())
    return vocabulary, TokenizerOptions(**{"lower_case": lower_case} | dict(wanted))


def save(pretrained: Pretrained, folder: Path, max_length: int) -> None:
    """Write bert_model.ckpt, bert_config.json and vocab.txt, for the scripts of google-research/bert.

    The files have no place for labels, for `max_length`, for the dropout before a classifier, which is 0.1 in
    the scripts, and for lower-casing, which they are told with --do_lower_case.

    Raises:
        UserError: their code computes another network; says in what.
    """
    encoder, network = complete_encoder(EncoderConfig(), pretrained.encoder), pretrained.network
    if problems := _problems(pretrained, encoder):
        raise UserError(
            f"{pretrained.where}: google-research/bert can't hold this network: it has {'; '.join(problems)}"
        )
    theirs = RELEASE.theirs(network, encoder, ())
    tensors = rows.unmatch(theirs.rows, pretrained, rows.sizes(encoder, network), "google-research/bert")
    with tf.device("CPU"):
        tf.raw_ops.SaveV2(
            prefix=str(folder / CHECKPOINT),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
    settings = {theirs: getattr(encoder, ours) for ours, theirs in KEYS.items()}
    settings["hidden_act"] = next(
        theirs for theirs, ours in ACTIVATIONS.items() if ours == encoder.activation
    )
    text = json.dumps(dict(sorted(settings.items())), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    if pretrained.vocabulary:
        pretrained.vocabulary.save(folder / VOCABULARY)


def _problems(pretrained: Pretrained, encoder: EncoderConfig) -> list[str]:
    """What their code has otherwise."""
    network, options = pretrained.network, pretrained.tokenizer_options
    fixed = {"epsilon": EPSILON, "position_type": "learned", "position_offset": 0}
    pooling = network.encoder(encoder).pooling
    # An encoder alone may be without a pooler.
    if network.kind in ("pretraining", "next_sentence", "sequence_classification") or pooling == "max":
        fixed["pooling"] = "first"
    if pooling == "first":
        fixed["pooler_activation"] = "tanh"
    stated = vars(encoder) | vars(network)
    if "masked_head" in network.heads:
        fixed |= {"masked_activation": encoder.activation, "masked_epsilon": EPSILON}
        stated |= {key: fixed[key] for key in ("masked_activation", "masked_epsilon") if stated[key] is None}
    problems = [] if network.kind in _KINDS else [f"no {network.kind}"]
    if encoder.activation not in ACTIVATIONS.values():
        problems.append(f"activation {' or '.join(ACTIVATIONS.values())}, not {encoder.activation}")
    problems += [f"{key} {value}, not {stated[key]}" for key, value in fixed.items() if stated[key] != value]
    if network.problem_type not in (None, "single_label_classification"):
        problems.append(f"problem_type single_label_classification, not {network.problem_type}")
    if encoder.embedding_dim not in (None, encoder.hidden_dim):
        problems.append(f"embedding_dim {encoder.hidden_dim}, not {encoder.embedding_dim}")
    if not encoder.num_segments:
        problems.append("num_segments 1 at least, not 0")
    if options and options.strip_accents != options.lower_case:
        problems.append("strip_accents as lower_case")
    if options and not options.split_chinese:
        problems.append("split_chinese")
    if options and options.never_split:
        problems.append("no never_split")
    return problems
