"""Which spans of which documents make an example: next-sentence pairs, sentence order, or spans alone.

An example is first planned, from its own document alone, then completed with what its partner has to give.
Both are functions of their arguments, so that any engine, in any order, makes the same examples.
"""

import bisect
import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_bert_app.config import PrepareConfig, check
from keras_bert_app.errors import UserError

FOLLOWS, DIFFERS, NO_LABEL = 0, 1, -1
_SHORTEST_TARGET = 2
_LEAST_LENGTH = 8


@dataclass(frozen=True)
class PrepareOptions(PrepareConfig):
    """How documents become examples: the config's section, and what of the config's other keys counts.

    Raises:
        UserError: a value out of range, or two that exclude each other; names the key.
    """

    max_length: int = 128
    seed: int = 0

    def __post_init__(self):
        check(self, "config.prepare")
        if self.max_length < _LEAST_LENGTH:
            raise UserError(
                f"config.text.max_length is {self.max_length}; examples take at least {_LEAST_LENGTH}"
            )
        if self.pack and self.objective != "none":
            raise UserError(
                f"config.prepare.pack is True, but objective is {self.objective!r}; rows of several "
                "documents have no pairs: set objective to 'none', or pack to False"
            )


class Plan(NamedTuple):
    """What an example's own document tells of it.

    first, second: tokens [start, end) of that document; second is None where it is the partner's, and empty
    where there is none. partner: the other document's number. place, cuts: 64-bit draws, of the partner's
    sentence to begin with, and of how much of what is too long goes from the front of either span. target:
    tokens wanted of the partner. room: tokens that both may have. label: see `Spans`.
    """

    first: tuple[int, int]
    second: tuple[int, int] | None
    label: int
    room: int
    cuts: Sequence[int]
    partner: int | None = None
    place: int = 0
    target: int = 0


class Spans(NamedTuple):
    """An example: tokens [first, first_end) of its document and, for pairs, [second, second_end).

    label: 0 where the second span follows the first in their document; 1 where it is from another document
    (nsp) or precedes it (sop); -1 where there is no second.
    """

    first: int
    first_end: int
    second: int
    second_end: int
    label: int


def plan_examples(
    bounds: Sequence[int], digest: bytes, number: int, num_documents: int, options: PrepareOptions
) -> Iterator[Plan]:
    """The examples of one document, number `number` of `num_documents`, as far as it can tell by itself.

    bounds: where its sentences begin in whatever holds its tokens, and where the last ends. Example k's draws
    are a hash of (options.seed, digest, k).

    Pairs are made as in Devlin et al. 2019, appendix A.2: sentences are gathered up to the target length, cut
    somewhere into A and B and, for half of the examples, B is taken from another document and the sentences
    left over are used for the next example. The target is all of max_length but for `short_fraction` of the
    examples. "sop" (Lan et al. 2020) swaps A and B for half of them instead; "none" gathers one span.

    Unlike in the original code exactly half of the draws are of either kind: a last sentence left alone is
    paired with the one before it or with another document, where there it always got another document. So a
    document of one sentence makes no pair; it can be the other document.
    """
    if options.objective == "none":
        yield from _plan_single(bounds, digest, options)
        return
    room, last, start, draws = options.max_length - 3, len(bounds) - 1, 0, _draws(digest, options.seed)
    while start < last and last >= 2:
        to_differ, to_be_short, for_length, for_middle, for_partner, for_place, *cuts = next(draws)
        differs = to_differ < 2**63
        from_another = differs and options.objective == "nsp"
        label = DIFFERS if differs else FOLLOWS
        target = _target(room, options.short_fraction, to_be_short, for_length)
        begin, end = start, _end(bounds, start, target)
        if end - start == 1 and end < last:
            end += 1
        left_alone = end - start == 1
        if left_alone and not from_another:
            begin -= 1
        middle = end if left_alone and begin == start else begin + 1 + _below(for_middle, end - begin - 1)
        first = (bounds[begin], bounds[middle])
        if from_another:
            partner = _below(for_partner, num_documents - 1)
            target = max(1, target - (first[1] - first[0]))
            yield Plan(first, None, label, room, cuts, partner + (partner >= number), for_place, target)
            start = middle
        else:
            yield Plan(first, (bounds[middle], bounds[end]), label, room, cuts)
            start = end


