"""Arrays on disk in pieces: what NumPy reads, and what it would give."""

import numpy as np
import pytest

from keras_bert_app.data.array_files import ArrayFile, array_writer


@pytest.mark.parametrize("shape", [(10,), (10, 3), (0, 2)])
def test_what_is_written_in_parts_is_read_by_numpy_and_in_parts(tmp_path, shape):
    values = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    with array_writer(tmp_path / "a.npy", np.uint32, shape) as write:
        write(values[:4])
        write(values[4:].astype(np.int64))
    loaded, read = np.load(tmp_path / "a.npy"), ArrayFile(tmp_path / "a.npy")
    np.testing.assert_array_equal(loaded, values)
    assert loaded.dtype == read.dtype == np.uint32 and len(read) == len(values)
    for places in (slice(None), slice(2, 7), slice(5, 5), slice(7, 99), slice(-3, None)):
        np.testing.assert_array_equal(read[places], values[places])
    if len(values):
        places = np.array([7, 0, 7])
        np.testing.assert_array_equal(read[places], values[places])
    read.close()


def test_what_numpy_saved_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5, dtype=np.uint16))
    assert ArrayFile(tmp_path / "a.npy")[1:3].tolist() == [1, 2]
