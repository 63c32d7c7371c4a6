"""Which spans of which documents make an example: next-sentence pairs, sentence order, or one span."""

import hashlib
import random
from collections.abc import Iterator
from typing import NamedTuple

from keras_bert_app.data.tokenized import TokenizedDocuments

FOLLOWS, DIFFERS, NO_LABEL = 0, 1, -1
_SHORTEST_TARGET = 2


class Spans(NamedTuple):
    """An example: tokens [first, first_end) of the documents and, for pairs, [second, second_end).

    label: 0 where the second span follows the first in their document; 1 where it is from another document
    (nsp) or precedes it (sop); -1 where there is no second.
    """

    first: int
    first_end: int
    second: int
    second_end: int
    label: int


def document_examples(
    documents: TokenizedDocuments,
    number: int,
    objective: str,
    max_length: int,
    short_fraction: float,
    seed: int,
) -> Iterator[Spans]:
    """The examples of one document: a function of the arguments, whoever computes it.

    Pairs are made as in Devlin et al. 2019, appendix A.2: sentences are gathered up to the target length, cut
    somewhere into A and B and, for half of the examples, B is taken from another document and the sentences
    left over are used for the next example. The target is all of max_length but for `short_fraction` of the
    examples. "sop" (Lan et al. 2020) swaps A and B for half of them instead; "none" gathers one span.

    Unlike in the original code exactly half of the draws are of either kind: a last sentence left alone is
    paired with the one before it or with another document, where there it always got another document. So a
    document of one sentence makes no pair; it can be the other document.
    """
    draw = random.Random(_document_seed(documents, number, seed)).random
    bounds = documents.token_bounds(number)
    if objective == "none":
        yield from _single_spans(bounds, max_length - 2, short_fraction, draw)
        return
    room, last = max_length - 3, len(bounds) - 1
    start = 0
    while start < last and last >= 2:
        differs = draw() < 0.5
        target = _target(room, short_fraction, draw)
        begin, end = start, _end(bounds, start, target)
        if end - start == 1 and end < last:
            end += 1
        left_alone = end - start == 1
        if left_alone and not (objective == "nsp" and differs):
            begin -= 1
        middle = end if left_alone and begin == start else begin + 1 + int(draw() * (end - begin - 1))
        first = (bounds[begin], bounds[middle])
        start = end
        if objective == "nsp" and differs:
            second = _from_another(documents, number, max(1, target - (first[1] - first[0])), draw)
            start = middle
        else:
            second = (bounds[middle], bounds[end])
        first, second = _truncate(first, second, room, draw)
        if objective == "sop" and differs:
            first, second = second, first
        yield Spans(*first, *second, DIFFERS if differs else FOLLOWS)


def _single_spans(bounds: list[int], room: int, short_fraction: float, draw) -> Iterator[Spans]:
    start, last = 0, len(bounds) - 1
    while start < last:
        end = _end(bounds, start, _target(room, short_fraction, draw))
        first, _ = _truncate((bounds[start], bounds[end]), (0, 0), room, draw)
        yield Spans(*first, 0, 0, NO_LABEL)
        start = end


def _document_seed(documents: TokenizedDocuments, number: int, seed: int) -> int:
    name = documents.digests[number].tobytes() + str(seed).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _target(room: int, short_fraction: float, draw) -> int:
    if draw() < short_fraction:
        return _SHORTEST_TARGET + int(draw() * (room - _SHORTEST_TARGET + 1))
    return room


def _end(bounds: list[int], start: int, target: int) -> int:
    """The first sentence after those from `start` that together reach `target` tokens, or the last's end."""
    end, last = start + 1, len(bounds) - 1
    while end < last and bounds[end] - bounds[start] < target:
        end += 1
    return end


def _from_another(documents: TokenizedDocuments, number: int, target: int, draw) -> tuple[int, int]:
    """Sentences from somewhere in any document but this one, up to `target` tokens."""
    other = int(draw() * (len(documents) - 1))
    bounds = documents.token_bounds(other + (other >= number))
    start = int(draw() * (len(bounds) - 1))
    return bounds[start], bounds[_end(bounds, start, target)]


def _truncate(first: tuple[int, int], second: tuple[int, int], room: int, draw):
    """Cut the longer span first, as packing does, but from both its ends: a draw says how much from which."""
    lengths = first[1] - first[0], second[1] - second[0]
    excess = sum(lengths) - room
    if excess <= 0:
        return first, second
    shorter = min(lengths)
    cut_longer = min(excess, max(max(lengths) - shorter, 0))
    both = excess - cut_longer
    cuts = [both // 2, both - both // 2]
    cuts = [cuts[0] + cut_longer, cuts[1]] if lengths[0] > lengths[1] else [cuts[0], cuts[1] + cut_longer]
    return tuple(_cut(span, cut, draw) for span, cut in zip((first, second), cuts, strict=True))


def _cut(span: tuple[int, int], cut: int, draw) -> tuple[int, int]:
    front = int(draw() * (cut + 1)) if cut else 0
    return span[0] + front, span[1] - (cut - front)
