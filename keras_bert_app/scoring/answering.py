"""Texts -> answers, through a signature that takes strings: a bundle's, or the one a run's would have."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.data.batches import evaluation_order
from keras_bert_app.errors import UserError
from keras_bert_app.export.bundle import BUNDLE_FILE, EXTRA
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training.workdir import read_json

SIGNATURE = "serving_default"
_BATCH = 64
_TEXTS_PACKED_AT_ONCE = 1024


class Answerer:
    """Asks a signature about many texts.

    Args:
        signature: a concrete function, texts as string [B] each -> {name: [B, ...]}.
        packer: the text side of the same model; says how many tokens it will see of a text.
        owner: what holds the variables that it reads.
        name: of it, for messages.

    Raises:
        UserError: it takes anything but texts.
    """

    def __init__(self, signature: Any, packer: TextPacker, owner: Any, name: str):
        specs = signature.structured_input_signature[1]
        self.inputs = tuple(each for each in (features.TEXT, features.TEXT_PAIR) if each in specs)
        if specs.keys() != set(self.inputs) or any(spec.dtype != tf.string for spec in specs.values()):
            raise UserError(
                f"{name} takes {', '.join(f'{each} {spec.dtype.name}' for each, spec in specs.items())}; "
                f"predict asks about {features.TEXT}, and maybe {features.TEXT_PAIR}, which are strings"
            )
        self._signature, self._packer, self._owner = signature, packer, owner

    def answers(self, texts: Sequence[Mapping[str, bytes]]) -> list[dict[str, Any]]:
        """One row of named values a text; they depend on the texts of the same call in the last digits alone.

        Texts of about as many tokens are asked about together, so that little of a batch is padding.
        """
        answers: list[dict[str, Any]] = [{}] * len(texts)
        for rows in evaluation_order(self._num_tokens(texts), _BATCH):
            batch = self._columns([texts[row] for row in rows])
            outputs = {name: value.numpy() for name, value in sorted(self._signature(**batch).items())}
            for place, row in enumerate(rows):
                answers[row] = {name: _plain(values[place]) for name, values in outputs.items()}
        return answers

    def lines(self, texts: Sequence[Mapping[str, bytes]]) -> bytes:
        """The answers as JSON, a line each, in UTF-8."""
        rows = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in self.answers(texts))
        return "".join(rows).encode("utf-8")

    def _num_tokens(self, texts: Sequence[Mapping[str, bytes]]) -> np.ndarray:
        lengths = [np.zeros(0, int)]
        for start in range(0, len(texts), _TEXTS_PACKED_AT_ONCE):
            columns = self._columns(texts[start : start + _TEXTS_PACKED_AT_ONCE])
            lengths.append(self._packer.pack(list(columns.values()))[0].row_lengths().numpy())
        return np.concatenate(lengths)

    def _columns(self, texts: Sequence[Mapping[str, bytes]]) -> dict[str, tf.Tensor]:
        return {name: tf.constant([row[name] for row in texts]) for name in self.inputs}


def load_bundle(path: Path) -> Answerer:
    """A bundle's version, ready to answer.

    Raises:
        UserError: run.py export didn't write it, it can't be loaded, or has no signature that takes texts.
    """
    packer = _load_packer(path / EXTRA)
    try:
        bundle = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{path}: TensorFlow can't load it: {' '.join(str(error).split())}") from error
    if SIGNATURE not in bundle.signatures:
        raise UserError(f"{path} has no signature {SIGNATURE}; there is {', '.join(bundle.signatures)}")
    return Answerer(bundle.signatures[SIGNATURE], packer, bundle, f"{path}: {SIGNATURE}")


def _load_packer(folder: Path) -> TextPacker:
    """What a bundle's graph does to texts, from what the bundle says of it."""
    described = read_json(folder / BUNDLE_FILE, f"{folder.parent} is no bundle that run.py export wrote")
    settings = described["tokenizer"]
    options = {field.name: settings[field.name] for field in dataclasses.fields(TokenizerOptions)}
    tokenizer = BertTokenizer(Vocabulary.load(folder / "vocab.txt"), TokenizerOptions(**options))
    return TextPacker(tokenizer, settings["max_length"], settings["truncation"])


def _plain(value: Any) -> Any:
    """A NumPy value as JSON has it; bytes are UTF-8."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else np.asarray(value).tolist()
