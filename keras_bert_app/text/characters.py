"""What the reference BERT tokenizer makes of each character, as one table that a graph looks up.

Cleaning, splitting of Chinese and of punctuation, accent stripping and lower-casing all work on a character
at a time, so together they are a function from a code point to a few. Only the order of several marks on one
letter that aren't deleted as accents, of which there are few, is beyond it: NFD sorts these.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_bert_app.text import unicode_tables

SPACE = ord(" ")
# In a result: the character itself.
SELF = -1
_NUM_CODES, _PAGE = 0x110000, 256


class CharacterTable:
    """Code points -> what each becomes, with spaces where words end.

    kept: characters that become a word of their own, whatever else is said of them.
    """

    def __init__(self, lower_case: bool, strip_accents: bool, split_chinese: bool, kept: Sequence[str] = ()):
        results: dict[tuple[int, ...], int] = {(SELF,): 0}
        classes = np.zeros(_NUM_CODES, np.int32)

        def become(codes, result):
            classes[codes] = results.setdefault(tuple(result), len(results))

        alone = (SPACE, SELF, SPACE)
        punctuation = set(_codes(unicode_tables.PUNCTUATION))
        chinese = set(_codes(unicode_tables.CHINESE)) if split_chinese else set()
        lower = _lower_cases() if lower_case else {}
        marks = set(_codes(unicode_tables.MARKS)) if strip_accents else set()
        decomposed = set(_codes(unicode_tables.DECOMPOSED)) if strip_accents else set()
        become(sorted(chinese | punctuation), alone)
        become(sorted(marks), ())
        for code in decomposed | lower.keys():
            parts = map(ord, unicodedata.normalize("NFD", chr(code))) if code in decomposed else [code]
            lowered = [low for part in parts if part not in marks for low in lower.get(part, [part])]
            result = [each for low in lowered for each in _apart(low, low in punctuation)]
            become(code, _apart_all(result) if code in chinese else result)
        become(sorted(_codes(unicode_tables.DELETED)), ())
        become(sorted(_codes(unicode_tables.WHITESPACE)), (SPACE,))
        become([ord(character) for character in kept], alone)
        pages, numbers = np.unique(classes.reshape(-1, _PAGE), axis=0, return_inverse=True)
        self._page_starts = (numbers.reshape(-1) * _PAGE).astype(np.int32)
        self._classes = pages.reshape(-1)
        lengths = [len(result) for result in results]
        self._lengths = np.array(lengths, np.int32)
        self._starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
        self._results = np.array([code for result in results for code in result], np.int32)

    def __call__(self, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """int32 [N] -> (what they become, [M]; for each the place of the one it comes from, [M]), int32."""
        places = tf.gather(self._page_starts, codes // _PAGE) + codes % _PAGE
        classes = tf.gather(self._classes, places)
        lengths = tf.gather(self._lengths, classes)
        sources = tf.repeat(tf.range(tf.size(codes)), lengths)
        before = tf.cumsum(lengths, exclusive=True)
        starts = tf.gather(self._starts, classes) - before
        results = tf.gather(self._results, tf.gather(starts, sources) + tf.range(tf.size(sources)))
        return tf.where(results == SELF, tf.gather(codes, sources), results), sources


def _apart(code: int, apart: bool) -> tuple[int, ...]:
    return (SPACE, code, SPACE) if apart else (code,)


def _apart_all(codes: Sequence[int]) -> tuple[int, ...]:
    return (SPACE, *codes, SPACE)


def _codes(ranges: str) -> Iterator[int]:
    for entry in ranges.split():
        first, _, last = entry.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def _lower_cases() -> dict[int, list[int]]:
    lower = {code: [*map(ord, low)] for code, low in unicode_tables.LOWERED_TO_SEVERAL.items()}
    for entry in unicode_tables.LOWERED.split():
        first, last, step, distance = re.fullmatch(r"(\w+)(?:-(\w+))?(?:/(\d))?([+-]\w+)", entry).groups()
        for code in range(int(first, 16), int(last or first, 16) + 1, int(step or 1)):
            lower[code] = [code + int(distance, 16)]
    return lower