def complete(plan: Plan, bounds: Sequence[int] = ()) -> Spans:
    """A plan, and the partner's `bounds` where it has one, as `plan_examples` takes them -> the example."""
    (first, first_end), label, swapped = plan.first, plan.label, False
    if plan.second is None:
        start = _below(plan.place, len(bounds) - 1)
        second, second_end = bounds[start], bounds[_end(bounds, start, plan.target)]
    else:
        second, second_end = plan.second
        swapped = label == DIFFERS
    excess = first_end - first + second_end - second - plan.room
    if excess > 0:
        cut, second_cut = _cuts(first_end - first, second_end - second, excess)
        front, second_front = _below(plan.cuts[0], cut + 1), _below(plan.cuts[1], second_cut + 1)
        first, first_end = first + front, first_end - cut + front
        second, second_end = second + second_front, second_end - second_cut + second_front
    if swapped:
        return Spans(second, second_end, first, first_end, label)
    return Spans(first, first_end, second, second_end, label)


def pack_documents(documents: Iterable[np.ndarray], max_length: int) -> Iterator[list[np.ndarray]]:
    """Token ids of documents, one after another -> rows of texts, each to stand between [CLS] and [SEP].

    A row takes of the documents in their order until max_length is full, and the next goes on where it ended;
    what is left of a row is wasted only where it holds less than _LEAST_LENGTH.
    """
    row, room = [], max_length
    for tokens in documents:
        start = 0
        while start < len(tokens):
            if room < _LEAST_LENGTH:
                yield row
                row, room = [], max_length
            row.append(tokens[start : start + room - 2])
            start += len(row[-1])
            room -= len(row[-1]) + 2
    if row:
        yield row


def _plan_single(bounds: Sequence[int], digest: bytes, options: PrepareOptions) -> Iterator[Plan]:
    room, start, last = options.max_length - 2, 0, len(bounds) - 1
    for _, to_be_short, for_length, *_, cut, second_cut in _draws(digest, options.seed):
        if start >= last:
            return
        end = _end(bounds, start, _target(room, options.short_fraction, to_be_short, for_length))
        yield Plan((bounds[start], bounds[end]), (0, 0), NO_LABEL, room, (cut, second_cut))
        start = end


def _draws(digest: bytes, seed: int) -> Iterator[tuple[int, ...]]:
    """For one example after another as many draws of 64 bits as any needs."""
    document, numbers = hashlib.blake2b(digest + b"%d " % seed), struct.Struct("<8Q")
    for example in itertools.count():
        state = document.copy()
        state.update(b"%d" % example)
        yield numbers.unpack(state.digest())


def _below(draw: int, limit: int) -> int:
    """A draw of 64 bits -> a number of range(limit), all equally likely; 0 where there is none."""
    return draw * limit >> 64


def _target(room: int, short_fraction: float, to_be_short: int, for_length: int) -> int:
    if to_be_short < short_fraction * 2**64:
        return _SHORTEST_TARGET + _below(for_length, room - _SHORTEST_TARGET + 1)
    return room


def _end(bounds: Sequence[int], start: int, target: int) -> int:
    """The first sentence after those from `start` that together reach `target` tokens, or the last's end."""
    return bisect.bisect_left(bounds, bounds[start] + target, start + 1, len(bounds) - 1)


def _cuts(length: int, other: int, excess: int) -> tuple[int, int]:
    """How many tokens either span loses: the longer one first, as packing does, but from both its ends."""
    cut_longer = min(excess, abs(length - other))
    both = excess - cut_longer
    if length > other:
        return both // 2 + cut_longer, both - both // 2
    return both // 2, both - both // 2 + cut_longer
