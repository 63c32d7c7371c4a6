"""Normalise, split, WordPiece: the BERT tokenizer (Devlin et al. 2019) as TensorFlow ops."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from keras_bert_app.errors import UserError
from keras_bert_app.text.characters import SPACE, CharacterTable
from keras_bert_app.text.vocabulary import UNKNOWN, Vocabulary

# Longer words are unknown.
MAX_WORD_CHARACTERS = 100
# Texts of nothing else, which are most, take a shorter way; all else is what CharacterTable says.
_PLAIN = r"[\t\n\r\x20-\x7E]*"
_PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True)
class TokenizerOptions:
    """What is done to text before it is cut into pieces; with the vocabulary, a tokenizer's identity.

    lower_case. strip_accents: delete combining marks, after decomposition (NFD); None: as lower_case says.
    split_chinese: make each Chinese character a word. never_split: pieces of the vocabulary that stand for
    themselves where a text has them, such as "[MASK]"; by default that is punctuation and letters.
    """

    lower_case: bool = True
    strip_accents: bool | None = None
    split_chinese: bool = True
    never_split: tuple[str, ...] = ()

    def __post_init__(self):
        if self.strip_accents is None:
            object.__setattr__(self, "strip_accents", self.lower_case)
        object.__setattr__(self, "never_split", tuple(self.never_split))

    def get_config(self) -> dict:
        """The arguments that make the same options, ready for JSON."""
        return vars(self) | {"never_split": list(self.never_split)}


class TokenSpans(NamedTuple):
    """Tokens and where in the text each is: ragged int32 [B, (T)], of one shape.

    The places are half-open, in bytes of the text as it came and in characters of it.
    """

    token_ids: tf.RaggedTensor
    byte_starts: tf.RaggedTensor
    byte_ends: tf.RaggedTensor
    char_starts: tf.RaggedTensor
    char_ends: tf.RaggedTensor


class _Words(NamedTuple):
    """Words of texts: characters [N] after normalisation, of which each word has a run.

    characters: code points. sources: the character of the texts, of all in a row, that each comes from.
    lengths: characters of each word, [W]. rows: the text of each word, [W].
    """

    characters: tf.Tensor
    sources: tf.Tensor
    lengths: tf.Tensor
    rows: tf.Tensor


class BertTokenizer(tf.Module):
    """Strings [B] -> ragged token ids, int32 [B, (T)], without special tokens.

    Gives the ids of the `tokenizers` library's BERT tokenizer, character by character; see characters.py. Of
    bytes that aren't UTF-8, lone surrogates included, each ill-formed run is U+FFFD, which is deleted, as NUL
    and byte order marks are. Special tokens in a text, such as a literal `[SEP]`, are punctuation and letters
    like any other, unless `never_split` has them: then they are found anywhere in the text as it came. A word
    over 100 characters is unknown.

    Raises:
        UserError: never_split has what is no piece of the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, options: TokenizerOptions = TokenizerOptions()):
        super().__init__(name="tokenizer")
        self.vocabulary = vocabulary
        self.options = options
        unknown = [piece for piece in options.never_split if piece not in vocabulary.ids]
        if unknown:
            raise UserError(
                f"never_split has {', '.join(map(repr, unknown))}, which {vocabulary.where} doesn't have"
            )
        # The longest first: of two that begin at one place that is taken.
        self._literals = sorted(options.never_split, key=len, reverse=True)
        # Cleaning deletes private use, so these can stand for the literals, and the last one, which isn't in
        # the vocabulary, for what is unknown.
        self._first_escape = _unused(vocabulary, len(self._literals) + 1)
        *escapes, self._no_word = map(
            chr, range(self._first_escape, self._first_escape + len(self._literals) + 1)
        )
        self._table = CharacterTable(
            options.lower_case, options.strip_accents, options.split_chinese, escapes
        )
        literal_ids = [vocabulary.ids[literal] for literal in self._literals]
        self._ids = np.array([*range(len(vocabulary)), *literal_ids], np.int32)
        settings = {"token_out_type": tf.int32, "unknown_token": UNKNOWN}
        self._plain = tf_text.FastWordpieceTokenizer(
            list(vocabulary.pieces), max_bytes_per_word=MAX_WORD_CHARACTERS, **settings
        )
        self._words = tf_text.FastWordpieceTokenizer(
            [*vocabulary.pieces, *escapes],
            max_bytes_per_word=4 * MAX_WORD_CHARACTERS,
            no_pretokenization=True,
            **settings,
        )

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string [B] -> int32 [B, (T)]."""
        plain = self._is_plain(texts)
        return _ragged_cond(
            tf.reduce_all(plain), lambda: self.plain_pieces(texts), lambda: self._mixed(texts, plain)
        )

    def plain_pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string [B] -> int32 [B, (T)], for texts of printable ASCII and line ends, without literals."""
        if self.options.lower_case:
            texts = tf.strings.lower(texts)
        return self._plain.tokenize(texts)

    def tokenize_with_spans(self, texts: tf.Tensor) -> TokenSpans:
        """string [B] -> the same tokens, and where they are; takes longer."""
        escaped = self._escape(texts)
        codes, offsets = tf.strings.unicode_decode_with_offsets(escaped, "UTF-8")
        words = self._split(codes)
        pieces, starts, ends = self._words.tokenize_with_offsets(self._strings(words))
        owners = pieces.value_rowids()
        # Places among the bytes of the words, one after another, then among their characters.
        character_ends = tf.cumsum(_num_bytes(words.characters))
        word_ends = tf.gather(character_ends, tf.cumsum(words.lengths) - 1)
        word_starts = tf.concat([[0], word_ends[:-1]], axis=0)[: tf.size(word_ends)]
        starts = tf.gather(word_starts, owners) + tf.cast(starts.flat_values, tf.int32)
        ends = tf.gather(word_starts, owners) + tf.cast(ends.flat_values, tf.int32)
        is_long = tf.gather(words.lengths > MAX_WORD_CHARACTERS, owners)
        ends = tf.where(is_long, tf.gather(word_ends, owners), ends)
        first = tf.gather(words.sources, tf.searchsorted(character_ends, starts, "right"))
        last = tf.gather(words.sources, tf.searchsorted(character_ends, ends - 1, "right"))
        spans = [
            tf.gather(places, characters)
            for begins, finishes in self._places(escaped, codes, offsets)
            for places, characters in ((begins, first), (finishes, last))
        ]
        ids = _by_row(
            tf.gather(self._ids, pieces.flat_values), pieces.row_lengths(), words.rows, tf.size(texts)
        )
        return TokenSpans(ids, *map(ids.with_flat_values, spans))

    def _places(self, texts, codes, offsets) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Where each character of texts begins and ends, int32 [N] twice: in bytes, and in characters.

        Literals have the place that they had in the texts as they came.
        """
        rows, row_starts = codes.value_rowids(), tf.cast(codes.row_starts(), tf.int32)
        starts = tf.cast(offsets.flat_values, tf.int32)
        is_last = tf.concat([rows[1:] != rows[:-1], [True]], axis=0)[: tf.size(starts)]
        following = tf.concat([starts[1:], [0]], axis=0)[: tf.size(starts)]
        ends = tf.where(is_last, tf.gather(tf.strings.length(texts), rows), following)
        numbers = tf.range(tf.size(starts)) - tf.gather(row_starts, rows)
        literal = codes.flat_values - self._first_escape
        literal = tf.where((literal >= 0) & (literal < len(self._literals)), literal, len(self._literals))
        places = []
        for begins, finishes, added in (
            (
                starts,
                ends,
                [len(literal.encode()) - len(self._no_word.encode()) for literal in self._literals],
            ),
            (numbers, numbers + 1, [len(literal) - 1 for literal in self._literals]),
        ):
            own = tf.gather(tf.constant([*added, 0], tf.int32), literal)
            sums = tf.concat([[0], tf.cumsum(own)], axis=0)
            before = sums[:-1] - tf.gather(tf.gather(sums, row_starts), rows)
            places.append((begins + before, finishes + before + own))
        return places

    def _is_plain(self, texts: tf.Tensor) -> tf.Tensor:
        plain = tf.strings.regex_full_match(texts, _PLAIN)
        if self._literals:
            plain &= ~tf.strings.regex_full_match(
                texts, f"(?s).*(?:{'|'.join(map(_quoted, self._literals))}).*"
            )
        return plain

    def _mixed(self, texts: tf.Tensor, plain: tf.Tensor) -> tf.RaggedTensor:
        """Both kinds of texts, each by its own way, in their order again."""
        rows = tf.range(tf.size(texts))
        order = [tf.boolean_mask(rows, plain), tf.boolean_mask(rows, ~plain)]
        others = tf.gather(texts, order[1])
        words = self._split(tf.strings.unicode_decode(self._escape(others), "UTF-8"))
        pieces = self._words.tokenize(self._strings(words))
        others_ids = _by_row(
            tf.gather(self._ids, pieces.flat_values), pieces.row_lengths(), words.rows, tf.size(order[1])
        )
        ids = tf.concat([self.plain_pieces(tf.gather(texts, order[0])), others_ids], axis=0)
        return tf.gather(ids, tf.math.invert_permutation(tf.concat(order, axis=0)))

    def _escape(self, texts: tf.Tensor) -> tf.Tensor:
        """Literals that are never split -> a character each, and what looks like these -> another one."""
        if not self._literals:
            return texts
        escapes = [chr(self._first_escape + number) for number in range(len(self._literals))]
        texts = tf.strings.regex_replace(texts, f"[{escapes[0]}-{escapes[-1]}]", self._no_word)
        for escape, literal in zip(escapes, self._literals, strict=True):
            texts = tf.strings.regex_replace(texts, _quoted(literal), escape)
        return texts

    def _split(self, codes: tf.RaggedTensor) -> _Words:
        """Code points of texts, [B, (characters)] -> their words."""
        characters, sources = self._table(codes.flat_values)
        rows = tf.gather(codes.value_rowids(), sources)
        is_space = characters == SPACE
        apart = tf.concat([[True], is_space[:-1] | (rows[1:] != rows[:-1])], axis=0)[: tf.size(rows)]
        kept = ~is_space
        begins = apart & kept
        characters, sources = tf.boolean_mask(characters, kept), tf.boolean_mask(sources, kept)
        starts = tf.where(tf.boolean_mask(begins, kept))[:, 0]
        lengths = tf.concat([starts[1:], [tf.size(characters, tf.int64)]], 0)[: tf.size(starts)] - starts
        return _Words(characters, sources, lengths, tf.boolean_mask(rows, begins))

    def _strings(self, words: _Words) -> tf.Tensor:
        """Words -> string [W]; those that are too long -> one that is unknown."""
        characters = tf.RaggedTensor.from_row_lengths(words.characters, words.lengths)
        return tf.where(
            words.lengths > MAX_WORD_CHARACTERS,
            self._no_word,
            tf.strings.unicode_encode(characters, "UTF-8"),
        )


def _unused(vocabulary: Vocabulary, count: int) -> int:
    """The first of so many characters of private use, of which none is in the vocabulary."""
    return next(
        first
        for first in _PRIVATE_USE
        if not any(chr(code) in vocabulary.ids for code in range(first, first + count))
    )


def _num_bytes(codes: tf.Tensor) -> tf.Tensor:
    """Code points -> the bytes that UTF-8 has for each."""
    return 1 + sum(tf.cast(codes >= limit, tf.int32) for limit in (0x80, 0x800, 0x10000))


def _quoted(literal: str) -> str:
    return "".join(f"\\x{{{ord(character):X}}}" for character in literal)


def _by_row(values: tf.Tensor, lengths: tf.Tensor, rows: tf.Tensor, num_rows: tf.Tensor) -> tf.RaggedTensor:
    """Values of words, of which each has so many, -> values of texts, [B, (T)]."""
    sums = tf.math.unsorted_segment_sum(lengths, rows, num_rows)
    return tf.RaggedTensor.from_row_lengths(values, sums)


def _ragged_cond(condition: tf.Tensor, if_true, if_false) -> tf.RaggedTensor:
    def parts(branch):
        ragged = branch()
        return ragged.flat_values, ragged.row_lengths()

    values, lengths = tf.cond(condition, lambda: parts(if_true), lambda: parts(if_false))
    return tf.RaggedTensor.from_row_lengths(values, lengths)
