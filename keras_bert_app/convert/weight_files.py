"""Other people's files, opened without trust: nothing in them is run, nothing outside their folder read."""

import hashlib
import importlib.util
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_bert_app.convert.pretrained import Tensor
from keras_bert_app.errors import UserError

SAFETENSORS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
# A multilingual tokenizer.json has some 20 MB.
_MOST_JSON_BYTES = 2**25
# That of BERT-large has 50 kB.
_MOST_HEADER_BYTES = 2**24
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def regular_file(path: Path, root: Path | None = None) -> Path:
    """Give the path back if it is an ordinary file, or a link to one below `root`.

    The links of a Hugging Face cache, whose snapshots are made of them, are taken too.

    Args:
        root: a folder; None: the path's own.

    Raises:
        UserError: it isn't there, is something else, or leads elsewhere.
    """
    root = (root or path.parent).resolve()
    try:
        target = path.resolve(strict=True)
        is_regular = stat.S_ISREG(target.stat().st_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UserError(f"{path}: can't read it: {getattr(error, 'strerror', None) or error}") from error
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in roots):
        raise UserError(f"{path}: can't read it: it is a link that leads out of its folder, to {target}")
    if not is_regular:
        raise UserError(f"{path}: can't read it: it is no ordinary file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file can't be read, is enormous, or holds something else.
    """
    if (size := regular_file(path).stat().st_size) > _MOST_JSON_BYTES:
        raise UserError(f"{path}: can't read it: it has {size:,} bytes, which no such file has")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def find_tensors(folder: Path) -> tuple[list[Path], dict[str, Tensor]]:
    """Files of a Hugging Face folder and their tensors: one file, shards with an index, or a pickle.

    Raises:
        UserError: there are none, or they are broken; see the functions below.
    """
    if os.path.lexists(folder / SAFETENSORS):
        return [folder / SAFETENSORS], safetensors(folder / SAFETENSORS)
    if os.path.lexists(folder / INDEX):
        return sharded(folder / INDEX)
    if os.path.lexists(folder / PICKLE):
        return [folder / PICKLE], pickled(folder / PICKLE)
    raise UserError(f"{folder}: can't read the weights: no {SAFETENSORS}, {INDEX} or {PICKLE}")


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, none of them read yet.

    The file is opened for each anew: what is mapped to memory stays there as long as it is open.

    Raises:
        UserError: the file isn't there, or isn't safetensors from its first byte to its last.
    """

    def read(name):
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    try:
        with open(regular_file(path), "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _MOST_HEADER_BYTES:
            text = f"its header has {header:,} bytes, more than any needs"
            raise UserError(f"{path}: can't read the weights: {text}")
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: Tensor(
                    tuple(part.get_shape()),
                    _DTYPES.get(part.get_dtype(), part.get_dtype()),
                    lambda name=name: read(name),
                )
                for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't read the weights: {error}") from error


def refuse_bloated(tensors: Mapping[str, Tensor], num_bytes: int, where: Path) -> None:
    """Raise UserError if a tensor is larger than the files that should hold it, and maybe than memory."""
    too_large = [name for name, tensor in tensors.items() if math.prod(tensor.shape) > num_bytes]
    if too_large:
        names = ", ".join(sorted(too_large))
        raise UserError(f"{where}: can't read the weights: it has {num_bytes:,} bytes, too few for {names}")


def sharded(path: Path) -> tuple[list[Path], dict[str, Tensor]]:
    """Shards and their tensors, by an index with the shard of each tensor.

    Raises:
        UserError: the index is broken, names files elsewhere, or disagrees with the shards.
    """
    names = read_json(path).get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path}: can't read the weights: weight_map isn't a file's name for each tensor")
    for name in set(names.values()):
        beside(path, name, ".safetensors")
    shards = {name: safetensors(path.parent / name) for name in sorted(set(names.values()))}
    tensors, problems = {}, []
    for shard, found in shards.items():
        problems += [f"{name} is in {shard}, unlisted" for name in found if names.get(name) != shard]
        tensors |= found
    problems += [f"{name} isn't in {shard}" for name, shard in names.items() if name not in shards[shard]]
    if problems:
        raise UserError(f"{path}: the index disagrees with the shards: {'; '.join(sorted(problems))}")
    return [path.parent / name for name in shards], tensors


def beside(index: Path, name: Any, suffix: str) -> Path:
    """The path of a file that an index names.

    Raises:
        UserError: it has another suffix than such as ".safetensors", or isn't beside the index.
    """
    if (
        not isinstance(name, str)
        or PurePosixPath(name).name != name
        or "\\" in name
        or not name.endswith(suffix)
    ):
        raise UserError(f"{index}: can't read the weights: {name!r} is no {suffix[1:]} file beside the index")
    return index.parent / name


def pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model.bin, by PyTorch's loader that takes tensors alone and runs nothing.

    Raises:
        UserError: PyTorch isn't installed, or the file holds anything else.
    """
    regular_file(path)
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{path} is a pickle, which only PyTorch can read without running what is inside; "
            "pip install 'keras_bert_app[peers]', or get the weights as model.safetensors"
        )
    import torch

    try:
        # Of the older format nothing can be mapped.
        mapped = zipfile.is_zipfile(path)
        if mapped:
            with zipfile.ZipFile(path) as archive:
                if any(info.compress_type for info in archive.infolist()):
                    raise ValueError("it is compressed, as PyTorch's own are not")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # A broken pickle makes it raise anything.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise UserError(
            f"{path}: can't read the weights: it holds more than tensors, or is broken ({reason}); "
            "get them as model.safetensors"
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise UserError(f"{path}: can't read the weights: it holds more than tensors by name")
    tensors = {
        name: Tensor(
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            lambda tensor=tensor: _numpy(tensor),
        )
        for name, tensor in content.items()
    }
    refuse_bloated(tensors, path.stat().st_size, path)
    return tensors


def _numpy(tensor) -> np.ndarray:
    # NumPy alone knows no bfloat16.
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def sha256(paths: Iterable[Path]) -> str:
    """SHA-256 of the files one after the other, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()
