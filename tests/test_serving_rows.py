import time

import numpy as np
import pytest

from serving.rows import batches, in_order, joined, rows, sendable, text_inputs


def test_inputs_are_cut_into_batches_of_equal_rows():
    inputs = {"a": [1, 2, 3], "b": np.arange(6).reshape(3, 2)}
    cut = [
        {name: list(map(np.ndarray.tolist, map(np.asarray, part))) for name, part in batch.items()}
        for batch in batches(inputs, 2)
    ]
    assert cut == [{"a": [1, 2], "b": [[0, 1], [2, 3]]}, {"a": [3], "b": [[4, 5]]}]
    assert list(batches({"a": []}, 2)) == []


@pytest.mark.parametrize(
    ("outputs", "shapes"),
    [
        ({"x": np.array(1.0)}, r"\(x \[\]\)"),
        ({"x": np.zeros(2), "y": np.zeros((3, 1))}, r"\(x \[2\], y \[3, 1\]\)"),
        ({}, r"\(\)"),
    ],
)
def test_outputs_without_an_entry_a_row_are_refused(outputs, shapes):
    with pytest.raises(ValueError, match=f"don't have an entry for each row {shapes}; use run"):
        rows(outputs)


def test_outputs_are_rows_of_plain_values():
    outputs = {
        "label": np.array([b"h\xc3\xa9", b"\xff"], object),
        "pieces": np.array([[b"a", b"b"], [b"c", b""]], object),
        "ids": np.int32([[1, 2], [3, 4]]),
        "flag": np.array([True, False]),
    }
    assert rows(outputs) == [
        {"label": "h\u00e9", "pieces": ["a", "b"], "ids": [1, 2], "flag": True},
        {"label": "\ufffd", "pieces": ["c", ""], "ids": [3, 4], "flag": False},
    ]
    assert rows({"label": np.zeros(0)}) == []


def test_rows_that_are_not_as_many_as_were_sent_are_refused():
    assert joined([[1, 2], [3]], 3) == [1, 2, 3]
    with pytest.raises(ValueError, match="4 rows were sent and 3 came back"):
        joined([[1, 2], [3]], 4)


def test_strings_are_sent_as_their_bytes_whatever_holds_them():
    assert sendable([["a\0", b"\xff\0"]]).tolist() == [[b"a\0", b"\xff\0"]]
    assert sendable("h\u00e9").tolist() == "h\u00e9".encode()
    assert sendable(np.array(["a", "b"])).tolist() == [b"a", b"b"]
    assert sendable([]).dtype == object and sendable([[], []]).shape == (2, 0)
    assert sendable(np.int32([1])).dtype == np.int32


def test_one_text_in_place_of_a_list_is_refused():
    for texts in (("a text", None), (["a"], b"b")):
        with pytest.raises(TypeError, match="list of strings, not one string"):
            text_inputs(*texts)


def test_the_first_error_ends_what_has_not_begun():
    begun = []

    def call(number):
        begun.append(number)
        if number == 0:
            raise KeyError(number)
        time.sleep(0.05)

    with pytest.raises(KeyError):
        in_order(call, range(200), 2)
    assert len(begun) < 200
