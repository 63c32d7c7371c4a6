"""A Hugging Face folder of BERT or a relative <-> settings, tokenizer, tensors under our names."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert import rows, weight_files
from keras_bert_app.convert.huggingface_families import FAMILIES, Family
from keras_bert_app.convert.huggingface_tokenizer import load_tokenizer, save_tokenizer
from keras_bert_app.convert.pretrained import Pretrained, Tensor
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import LABELLED, Network
from keras_bert_app.text.vocabulary import PAD

# Of the tokenizer's options, those that the files don't state.
UNSTATED = ()
CONFIG = "config.json"
ACTIVATION_NAMES = {"gelu_pytorch_tanh": "gelu_new"}


def load(path: str | Path, tokenizer: Mapping[str, Any] | None = {}) -> Pretrained:
    """Read a folder with config.json, weights and a tokenizer's files, or a .safetensors file in such a one.

    Every tensor is taken, or left out for a stated reason; a head or pooler may be missing. The kind of
    network is told by the tensors, and where they don't tell, by `architectures`.

    Args:
        tokenizer: None: it isn't looked at. Options are refused, as the files state them.

    Raises:
        UserError: a file is missing or broken, the architecture is none of FAMILIES, the tokenizer does what
            ours doesn't, or tensors don't fit; the message names all of them.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    settings, where = weight_files.read_json(folder / CONFIG), folder / CONFIG
    family = find_family(settings, where)
    encoder = encoder_settings(settings, where)
    if path.is_dir():
        files, tensors = weight_files.find_tensors(folder)
    else:
        files, tensors = [path], weight_files.safetensors(path)
    if encoder["num_layers"] > len(tensors):
        raise UserError(f"{where}: {encoder['num_layers']} layers, but {path} has {len(tensors)} tensors")
    network = find_network(family, settings, tensors, where)
    encoder |= _without_pooler(family, network, tensors)
    whole = complete_encoder(EncoderConfig(), encoder)
    found, missing, left_out = rows.match(
        family.theirs(network, whole), tensors, rows.sizes(whole, network), str(path)
    )
    if tokenizer:
        raise UserError(f"--{min(tokenizer)}: {folder} says itself what is done to text")
    vocabulary, options = (None, None) if tokenizer is None else load_tokenizer(folder)
    # Some pad the embedding beyond the vocabulary.
    if vocabulary and len(vocabulary) > encoder["vocabulary_size"]:
        raise UserError(
            f"{vocabulary.where} has {len(vocabulary)} pieces, but {where} says "
            f"{family.keys['vocabulary_size']} {encoder['vocabulary_size']}; the two don't belong together"
        )
    padding = encoder["position_offset"] - 1
    if vocabulary and padding >= 0 and vocabulary.ids[PAD] != padding:
        raise UserError(
            f"{where}: pad_token_id is {padding}, which counts for no position, but {PAD} has the id "
            f"{vocabulary.ids[PAD]} in {vocabulary.where}; the two don't belong together"
        )
    provenance = {
        "path": str(path),
        "class": family.classes[network.kind],
        "sha256": weight_files.sha256(files),
    }
    return Pretrained(network, encoder, vocabulary, options, found, missing, left_out, provenance)


