"""Vocabularies learned from text: complete, repeatable, and read by the tokenizer of the graph."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app.errors import UserError
from keras_bert_app.text.learning import learn_vocabulary, measure_coverage
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, UNKNOWN, Vocabulary

TEXTS = ["The cat sat on the mat.", "THE CATS sat; the café's mats!", "A cat, a mat, a hat."] * 20


def test_special_tokens_come_first_and_the_file_holds_what_is_returned(tmp_path):
    vocabulary, _ = learn_vocabulary(lambda: TEXTS, tmp_path / "new" / "vocab.txt", 100, TokenizerOptions())
    assert vocabulary.pieces[: len(SPECIAL_TOKENS)] == SPECIAL_TOKENS
    assert Vocabulary.load(tmp_path / "new" / "vocab.txt").sha256 == vocabulary.sha256
    assert {"the", "cat", "cafe"} <= set(vocabulary.pieces)
    assert not any(piece != piece.lower() for piece in vocabulary.pieces[5:])


def test_a_cased_vocabulary_keeps_case_and_accents(tmp_path):
    vocabulary, _ = learn_vocabulary(lambda: TEXTS, tmp_path / "vocab.txt", 200, TokenizerOptions(False))
    assert {"The", "the", "THE", "café"} <= set(vocabulary.pieces)


@pytest.mark.parametrize(
    ("options", "has", "has_not"),
    [
        (TokenizerOptions(True, strip_accents=False), {"café", "the"}, {"cafe", "The"}),
        (TokenizerOptions(False, strip_accents=True), {"Cafe", "cafe", "The"}, {"Café", "café"}),
        (TokenizerOptions(split_chinese=False), {"电影", "cafe"}, {"café"}),
        (TokenizerOptions(split_chinese=True), {"电", "影"}, {"电影", "##影"}),
    ],
)
def test_words_are_learned_as_the_options_leave_them(tmp_path, options, has, has_not):
    texts = ["The Café is the CAFÉ the café isn't", "电影 电影 Café café"] * 20
    vocabulary, _ = learn_vocabulary(lambda: texts, tmp_path / "vocab.txt", 200, options)
    assert has <= set(vocabulary.pieces) and not has_not & set(vocabulary.pieces)


def test_the_size_is_a_limit(tmp_path, reviews):
    vocabulary, _ = learn_vocabulary(lambda: reviews[:300], tmp_path / "vocab.txt", 500, TokenizerOptions())
    assert len(vocabulary) == 500


PROGRAM = """
import sys
from keras_bert_app.text.learning import learn_vocabulary
from keras_bert_app.text.tokenizer import TokenizerOptions
texts = open(sys.argv[1]).read().split("\\n")
learn_vocabulary(lambda: texts, sys.argv[2], 700, TokenizerOptions())
"""


def test_another_process_learns_the_same_file_from_another_order(tmp_path, reviews):
    (tmp_path / "texts").write_text("\n".join(text.replace("\n", " ") for text in reviews[:1500]))
    texts = (tmp_path / "texts").read_text().split("\n")[::-1]
    learn_vocabulary(lambda: texts, tmp_path / "here.txt", 700, TokenizerOptions())
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "texts"), str(tmp_path / "there.txt")]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    assert (tmp_path / "here.txt").read_bytes() == (tmp_path / "there.txt").read_bytes()


def test_what_was_learned_from_is_known_to_the_tokenizer(tmp_path, reviews):
    _, coverage = learn_vocabulary(lambda: reviews[:1000], tmp_path / "vocab.txt", 2000, TokenizerOptions())
    assert coverage.num_texts == 1000
    assert coverage.known_words > 0.999 and coverage.unknown_pieces < 0.001
    assert 1 < coverage.pieces_per_word < 2


def test_chinese_is_learned_by_characters(tmp_path):
    texts = ["我喜欢这部电影。", "这部电影不好看，我不喜欢。"] * 5
    vocabulary, coverage = learn_vocabulary(lambda: texts, tmp_path / "vocab.txt", 100, TokenizerOptions())
    assert set("我喜欢这部电影不好看") <= set(vocabulary.pieces)
    assert coverage.known_words == coverage.pieces_per_word == 1


def test_of_many_chinese_characters_each_common_one_is_a_word_of_its_own(tmp_path):
    draw = np.random.default_rng(0)
    shares = 1 / np.arange(1, 3001)
    lines = [
        "".join(map(chr, 0x4E00 + 7 * draw.choice(3000, 40, p=shares / shares.sum()))) + "，BERT 模型。"
        for _ in range(3000)
    ]
    vocabulary, coverage = learn_vocabulary(lambda: lines, tmp_path / "vocab.txt", 2500, TokenizerOptions())
    chinese = [piece for piece in vocabulary.pieces if any(0x4E00 <= ord(part) < 0xA000 for part in piece)]
    # The few words leave all the room to characters.
    assert len(vocabulary) == 2500 and len(chinese) > 2400 and all(len(piece) == 1 for piece in chinese)
    assert {"bert", "模", "型", "，", "。"} <= set(vocabulary.pieces)
    assert coverage.pieces_per_word == 1 and 0.97 < coverage.known_words < 1
    assert coverage.known_words == pytest.approx(1 - coverage.unknown_pieces)
    tokenizer = BertTokenizer(vocabulary)
    ids = tokenizer(tf.constant(["模型模型BERT。"])).to_list()[0]
    assert [vocabulary.pieces[place] for place in ids] == ["模", "型", "模", "型", "bert", "。"]


def test_rare_characters_do_not_take_the_place_of_words(tmp_path):
    texts = ["the same words again and again", "".join(chr(0x4E00 + place) for place in range(5000))] * 9
    vocabulary, coverage = learn_vocabulary(lambda: texts, tmp_path / "vocab.txt", 200, TokenizerOptions())
    assert len(vocabulary) <= 200 and {"same", "words", "again"} <= set(vocabulary.pieces)
    assert coverage.known_words < 0.1


def test_coverage_is_counted_by_hand():
    tokenizer = BertTokenizer(Vocabulary((*SPECIAL_TOKENS, "cat", "##s", "the")))
    coverage = measure_coverage(tokenizer, ["the cats", "dogs", "the cat"])
    assert tokenizer(tf.constant(["dogs"])).to_list() == [[tokenizer.vocabulary.ids[UNKNOWN]]]
    assert (coverage.num_texts, coverage.num_words) == (3, 5)
    assert coverage.known_words == pytest.approx(4 / 5)
    assert coverage.unknown_pieces == pytest.approx(1 / 6)
    assert coverage.pieces_per_word == pytest.approx(6 / 5)


def test_texts_are_streamed_and_a_sample_of_them_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_bert_app.text.learning._SAMPLE_BYTES", 20_000)

    def stream():
        return (f"the cat number {number} sat on the mat" for number in range(10_000))

    _, coverage = learn_vocabulary(stream, tmp_path / "vocab.txt", 100, TokenizerOptions())
    assert 200 < coverage.num_texts < 1000


@pytest.mark.parametrize("texts", [[], ["", " \n"], ["\u200b"]])
def test_texts_without_words_are_refused_and_nothing_is_written(tmp_path, texts):
    with pytest.raises(UserError, match="^nothing to learn a vocabulary from"):
        learn_vocabulary(lambda: texts, tmp_path / "vocab.txt", 100, TokenizerOptions())
    assert not list(tmp_path.iterdir())


def test_a_size_without_room_is_refused(tmp_path):
    with pytest.raises(UserError, match="vocabulary_size is 5; it takes at least 7"):
        learn_vocabulary(lambda: TEXTS, tmp_path / "vocab.txt", 5, TokenizerOptions())
