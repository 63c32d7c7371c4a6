"""Normalise, split, WordPiece: the BERT tokenizer (Devlin et al. 2019) as TensorFlow ops."""

from dataclasses import dataclass

import tensorflow as tf
import tensorflow_text as tf_text

from keras_bert_app.text.vocabulary import UNKNOWN, Vocabulary

# What the reference's clean-up deletes: controls but tab, line feed and carriage return; format characters;
# private use; the replacement character, which transcoding also makes of invalid UTF-8.
_DELETED = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}\p{Cf}\p{Co}\x{FFFD}]"


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


class BertTokenizer(tf.Module):
    """Strings [B] -> ragged token ids, int32 [B, (T)], without special tokens.

    Lower-casing follows the reference: NFD, marks (Mn) deleted, then lower case. Invalid UTF-8 is deleted.
    Special tokens in a text, such as a literal `[SEP]`, are punctuation and letters like any other.
    A word over 100 bytes is unknown; the reference counts characters.
    """

    def __init__(self, vocabulary: Vocabulary, options: TokenizerOptions = TokenizerOptions()):
        super().__init__(name="tokenizer")
        self.vocabulary = vocabulary
        self.options = options
        self._wordpiece = tf_text.FastBertTokenizer(
            list(vocabulary.pieces),
            token_out_type=tf.int32,
            unknown_token=UNKNOWN,
            lower_case_nfd_strip_accents=False,
        )

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """string [B] -> int32 [B, (T)]."""
        return self.word_pieces(self.normalise(texts))

    def word_pieces(self, normalised: tf.Tensor) -> tf.RaggedTensor:
        """What `normalise` gives, string [B] -> int32 [B, (T)]."""
        return self._wordpiece.tokenize(normalised)

    def normalise(self, texts: tf.Tensor) -> tf.Tensor:
        """string [B] -> string [B]: valid UTF-8, cleaned, lower-cased where asked for."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, _DELETED, "")
        if self.options.lower_case:
            texts = tf.strings.regex_replace(tf_text.normalize_utf8(texts, "NFD"), r"\p{Mn}", "")
            texts = tf.strings.lower(texts, encoding="utf-8")
        return texts
