"""Duplicates found by sketches against the Jaccard similarity of the shingles themselves."""

import numpy as np
import pytest

from keras_bert_app.data.duplicates import EMPTY, NUM_HASHES, SHINGLE_TOKENS, find_duplicates, signatures

UNKNOWN = 1


def sketch(documents):
    starts = np.cumsum([0] + [len(document) for document in documents])
    return signatures(np.concatenate([np.zeros(0, int), *documents]), starts, UNKNOWN)


def jaccard(first, second):
    first, second = (
        {tuple(tokens[i : i + SHINGLE_TOKENS]) for i in range(len(tokens) - SHINGLE_TOKENS + 1)}
        for tokens in (first.tolist(), second.tolist())
    )
    return len(first & second) / len(first | second)


def changed(tokens, num_changes, random):
    tokens = tokens.copy()
    places = random.choice(len(tokens), num_changes, replace=False)
    tokens[places] = random.integers(20_000, 30_000, num_changes)
    return tokens


def find(documents, tmp_path, threshold=0.8, memory_bytes=2**30, contents=None):
    contents = np.arange(len(documents), dtype=np.uint64) if contents is None else contents
    return find_duplicates(contents, sketch(documents), threshold, memory_bytes, tmp_path)


@pytest.fixture
def random():
    return np.random.default_rng(3)


@pytest.mark.parametrize("length", [30, 300, 3000])
def test_equal_entries_estimate_the_jaccard_similarity(random, length):
    errors = []
    for num_changes in [0, 1, 2, length // 50, length // 20, length // 10] * 5:
        first = random.integers(2, 20_000, length)
        second = changed(first, num_changes, random)
        one, other = sketch([first, second])
        errors.append((one == other).mean() - jaccard(first, second))
    assert abs(np.mean(errors)) < 0.03
    assert np.sqrt(np.mean(np.square(errors))) < 0.08


def test_a_signature_depends_on_its_document_alone(random):
    documents = [random.integers(2, 20_000, length) for length in (50, 4, 0, 700, 5, 50)]
    together = sketch(documents)
    for document, signature in zip(documents, together, strict=True):
        np.testing.assert_array_equal(sketch([document])[0], signature)


def test_documents_without_known_shingles_have_no_signature(random):
    unknown = np.full(50, UNKNOWN)
    one_in_four = np.where(np.arange(50) % 4 == 0, UNKNOWN, random.integers(2, 20_000, 50))
    assert (sketch([unknown, one_in_four, np.arange(2, 6), np.zeros(0, int)]) == EMPTY).all()


def test_near_duplicates_of_an_earlier_document_go_and_others_stay(random, tmp_path):
    originals = [random.integers(2, 20_000, 400) for _ in range(50)]
    near = [changed(document, 4, random) for document in originals]
    far = [changed(document, 60, random) for document in originals]
    exact, found = find([*originals, *near, *far], tmp_path)
    assert not exact.any()
    assert found.tolist() == [False] * 50 + [True] * 50 + [False] * 50
    assert not list(tmp_path.iterdir())


def test_near_duplicates_can_be_kept(random, tmp_path):
    document = random.integers(2, 20_000, 400)
    assert not np.any(find([document, changed(document, 1, random)], tmp_path, threshold=1))


def test_documents_of_unknown_words_are_no_near_duplicates(tmp_path):
    assert not np.any(find([np.full(50, UNKNOWN), np.full(60, UNKNOWN)], tmp_path))


def test_of_equal_contents_the_first_stays(random, tmp_path):
    contents = np.array([7, 8, 7, 9, 7, 8], np.uint64)
    documents = [random.integers(2, 20_000, 3) for _ in contents]
    exact, near = find(documents, tmp_path, contents=contents)
    assert exact.tolist() == [False, False, True, False, True, True] and not near.any()


def test_little_memory_finds_the_same(random, tmp_path):
    documents = [random.integers(2, 20_000, 100) for _ in range(300)]
    documents += [changed(document, random.integers(0, 8), random) for document in documents]
    whole, in_passes = find(documents, tmp_path), find(documents, tmp_path, memory_bytes=5000)
    np.testing.assert_array_equal(whole, in_passes)
    assert 0 < whole[1].sum() < 300


def test_no_documents_have_no_duplicates(tmp_path):
    exact, near = find([], tmp_path)
    assert len(exact) == len(near) == 0
    assert sketch([]).shape == (0, NUM_HASHES)
