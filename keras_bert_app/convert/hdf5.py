"""Other people's HDF5 files, such as Keras' weights, opened without trust."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np

from keras_bert_app.convert.pretrained import Tensor
from keras_bert_app.convert.weight_files import regular_file
from keras_bert_app.errors import UserError

# A dataset in a KerasHub task's backbone is 8 deep. HDF5 takes minutes for thousands.
_MOST_DEPTH = 16
# Keras' mark of two opaque bytes.
_BFLOAT16 = ("void16", "bfloat16")


def read_h5(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The datasets of an HDF5 file by their paths, none of them read yet.

    Links to elsewhere aren't followed, and no dataset is taken that is compressed, in other files or larger
    than what is stored of it.

    Args:
        prefix: stands before the paths.

    Raises:
        UserError: the file isn't there or is broken, or a dataset isn't whole in it.
    """
    size, tensors, num_bytes = regular_file(path).stat().st_size, {}, 0

    def visit(name, item):
        nonlocal num_bytes
        if isinstance(name, bytes) or not name.isprintable() or name.count("/") > _MOST_DEPTH:
            raise ValueError(f"{name[:200]!r} is no name of weights")
        if isinstance(item, h5py.Dataset):
            is_elsewhere = item.shape is None or item.external or item.is_virtual
            if is_elsewhere or item.id.get_storage_size() < item.nbytes:
                raise ValueError(f"{name} isn't whole in it")
            num_bytes += item.nbytes
            tensors[prefix + name] = _tensor(path, name, item)

    with _opened(path) as file:
        file.visititems(visit)
        if num_bytes > size:
            raise ValueError(f"it has {size:,} bytes, its datasets {num_bytes:,}")
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path) as file:
            yield file
    except Exception as error:  # A broken file makes it raise anything.
        raise UserError(f"{path}: can't read the weights: {ascii(str(error)[:300])[1:-1]}") from error


def _tensor(path: Path, name: str, dataset: h5py.Dataset) -> Tensor:
    dtype, mark = _BFLOAT16
    is_bfloat16 = dataset.dtype.name == dtype and dataset.attrs.get("dtype") == mark

    def read():
        with _opened(path) as file:
            array = np.asarray(file[name])
        return array.view(ml_dtypes.bfloat16) if is_bfloat16 else array

    return Tensor(dataset.shape, mark if is_bfloat16 else dataset.dtype.name, read)
