"""Rows: what strangers' names do to messages."""

import numpy as np
import pytest

from keras_bert_app.convert.pretrained import Tensor
from keras_bert_app.convert.rows import Theirs, match
from keras_bert_app.errors import UserError


def test_names_that_would_break_the_line_are_spelled_out():
    tensors = {"a\nb\x1b[31m": Tensor((2,), "float32", lambda: np.ones(2, "f"))}
    with pytest.raises(UserError) as caught:
        match(Theirs(()), tensors, {}, "file")
    assert r"unknown: a\nb\x1b[31m" in str(caught.value) and str(caught.value).isprintable()