def find_family(settings: Mapping[str, Any], where: Path) -> Family:
    """By model_type; without one it is BERT.

    Raises:
        UserError: another one.
    """
    model_type = settings.get("model_type", "bert")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{where}: model_type is {model_type!r}; it takes one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def encoder_settings(settings: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Their config.json -> the keys of config.EncoderConfig.

    Raises:
        UserError: a key is missing, its value impossible, or a setting asks for another network than ours.
    """
    family = find_family(settings, where)
    for key, allowed in family.fixed.items():
        if settings.get(key) not in allowed:
            raise UserError(f"{where}: {key} is {settings[key]!r}; only {allowed[0]!r} can be loaded")
    missing = [theirs for theirs in family.keys.values() if settings.get(theirs) is None]
    if missing:
        raise UserError(f"{where}: not a BERT configuration, {', '.join(missing)} missing")
    encoder = {ours: settings[theirs] for ours, theirs in family.keys.items()} | family.implied
    encoder["activation"] = ACTIVATION_NAMES.get(str(encoder["activation"]), encoder["activation"])
    if "position_offset" not in encoder:
        # transformers' create_position_ids_from_input_ids
        padding, positions = settings.get("pad_token_id", 1), encoder["max_positions"]
        if type(padding) is not int or type(positions) is not int or padding < 0:
            raise UserError(
                f"{where}: pad_token_id is {padding!r}, max_position_embeddings {positions!r}; "
                "both have to be whole numbers"
            )
        encoder |= {"position_offset": padding + 1, "max_positions": positions - padding - 1}
    try:
        complete_encoder(EncoderConfig(), encoder)
    except UserError as error:
        raise UserError(f"{where}: can't be loaded as it is: {error}") from error
    return encoder


def find_network(
    family: Family, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path
) -> Network:
    """What is on top of the encoder, by the tensors that are there, else by `architectures`.

    Raises:
        UserError: neither tells, or labels can't be what they are said to be.
    """
    names = {family.short_name(name) for name in tensors}
    stated, kinds = settings.get("architectures"), {name: kind for kind, name in family.classes.items()}
    stated = stated if isinstance(stated, list) else []
    stated = [kinds[name] for name in stated if isinstance(name, str) and name in kinds]
    own = {kind: _own_names(family, kind) & names for kind in family.heads}
    most = max(map(len, own.values()))
    candidates = [kind for kind in own if len(own[kind]) == most]
    if not most:
        kind = stated[0] if stated else "encoder"
    elif len(candidates) == 1:
        kind = candidates[0]
    else:
        kind = next((kind for kind in stated if kind in candidates), None)
        if kind is None:
            classes = ", ".join(family.classes[kind] for kind in candidates)
            raise UserError(
                f"{where}: architectures is {settings.get('architectures')!r}, but its weights have a head "
                f'of one of {classes}; write the right one there, such as "architectures": '
                f'["{family.classes[candidates[0]]}"]'
            )
    dropout = settings.get(family.head_dropout.get(kind, ""))
    if kind == "question_answering" and kind not in family.head_dropout:
        dropout = 0.0  # There is none before qa_outputs.
    try:
        return Network(
            kind,
            _labels(family, kind, settings, tensors, where) if kind in LABELLED else (),
            settings.get("problem_type") if kind == "sequence_classification" else None,
            dropout,
            family.masked_activation if kind == "masked_lm" else None,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _own_names(family: Family, kind: str) -> set[str]:
    """Names of a kind's heads, which the encoder of others has not."""
    shared = {row.theirs for row in family.heads["encoder"]}
    return {row.theirs for row in family.heads[kind]} - shared - {"pooler.dense.weight", "pooler.dense.bias"}


def _labels(family, kind, settings, tensors, where) -> tuple[str, ...]:
    """id2label in the order of ids; LABEL_0 and so on where there is none, as transformers."""
    given = settings.get("id2label")
    if given is None:
        bias = next(row.theirs for row in family.heads[kind] if row.ours == "head/logits/bias")
        shapes = [tensor.shape for name, tensor in tensors.items() if family.short_name(name) == bias]
        count = shapes[0][0] if shapes and shapes[0] else 2
        return tuple(f"LABEL_{number}" for number in range(count))
    ids = sorted(given, key=lambda key: (len(str(key)), str(key))) if isinstance(given, dict) else None
    if (
        ids is None
        or [str(key) for key in ids] != [str(number) for number in range(len(ids))]
        or not all(isinstance(label, str) for label in given.values())
        or len(set(given.values())) < len(given)
    ):
        raise UserError(f"{where}: id2label doesn't give each id from 0 on a label of its own")
    return tuple(given[key] for key in ids)


def _without_pooler(family: Family, network: Network, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """An encoder alone may have been saved without pooler; then it is one that needs none."""
    names = {family.short_name(name) for name in tensors}
    if network.kind != "encoder" or any(row.theirs in names for row in family.heads["encoder"]):
        return {}
    return {"pooling": "mean"}


def save(pretrained: Pretrained, folder: Path, max_length: int) -> None:
    """Write config.json, model.safetensors and the tokenizer's files, for transformers' Auto classes.

    Raises:
        UserError: no family can hold the network; says why.
    """
    model_type, family = _family_for(pretrained)
    network = pretrained.network
    encoder = complete_encoder(EncoderConfig(), pretrained.encoder)
    theirs = family.theirs(network, network.encoder(encoder))
    what = f"{family.classes[network.kind]} of transformers"
    tensors = rows.unmatch(theirs.rows, pretrained, rows.sizes(encoder, network), what)
    tensors = {family.full_name(name, network.kind): array for name, array in tensors.items()}
    # transformers takes no file without the framework's name.
    save_file(tensors, folder / weight_files.SAFETENSORS, {"format": "pt"})
    dtype = next(iter(tensors.values())).dtype.name
    settings = _settings(model_type, family, encoder, network, pretrained) | {"dtype": dtype}
    text = json.dumps(dict(sorted(settings.items())), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    if pretrained.vocabulary:
        save_tokenizer(folder, pretrained.vocabulary, pretrained.tokenizer_options, max_length)


def _family_for(pretrained: Pretrained) -> tuple[str, Family]:
    """The first family whose settings can say what the network is.

    Raises:
        UserError: there is none; says what is in the way of each.
    """
    encoder, reasons = complete_encoder(EncoderConfig(), pretrained.encoder), []
    for model_type, family in FAMILIES.items():
        problems = list(_problems(family, encoder, pretrained))
        if not problems:
            return model_type, family
        reasons.append(f"{model_type} has {', '.join(problems)}")
    raise UserError(f"{pretrained.where}: transformers can't hold this network: {'; '.join(reasons)}")


def _problems(family: Family, encoder: EncoderConfig, pretrained: Pretrained) -> Iterator[str]:
    """What the family has, where the network has something else."""
    network, has_pooler = pretrained.network, "encoder/pooler/kernel" in pretrained.tensors
    needed = [row.ours for row in family.heads.get(network.kind, ()) if network.kind != "encoder"]
    if network.kind not in family.classes:
        yield f"no {network.kind} network"
    if "encoder/pooler/kernel" in needed and not has_pooler:
        yield f"a pooler, where this network has config.encoder.pooling {encoder.pooling}"
    for key, value in family.implied.items():
        if getattr(encoder, key) != value and (has_pooler or key != "pooler_activation"):
            yield f"{key} {value!r}, not {getattr(encoder, key)!r}"
    if "embedding_dim" not in family.keys and encoder.embedding_dim not in (None, encoder.hidden_dim):
        yield f"no embedding_dim but hidden_dim, not {encoder.embedding_dim}"
    if "num_segments" in family.keys and encoder.num_segments == 0:
        yield "segments"
    if "position_offset" not in family.implied and encoder.position_offset == 0:
        yield "positions from 1 on at least"
    if encoder.position_type != "learned":
        yield f"learned positions, not {encoder.position_type} ones"
    if "masked_head" in network.heads:
        activation = family.masked_activation or encoder.activation
        if (network.masked_activation or encoder.activation) != activation:
            yield f"{activation} in the head that guesses words"
        if network.masked_epsilon not in (None, encoder.epsilon):
            yield f"epsilon {encoder.epsilon:g} in the head that guesses words"


def _settings(model_type, family, encoder, network, pretrained) -> dict[str, Any]:
    settings = {"model_type": model_type, "architectures": [family.classes[network.kind]]}
    settings |= {theirs: getattr(encoder, ours) for ours, theirs in family.keys.items()}
    if "embedding_size" in settings:
        settings["embedding_size"] = encoder.embedding_dim or encoder.hidden_dim
    if "position_offset" not in family.implied:
        settings["pad_token_id"] = encoder.position_offset - 1
        settings["max_position_embeddings"] = encoder.max_positions + encoder.position_offset
    elif pretrained.vocabulary:
        settings["pad_token_id"] = pretrained.vocabulary.ids[PAD]
    if network.kind in family.head_dropout and network.head_dropout is not None:
        settings[family.head_dropout[network.kind]] = network.head_dropout
    if network.labels:
        settings["id2label"] = {str(number): label for number, label in enumerate(network.labels)}
        settings["label2id"] = {label: number for number, label in enumerate(network.labels)}
    if network.problem_type:
        settings["problem_type"] = network.problem_type
    return settings
