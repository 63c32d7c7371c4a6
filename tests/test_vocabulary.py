"""Vocabulary files as they come from other systems, whole and broken."""

import hashlib

import pytest

from keras_bert_app.errors import UserError
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

PIECES = (*SPECIAL_TOKENS, "good", "##s", "café", "中")


def lines(pieces, end="\n"):
    return "".join(piece + end for piece in pieces).encode()


def load(tmp_path, content: bytes) -> Vocabulary:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    return Vocabulary.load(path)


@pytest.mark.parametrize(
    "content",
    [
        lines(PIECES),
        lines(PIECES, "\r\n"),
        lines(PIECES).removesuffix(b"\n"),
        lines(PIECES, "\r\n").removesuffix(b"\r\n"),
        b"\xef\xbb\xbf" + lines(PIECES),
    ],
    ids=["LF", "CRLF", "no last LF", "no last CRLF", "byte order mark"],
)
def test_line_ends_change_neither_the_pieces_nor_the_hash(tmp_path, content):
    vocabulary = load(tmp_path, content)
    assert vocabulary.pieces == PIECES
    assert vocabulary.sha256 == hashlib.sha256(lines(PIECES)).hexdigest()


def test_an_id_is_a_pieces_place(tmp_path):
    vocabulary = load(tmp_path, lines(PIECES))
    assert [vocabulary.ids[piece] for piece in PIECES] == list(range(len(vocabulary)))


def test_pieces_of_another_order_have_another_hash():
    assert Vocabulary(PIECES).sha256 != Vocabulary(PIECES[::-1]).sha256


def test_pieces_with_unicode_line_separators_stay_whole(tmp_path):
    pieces = (*PIECES, "\u2028", "a\u2029b", "\x85", "\x0b", "\x1c")
    assert load(tmp_path, lines(pieces)).pieces == pieces


def test_what_is_saved_is_loaded_again(tmp_path):
    saved, path = Vocabulary((*PIECES, "\u2028")), tmp_path / "new" / "vocab.txt"
    saved.save(path)
    loaded = Vocabulary.load(path)
    assert (loaded.pieces, loaded.sha256) == (saved.pieces, saved.sha256)
    assert [child.name for child in path.parent.iterdir()] == ["vocab.txt"]


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_missing_special_token_is_named(tmp_path, token):
    with pytest.raises(UserError, match=rf"vocab\.txt: .*{token[1:-1]}\] missing"):
        load(tmp_path, lines(piece for piece in PIECES if piece != token))


def test_a_piece_that_stands_twice_is_named(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt: the piece 'good' stands there twice"):
        load(tmp_path, lines((*PIECES, "good")))


def test_an_empty_line_is_refused_with_its_number(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt:10: an empty line"):
        load(tmp_path, lines((*PIECES, "", "after")))


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt: not UTF-8 at byte 31"):
        load(tmp_path, lines(SPECIAL_TOKENS) + "é\n".encode("latin-1"))


def test_a_file_that_is_not_there_is_refused_with_its_name(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt: can't read the vocabulary: No such file"):
        Vocabulary.load(tmp_path / "nowhere.txt")


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt"):
        load(tmp_path, b"")
