"""Which documents say again what an earlier one said: MinHash over token shingles, tables on disk."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_bert_app.data.array_files import ArrayFile, array_writer

# 21 bands of 6: documents that share 80 % of their shingles meet in a band with probability 0.998.
NUM_BANDS, ROWS_PER_BAND = 21, 6
NUM_HASHES = NUM_BANDS * ROWS_PER_BAND
SHINGLE_TOKENS = 5

EMPTY = np.uint32(0xFFFFFFFF)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BYTES_PER_KEY = 64
_DOCUMENTS_AT_ONCE = 4096
_SIGNED_AT_ONCE = 256  # their tokens fit into a core's cache


def signatures(token_ids: np.ndarray, document_starts: np.ndarray, unknown_id: int) -> np.ndarray:
    """MinHash signatures of documents, uint32 [D, NUM_HASHES], a function of each document alone.

    token_ids: integers [T], documents one after the other; document_starts: [D + 1]. Shingles are 5 tokens in
    a row (Broder 1997), none of them unknown, so that text in a script the vocabulary doesn't have is no
    duplicate of other such text. A document without any gets a row of EMPTY.

    One permutation is cut into bins (Li, Owen and Zhang 2012), and empty bins are filled by rotation
    (Shrivastava and Li 2014), so that the share of equal entries estimates the Jaccard similarity.
    """
    num_documents = len(document_starts) - 1
    result = np.full((num_documents, NUM_HASHES), EMPTY)
    for start, stop in _blocks(num_documents, _SIGNED_AT_ONCE):
        part = document_starts[start : stop + 1]
        result[start:stop] = _signatures(
            token_ids[part[0] : part[-1]].astype(np.uint64), part - part[0], unknown_id
        )
    return result


def _signatures(token_ids: np.ndarray, starts: np.ndarray, unknown_id: int) -> np.ndarray:
    num_documents = len(starts) - 1
    bins = np.full(num_documents * NUM_HASHES, EMPTY)
    num_shingles = len(token_ids) - SHINGLE_TOKENS + 1
    if num_shingles > 0:
        documents = np.repeat(np.arange(num_documents), np.diff(starts))
        usable = documents[:num_shingles] == documents[SHINGLE_TOKENS - 1 :]
        unknown = np.concatenate([[0], np.cumsum(token_ids == unknown_id)])
        usable &= unknown[SHINGLE_TOKENS:] == unknown[:-SHINGLE_TOKENS]
        mixed = _mix(token_ids + np.uint64(1))
        hashes = mixed[:num_shingles].copy()
        for place in range(1, SHINGLE_TOKENS):
            hashes *= _MULTIPLIER
            hashes += mixed[place : place + num_shingles]
        hashes = _mix(hashes)
        hashes = hashes[usable]
        places = (((hashes >> np.uint64(32)) * np.uint64(NUM_HASHES)) >> np.uint64(32)).astype(np.int64)
        values = np.minimum(hashes.astype(np.uint32), EMPTY - np.uint32(1))
        np.minimum.at(bins, documents[:num_shingles][usable] * NUM_HASHES + places, values)
    return _fill_by_rotation(bins.reshape(num_documents, NUM_HASHES))


def _fill_by_rotation(bins: np.ndarray) -> np.ndarray:
    """Give every empty bin the value of the next full one to its right, changed by their distance."""
    columns = np.arange(2 * NUM_HASHES, dtype=np.int32)
    full = np.tile(bins != EMPTY, 2)
    following = np.where(full, columns, 4 * NUM_HASHES)
    following = np.minimum.accumulate(following[:, ::-1], axis=1)[:, ::-1][:, :NUM_HASHES]
    values = np.take_along_axis(bins, following % NUM_HASHES, axis=1)
    distance = (following - columns[:NUM_HASHES]).astype(np.uint32)
    filled = np.minimum(values + distance * np.uint32(0x9E3779B1), EMPTY - np.uint32(1))
    return np.where(full.any(axis=1, keepdims=True), np.where(distance == 0, values, filled), EMPTY)


def find_duplicates(
    contents: np.ndarray,
    signatures: np.ndarray | ArrayFile,
    threshold: float,
    memory_bytes: int,
    folder: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """(exact, near), each bool [D]: the documents that an earlier one makes superfluous.

    contents: uint64 [D], hashes of the documents' text. signatures: uint32 [D, NUM_HASHES], as a file where
    there are many. Near duplicates are those whose signature agrees in `threshold` of its entries with
    that of an earlier document, kept or not (Lee et al. 2022): whether a document goes depends on the
    documents before it alone. Keys are sorted in as many passes as `memory_bytes` asks for; they lie in
    `folder` meanwhile, 168 bytes a document.
    """
    num_documents = len(contents)
    exact, near = np.zeros(num_documents, bool), np.zeros(num_documents, bool)
    everything = np.ones(num_documents, bool)
    for _, later in _equal_keys(contents, everything, memory_bytes):
        exact[later] = True
    if threshold >= 1 or not num_documents:
        return exact, near
    usable = np.zeros(num_documents, bool)
    paths = [folder / f"band-{band}.npy" for band in range(NUM_BANDS)]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(array_writer(path, np.uint64, (num_documents,))) for path in paths]
        for start, stop in _blocks(num_documents):
            usable[start:stop], keys = band_keys(signatures[start:stop])
            for write, band in zip(writers, keys, strict=True):
                write(band)
    for path in paths:
        band = ArrayFile(path)
        for earlier, later in _equal_keys(band, usable & ~exact, memory_bytes):
            open_ = ~near[later]
            earlier, later = earlier[open_], later[open_]
            for start, stop in _blocks(len(later)):
                agree = agreement(signatures[earlier[start:stop]], signatures[later[start:stop]])
                near[later[start:stop][agree >= threshold]] = True
        band.close()
        path.unlink()
    return exact, near


def band_keys(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signatures, uint32 [D, NUM_HASHES] -> (whether there is one, bool [D], keys, uint64 [NUM_BANDS, D]).

    Documents with an equal key in a band may be near duplicates.
    """
    rows = part.reshape(len(part), NUM_BANDS, ROWS_PER_BAND).astype(np.uint64)
    keys = np.zeros((len(part), NUM_BANDS), np.uint64)
    for row in range(ROWS_PER_BAND):
        keys = _mix(keys + rows[:, :, row] + np.uint64(1))
    return part[:, 0] != EMPTY, keys.T


def agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The share of equal entries of signatures [D, NUM_HASHES] and as many others, float [D]."""
    return (one == other).mean(axis=1)


def consecutive(members: Sequence) -> Iterator[tuple]:
    """Documents with equal keys, in order -> the pairs (earlier, later) that are compared.

    Each is compared with the first and with the one before it.
    """
    for number in range(1, len(members)):
        yield members[0], members[number]
        if number > 1:
            yield members[number - 1], members[number]


def _equal_keys(
    keys: np.ndarray | ArrayFile, usable: np.ndarray, memory_bytes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (earlier, later) of documents with equal keys, as `consecutive` gives them, in arrays."""
    num_passes = max(1, -(-len(keys) * _BYTES_PER_KEY // memory_bytes))
    for number in range(num_passes):
        found, found_keys = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for start, stop in _blocks(len(keys), 2**20):
            block = keys[start:stop]
            part = ((block >> np.uint64(32)) * np.uint64(num_passes)) >> np.uint64(32)
            chosen = np.flatnonzero((part == number) & usable[start:stop])
            found.append(start + chosen)
            found_keys.append(block[chosen])
        members, values = np.concatenate(found), np.concatenate(found_keys)
        order = np.argsort(values, kind="stable")
        members, values = members[order], values[order]
        again = np.flatnonzero(values[1:] == values[:-1]) + 1
        new = np.ones(len(values), bool)
        new[again] = False
        firsts = np.maximum.accumulate(np.where(new, np.arange(len(values)), 0))
        yield members[firsts[again]], members[again]
        yield members[again - 1], members[again]


def _blocks(total: int, size: int = _DOCUMENTS_AT_ONCE) -> Iterator[tuple[int, int]]:
    return ((start, min(total, start + size)) for start in range(0, total, size))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), so that near inputs have far outputs."""
    values = values * _MULTIPLIER
    shifted = values >> np.uint64(30)
    values ^= shifted
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= np.right_shift(values, np.uint64(27), out=shifted)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= np.right_shift(values, np.uint64(31), out=shifted)
    return values
