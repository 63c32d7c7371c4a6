"""The tokenizer against transformers' BertTokenizerFast, and on what no tokenizer likes."""

import pytest
import tensorflow as tf
import transformers

from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, UNKNOWN, Vocabulary

TEXTS = [
    "",
    " \t\r\n\u00a0\u3000",
    "A naïve CAFÉ: «so-so», 50 % … e\u0301te\u0301 — İstanbul ÅNGSTRÖM",
    "don't stop...now!? a_b (c) [d] {e} $5.00 x@y.z #1",
    "中文，字。日本語テキスト 한국어 русский язык Ελληνικά עברית العربية",
    "\u200b\u200d\ufeffzero\u00adwidth 👍🏽👨\u200d👩\u200d👧 🇩🇪",
    "tab\tnew\nline\rreturn\x0bvertical",
    "w" * 100 + " " + "w" * 101,
    "embeddings unbelievably tokenization",
]
# What JSON, CSV and gRPC clients can send besides.
BYTES = [b"go\xffod \xc3", b"\xed\xa0\x80lone surrogate", b"nul\x00byte", b"\xf4\x90\x80\x80", b"\xff" * 50]


@pytest.fixture(scope="module")
def vocabulary(minilm):
    return Vocabulary.load(minilm / "vocab.txt")


@pytest.fixture(scope="module")
def uncased(vocabulary):
    return BertTokenizer(vocabulary)


def reference(minilm, **settings):
    return transformers.BertTokenizerFast(vocab=str(minilm / "vocab.txt"), **settings)


def test_all_reviews_give_the_ids_of_transformers(minilm, uncased, reviews):
    theirs = reference(minilm)(reviews, add_special_tokens=False)["input_ids"]
    assert len(reviews) > 12_000
    assert uncased(tf.constant(reviews)).to_list() == theirs


@pytest.mark.parametrize("lower_case", [True, False])
def test_text_of_many_scripts_gives_the_ids_of_transformers(minilm, vocabulary, lower_case):
    theirs = reference(minilm, do_lower_case=lower_case)(TEXTS, add_special_tokens=False)["input_ids"]
    assert BertTokenizer(vocabulary, TokenizerOptions(lower_case))(tf.constant(TEXTS)).to_list() == theirs


def test_cased_text_keeps_case_and_accents_as_transformers_does(tmp_path):
    pieces = (*SPECIAL_TOKENS, "Café", "café", "cafe", "Cafe", "Éte", "##S", "##s", "e", "##\u0301", "É", "!")
    Vocabulary(pieces).save(tmp_path / "vocab.txt")
    texts = ["Café café cafe Cafe", "ÉteS Étes éte", "e\u0301 É!É", "CAFÉ"]
    theirs = reference(tmp_path, do_lower_case=False)(texts, add_special_tokens=False)["input_ids"]
    ours = BertTokenizer(Vocabulary(pieces), TokenizerOptions(lower_case=False))(tf.constant(texts)).to_list()
    assert ours == theirs
    assert ours[0] == [5, 6, 7, 8]


def test_eager_and_graph_give_the_same_ids(uncased):
    texts = tf.constant([*(text.encode() for text in TEXTS), *BYTES])
    graph = tf.function(uncased.__call__, input_signature=[tf.TensorSpec([None], tf.string)])
    assert graph(texts).to_list() == uncased(texts).to_list()


@pytest.mark.parametrize(
    ("given", "meaning"),
    [
        (b"go\xffod", b"good"),
        (b"\xffgood\xc3", b"good"),
        (b"good \xed\xa0\x80bad", b"good bad"),
        (b"go\x00od", b"good"),
        (b"good\x00", b"good"),
        ("go\ufffdod\ue000".encode(), b"good"),
        ("go\u200bod".encode(), b"good"),
        (b"\xff\xfe\x00", b""),
    ],
)
def test_invalid_bytes_and_controls_are_as_if_they_were_not_there(uncased, given, meaning):
    ours, wanted = uncased(tf.constant([given, meaning])).to_list()
    assert ours == wanted


def test_text_without_words_has_no_tokens(uncased):
    assert uncased(tf.constant(["", "   ", "\n\t", "\u00a0\u2003", "\u200b"])).to_list() == [[]] * 5


def test_no_texts_give_no_rows(uncased):
    assert uncased(tf.constant([], tf.string)).to_list() == []


