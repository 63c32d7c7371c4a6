"""Weights to start from: what every source is turned into, and how it enters a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Pretrained:
    """An encoder's weights and what belongs to them.

    encoder: keys of config.EncoderConfig, those that the source states.
    tensors: our variable path below the encoder -> float32 array.
    left_out: the source's tensor name -> why it isn't taken.
    """

    encoder: Mapping[str, Any]
    vocabulary: Vocabulary
    tokenizer_options: TokenizerOptions
    tensors: Mapping[str, np.ndarray]
    left_out: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def relative_paths(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """A layer's weights by their path below it, such as `block_0/attention/query/kernel`."""
    return {f"/{weight.path}".split(f"/{layer.name}/", 1)[1]: weight for weight in layer.weights}


def assign(
    layer: keras.layers.Layer, tensors: Mapping[str, np.ndarray], where: str, optional: tuple[str, ...] = ()
):
    """Set a layer's weights from `tensors`; nothing is set unless everything fits.

    Args:
        optional: prefixes of paths that may be missing on either side.

    Raises:
        UserError: names every tensor that is missing, left over or misshapen.
    """
    weights = relative_paths(layer)
    problems = [f"{path} is missing" for path in sorted(weights.keys() - tensors.keys())]
    problems += [f"{path} has no place in the model" for path in sorted(tensors.keys() - weights.keys())]
    problems = [problem for problem in problems if not problem.startswith(optional)]
    common = sorted(weights.keys() & tensors.keys())
    problems += [
        f"{path} has shape {list(tensors[path].shape)}, the model's {list(weights[path].shape)}"
        for path in common
        if tuple(tensors[path].shape) != tuple(weights[path].shape)
    ]
    if problems:
        raise UserError(f"{where}: the weights don't fit the model: {'; '.join(problems)}")
    for path in common:
        weights[path].assign(tensors[path])
