"""NumPy's .npy files written and read in pieces, where mapping them would fill memory with their pages."""

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy


class ArrayFile:
    """An array on disk: len, and slices or integer arrays as index of the first axis, give copies."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            npy.read_magic(file)
            shape, _, self.dtype = npy.read_array_header_1_0(file)
            self._start = file.tell()
        self._descriptor = os.open(path, os.O_RDONLY)
        # Called by hand, or when nobody has the array any more.
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self._length, self._row_shape = shape[0], shape[1:]
        self._row_bytes = self.dtype.itemsize * int(np.prod(self._row_shape))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            start, stop, _ = places.indices(self._length)
            content = self.read(start, max(start, stop))
        else:
            content = b"".join(self.read(place, place + 1) for place in places.tolist())
        return np.frombuffer(content, self.dtype).reshape(-1, *self._row_shape)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of rows [start, stop), which are there; at a third of the cost of a slice."""
        return os.pread(
            self._descriptor, (stop - start) * self._row_bytes, self._start + start * self._row_bytes
        )


@contextmanager
def array_writer(
    path: Path, dtype: np.typing.DTypeLike, shape: Sequence[int]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an array of that dtype and shape in parts: what this yields takes them one after the other."""
    dtype = np.dtype(dtype)
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, header)
        yield lambda part: file.write(np.ascontiguousarray(part, dtype).data)
