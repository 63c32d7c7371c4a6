"""The tokenizer against the `tokenizers` library's: every character, and texts made to differ."""

import itertools
import random
import unicodedata

import pytest
import tensorflow as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, UNKNOWN, Vocabulary

# All that Unicode assigns but surrogates, and of private use every 97th.
CHARACTERS = [
    chr(code)
    for code in range(0x110000)
    if (kind := unicodedata.category(chr(code))) not in ("Cn", "Cs") and (kind != "Co" or code % 97 == 0)
]
CONTEXTS = ("{0}", "{0}{0}", "a{0}b", " {0}")
OPTIONS = [
    pytest.param(
        TokenizerOptions(lower_case, strip_accents, split_chinese),
        marks=() if lower_case == strip_accents and split_chinese else pytest.mark.slow,
    )
    for lower_case, strip_accents, split_chinese in itertools.product((True, False), repeat=3)
]
# Characters of a kind, that texts are made of.
KINDS = (
    "abcdefgh ABC",
    "éèüñÅø ÀÉ",
    "\u0301\u0300\u0327\u0338\u05b0\u064b\u093c\u1dc0",
    "가각힣한국어",
    "\u1100\u1161\u11a8",
    "ぁがパヴ゜ｶﾞ",
    "אבגד\u05c1 ",
    "ابجد\u0651\u200f",
    "😀👩\u200d👧🏽❤\ufe0f",
    "中文字㐀𠀀豈﨑",
    "ΑΣΑΣ ΣΑΣς σΣ.",
    "İIıiß ﬁ ſ",
    "\ue000\ue001\uf8ff\U000f0000",
    "\u0378\u0380\U0001fffe\ufffe\ufffd",
    "…™½²ß℃№“”—·。，！？「」",
    "\u200b\u200c\u2060\ufeff\u00ad\0\a\x7f\x85",
    " \t\n\r\u00a0\u2003\u3000\u2028",
    "[]#$%^`~|<",
    "0123456789.,",
)
LONG = [letter * length for letter in "aé中한ｱ\u0301" for length in (99, 100, 101, 200, 201)]


def fuzzed(number, seed):
    draw = random.Random(seed)
    for _ in range(number):
        kinds = draw.choices(KINDS, k=draw.randint(0, 8))
        parts = ("".join(draw.choices(kind, k=draw.randint(1, 6))) for kind in kinds)
        yield "".join(part + draw.choice(("", "", "", "[MASK]")) for part in parts)


@pytest.fixture(scope="module")
def every_piece():
    """A vocabulary in which no character is unknown, so that nothing hides behind the unknown token."""
    visible = [c for c in CHARACTERS if unicodedata.category(c)[0] not in "CZ"]
    pieces = itertools.chain(SPECIAL_TOKENS, visible, (f"##{c}" for c in visible))
    return Vocabulary(tuple(dict.fromkeys(pieces)), "every character")


@pytest.fixture(scope="module")
def minilm_vocabulary(minilm):
    return Vocabulary.load(minilm / "vocab.txt")


def reference(vocabulary, options):
    tokenizer = Tokenizer(
        models.WordPiece(vocab=dict(vocabulary.ids), unk_token=UNKNOWN, max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.split_chinese,
        strip_accents=options.strip_accents,
        lowercase=options.lower_case,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if options.never_split:
        tokenizer.add_special_tokens(list(options.never_split))
    return tokenizer


def differences(texts, vocabulary, options):
    """Texts whose ids or spans in characters differ; spans in bytes are checked to be the same places."""
    texts, found = list(texts), []
    tokenizer = BertTokenizer(vocabulary, options)
    signature = [tf.TensorSpec([None], tf.string)]
    ids_of = tf.function(tokenizer.__call__, signature, autograph=False)
    spans_of = tf.function(tokenizer.tokenize_with_spans, signature, autograph=False)
    theirs = reference(vocabulary, options).encode_batch(texts, add_special_tokens=False)
    for start in range(0, len(texts), 20_000):
        batch = tf.constant([text.encode() for text in texts[start : start + 20_000]])
        spans = [part.to_list() for part in spans_of(batch)]
        rows = zip(ids_of(batch).to_list(), *spans, strict=True)
        for number, (ids, ids_too, byte_starts, byte_ends, starts, ends) in enumerate(rows, start):
            text, wanted = texts[number], theirs[number]
            places = list(zip(starts, ends, strict=True))
            if (ids, ids_too, places) != (wanted.ids, wanted.ids, wanted.offsets):
                found.append(text)
            encoded = text.encode()
            for (first, last), byte_start, byte_end in zip(places, byte_starts, byte_ends, strict=True):
                assert encoded[byte_start:byte_end] == text[first:last].encode()
    return found


@pytest.mark.parametrize("lower_case", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_character_between_letters_is_as_the_reference_has_it(every_piece, lower_case):
    texts = map("a{0}b".format, CHARACTERS)
    assert differences(texts, every_piece, TokenizerOptions(lower_case)) == []


@pytest.mark.slow
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_character_in_every_context_is_as_the_reference_has_it(
    every_piece, minilm_vocabulary, context, options
):
    texts = [context.format(character) for character in CHARACTERS]
    assert differences(texts, every_piece, options) == []
    assert differences(texts, minilm_vocabulary, options) == []


@pytest.mark.parametrize("never_split", [(), SPECIAL_TOKENS], ids=["ordinary", "special"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_texts_of_all_scripts_are_as_the_reference_has_them(
    every_piece, minilm_vocabulary, options, never_split
):
    settings = options.get_config() | {"never_split": never_split}
    texts = [*fuzzed(5000, seed=1), *LONG]
    assert differences(texts, every_piece, TokenizerOptions(**settings)) == []
    assert differences(texts, minilm_vocabulary, TokenizerOptions(**settings)) == []


def test_marks_that_nfd_sorts_have_their_own_place(every_piece):
    """The reference gives a mark the place of the one it changes places with; ours, its own. Ids agree."""
    text, options = "a\u0301\u302eb", TokenizerOptions()
    assert differences([text], every_piece, options) == [text]
    spans = BertTokenizer(every_piece, options).tokenize_with_spans(tf.constant([text]))
    theirs = reference(every_piece, options).encode(text)
    assert spans.token_ids.to_list() == [theirs.ids]
    assert spans.char_starts.to_list() == [[0, 2, 3]] != [[start for start, _ in theirs.offsets]]


def test_reviews_are_as_the_reference_has_them(minilm_vocabulary, reviews):
    assert differences(reviews, minilm_vocabulary, TokenizerOptions()) == []


@pytest.mark.parametrize("lower_case", [True, False])
def test_the_python_twin_agrees_where_both_references_do(minilm, minilm_vocabulary, lower_case):
    legacy = BertTokenizerLegacy(str(minilm / "vocab.txt"), do_lower_case=lower_case)
    texts = list(fuzzed(2000, seed=2))
    texts = [text for text in texts if "[" not in text]
    options = TokenizerOptions(lower_case)
    rust = reference(minilm_vocabulary, options)
    agreed = [
        (text, ids)
        for text in texts
        if (ids := legacy.convert_tokens_to_ids(legacy.tokenize(text))) == rust.encode(text).ids
    ]
    assert len(agreed) > 0.8 * len(texts)
    ours = BertTokenizer(minilm_vocabulary, options)(tf.constant([text for text, _ in agreed]))
    assert ours.to_list() == [ids for _, ids in agreed]
