import base64
import bz2
import csv
import gzip
import io
import json
import os
import random

import pytest

from keras_bert_app.data.readers import read_records, read_texts
from keras_bert_app.errors import UserError

COLUMNS = {"text": "text", "label": "label"}
PAIR_COLUMNS = {"text": "text", "text_pair": "second"}


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


def values(path, columns=COLUMNS, **options):
    records, _ = read_records(path, columns, **options)
    return [tuple(record.values[name] for name in columns) for record in records]


def refusal(path, columns=COLUMNS, **options):
    with pytest.raises(UserError) as caught:
        read_records(path, columns, **options)
    return str(caught.value)


def texts(path, columns=COLUMNS):
    return [row["text"] for row in read_texts(path, columns)]


# Labelled files.


def test_columns_are_found_by_name_and_others_are_left_out(write):
    path = write("train.csv", "id,topic,body,film\n1,good,a quiet triumph,Up\n2,bad,so dull,Up\n")
    records, num_skipped = read_records(path, {"text": "body", "label": "topic", "group": "film"})
    assert [dict(record.values) for record in records] == [
        {"text": "a quiet triumph", "label": "good", "group": "Up"},
        {"text": "so dull", "label": "bad", "group": "Up"},
    ]
    assert num_skipped == 0


def test_csv_reads_back_what_the_csv_module_writes(write):
    rows = [
        ['say "yes"', "a"],
        ["two\nlines, a comma", "b"],
        ["\r\n,\"'", "c"],
        [" spaces ", "d"],
        ["🙂é", "e"],
    ]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([["text", "label"], *rows])
    assert values(write("train.csv", buffer.getvalue())) == [tuple(row) for row in rows]


def test_where_is_the_line_a_row_starts_on(write):
    path = write("train.csv", 'text,label\n"one\ntwo\nthree",a\n\nfour,b\n"five\n",c\nsix,d\n')
    records, _ = read_records(path, COLUMNS)
    assert [record.where for record in records] == [f"{path}:{line}" for line in (2, 6, 7, 9)]


def test_tsv_takes_quotes_for_ordinary_characters(write):
    path = write("train.tsv", 'text\tlabel\n"open\ta\nin "the" middle\tb\r\n')
    assert values(path) == [('"open', "a"), ('in "the" middle', "b")]


def test_a_carriage_return_inside_a_tsv_field_does_not_end_the_row(write):
    assert values(write("train.tsv", "text\tlabel\none\rtwo\ta\n")) == [("one\rtwo", "a")]


def test_jsonl_takes_whole_numbers_for_labels(write):
    path = write("train.jsonl", '{"text": "x", "label": 1}\n\n{"label": "b", "text": "\\ud83d\\ude42\\n"}')
    assert values(path) == [("x", "1"), ("🙂\n", "b")]


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl"])
def test_a_byte_order_mark_is_accepted(write, name):
    data = {
        "train.csv": "text,label\nx,a\n",
        "train.tsv": "text\tlabel\nx\ta\n",
        "train.jsonl": '{"text": "x", "label": "a"}\n',
    }[name]
    assert values(write(name, b"\xef\xbb\xbf" + data.encode())) == [("x", "a")]


@pytest.mark.parametrize("suffix, compress", [(".bz2", bz2.compress), (".gz", gzip.compress)])
def test_compressed_files_read_like_plain_ones(write, suffix, compress):
    data = b"text,label\nx,a\ny,b\n"
    compressed, plain = write("train.csv" + suffix, compress(data)), write("train.csv", data)
    assert values(compressed) == values(plain) == [("x", "a"), ("y", "b")]


def test_a_field_longer_than_the_csv_modules_limit_is_read(write):
    long = "word " * 100_000
    assert values(write("train.csv", f"text,label\n{long},a\n")) == [(long, "a")]


