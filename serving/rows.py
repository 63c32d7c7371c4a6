"""Batches of inputs out, rows of outputs back: what both clients do around their calls, on NumPy alone."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def text_inputs(texts, text_pairs):
    """The inputs of a signature of texts; raises TypeError for a string in place of a list."""
    if isinstance(texts, (str, bytes)) or isinstance(text_pairs, (str, bytes)):
        raise TypeError("texts is a list of strings, not one string")
    inputs = {"text": list(texts)}
    if text_pairs is not None:
        inputs["text_pair"] = list(text_pairs)
    return inputs


def batches(inputs, size):
    """Cut inputs {name: list or array of N rows} into such of at most `size` rows, as an iterator.

    Raises ValueError where they differ in length.
    """
    lengths = {name: len(values) for name, values in inputs.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"inputs differ in their number of rows: {said}")
    total = max(lengths.values(), default=0)
    return (
        {name: values[start : start + size] for name, values in inputs.items()}
        for start in range(0, total, size)
    )


def in_order(call, requests, concurrency):
    """[call(request), ...], up to `concurrency` of them at once in threads; the first error ends it."""
    requests = list(requests)
    if len(requests) < 2 or concurrency == 1:
        return [call(request) for request in requests]
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(call, requests))


def sendable(values):
    """Values to send as an array: strings, alone or in (nested) lists or arrays, as objects that are bytes.

    Strings become UTF-8, escaped surrogates (as the command line has them) the bytes that they stand for.
    Raises TypeError for strings among other values, and for lists of unequal length.
    """
    first = values
    while isinstance(first, (list, tuple)) and len(first):
        first = first[0]
    # As objects: NumPy's own strings take the longest one's room for each, and drop NULs at the end.
    is_texts = isinstance(first, (str, bytes, list, tuple))
    array = np.asarray(values, object if is_texts else None)
    if array.dtype.kind not in "USO":
        return array
    flat = array.ravel().tolist()
    if not (is_texts or isinstance(values, np.ndarray)) or not all(isinstance(t, (str, bytes)) for t in flat):
        raise TypeError("strings among other values, or lists of unequal length, cannot be sent")
    encoded = np.empty(array.size, object)
    encoded[:] = [text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text for text in flat]
    return encoded.reshape(array.shape)


def rows(outputs):
    """A dict for each row of outputs {name: array [B, ...]}, with values as JSON has them.

    Raises ValueError for outputs that don't have one entry a row.
    """
    if len({array.shape[:1] or None for array in outputs.values()} | {None}) != 2:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise ValueError(f"the outputs don't have an entry for each row ({shapes}); use run()")
    columns = [_plain(array.tolist()) for array in outputs.values()]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]


def joined(parts, count):
    """The rows of several batches in one list; raises ValueError where they aren't `count`."""
    found = list(itertools.chain.from_iterable(parts))
    if len(found) != count:
        raise ValueError(f"{count} rows were sent and {len(found)} came back; use run()")
    return found


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
