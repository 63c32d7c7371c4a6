"""Learn a WordPiece vocabulary from text, and say how well it covers that text."""

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, UNKNOWN, Vocabulary

_CONTINUATION = "##"
# Characters take at most this share of the vocabulary; rarer ones have what room words leave.
_ALPHABET_SHARE = 0.5
_SAMPLE_BYTES = 8 * 2**20
_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Coverage:
    """How a vocabulary fits a sample of the text it was learned from; words are what the tokenizer splits."""

    num_texts: int
    num_words: int
    known_words: float  # share of the words that need no unknown token
    unknown_pieces: float  # share of the pieces that are the unknown token
    pieces_per_word: float


def learn_vocabulary(
    read_texts: Callable[[], Iterable[str]],
    output: str | os.PathLike,
    vocabulary_size: int,
    options: TokenizerOptions,
) -> tuple[Vocabulary, Coverage]:
    """Learn at most `vocabulary_size` pieces and write them to `output`.

    By the WordPiece trainer of the `tokenizers` library, with the normalisation and word splitting that
    `BertTokenizer` has. The special tokens are the first ids, then come characters, the commonest first, then
    what was learned, then rarer characters where there is room. The same texts, in any order, give the same
    file.

    Args:
        read_texts: called twice, for the same texts each time; they are streamed.

    Raises:
        UserError: the size leaves no room beside the special tokens, or the texts hold no words.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    least = len(SPECIAL_TOKENS) + 2
    if vocabulary_size < least:
        raise UserError(f"vocabulary_size is {vocabulary_size}; it takes at least {least}, 30000 is common")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.split_chinese,
        strip_accents=options.strip_accents,
        lowercase=options.lower_case,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    sample = _Sample(_SAMPLE_BYTES)
    characters = Counter()
    for text in sample.of(read_texts()):
        characters.update(text)
    room = vocabulary_size - len(SPECIAL_TOKENS)
    of_characters = _pieces_of_characters(characters, tokenizer, room)
    alphabet = _whole(of_characters, max(2, int(room * _ALPHABET_SHARE)))
    if not alphabet:
        raise UserError("nothing to learn a vocabulary from, the texts hold no words")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        # The trainer numbers pieces of one character as it meets them in a hash table, other at each run, and
        # breaks ties by number; only pieces that it is given beforehand have fixed numbers.
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        initial_alphabet=[piece for piece in alphabet if len(piece) == 1],
        limit_alphabet=sum(len(piece) == 1 for piece in alphabet),
        continuing_subword_prefix=_CONTINUATION,
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_texts(), trainer)
    learned = tokenizer.get_vocab()
    rarer = [piece for piece in of_characters if piece not in learned]
    pieces = (*sorted(learned, key=learned.get), *_whole(rarer, vocabulary_size - len(learned)))
    vocabulary = Vocabulary(pieces, str(output))
    coverage = measure_coverage(BertTokenizer(vocabulary, options), sample.texts)
    vocabulary.save(output)
    return vocabulary, coverage


def _pieces_of_characters(characters: Counter, tokenizer, most: int) -> list[str]:
    """Pieces of one character, the commonest first, two for those of words; `most` of them, or one more."""
    normalised = Counter()
    for character, count in characters.items():
        for part in tokenizer.normalizer.normalize_str(character):
            if not part.isspace():
                normalised[part] += count
    pieces: list[str] = []
    for character, _ in sorted(normalised.items(), key=lambda item: (-item[1], item[0])):
        if len(pieces) >= most:
            break
        inside = tokenizer.normalizer.normalize_str(f"a{character}a")
        is_alone = len(tokenizer.pre_tokenizer.pre_tokenize_str(inside)) > 1
        pieces += [character] if is_alone else [character, _CONTINUATION + character]
    return pieces


def _whole(pieces: list[str], most: int) -> list[str]:
    """The first `most` of these, or one fewer: a character has both its pieces or none."""
    cuts = 0 < most < len(pieces) and pieces[most].startswith(_CONTINUATION)
    return pieces[: most - cuts]


def measure_coverage(tokenizer: BertTokenizer, texts: Iterable[str]) -> Coverage:
    """How the tokenizer's vocabulary fits texts."""
    texts = list(texts)
    begins_word = np.array([not piece.startswith(_CONTINUATION) for piece in tokenizer.vocabulary.pieces])
    counts = np.zeros(len(tokenizer.vocabulary), np.int64)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        ids = tokenizer(tf.constant(texts[start : start + _TEXTS_AT_ONCE], tf.string)).flat_values.numpy()
        counts += np.bincount(ids, minlength=len(counts))
    num_pieces, num_words = int(counts.sum()), int(counts[begins_word].sum())
    unknown = int(counts[tokenizer.vocabulary.ids[UNKNOWN]])
    return Coverage(
        num_texts=len(texts),
        num_words=num_words,
        known_words=1 - unknown / max(1, num_words),
        unknown_pieces=unknown / max(1, num_pieces),
        pieces_per_word=num_pieces / max(1, num_words),
    )


class _Sample:
    """Some of the texts that went by, chosen by their hashes, of a bounded size in all."""

    def __init__(self, num_bytes: int):
        self._limit, self._size, self._below = num_bytes, 0, 2**32
        self._texts: list[tuple[int, str]] = []

    @property
    def texts(self) -> list[str]:
        """The texts kept, in their order."""
        return [text for _, text in self._texts]

    def of(self, texts: Iterable[str]) -> Iterator[str]:
        """Hand the texts on, and keep some."""
        for text in texts:
            encoded = text.encode("utf-8", "replace")
            place = zlib.crc32(encoded)
            if place < self._below:
                self._texts.append((place, text))
                self._size += len(encoded)
            while self._size > self._limit and len(self._texts) > 1:
                self._below //= 2
                self._texts = [kept for kept in self._texts if kept[0] < self._below] or self._texts[:1]
                self._size = sum(len(kept.encode("utf-8", "replace")) for _, kept in self._texts)
            yield text