def test_a_folder_per_class_gives_its_names_as_labels_in_sorted_order(write, tmp_path):
    for name in ("b/2.txt", "b/1.txt", "a/x", "a/.hidden", ".git/config"):
        write(f"corpus/{name}", f"text of {name}\nsecond line")
    write("corpus/a/x", b"\xef\xbb\xbftext of a/x, after a byte order mark")
    write("corpus/README", "beside the classes")
    records, _ = read_records(tmp_path / "corpus", {"text": "body", "label": "topic"})
    assert [(record.values["text"].split("\n")[0], record.values["label"]) for record in records] == [
        ("text of a/x, after a byte order mark", "a"),
        ("text of b/1.txt", "b"),
        ("text of b/2.txt", "b"),
    ]
    assert records[0].where == str(tmp_path / "corpus" / "a" / "x")


def test_rows_outside_the_ones_to_keep_are_not_even_checked(write):
    path = write("train.csv", "text,label,kind\nx,a,review\n,,plot\ny,b,review\n")
    assert values(path, keep={"kind": ["review"]}) == [("x", "a"), ("y", "b")]


# Rows and files that are refused.

BAD_ROWS = {
    "too few fields": ("train.csv", "text,label\nx,a\nonly\ny,b\n", 3, "1 fields where the header names 2"),
    "too many fields": ("train.csv", "text,label\nx,a\no,n,e\ny,b\n", 3, "quote fields with commas"),
    "too many tabs": ("train.tsv", "text\tlabel\nx\ta\no\tn\te\ny\tb\n", 3, "3 fields"),
    "an empty text": ("train.csv", "text,label\nx,a\n ,b\ny,b\n", 3, "text (column 'text') is empty"),
    "an empty label": ("train.csv", "text,label\nx,a\nz,\ny,b\n", 3, "label (column 'label') is empty"),
    "latin-1": ("train.csv", b"text,label\nx,a\ncaf\xe9,b\ny,b\n", 3, "byte 0xe9 in line 3 is no UTF-8"),
    "latin-1 deep in a row": ("train.csv", b'text,label\nx,a\n"1\n\xff",b\ny,b\n', 3, "byte 0xff in line 4"),
    "latin-1 elsewhere": ("train.tsv", b"text\tlabel\tid\nx\ta\t1\ny\tb\t\xe9\ny\tb\t2\n", 3, "byte 0xe9"),
    "NUL": ("train.tsv", "text\tlabel\nx\ta\nz\0\tb\ny\tb\n", 3, "byte 0x00 in line 3"),
    "text after a quote": ("train.csv", 'text,label\nx,a\n"z"z,b\ny,b\n', 3, "double the quotes"),
    "an open quote": ("train.csv", 'text,label\nx,a\n"z,b\ny,b\n', 3, "double the quotes"),
    "no JSON": ("train.jsonl", '{"text":"x","label":"a"}\n{text}\n{"text":"y","label":"b"}', 2, "not JSON"),
    "no object": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n["z"]\n{"text":"y","label":"b"}',
        2,
        "not an object",
    ),
    "a list": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":[],"label":"b"}\n{"text":"y","label":"b"}',
        2,
        "[]",
    ),
    "a number for a text": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":5,"label":"b"}\n{"text":"y","label":"b"}',
        2,
        "text (column 'text') is 5; write a string",
    ),
    "a fraction for a label": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":"z","label":0.5}\n{"text":"y","label":"b"}',
        2,
        "0.5; write a string or a whole number",
    ),
    "a boolean for a label": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":"z","label":true}\n{"text":"y","label":"b"}',
        2,
        "True; write a string or a whole number",
    ),
    "a lone surrogate": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":"\\ud800","label":"b"}\n{"text":"y","label":"b"}',
        2,
        "half a surrogate pair",
    ),
    "an escaped NUL": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":"z\\u0000","label":"b"}\n{"text":"y","label":"b"}',
        2,
        "NUL character",
    ),
    "a missing key": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":"z","lable":"b"}\n{"text":"y","label":"b"}',
        2,
        "no column 'label' for label, there is: 'text', 'lable'; set config.data.label_column=lable",
    ),
    "JSON nested without end": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n' + "[" * 100_000 + '\n{"text":"y","label":"b"}',
        2,
        "not JSON",
    ),
    "a number of 5,000 digits": (
        "train.jsonl",
        '{"text":"x","label":"a"}\n{"text":"z","label":' + "1" * 5000 + '}\n{"text":"y","label":"b"}',
        2,
        "not JSON",
    ),
}


