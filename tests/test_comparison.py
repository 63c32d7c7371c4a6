"""Texts on which tokenizers differ are found, all of them, whatever the reference is read from."""

import sys

import pytest
import transformers

from keras_bert_app.errors import UserError
from keras_bert_app.text import comparison
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

PIECES = (*SPECIAL_TOKENS, "good", "##s", "Good", "bad", "ca", "##fe", "中")
UNKNOWN = PIECES.index("[UNK]")


@pytest.fixture
def folder(tmp_path):
    """A tokenizer as transformers saves it."""
    ids = {piece: number for number, piece in enumerate(PIECES)}
    transformers.BertTokenizer(vocab=ids).save_pretrained(tmp_path)
    return tmp_path


def differences(reference, texts, pieces=PIECES, **options):
    tokenizer = BertTokenizer(Vocabulary(pieces), TokenizerOptions(**options))
    return list(comparison.differences(tokenizer, reference, texts))


def test_reviews_and_texts_longer_than_the_references_limit_do_not_differ(minilm, reviews):
    vocabulary = Vocabulary.load(minilm / "vocab.txt")
    tokenizer, reference = BertTokenizer(vocabulary), comparison.load_reference(minilm)
    texts = [
        *(review.encode() for review in reviews[:1500]),
        b"long " * 1000,
        b"",
        b"go\xffod \xed\xa0\x80 \xc3",
    ]
    assert list(comparison.differences(tokenizer, reference, texts)) == [None] * len(texts)
    assert len(reference(["long " * 1000])[0].ids) == 1000


def test_every_difference_is_found_with_its_number_and_what_both_make_of_it(folder, monkeypatch):
    monkeypatch.setattr(comparison, "_TEXTS_AT_ONCE", 2)
    texts = [b"good", b"Good", b"bad", b"goods Goods", "中".encode()]
    found = differences(comparison.load_reference(folder), texts, lower_case=False)
    assert [difference and difference.number for difference in found] == [None, 2, None, 4, None]
    assert found[1].ours == ([PIECES.index("Good")], ["Good"])
    assert found[1].theirs == ([PIECES.index("good")], ["good"])
    assert str(found[3]) == "text 4: 'goods Goods'\n  ours:   good ##s Good ##s\n  theirs: good ##s good ##s"


def test_of_equal_pieces_with_other_numbers_the_numbers_are_shown(folder):
    pieces = (*PIECES[:5], "bad", *PIECES[5:8], *PIECES[9:])
    (difference,) = differences(comparison.load_reference(folder), [b"bad"], pieces)
    assert str(difference) == "text 1: 'bad'\n  ours:   5\n  theirs: 8"


def test_without_its_own_file_the_reference_is_what_transformers_makes_of_the_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    Vocabulary(PIECES).save(folder / "vocab.txt")
    reference = comparison.load_reference(folder)
    assert reference(["Goods 中x", ""]) == [([5, 6, 11, UNKNOWN], ["good", "##s", "中", "[UNK]"]), ([], [])]
    assert differences(reference, [b"Goods", "Café 中".encode()]) == [None, None]


def test_a_missing_library_is_named_with_the_command_that_installs_it(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"has no tokenizer.json, and transformers, .*; pip install transformers$"
    ):
        comparison.load_reference(folder)


def test_a_folder_without_a_readable_tokenizer_is_refused_in_one_line(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json: no tokenizer: "):
        comparison.load_reference(folder)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=f"^{folder}: no tokenizer: ") as caught:
        comparison.load_reference(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such folder; give one with tokenizer.json or vocab.txt"):
        comparison.load_reference(folder / "vocab.txt")


def test_a_table_has_the_places_of_each_token_in_the_original_text():
    tokenizer = BertTokenizer(
        Vocabulary((*PIECES[:5], *(f"piece{number}" for number in range(95)), *PIECES[5:]))
    )
    lines = comparison.table(tokenizer, ["  Goods\u200b 中Cafe\u0301 😀".encode(), b""]).split("\n")
    assert lines == [
        "'  Goods\\u200b 中Cafe\u0301 😀'",
        " id  bytes  characters  piece",
        "100    2:6         2:6  good",
        "101    6:7         6:7  ##s",
        "106  11:14        9:10  中",
        "104  14:16       10:12  ca",
        "105  16:18       12:14  ##fe",
        "  1  21:25       16:17  [UNK]",
        "",
        "''",
        "id  bytes  characters  piece",
    ]
