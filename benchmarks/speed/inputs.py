"""What every contender is given: texts of committed lengths, their ids, and reviews to be right about."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A server's mixed batch: 64 texts, short with a long tail (a lognormal of median 24), 1,985 tokens in all.
# fmt: off
MIXED = (
    123, 4, 34, 15, 17, 20, 5, 20, 12, 128, 29, 18, 19, 14, 10, 18, 35, 20, 52, 20, 24, 83, 37, 16,
    21, 37, 113, 19, 20, 54, 12, 19, 49, 38, 26, 41, 4, 54, 11, 6, 30, 42, 17, 10, 25, 23, 74, 44,
    28, 58, 20, 11, 38, 38, 20, 13, 29, 4, 42, 36, 6, 25, 11, 44,
)
# fmt: on
LENGTHS = {"single": (26,), "uniform": (128,) * 32, "mixed": MIXED}
NUM_REVIEWS = 512  # of the evaluation split, for accuracy
NUM_FIXED = 40 * 32  # texts of full length, to train on


def groups(lengths: Sequence[int], arrangement: str) -> list[np.ndarray]:
    """Which texts are computed together, as places in `lengths`.

    padded: all, as most do. quarters: four groups of as many texts, sorted by length. cuts: four groups,
    cut where fewest slots are left empty, the best that sorting by hand can do. singly: each by itself.
    """
    if arrangement == "padded":
        return [np.arange(len(lengths))]
    order = np.argsort(lengths, kind="stable")
    if arrangement == "singly":
        return np.array_split(order[::-1], len(order))  # the longest first, so that no stream ends late
    if arrangement == "quarters":
        return np.array_split(order, 4)
    return np.split(order, best_cuts([lengths[place] for place in order], 4))


def best_cuts(rising: Sequence[int], num_groups: int) -> list[int]:
    """Where to cut lengths that rise, so that groups padded to their longest take the fewest slots."""
    least = {(0, 0): (0, [])}  # (groups, texts) -> (slots, cuts)
    for count in range(1, num_groups + 1):
        for end in range(count, len(rising) + 1):
            least[count, end] = min(
                (slots + (end - start) * rising[end - 1], [*cuts, start])
                for start in range(count - 1, end)
                if (count - 1, start) in least
                for slots, cuts in [least[count - 1, start]]
            )
    return least[num_groups, len(rising)][1][1:]


def pad(rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Rows of ids -> token_ids, padding_mask int32 [B, S], S the longest."""
    token_ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for place, row in enumerate(rows):
        token_ids[place, : len(row)] = row
    lengths = np.array(list(map(len, rows)))
    return {
        "token_ids": token_ids,
        "padding_mask": (np.arange(token_ids.shape[1]) < lengths[:, None]).astype(np.int32),
    }


def single_piece_words(texts: Sequence[str], pieces: dict[str, int]) -> Iterator[str]:
    """The words of the texts that are one piece each, for ever."""
    while True:
        for text in texts:
            yield from (word for word in text.lower().split() if word.isalpha() and word in pieces)


def make(tokenizer: Any, reviews: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Texts and ids of each row, texts of full length to train on, and the first of the `reviews`.

    `reviews` are pairs of text and label. The other texts are words of theirs that are one piece each, as
    many as the committed lengths say, [CLS] and [SEP] counted. `tokenizer` is a tokenizers.Tokenizer.
    """
    words = single_piece_words([text for text, _ in reviews], tokenizer.get_vocab())
    rows = {}
    for name, lengths in LENGTHS.items():
        texts = [" ".join(next(words) for _ in range(length - 2)) for length in lengths]
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        if tuple(map(len, ids)) != lengths:
            raise ValueError(f"the texts of {name} have other lengths than the committed ones")
        rows[name] = {"texts": texts, "ids": ids}
    texts = [" ".join(next(words) for _ in range(max(MIXED) - 2)) for _ in range(NUM_FIXED)]
    rows["fixed"] = encoded(tokenizer, [(text, place % 2) for place, text in enumerate(texts)])
    rows["reviews"] = encoded(tokenizer, reviews[:NUM_REVIEWS])
    return rows


def encoded(tokenizer: Any, labelled: Sequence[tuple[str, int]]) -> dict[str, list]:
    """Pairs of text and label -> texts, ids, labels."""
    texts, labels = map(list, zip(*labelled, strict=True))
    return {"texts": texts, "ids": [one.ids for one in tokenizer.encode_batch(texts)], "labels": labels}


def read(folder: Path) -> dict[str, Any]:
    """What `make` gave, as the preparation wrote it."""
    return json.loads((folder / "inputs.json").read_text())