@pytest.mark.parametrize("name, data, line, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_its_file_and_line(write, name, data, line, message):
    path = write(name, data)
    said = refusal(path)
    assert said.startswith(f"{path}:{line}: ") and message in said
    assert "config.data.skip_bad_rows=True" in said


@pytest.mark.parametrize("name, data, line, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_skipped_and_counted_where_asked_for(write, name, data, line, message):
    records, num_skipped = read_records(write(name, data), COLUMNS, skip_bad_rows=True)
    assert [(record.values["text"], record.values["label"]) for record in records] == [("x", "a"), ("y", "b")]
    assert num_skipped == 1


def test_a_row_is_not_blamed_for_bytes_that_come_after_it(write):
    path = write("train.csv", b'text,label\nx,a\n"z,b\ncaf\xe9,b\n')
    assert refusal(path).startswith(f"{path}:3: broken CSV")


def test_a_deeply_nested_value_is_refused_without_quoting_all_of_it(write):
    for depth in range(100, 1100, 20):
        path = write("train.jsonl", '{"text": "x", "label": ' + "[" * depth + "]" * depth + "}")
        said = refusal(path).removeprefix(f"{path}:1: ")
        assert len(said) < 250 and "skip_bad_rows" in said


def test_a_file_of_bad_rows_alone_is_refused_even_where_they_are_skipped(write):
    path = write("train.jsonl", '{"a": 1}\n{"a": 2}\n')
    assert f"all 2 rows are bad, the first at {path}:1" in refusal(path, skip_bad_rows=True)


@pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_a_missing_column_is_refused_with_the_nearest_and_the_key_to_set(write, name, skip_bad_rows):
    separator = "," if name == "train.csv" else "\t"
    path = write(name, separator.join(["id", "texts", "label"]) + "\n" + separator.join("1xa"))
    said = refusal(path, skip_bad_rows=skip_bad_rows)
    assert said.startswith(f"{path}:1: no column 'text' for text, there is: 'id', 'texts', 'label'")
    assert said.endswith("set config.data.text_column=texts")


BAD_FILES = {
    "an empty csv": ("train.csv", b"", "empty; the first line must name the columns"),
    "an empty tsv": ("train.tsv", b"\n\n", "empty; the first line must name the columns"),
    "an empty jsonl": ("train.jsonl", b"\n", "no rows"),
    "only a header": ("train.csv", b"text,label\n", "no rows"),
    "a column twice": ("train.csv", b"text,label,text\nx,a,y\n", "2 columns are named 'text'"),
    "a latin-1 header": ("train.csv", b"text,label,\xe9\nx,a,1\n", ":1: byte 0xe9"),
    "a broken header": ("train.csv", b'"text"x,label\nx,a\n', ":1: broken CSV"),
    "UTF-16": ("train.csv", "text,label\nx,a\n".encode("utf-16"), ":1: byte 0xff"),
    "an unknown suffix": ("train.xlsx", b"PK", ".xlsx"),
    "a cut bz2": ("train.csv.bz2", bz2.compress(b"text,label\nx,a\n")[:-9], "can't be read"),
    "a cut gz": ("train.csv.gz", gzip.compress(b"text,label\nx,a\n")[:-9], "can't be read"),
    "no gz": ("train.csv.gz", b"text,label\nx,a\n", "can't be read"),
    "a corrupt gz": ("train.csv.gz", gzip.compress(b"text,label\n")[:12] + b"\xff" * 40, "can't be read"),
}


@pytest.mark.parametrize("name, data, message", BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_a_file_that_holds_no_rows_is_refused_with_its_name(write, name, data, message, skip_bad_rows):
    path = write(name, data)
    said = refusal(path, skip_bad_rows=skip_bad_rows)
    assert said.startswith(str(path)) and message in said


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    assert refusal(tmp_path / "nowhere.csv") == f"{tmp_path / 'nowhere.csv'}: no such file or folder"


def test_a_name_no_file_can_have_is_refused_with_the_reason(tmp_path):
    assert "can't be read (File name too long)" in refusal(tmp_path / ("x" * 5000 + ".csv"))


def test_a_file_without_permission_is_refused_with_the_reason(write, monkeypatch):
    path = write("train.csv", "text,label\nx,a\n")

    # chmod would not stop a superuser, as whom tests in a container run.
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("keras_bert_app.data.rows.open", refuse, raising=False)
    assert refusal(path) == f"{path}: can't be read (Permission denied)"


@pytest.mark.parametrize("names", [["readme.txt"], ["only/1.txt"]])
def test_a_folder_with_fewer_than_two_classes_is_refused(write, tmp_path, names):
    for name in names:
        write(f"corpus/{name}", "text")
    assert "two or more are needed" in refusal(tmp_path / "corpus")


def test_a_folder_is_refused_with_what_is_wrong_inside(write, tmp_path):
    write("corpus/a/1.txt", "text")
    bad = write("corpus/b/1.txt", b"caf\xe9")
    assert refusal(tmp_path / "corpus").startswith(f"{bad}: byte 3 is not UTF-8")
    bad.write_bytes(b" \n")
    assert refusal(tmp_path / "corpus").startswith(f"{bad}: text (column 'text') is empty")
    bad.unlink()
    assert refusal(tmp_path / "corpus").startswith(f"{bad.parent}: no files")
    bad.mkdir()
    assert refusal(tmp_path / "corpus").startswith(f"{bad}: not a file")


def test_a_folder_per_class_has_no_pairs_and_no_groups(write, tmp_path):
    write("corpus/a/1.txt", "text")
    assert "leave config.data.group_column unset" in refusal(
        tmp_path / "corpus", {**COLUMNS, "group": "film"}
    )


def test_a_group_in_json_may_be_a_number_too(write):
    path = write("train.jsonl", '{"text": "x", "label": "a", "film": 7}\n')
    assert values(path, {**COLUMNS, "group": "film"}) == [("x", "a", "7")]


# Texts to predict.


def test_a_text_file_is_cut_at_line_feeds_alone_and_may_hold_any_bytes(write):
    data = "one\r\n\n\x0b\x0c\x1c\u2028\x85\rtwo\n".encode() + b"\xff\xfe\0\nlast"
    expected = [b"one", b"", "\x0b\x0c\x1c\u2028\x85\rtwo".encode(), b"\xff\xfe\0", b"last"]
    assert texts(write("texts.txt", data)) == expected
    assert texts(write("texts.txt.gz", gzip.compress(data))) == expected
    assert texts(write("ended.txt", b"one\n")) == [b"one"]
    assert texts(write("empty.txt", b"")) == []


def test_jsonl_is_lossless_for_any_bytes(write):
    generator = random.Random(1)
    originals = [generator.randbytes(generator.randrange(40)) for _ in range(200)]
    lines = [json.dumps({"text": {"b64": base64.b64encode(text).decode()}}) for text in originals]
    assert texts(write("texts.jsonl", "\n".join(lines))) == originals


def test_jsonl_strings_may_hold_any_escape(write):
    path = write(
        "texts.jsonl", '{"text": "\\u0000\\ud83d\\ude42\\n"}\n{"text": "\\ud800 \\udcff"}\n{"text": ""}\n'
    )
    assert texts(path) == ["\0🙂\n".encode(), b"\xed\xa0\x80 \xed\xb3\xbf", b""]


def test_tables_to_predict_may_hold_any_bytes_and_need_no_label(write):
    rows = [(b"caf\xe9", b"\xff"), (b"\xed\xb3\xbf", b"\0"), (b"", b"x")]
    tsv = b"".join(b"\t".join(row) + b"\n" for row in ((b"text", b"second"), *rows))
    expected = [{"text": first, "text_pair": second} for first, second in rows]
    assert list(read_texts(write("pairs.tsv", tsv), PAIR_COLUMNS)) == expected
    assert list(read_texts(write("pairs.csv", tsv.replace(b"\t", b",")), PAIR_COLUMNS)) == expected


def test_an_empty_text_in_a_table_of_one_column_keeps_its_place(write):
    assert texts(write("texts.tsv", "text\na\n\nb\n")) == [b"a", b"", b"b"]
    assert texts(write("texts.csv", 'text\na\n""\nb\n')) == [b"a", b"", b"b"]


def test_texts_are_streamed(write):
    path = write("texts.jsonl", '{"text": "good"}\n{"text": 1}\n')
    stream = read_texts(path, COLUMNS)
    assert next(stream) == {"text": b"good"}
    with pytest.raises(UserError, match="texts.jsonl:2: text .* is 1; write a string or"):
        next(stream)


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("texts.jsonl", b'{"text": "caf\xe9"}', 'jsonl:1: byte 0xe9 in line 1 .*"b64"'),
        ("texts.jsonl", b'{"text": {"b64": "a"}}', "jsonl:1: .* is no base64"),
        ("texts.jsonl", b'{"text": {"b64": "Y*Q=="}}', "jsonl:1: .* is no base64"),
        ("texts.jsonl", b'{"text": {"b64": "YQ==", "x": 1}}', "jsonl:1: .* write a string or"),
        ("texts.jsonl", b'{"txt": "a"}', "jsonl:1: no column 'text' .* set config.data.text_column=txt"),
        ("texts.csv", b"text,b\nx\n", "csv:2: 1 fields where the header names 2"),
        ("texts.csv", b"", "csv: empty"),
        ("texts.csv", b"txt\nx\n", "csv:1: no column 'text'"),
    ],
)
def test_bad_rows_of_texts_are_refused_with_file_and_line(write, name, data, message):
    path = write(name, data)
    with pytest.raises(UserError, match=message):
        texts(path)


def test_a_path_that_cannot_be_predicted_from_is_refused_before_any_row_is_asked_for(write, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        read_texts(tmp_path / "nowhere.txt", COLUMNS)
    with pytest.raises(UserError, match="a folder; give a file ending in .txt, .csv"):
        read_texts(tmp_path, COLUMNS)
    with pytest.raises(UserError, match="unknown kind '.md'"):
        read_texts(write("texts.md", "x"), COLUMNS)
    with pytest.raises(UserError, match="not pairs; give .jsonl"):
        read_texts(write("texts.txt", "x"), PAIR_COLUMNS)


# Anything at all.


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt", ".csv.gz", ".jsonl.bz2"])
def test_random_bytes_give_rows_or_a_user_error_and_nothing_else(write, suffix):
    generator = random.Random(suffix)
    pieces = [
        b"text,label\n",
        b"text\tlabel\n",
        b'{"text":"x","label":"y"}\n',
        b'"',
        b",",
        b"\t",
        b"\n",
        b"\r",
        b"\0",
    ]
    pieces += [
        b"{",
        b"[",
        b"\\ud800",
        b"\xff",
        b"\xef\xbb\xbf",
        b"x",
        "é".encode(),
        b'{"text":{"b64":"YQ=="}}\n',
    ]
    num_read = num_refused = 0
    for _ in range(200):
        data = b"".join(generator.choices([*pieces, generator.randbytes(5)], k=generator.randrange(20)))
        data = (
            generator.choice(
                [b"", b"text,label\nx,y\n", b"text\tlabel\nx\ty\n", b'{"text":"x","label":"y"}\n']
            )
            + data
        )
        compress = {".gz": gzip.compress, ".bz2": bz2.compress}.get(os.path.splitext(suffix)[1], bytes)
        packed = bytearray(compress(data))
        if packed and generator.random() < 0.2:
            packed[generator.randrange(len(packed))] ^= 1 << generator.randrange(8)
        path = write("fuzz" + suffix, bytes(packed))
        for read in (
            lambda path: read_records(path, COLUMNS),
            lambda path: read_records(path, COLUMNS, skip_bad_rows=True),
            lambda path: texts(path),
        ):
            try:
                read(path)
                num_read += 1
            except UserError as error:
                assert str(path) in str(error)
                num_refused += 1
    assert num_read > 25 and num_refused > 25
