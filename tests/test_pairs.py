"""Next-sentence pairs: half of them random, none of those from one document, nothing of the text lost."""

import numpy as np
import pytest

from keras_bert_app.data.pairs import (
    DIFFERS,
    FOLLOWS,
    NO_LABEL,
    PrepareOptions,
    complete,
    pack_documents,
    plan_examples,
)
from keras_bert_app.data.tokenized import TokenizedDocuments
from keras_bert_app.errors import UserError

MAX_LENGTH = 32


def corpus(sentences_per_document, random, longest=12):
    """Documents of sentences of random lengths; a token is its own place, so that spans can be told apart."""
    document_starts = np.cumsum([0, *sentences_per_document])
    sentence_starts = np.cumsum([0, *random.integers(1, longest, document_starts[-1])])
    digests = random.integers(0, 2**63, (len(sentences_per_document), 2)).astype(np.uint64)
    return TokenizedDocuments(np.arange(sentence_starts[-1]), sentence_starts, document_starts, digests)


def document_examples(documents, number, options):
    bounds, digest = documents.token_bounds(number), documents.digest(number)
    for plan in plan_examples(bounds, digest, number, len(documents), options):
        yield complete(plan, () if plan.partner is None else documents.token_bounds(plan.partner))


def examples_of(documents, objective="nsp", max_length=MAX_LENGTH, short_fraction=0.1, seed=0):
    """(document, spans) of all documents."""
    options = PrepareOptions(objective, short_fraction, max_length=max_length, seed=seed)
    return [
        (number, spans)
        for number in range(len(documents))
        for spans in document_examples(documents, number, options)
    ]


def length(spans):
    return spans.first_end - spans.first + spans.second_end - spans.second


def range_of(documents, number):
    bounds = documents.token_bounds(number)
    return bounds[0], bounds[-1]


@pytest.fixture(scope="module")
def documents():
    random = np.random.default_rng(0)
    return corpus(random.integers(2, 40, 12_000), random)


@pytest.fixture(scope="module")
def pairs(documents):
    return examples_of(documents)


def test_half_of_the_pairs_are_random(documents, pairs):
    labels = np.array([spans.label for _, spans in pairs])
    assert len(labels) > 70_000 and len(documents.tokens) > 1_000_000
    assert set(labels) == {FOLLOWS, DIFFERS}
    assert abs((labels == DIFFERS).mean() - 0.5) < 0.005


@pytest.mark.parametrize("num_sentences", [2, 3, 5])
def test_half_are_random_in_short_documents_too(num_sentences):
    random = np.random.default_rng(num_sentences)
    labels = [spans.label for _, spans in examples_of(corpus([num_sentences] * 8000, random, longest=30))]
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels))


def test_no_random_pair_is_from_one_document_and_all_others_are(documents, pairs):
    for number, spans in pairs:
        start, end = range_of(documents, number)
        assert start <= spans.first < spans.first_end <= end
        inside = start <= spans.second < end
        assert inside == (spans.label == FOLLOWS)
        assert spans.second < spans.second_end


def test_a_second_span_is_from_one_document(documents, pairs):
    starts = documents.sentence_starts[documents.document_starts]
    for _, spans in pairs[:5000]:
        owner = np.searchsorted(starts, [spans.second, spans.second_end - 1], side="right")
        assert owner[0] == owner[1]


def test_a_following_span_comes_after_the_first(documents, pairs):
    for _, spans in pairs[:5000]:
        if spans.label == FOLLOWS:
            assert spans.first_end <= spans.second
            assert spans.first_end == spans.second or length(spans) == MAX_LENGTH - 3


def test_every_pair_fits_and_most_are_nearly_full(pairs):
    lengths = np.array([length(spans) for _, spans in pairs])
    assert lengths.max() <= MAX_LENGTH - 3
    assert (lengths > MAX_LENGTH * 0.6).mean() > 0.7


def test_no_sentence_is_left_out():
    documents = corpus([7, 2, 30, 3], np.random.default_rng(2), longest=3)
    for objective in ("nsp", "sop", "none"):
        used = set()
        for number, spans in examples_of(documents, objective):
            start, end = range_of(documents, number)
            for first, last in ((spans.first, spans.first_end), (spans.second, spans.second_end)):
                if start <= first < end:
                    used |= set(range(first, last))
        missing = len(documents.tokens) - len(used)
        assert missing <= len(documents.tokens) * 0.1, objective


def test_partners_are_spread_over_all_documents():
    documents = corpus([4] * 50, np.random.default_rng(4))
    starts = documents.sentence_starts[documents.document_starts]
    chosen = np.zeros(50, int)
    for seed in range(30):
        for _, spans in examples_of(documents, seed=seed):
            if spans.label == DIFFERS:
                chosen[np.searchsorted(starts, spans.second, side="right") - 1] += 1
    assert chosen.min() > 0.5 * chosen.mean() and chosen.max() < 1.6 * chosen.mean()


