"""TensorFlow checkpoints: their variables by name, whether they were saved by name (1.x) or by object (2.x).

Of a SavedModel only the checkpoint among its variables is read; its graph is a program, which nothing here
loads.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from keras_bert_app.convert.pretrained import Tensor
from keras_bert_app.convert.weight_files import regular_file
from keras_bert_app.errors import UserError

OBJECTS, _VALUE = "_CHECKPOINTABLE_OBJECT_GRAPH", "/.ATTRIBUTES/VARIABLE_VALUE"
# What belongs to an optimizer or a metric, whatever its variables are called.
_NO_WEIGHT = re.compile(r"(.*/)?(\.OPTIMIZER_SLOT|_?optimizer|keras_api/metrics)/.*")
_MAGIC, _FOOTER_BYTES = struct.pack("<Q", 0xDB4775248B80FB57), 48
# BERT-large's with an optimizer's slots has some 100 kB.
_MOST_INDEX_BYTES = 2**26
_MOST_DIMENSIONS = 8


class Checkpoint(NamedTuple):
    """prefix: its path as TensorFlow has it, without .index. folder: of all that belongs to it."""

    prefix: Path
    folder: Path


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of a folder or a SavedModel, or the one that is named by its prefix or one of its files.

    Raises:
        UserError: there is none, or more than one.
    """
    if not path.is_dir():
        prefix = path.with_name(re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name))
        folder = prefix.parent
        return Checkpoint(prefix, folder.parent if folder.name == "variables" else folder)
    found = sorted(path.glob("*.index")) or sorted(path.glob("variables/*.index"))
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
        raise UserError(
            f"{path}: can't read the weights: of checkpoints (*.index) there is {names}; give the path of one"
        )
    return Checkpoint(found[0].with_suffix(""), path)


