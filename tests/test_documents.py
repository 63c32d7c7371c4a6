"""Reading corpora as they are found: in pieces, broken, enormous."""

import bz2
import gzip
import io
import json
import re
import tracemalloc

import numpy as np
import pytest

from keras_bert_app.data import documents
from keras_bert_app.data.documents import Skipped, input_files, read_documents, split_sentences
from keras_bert_app.errors import UserError


def read(path, **settings):
    skipped = Skipped()
    return list(read_documents([path], skipped, **settings)), dict(skipped.counts)


def written(tmp_path, content: bytes, name="corpus.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_blank_lines_set_documents_apart(tmp_path):
    path = written(tmp_path, b"\n\none\ntwo\n\n \t\r\nthree\n\n\n")
    assert read(path) == ([b"one\ntwo", b"three"], {})


def test_a_file_can_be_one_document(tmp_path):
    path = written(tmp_path, b"\none\n\ntwo\n")
    assert read(path, separation="files") == ([b"one\n\ntwo"], {})


def test_line_ends_and_byte_order_marks_do_not_change_documents(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree")
    assert read(path) == ([b"one\ntwo", b"three"], {})


def test_json_lines_are_a_document_each_and_bad_ones_are_counted(tmp_path):
    rows = [b'{"text": "one\\n\\ntwo"}', b"", b"{broken", b'["text"]', b'{"text": 3}', b'{"text": " "}']
    rows += [b'{"text": "nul \\u0000"}', b'{"text": "lone \\ud800"}', b"[" * 100_000, b'{"text": "last"}']
    documents, skipped = read(written(tmp_path, b"\n".join(rows), "corpus.jsonl"))
    assert documents == [b"one\n\ntwo", b"last"]
    assert skipped == {"not JSON": 2, "without the text 'text'": 2, "empty": 1, "binary": 1, "not UTF-8": 1}


def test_another_key_can_hold_the_text(tmp_path):
    path = written(tmp_path, json.dumps({"body": "one"}).encode(), "corpus.jsonl")
    assert read(path, text_key="body") == ([b"one"], {})


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_are_read(tmp_path, suffix, compress):
    assert read(written(tmp_path, compress(b"one\n\ntwo"), "a.txt" + suffix))[0] == [b"one", b"two"]
    assert read(written(tmp_path, compress(b'{"text": "one"}'), "a.jsonl" + suffix))[0] == [b"one"]


def test_a_broken_compressed_file_is_named(tmp_path):
    path = written(tmp_path, gzip.compress(b"one" * 1000)[:20], "a.txt.gz")
    with pytest.raises(UserError, match=r"a\.txt\.gz: can't be read"):
        read(path)


@pytest.mark.parametrize(
    ("content", "documents", "skipped"),
    [
        (b"", [], {"empty": 1}),
        (b"\n \n\t\n", [], {"empty": 1}),
        (b"\x7fELF\0\0\n\nfine", [], {"binary": 1}),
        ("fine".encode("utf-16"), [], {"binary": 1}),
        (b"fine\n\nbr\xf6ken\n\ngood", [b"fine", b"good"], {"not UTF-8": 1}),
        (b"fine\n\n" + b"x" * 70_000 + b"\n\n" + b"\0" * 9, [b"fine", b"x" * 70_000], {"binary": 1}),
    ],
    ids=["empty", "blank", "binary", "UTF-16", "Latin-1", "NUL far inside"],
)
def test_what_is_no_text_is_left_out_and_counted(tmp_path, content, documents, skipped):
    assert read(written(tmp_path, content)) == (documents, skipped)


def test_the_first_place_of_each_reason_is_told(tmp_path):
    skipped = Skipped()
    path = written(tmp_path, b"fine\n\nbr\xf6ken\n\n\xff")
    assert list(read_documents([path], skipped)) == [b"fine"]
    assert str(skipped) == f"2 not UTF-8 (the first {path}:3)"


@pytest.mark.parametrize(("separation", "separator"), [("lines", "\n"), ("blank_lines", "\n\\s*\n")])
def test_blocks_and_their_lines_do_not_depend_on_the_pieces_that_are_read(monkeypatch, separation, separator):
    random = np.random.default_rng(0)
    for _ in range(3000):
        parts = ["a", "bc", "\n", "\n\n", " ", "\t", "\r\n", "x" * 300]
        content = "".join(random.choice(parts, random.integers(0, 40)))
        wanted, line = [], 1
        for block in re.split(f"({separator})", content):
            text = block.strip()
            if text:
                before = block[: len(block) - len(block.lstrip())].count("\n")
                wanted.append((line + before, None if "x" in text else text.encode()))
            line += block.count("\n")
        monkeypatch.setattr(documents, "_PIECE_BYTES", int(random.integers(1, 60)))
        found = documents._blocks(io.BytesIO(content.encode()), separation, 250)
        assert [(line, block and block.strip()) for line, block in found] == wanted, content


@pytest.mark.parametrize("separation", ["blank_lines", "files"])
def test_an_enormous_line_is_left_out_in_bounded_memory(tmp_path, separation):
    path = tmp_path / "enormous.txt"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(b"\n\nfine\n" if separation == "blank_lines" else b"")
    tracemalloc.start()
    result = read(path, separation=separation, max_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result == ([b"fine"] if separation == "blank_lines" else [], {"too long": 1})
    assert peak < 8 * 2**20


def test_a_long_corpus_is_streamed_in_bounded_memory(tmp_path):
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for number in range(20_000):
            file.write(b"document %d says the same\nas the others do, or nearly so.\n\n" % number * 10)
    size, num_documents = path.stat().st_size, 0
    tracemalloc.start()
    for _ in read_documents([path], Skipped()):
        num_documents += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_documents == 200_000
    assert peak < size / 10


def test_files_folders_and_patterns_give_each_file_once_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "below/c.txt", ".hidden/d.txt", "below/.e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    a, b, c = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "below" / "c.txt"
    assert input_files([str(tmp_path)]) == [a, b, c]
    assert input_files([str(tmp_path / "*.txt"), str(a)]) == [a, b]


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing\*\.txt: no such file"):
        input_files([str(tmp_path / "nothing*.txt")])
    with pytest.raises(UserError, match="no files there"):
        input_files([str(tmp_path)])


@pytest.mark.parametrize(
    ("document", "sentences"),
    [
        ("One. Two!\nThree? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("J. Smith came. So did I. B. Jones too.", ["J. Smith came.", "So did I. B. Jones too."]),
        ("It cost $3.50 at example.com, e.g. yesterday.", ["It cost $3.50 at example.com, e.g. yesterday."]),
        ("A line\nthat is wrapped\n\nA heading\n \nText.", ["A line\nthat is wrapped", "A heading", "Text."]),
        ("第一句。第二句！「第三句。」第四句", ["第一句。", "第二句！", "「第三句。」", "第四句"]),
        ("यह एक है। यह दो है।", ["यह एक है।", "यह दो है।"]),
        ("Wait... what? Well… Yes.", ["Wait... what?", "Well…", "Yes."]),
        (" \n ", []),
    ],
)
def test_sentences_end_where_a_reader_would_say(document, sentences):
    assert split_sentences(document) == sentences


def test_ascii_is_split_as_any_other_script_is():
    random = np.random.default_rng(0)
    for _ in range(20_000):
        text = "Z" + "".join(random.choice(list("aA1 .!?\")'\n("), random.integers(0, 14)))
        assert split_sentences("日本。" + text) == ["日本。", *split_sentences(text)], text


def test_lines_can_be_sentences(tmp_path):
    assert split_sentences("one. still one\n two \n\nthree", "lines") == ["one. still one", "two", "three"]


def test_no_word_is_lost_or_changed_by_splitting(reviews):
    for review in reviews[:2000]:
        assert "".join(" ".join(split_sentences(review)).split()) == "".join(review.split())


def test_long_sentences_are_cut_at_spaces_and_nothing_is_lost():
    words = split_sentences("word " * 5000)
    assert max(map(len, words)) <= 1000 and " ".join(words).split() == ["word"] * 5000
    letters = split_sentences("x" * 2500)
    assert [len(piece) for piece in letters] == [1000, 1000, 500]