def test_pairs_are_a_function_of_seed_and_document(documents):
    def pairs_of(seed):
        return list(document_examples(documents, 5, PrepareOptions(max_length=MAX_LENGTH, seed=seed)))

    once = pairs_of(1)
    examples_of(documents, seed=3)[:10]
    assert once == pairs_of(1) != pairs_of(2)


def test_a_plan_does_not_depend_on_the_partners_nor_on_where_tokens_are(documents):
    options = PrepareOptions(max_length=MAX_LENGTH)
    for number in range(20):
        bounds, digest = documents.token_bounds(number), documents.digest(number)
        moved = [bound - bounds[0] for bound in bounds]
        here = list(plan_examples(bounds, digest, number, len(documents), options))
        there = list(plan_examples(moved, digest, number, len(documents), options))
        assert len(here) == len(there) > 0
        for plan, same in zip(here, there, strict=True):
            partner = documents.token_bounds(plan.partner) if plan.second is None else [0, 3, 9]
            one, other = complete(plan, partner), complete(same, partner)
            assert one.first - bounds[0] == other.first and one.first_end - bounds[0] == other.first_end
            if plan.second is None:
                assert one[2:] == other[2:] and plan.partner != number
                shorter = complete(plan, [0, 1])  # another partner changes nothing but what is cut
                assert plan.first[0] <= shorter.first < shorter.first_end <= plan.first[1]


def test_draws_of_an_example_are_its_own():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 12, 60)
    bounds = np.cumsum([0, *lengths]).tolist()
    plans = list(plan_examples(bounds, b"0" * 16, 0, 1000, PrepareOptions(max_length=MAX_LENGTH)))
    # A document that begins alike has the same plans until its end comes near.
    shorter = list(plan_examples(bounds[:40], b"0" * 16, 0, 1000, PrepareOptions(max_length=MAX_LENGTH)))
    assert len(shorter) > 5 and shorter[:-2] == plans[: len(shorter) - 2]


def test_packed_rows_are_full_and_hold_every_token_in_order():
    random = np.random.default_rng(0)
    documents = [
        np.arange(length) + 1000 * number for number, length in enumerate(random.integers(1, 90, 99))
    ]
    rows = list(pack_documents(documents, MAX_LENGTH))
    assert (
        np.concatenate([text for row in rows for text in row]).tolist() == np.concatenate(documents).tolist()
    )
    sizes = [sum(len(text) + 2 for text in row) for row in rows]
    assert max(sizes) <= MAX_LENGTH and min(sizes[:-1]) > MAX_LENGTH - 8
    assert all(len({int(token) // 1000 for token in text}) == 1 and len(text) for row in rows for text in row)
    assert max(map(len, rows)) > 2


def test_packing_goes_with_no_pairs():
    with pytest.raises(UserError, match=r"pack is True, but objective is 'nsp'; .* set objective to 'none'"):
        PrepareOptions(pack=True)


def test_a_document_of_one_sentence_makes_no_pair_but_is_a_partner():
    documents = corpus([1, 6, 1], np.random.default_rng(1))
    pairs = examples_of(documents)
    assert {number for number, _ in pairs} == {1}
    found = [examples_of(documents, seed=seed) for seed in range(10)]
    assert any(spans.second < documents.sentence_starts[1] for pairs in found for _, spans in pairs)


def test_sentence_order_swaps_half_of_the_pairs_of_one_document(documents):
    labels = []
    for number, spans in examples_of(documents, "sop")[:20_000]:
        start, end = range_of(documents, number)
        assert start <= min(spans.first, spans.second) and max(spans.first_end, spans.second_end) <= end
        assert (spans.second >= spans.first_end) == (spans.label == FOLLOWS)
        labels.append(spans.label)
    assert abs(np.mean(labels) - 0.5) < 0.015


def test_without_pairs_every_document_is_cut_into_spans(documents):
    for number, spans in examples_of(documents, "none")[:5000]:
        start, end = range_of(documents, number)
        assert spans.label == NO_LABEL and spans.second == spans.second_end
        assert start <= spans.first < spans.first_end <= end
        assert spans.first_end - spans.first <= MAX_LENGTH - 2


def test_short_targets_are_as_many_as_asked_for(documents):
    means = [
        np.mean([length(spans) for _, spans in examples_of(documents, "none", short_fraction=fraction)])
        for fraction in (0.0, 0.5, 1.0)
    ]
    assert means[0] > 26 and means[0] > means[1] + 3 > means[2] + 6


def test_sentences_longer_than_an_example_are_cut_and_both_spans_keep_tokens():
    documents = corpus([5] * 200, np.random.default_rng(5), longest=200)
    for _, spans in examples_of(documents, max_length=8):
        first, second = spans.first_end - spans.first, spans.second_end - spans.second
        assert first >= 1 and second >= 1 and first + second <= 5
