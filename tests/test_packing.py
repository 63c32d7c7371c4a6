"""Truncation and packing against transformers, and the shapes that an exported packer takes."""

import json
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import transformers

from keras_bert_app import features
from keras_bert_app.errors import UserError
from keras_bert_app.export import c_api
from keras_bert_app.text.packing import TextPacker, check_rank, truncate
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import CLASSIFY, PAD, SEPARATE, SPECIAL_TOKENS, Vocabulary

TINY = Vocabulary((*SPECIAL_TOKENS, "a", "b"))
CLS, SEP = TINY.ids[CLASSIFY], TINY.ids[SEPARATE]


def tiny_packer(max_length):
    return TextPacker(BertTokenizer(TINY), max_length)


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return BertTokenizer(Vocabulary.load(minilm / "vocab.txt"))


@pytest.fixture(scope="module")
def reference(minilm):
    return transformers.BertTokenizerFast(vocab=str(minilm / "vocab.txt"))


@pytest.mark.parametrize("max_length", [16, 64, 128])
def test_pairs_of_reviews_are_cut_as_transformers_cuts_them(tokenizer, reference, reviews, max_length):
    draw = random.Random(max_length)
    firsts = (
        [" ".join(draw.sample(reviews, draw.randint(1, 4))) for _ in range(1000)] + reviews[:500] + ["", ""]
    )
    seconds = [" ".join(draw.sample(reviews, draw.randint(1, 4))) for _ in range(1500)] + ["", "good"]
    ids, segments = TextPacker(tokenizer, max_length).pack([tf.constant(firsts), tf.constant(seconds)])
    theirs = reference(firsts, seconds, truncation="longest_first", max_length=max_length)
    assert ids.to_list() == theirs["input_ids"]
    assert segments.to_list() == theirs["token_type_ids"]
    assert max(map(len, theirs["input_ids"])) == max_length


def test_reviews_alone_are_cut_as_transformers_cuts_them(tokenizer, reference, reviews):
    ids, segments = TextPacker(tokenizer, 16).pack([tf.constant(reviews[:2000])])
    theirs = reference(reviews[:2000], truncation=True, max_length=16)
    assert ids.to_list() == theirs["input_ids"]
    assert segments.to_list() == theirs["token_type_ids"]


def one_by_one(first, second, room):
    """Take tokens one by one from the longer text; between equals, from the one that began as the shorter."""
    begin = (first, second)
    while first + second > room:
        if first > second or (first == second and begin[0] <= begin[1]):
            first -= 1
        else:
            second -= 1
    return first, second


@pytest.mark.parametrize("max_length", [5, 6, 7, 8, 13, 20])
def test_any_two_lengths_are_cut_by_the_rule_and_as_transformers_does(tmp_path, max_length):
    TINY.save(tmp_path / "vocab.txt")
    reference = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    lengths = [(first, second) for first in range(0, 25) for second in range(0, 25)]
    firsts, seconds = [
        tf.ragged.constant([[5 + which] * pair[which] for pair in lengths]) for which in (0, 1)
    ]
    cut = truncate([firsts, seconds], max_length - 3)
    ours = list(zip(*(part.row_lengths().numpy().tolist() for part in cut), strict=True))
    assert ours == [one_by_one(first, second, max_length - 3) for first, second in lengths]
    texts = [["a " * first for first, _ in lengths], ["b " * second for _, second in lengths]]
    theirs = reference(*texts, truncation="longest_first", max_length=max_length)["input_ids"]
    assert ours == [(row.count(TINY.ids["a"]), row.count(TINY.ids["b"])) for row in theirs]


def test_the_end_is_cut_not_the_beginning():
    first, second = truncate([tf.ragged.constant([[1, 2, 3, 4]]), tf.ragged.constant([[5, 6, 7]])], 4)
    assert (first.to_list(), second.to_list()) == ([[1, 2]], [[5, 6]])
    assert truncate([tf.ragged.constant([[1, 2, 3, 4], []], dtype=tf.int32)], 3)[0].to_list() == [
        [1, 2, 3],
        [],
    ]


@pytest.mark.parametrize("max_length", [5, 6, 9])
def test_special_tokens_are_never_cut(max_length):
    packer = tiny_packer(max_length)
    many, none = "a " * 50, ""
    for texts in ([[many, none]], [[many, none, many, none], [many, many, none, none]]):
        for row in packer.pack([tf.constant(text) for text in texts])[0].to_list():
            assert row[0] == CLS and row[-1] == SEP
            assert row.count(CLS) == 1 and row.count(SEP) == len(texts)
            assert len(row) <= max_length


