"""Weights and what belongs to them: what every source is turned into, and every format is made from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_bert_app.errors import UserError
from keras_bert_app.model import BertEncoder
from keras_bert_app.model.networks import Network
from keras_bert_app.text.vocabulary import Vocabulary

if TYPE_CHECKING:  # it brings TensorFlow, which tables of rows do without
    from keras_bert_app.text.tokenizer import TokenizerOptions

# Layers that a model may have and weights lack, or the reverse.
OPTIONAL = frozenset({"pooler", "head", "masked_head", "pair_head"})


@dataclass(frozen=True)
class Tensor:
    """An array that is still in its file.

    dtype: NumPy's name of it, or bfloat16. read: gives the array.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Pretrained:
    """A network's weights and what belongs to them.

    encoder: keys of config.EncoderConfig, those that the source states.
    vocabulary: None where the source has a tokenizer of another kind, or none.
    tensors: the path of our variable, such as `encoder/block_0/output/kernel` -> what it is set to.
    missing: paths of heads and pooler that the network has and the source doesn't -> the source's name.
    left_out: the source's tensor name -> why it isn't taken.
    provenance: format, path and the like, ready for JSON.
    """

    network: Network
    encoder: Mapping[str, Any]
    vocabulary: Vocabulary | None
    tokenizer_options: "TokenizerOptions"
    tensors: Mapping[str, Tensor]
    missing: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.provenance.get("path", "the weights"))

    def arrays(self) -> dict[str, np.ndarray]:
        """All tensors, read.

        Raises:
            UserError: some hold NaN or infinity; the message names all of them.
        """
        arrays = {path: tensor.read() for path, tensor in self.tensors.items()}
        refuse_not_finite([path for path in arrays if not np.isfinite(arrays[path]).all()], self.where)
        return arrays


def relative_paths(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """A layer's weights by their path below it, such as `block_0/attention/query/kernel`."""
    return {f"/{weight.path}".split(f"/{layer.name}/", 1)[1]: weight for weight in layer.weights}


def assign(
    model: keras.Model | BertEncoder, pretrained: Pretrained, fresh: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Set a model's weights; nothing is set unless names and shapes fit.

    Args:
        model: what `Network.build` makes, or an encoder alone, built, of whatever name.
        fresh: layers, such as "head" or "pooler", that keep their own values.

    Returns:
        Paths of the weights that keep their own values, and of the tensors left over, heads or a pooler.

    Raises:
        UserError: names every tensor that is missing, left over in the encoder, misshapen or not finite.
    """
    if isinstance(model, BertEncoder):
        weights = {f"encoder/{path}": weight for path, weight in relative_paths(model).items()}
    else:
        weights = {weight.path: weight for weight in model.weights}
    tensors = pretrained.tensors
    layers = {path: layer_of(path) for path in (*weights, *tensors)}
    unknown = sorted(set(fresh) - {layers[path] for path in weights})
    if unknown:
        known = ", ".join(dict.fromkeys(layers[path] for path in weights))
        raise UserError(f"config.fresh has {', '.join(unknown)}, which the model has not; it has {known}")
    kept = [path for path in weights if layers[path] in fresh]
    wanted = [path for path in weights if layers[path] not in fresh]
    absent = [path for path in wanted if path not in tensors]
    over = [path for path in tensors if path not in weights]
    problems = [f"{path} is missing" for path in absent]
    problems += [f"{path} has no place in the model" for path in over if layers[path] not in OPTIONAL]
    problems += [
        f"{path} has shape {list(tensors[path].shape)}, the model's {list(weights[path].shape)}"
        for path in wanted
        if path in tensors and tuple(tensors[path].shape) != tuple(weights[path].shape)
    ]
    if problems:
        names = dict.fromkeys((*fresh, *(layers[path] for path in absent)))
        hint = f'; for fresh ones: --config.fresh="{tuple(names)}"' if OPTIONAL.issuperset(names) else ""
        raise UserError(
            f"{pretrained.where}: the weights don't fit the model: {'; '.join(problems)}{hint * bool(absent)}"
        )
    broken = []
    for path in wanted:
        array = tensors[path].read()
        if not np.isfinite(array).all():
            broken.append(path)
        weights[path].assign(array)
    refuse_not_finite(broken, pretrained.where)
    return kept, over


def refuse_not_finite(paths: Sequence[str], where: str) -> None:
    """Raise UserError if there are any paths, of tensors with NaN or infinity."""
    if paths:
        raise UserError(f"{where}: NaN or infinity in {', '.join(paths)}; get an intact copy")


def layer_of(path: str) -> str:
    """The layer, of the model or its encoder: encoder/pooler/kernel -> pooler, head/logits/bias -> head."""
    return path.removeprefix("encoder/").split("/")[0]