def test_ten_thousand_characters_are_all_read(uncased, vocabulary):
    words, one_word = uncased(tf.constant(["long " * 2000, "a" * 10_000])).to_list()
    assert words == [vocabulary.ids["long"]] * 2000
    assert one_word == [vocabulary.ids[UNKNOWN]]


def test_a_word_over_a_hundred_characters_is_unknown(uncased, vocabulary):
    texts = [letter * length for letter in "wд" for length in (100, 101)]
    fits, does_not, fits_too, does_not_either = uncased(tf.constant(texts)).to_list()
    assert len(fits_too) == 100 and vocabulary.ids[UNKNOWN] not in fits + fits_too
    assert does_not == does_not_either == [vocabulary.ids[UNKNOWN]]


def test_special_tokens_in_a_text_are_ordinary_text(uncased, vocabulary):
    ids = uncased(tf.constant([" ".join(SPECIAL_TOKENS)])).to_list()[0]
    assert ids.count(vocabulary.ids["["]) == ids.count(vocabulary.ids["]"]) == 5
    assert not {vocabulary.ids[token] for token in SPECIAL_TOKENS} & set(ids)


def test_literals_that_are_never_split_are_found_anywhere(vocabulary):
    tokenizer = BertTokenizer(vocabulary, TokenizerOptions(never_split=("[MASK]", "hello")))
    texts = [
        "the capital of [MASK] is",
        "a[MASK]b [mask]",
        "helloworld HELLO ünï[MASK]",
        "\ue000 \ue001[MASK]",
    ]
    pieces = [
        [vocabulary.pieces[token_id] for token_id in row] for row in tokenizer(tf.constant(texts)).to_list()
    ]
    assert pieces[0] == ["the", "capital", "of", "[MASK]", "is"]
    assert pieces[1] == ["a", "[MASK]", "b", "[", "mask", "]"]
    assert pieces[2] == ["hello", "world", "hello", "un", "##i", "[MASK]"]
    assert pieces[3] == ["[MASK]"]


def test_a_literal_that_is_no_piece_is_refused(vocabulary):
    with pytest.raises(UserError, match=r"never_split has '\[X\]', which .*vocab\.txt doesn't have"):
        BertTokenizer(vocabulary, TokenizerOptions(never_split=("[X]", "[MASK]")))


def test_private_use_in_the_vocabulary_is_in_nobodys_way(vocabulary):
    pieces = (*vocabulary.pieces, "\ue000", "##\ue000", "\ue001")
    tokenizer = BertTokenizer(Vocabulary(pieces), TokenizerOptions(never_split=("[MASK]",)))
    ids = tokenizer(tf.constant(["\ue000é[MASK]\ue001\ue002 " + "x" * 101])).to_list()
    assert ids == [[vocabulary.ids[piece] for piece in ("e", "[MASK]", UNKNOWN)]]


def test_spans_of_invalid_bytes_are_places_in_the_bytes_as_they_came(uncased, vocabulary):
    text = b"\xff go\xffod \xed\xa0\x80caf\xc3\xa9\x00!"
    spans = uncased.tokenize_with_spans(tf.constant([b"", text, b"x"]))
    assert [vocabulary.pieces[token_id] for token_id in spans.token_ids[1].numpy()] == ["good", "cafe", "!"]
    starts, ends = spans.byte_starts.to_list()[1], spans.byte_ends.to_list()[1]
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert parts == [b"go\xffod", b"caf\xc3\xa9", b"!"]
    assert spans.char_starts.to_list()[2] == [0] and spans.byte_ends.to_list()[2] == [1]


def test_spans_of_no_texts_and_of_texts_without_tokens_are_empty(uncased):
    for texts, rows in ((tf.constant([], tf.string), []), (tf.constant(["", "\u200b"]), [[], []])):
        assert all(part.to_list() == rows for part in uncased.tokenize_with_spans(texts))


def test_the_exported_graph_has_only_ops_that_the_stock_server_links(uncased):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def both(texts):
        return uncased(texts).flat_values, uncased.tokenize_with_spans(texts).byte_ends.flat_values

    graph = both.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    from_text = {node.op for node in nodes} - set(tf.raw_ops.__dict__) - {"Placeholder"}
    assert from_text == {"FastWordpieceTokenizeWithOffsets"}