def test_rows_are_padded_to_the_longest_of_the_batch():
    packed = tiny_packer(9)([tf.constant(["a", "", "a b a"]), tf.constant(["b b", "b", ""])])
    a, b, pad = TINY.ids["a"], TINY.ids["b"], TINY.ids[PAD]
    assert {name: value.dtype.name for name, value in packed.items()} == features.ENCODER_INPUTS
    assert packed[features.TOKEN_IDS].numpy().tolist() == [
        [CLS, a, SEP, b, b, SEP],
        [CLS, SEP, b, SEP, pad, pad],
        [CLS, a, b, a, SEP, SEP],
    ]
    assert packed[features.SEGMENT_IDS].numpy().tolist() == [
        [0, 0, 0, 1, 1, 1],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert packed[features.PADDING_MASK].numpy().sum(axis=1).tolist() == [6, 4, 6]
    assert packed[features.PADDING_MASK].numpy()[1].tolist() == [True] * 4 + [False] * 2


def test_a_batch_without_rows_is_packed_to_no_rows():
    packed = tiny_packer(9)([tf.constant([], tf.string)])
    assert [value.shape.as_list() for value in packed.values()] == [[0, 1]] * 3


def test_a_length_that_holds_no_pair_is_refused():
    with pytest.raises(UserError, match=r"config\.text\.max_length is 4"):
        tiny_packer(4)


def test_columns_of_different_lengths_are_refused():
    for first, second in ((["a", "b"], ["a", "b", "a"]), (["a"], ["a", "b"]), (["a", "b"], ["a"])):
        with pytest.raises(tf.errors.InvalidArgumentError):
            tiny_packer(9)([tf.constant(first), tf.constant(second)])


def test_check_rank_gives_back_the_tensor_it_passes():
    tensor = tf.constant([[1, 2], [3, 4]])
    assert check_rank("token_ids", tensor, 2).numpy().tolist() == tensor.numpy().tolist()
    traced = tf.function(lambda ids: check_rank("token_ids", ids, 2)).get_concrete_function(
        tf.TensorSpec([None, 3], tf.int32)
    )
    assert traced.structured_outputs.shape.as_list() == [None, 3]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Answers of an exported packer run as a model server runs it: it can be fed any shape."""

    class Bundle(tf.Module):
        def __init__(self):
            super().__init__()
            self.packer = tiny_packer(9)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.string, name=name) for name in (features.TEXT, features.TEXT_PAIR)
            ]
        )
        def pack(self, text, text_pair):
            return self.packer([text, text_pair])

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name=features.TOKEN_IDS)])
        def ids(self, token_ids):
            return {"length": tf.shape(check_rank(features.TOKEN_IDS, token_ids, 2))[1]}

    bundle, path = Bundle(), tmp_path_factory.mktemp("export")
    tf.saved_model.save(bundle, str(path), signatures={"pack": bundle.pack, "ids": bundle.ids})

    def tensor(shape, dtype=object):
        return c_api.encode_tensor(np.full(shape, b"a" if dtype is object else 0, dtype))

    shapes = {
        "vectors": ((2,), (2,)),
        "scalar": ((), (2,)),
        "matrix": ((2, 2), (2,)),
        "second": ((2,), (2, 1, 3)),
    }
    requests = {
        name: {"signature": "pack", "inputs": {"text": tensor(first), "text_pair": tensor(second)}}
        for name, (first, second) in shapes.items()
    }
    for name, shape in {"ids": (2, 3), "ids vector": (3,)}.items():
        requests[name] = {"signature": "ids", "inputs": {"token_ids": tensor(shape, np.int32)}}
    requests["afterwards"] = requests["vectors"]
    process = subprocess.run(
        [sys.executable, "-I", str(pathlib.Path(c_api.__file__))],
        input=json.dumps({"export_dir": str(path), "requests": list(requests.values())}),
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(zip(requests, json.loads(process.stdout)["answers"], strict=True))


def test_an_exported_packer_answers_vectors_before_and_after_a_refusal(answers):
    for name in ("vectors", "afterwards"):
        ids = c_api.decode_tensor(answers[name]["outputs"][features.TOKEN_IDS])
        assert ids.tolist() == [[CLS, TINY.ids["a"], SEP, TINY.ids["a"], SEP]] * 2


@pytest.mark.parametrize(
    ("request_name", "message"),
    [
        ("scalar", "text: expected string of rank 1, got shape []"),
        ("matrix", "text: expected string of rank 1, got shape [2,2]"),
        ("second", "text_pair: expected string of rank 1, got shape [2,1,3]"),
        ("ids vector", "token_ids: expected int32 of rank 2, got shape [3]"),
    ],
)
def test_an_exported_graph_refuses_another_rank_and_says_which(answers, request_name, message):
    assert message in answers[request_name]["error"]


def test_an_exported_graph_takes_ids_of_the_right_rank(answers):
    assert c_api.decode_tensor(answers["ids"]["outputs"]["length"]) == 3
