"""Texts -> answers, through a signature that takes strings: a bundle's, or the one a run's would have."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops of tokenizers

from keras_bert_app import features
from keras_bert_app.data.batches import evaluation_order
from keras_bert_app.errors import UserError

SIGNATURE = "serving_default"
_BATCH = 64


class Answerer:
    """Asks a signature about many texts.

    Args:
        signature: a concrete function, texts as string [B] each -> {name: [B, ...]}.
        owner: what holds the variables that it reads.
        name: of it, for messages.

    Raises:
        UserError: it takes anything but texts.
    """

    def __init__(self, signature: Any, owner: Any, name: str):
        specs = signature.structured_input_signature[1]
        self.inputs = tuple(each for each in (features.TEXT, features.TEXT_PAIR) if each in specs)
        if specs.keys() != set(self.inputs) or any(spec.dtype != tf.string for spec in specs.values()):
            raise UserError(
                f"{name} takes {', '.join(f'{each} {spec.dtype.name}' for each, spec in specs.items())}; "
                f"predict asks about {features.TEXT}, and maybe {features.TEXT_PAIR}, which are strings"
            )
        self._signature, self._owner = signature, owner

    def answers(self, texts: Sequence[Mapping[str, bytes]]) -> list[dict[str, Any]]:
        """One row of named values a text; they depend on the texts of the same call in the last digits alone.

        Texts of similar size are asked about together, so that little of a batch is padding.
        """
        sizes = np.array([sum(map(len, row.values())) for row in texts], int)
        answers: list[dict[str, Any]] = [{}] * len(texts)
        for rows in evaluation_order(sizes, _BATCH):
            batch = {name: tf.constant([texts[row][name] for row in rows]) for name in self.inputs}
            outputs = {name: value.numpy() for name, value in sorted(self._signature(**batch).items())}
            for place, row in enumerate(rows):
                answers[row] = {name: _plain(values[place]) for name, values in outputs.items()}
        return answers

    def lines(self, texts: Sequence[Mapping[str, bytes]]) -> bytes:
        """The answers as JSON, a line each, in UTF-8."""
        rows = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in self.answers(texts))
        return "".join(rows).encode("utf-8")


def load_bundle(path: Path) -> Answerer:
    """A bundle's version, ready to answer.

    Raises:
        UserError: it can't be loaded, or has no signature that takes texts.
    """
    try:
        bundle = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{path}: TensorFlow can't load it: {' '.join(str(error).split())}") from error
    if SIGNATURE not in bundle.signatures:
        raise UserError(f"{path} has no signature {SIGNATURE}; there is {', '.join(bundle.signatures)}")
    return Answerer(bundle.signatures[SIGNATURE], bundle, f"{path}: {SIGNATURE}")


def _plain(value: Any) -> Any:
    """A NumPy value as JSON has it; bytes are UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else np.asarray(value).tolist()
