"""How tables of rows turn other people's tensors into ours and back, with everything checked.

A row is (our path, their name, their shape, what is done). Shapes are letters, see `sizes`: "HF" is
[hidden_dim, intermediate_dim].
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_bert_app.config import EncoderConfig
from keras_bert_app.convert.pretrained import OPTIONAL, Pretrained, Tensor, layer_of
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import Network

FLOATS = ("float16", "bfloat16", "float32", "float64")
_MOST_NAMES = 1000
_PROBLEMS = ("unknown", "missing", "doubled", "misshapen", "no floating type", "not tied")


class Transform(NamedTuple):
    """ours: their array -> ours. theirs: our array and their shape -> theirs. Neither does arithmetic."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


SAME = Transform(lambda array: array, lambda array, shape: array)
# PyTorch's linear layers hold [out, in], Keras' dense layers [in, out].
TRANSPOSED = Transform(lambda array: array.T, lambda array, shape: array.T)
# Where heads have an axis of their own: kernels [in, N, D] and [N, D, out], biases [N, D].
HEADS_OUT = Transform(lambda array: array.reshape(len(array), -1), lambda array, shape: array.reshape(shape))
HEADS_IN = Transform(
    lambda array: array.reshape(-1, array.shape[-1]), lambda array, shape: array.reshape(shape)
)
HEADS_BIAS = Transform(lambda array: array.reshape(-1), lambda array, shape: array.reshape(shape))


class Row(NamedTuple):
    """One variable."""

    ours: str
    theirs: str
    shape: str
    transform: Transform = SAME


class Tie(NamedTuple):
    """A tensor that is another one again: written never, read only to see that it is equal."""

    name: str
    same_as: str


class Theirs(NamedTuple):
    """What match is given of a format.

    rows: of all that the network has, those of OPTIONAL layers included. ties: tensors that may stand there
    twice. left_out: pattern of names that aren't taken -> the reason that the user is told. rename: a name in
    the file -> the name in rows, ties and left_out.
    """

    rows: Sequence[Row]
    ties: Sequence[Tie] = ()
    left_out: Mapping[str, str] = {}
    rename: Callable[[str], str] = str


def blocks(rows: Sequence[Row], num_layers: int) -> list[Row]:
    """Rows in which {i} stands for the number of the block, for each block."""
    return [
        row._replace(ours=row.ours.format(i=i), theirs=row.theirs.format(i=i))
        for i in range(num_layers)
        for row in rows
    ]


def sizes(encoder: EncoderConfig, network: Network) -> dict[str, int]:
    """What the letters of shapes stand for; see features.py for those of the house.

    M: rows of the position table. G: segments. E: width of the embeddings. O: outputs of the layer `head`.
    1, 2: themselves.
    """
    return {
        "V": encoder.vocabulary_size,
        "H": encoder.hidden_dim,
        "F": encoder.intermediate_dim,
        "M": encoder.max_positions + (encoder.position_offset or 0),
        "G": encoder.num_segments,
        "E": encoder.embedding_dim or encoder.hidden_dim,
        "N": encoder.num_heads,
        "D": encoder.hidden_dim // encoder.num_heads,
        "O": network.num_outputs,
        "1": 1,
        "2": 2,
    }


def match(
    theirs: Theirs, tensors: Mapping[str, Tensor], letters: Mapping[str, int], where: str
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Find each row's tensor; nothing is read but tensors that may stand there twice.

    Returns:
        Our path -> tensor that gives ours; `missing` and `left_out` as Pretrained has them.

    Raises:
        UserError: one message with every tensor that is unknown, missing, doubled, misshapen, of no floating
            type, or differs from the one it should be tied to.
    """
    rows = {row.theirs: row for row in theirs.rows}
    ties = {tie.name: tie.same_as for tie in theirs.ties}
    problems: dict[str, list[str]] = {kind: [] for kind in _PROBLEMS}
    named, left_out = {}, {}
    for full_name in sorted(tensors):
        name = theirs.rename(full_name)
        reason = next((why for pattern, why in theirs.left_out.items() if re.fullmatch(pattern, name)), None)
        if reason:
            left_out[full_name] = reason
        elif name in named:
            problems["doubled"].append(f"{full_name} is {named[name]} again")
        elif name in rows or name in ties:
            named[name] = full_name
        else:
            problems["unknown"].append(full_name)
    for name, same_as in ties.items():
        if name in named and same_as not in named:
            named[same_as] = named.pop(name)
    missing = {row.ours: name for name, row in rows.items() if name not in named}
    problems["missing"] = [name for ours, name in missing.items() if layer_of(ours) not in OPTIONAL]
    for name, full_name in named.items():
        tensor, row = tensors[full_name], rows[ties.get(name, name)]
        shape = tuple(letters[letter] for letter in row.shape)
        if tensor.dtype not in FLOATS:
            problems["no floating type"].append(f"{full_name} is {tensor.dtype}")
        elif tuple(tensor.shape) != shape:
            text = f"{full_name} has shape {list(tensor.shape)}, by the configuration {list(shape)}"
            problems["misshapen"].append(text)
    if not any(problems.values()):
        problems["not tied"] = [
            f"{named[name]} isn't {named[same_as]} again"
            for name, same_as in ties.items()
            if name in named
            and not np.array_equal(tensors[named[name]].read(), tensors[named[same_as]].read())
        ]
    if any(problems.values()):
        text = "; ".join(f"{kind}: {_listed(each)}" for kind, each in problems.items() if each)
        raise UserError(f"{where}: the tensors aren't those of the network; {text}")
    found = {rows[name].ours: _ours(tensors[named[name]], rows[name]) for name in rows if name in named}
    return found, missing, left_out


def _listed(names: Sequence[str]) -> str:
    """All of them on one line; of a hostile file's millions the first, BERT-large having 400."""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    text = ", ".join(names[:_MOST_NAMES]) + more
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _ours(tensor: Tensor, row: Row) -> Tensor:
    def read():
        return np.ascontiguousarray(row.transform.ours(tensor.read()), "float32")

    shape = row.transform.ours(np.broadcast_to(np.float32(0), tensor.shape)).shape
    return Tensor(shape, "float32", read)


def unmatch(
    rows: Sequence[Row], pretrained: Pretrained, letters: Mapping[str, int], what: str
) -> dict[str, np.ndarray]:
    """All tensors as theirs, by their names.

    Args:
        what: the format's name, for messages.

    Raises:
        UserError: one message with every tensor that the format has no place for, that is missing or has
            another shape there, NaN or infinity.
    """
    arrays = pretrained.arrays()
    problems = [f"it has no {path}" for path in sorted(arrays.keys() - {row.ours for row in rows})]
    result = {}
    for row in rows:
        shape = tuple(letters[letter] for letter in row.shape)
        if row.ours not in arrays:
            problems.append(f"{row.ours} is missing")
            continue
        array = arrays[row.ours]
        if array.size != math.prod(shape):
            problems.append(f"{row.ours} has shape {list(array.shape)}, in it {row.theirs} {list(shape)}")
            continue
        result[row.theirs] = np.ascontiguousarray(row.transform.theirs(array, shape))
        if result[row.theirs].shape != shape:
            problems.append(f"{row.ours} has shape {list(array.shape)}, in it {row.theirs} {list(shape)}")
    if problems:
        raise UserError(f"{pretrained.where}: {what} can't hold this network: {'; '.join(problems)}")
    return result