def read_checkpoint(checkpoint: Checkpoint) -> tuple[list[Path], dict[str, Tensor]]:
    """Its files, the index first, and its variables, none of them read yet.

    What was saved by object has the name that the variable had, or, where that isn't its alone or is an
    optimizer's, the path to it, such as `optimizer/learning_rate`.

    Raises:
        UserError: a file isn't there, or index and data don't fit together.
    """
    prefix = checkpoint.prefix
    index = regular_file(prefix.with_name(f"{prefix.name}.index"), checkpoint.folder)
    if (size := index.stat().st_size) > _MOST_INDEX_BYTES:
        raise UserError(f"{index}: can't read it: it has {size:,} bytes, which no such file has")
    try:
        table = list(_table(index.read_bytes()))
        # The keys of slices are no text.
        entries = {key.decode(errors="backslashreplace"): value for key, value in table}
        if len(entries) < len(table):
            raise ValueError("a key twice")
        header = BundleHeaderProto.FromString(entries.pop(""))
        entries = {key: BundleEntryProto.FromString(value) for key, value in entries.items()}
        dtypes = {key: tf.dtypes.as_dtype(entry.dtype) for key, entry in entries.items()}
    except (DecodeError, KeyError, TypeError, ValueError, IndexError, struct.error) as error:
        raise UserError(f"{index}: can't read the weights: no checkpoint's index, or a broken one") from error
    shapes = {key: tuple(size.size for size in entry.shape.dim) for key, entry in entries.items()}
    problems = [
        text for key, entry in entries.items() if (text := _lie(key, entry, shapes[key], dtypes[key]))
    ]
    if problems:
        raise UserError(f"{index}: can't read the weights: {'; '.join(problems[:5])}")
    files = [index, *_data_files(checkpoint, header, entries)]
    read = _reader(prefix)
    names = {key: key for key in entries if key != OBJECTS}
    if OBJECTS in entries:
        names = _names(prefix, read, names)
    tensors = {
        name: Tensor(shapes[key], dtypes[key].name, lambda key=key: np.asarray(read(key)))
        for name, key in names.items()
    }
    return files, tensors


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted string table, uncompressed (LevelDB's table_format.md).

    TensorFlow reads it too, and checks its sums, but ends the process if a shape in it is impossible.
    """
    if len(data) < _FOOTER_BYTES or not data.endswith(_MAGIC):
        raise ValueError("no table")
    footer, place = data[-_FOOTER_BYTES:], 0
    for _ in range(2):  # where the table's own metadata is
        _, place = _number(footer, place)
    for _, handle in _block(data, footer[place:]):
        yield from _block(data, handle)


def _block(data: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    start, place = _number(handle, 0)
    size, _ = _number(handle, place)
    block = data[start : start + size]
    if len(block) < size or data[start + size]:  # the block's compression
        raise ValueError("no block")
    (restarts,) = struct.unpack("<I", block[-4:])
    key, place, end = b"", 0, size - 4 * (restarts + 1)
    while place < end:
        shared, place = _number(block, place)
        own, place = _number(block, place)
        length, place = _number(block, place)
        key, place = key[:shared] + block[place : place + own], place + own
        yield key, block[place : place + length]
        place += length


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A varint of 64 bits at most, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        number, place = number | (byte & 127) << shift, place + 1
        if byte < 128:
            return number, place
    raise ValueError("no number")


def _lie(key: str, entry: BundleEntryProto, shape: tuple[int, ...], dtype: tf.DType) -> str | None:
    """What can't be true of an entry, or can't be read."""
    if entry.slices:
        return f"{key} is in slices, which can't be joined here; save the variable whole"
    if len(shape) > _MOST_DIMENSIONS or min((*shape, entry.offset, entry.size)) < 0:
        return f"{key} can't have shape {list(shape[:_MOST_DIMENSIONS])} at {entry.offset}"
    count = math.prod(shape)
    # A string takes a byte at least.
    fits = count <= entry.size if dtype in (tf.string, tf.variant) else count * dtype.size == entry.size
    return None if fits else f"{key} can't be {dtype.name} {list(shape)} in {entry.size} bytes"


def _data_files(
    checkpoint: Checkpoint, header: BundleHeaderProto, entries: Mapping[str, BundleEntryProto]
) -> list[Path]:
    """Those that entries are in.

    Raises:
        UserError: one isn't there, or is shorter than the index says.
    """
    prefix, ends = checkpoint.prefix, {}
    for entry in entries.values():
        ends[entry.shard_id] = max(ends.get(entry.shard_id, 0), entry.offset + entry.size)
    files = []
    for shard, end in sorted(ends.items()):
        name = f"{prefix.name}.data-{shard:05d}-of-{header.num_shards:05d}"
        files.append(regular_file(prefix.with_name(name), checkpoint.folder))
        if (size := files[-1].stat().st_size) < end:
            raise UserError(
                f"{files[-1]}: can't read the weights: it has {size:,} bytes, by the index {end:,}; "
                "get an intact copy"
            )
    return files


def _reader(prefix: Path):
    """What gives a tensor for its key, and a UserError if it can't."""

    def broken(error):
        reason = str(getattr(error, "message", error)).split("\n")[0].split(": ", 1)[-1][:200]
        return UserError(f"{prefix}: can't read the weights: {reason}; get an intact copy")

    def read(key):
        try:
            return reader.get_tensor(key)
        except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
            raise broken(error) from error

    try:
        # Unlike load_checkpoint, it never takes the prefix for a folder.
        reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
        raise broken(error) from error
    return read


def _names(prefix: Path, read, keys) -> dict[str, str]:
    """Name -> key, of what was saved by object."""
    try:
        nodes = TrackableObjectGraph.FromString(read(OBJECTS)).nodes
    except (DecodeError, TypeError) as error:
        raise UserError(f"{prefix}: can't read the weights: {OBJECTS} isn't what it should be") from error
    full_names = {value.checkpoint_key: value.full_name for node in nodes for value in node.attributes}
    counts = Counter(full_names.values())
    names = {}
    for key in keys:
        name = full_names.get(key, "")
        # "Variable": it was given no name.
        own = name not in ("", "Variable") and counts[name] == 1 and not _NO_WEIGHT.fullmatch(key)
        name = name if own else key.removesuffix(_VALUE)
        names[key if name in names else name] = key
    return names
