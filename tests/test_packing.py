"""Truncation and packing against transformers, and the shapes that an exported packer takes."""

import dataclasses
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
from keras_bert_app.config import TextConfig
from keras_bert_app.errors import UserError
from keras_bert_app.export import c_api
from keras_bert_app.text.packing import TRUNCATIONS, TextPacker, check_rank, room, truncate, windows
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import CLASSIFY, PAD, SEPARATE, SPECIAL_TOKENS, Vocabulary

TINY = Vocabulary((*SPECIAL_TOKENS, "a", "b"))
CLS, SEP = TINY.ids[CLASSIFY], TINY.ids[SEPARATE]


def tiny_packer(max_length, truncation="longest_first"):
    return TextPacker(BertTokenizer(TINY), max_length, truncation)


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


@pytest.fixture(scope="module")
def pairs(reviews):
    """80 pairs of 0 to 60 words each, as firsts and seconds."""
    draw = random.Random(4)
    words = " ".join(draw.sample(reviews, 300)).split()
    texts = [" ".join(draw.sample(words, draw.choice([0, 1, 3, 8, 20, 60]))) for _ in range(160)]
    return texts[:80], texts[80:]


def lengths_of(tokenizer, texts):
    return tokenizer(tf.constant(texts)).row_lengths().numpy()


def takes(truncation, first, second, space, stride):
    """Whether transformers takes the lengths [B]: elsewhere it raises, or panics because of the stride."""
    other = {"longest_first": 0 * first, "only_first": second, "only_second": first}[truncation]
    return (first + second <= space) | (space - other > stride)


@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
def test_pairs_are_cut_to_any_length_as_transformers_cuts_them(tokenizer, reference, pairs, truncation):
    lengths = [lengths_of(tokenizer, texts) for texts in pairs]
    for max_length in range(5, 41):
        rows = np.flatnonzero(takes(truncation, *lengths, room(max_length, 2), 0))
        texts = [[column[row] for row in rows] for column in pairs]
        ids, segments = TextPacker(tokenizer, max_length, truncation).pack([tf.constant(t) for t in texts])
        theirs = reference(*texts, truncation=truncation, max_length=max_length)
        assert ids.to_list() == theirs["input_ids"]
        assert segments.to_list() == theirs["token_type_ids"]
        assert max(map(len, theirs["input_ids"])) == max_length


@pytest.mark.parametrize("stride", [0, 1, 5, 16])
@pytest.mark.parametrize("truncation", ["one text", "only_first", "only_second"])
def test_windows_are_those_of_transformers(tokenizer, reference, pairs, truncation, stride):
    columns, which = (pairs[1:], "only_first") if truncation == "one text" else (pairs, truncation)
    lengths = [lengths_of(tokenizer, texts) for texts in columns]
    both = (*lengths, 0)[:2]
    num_windows = 0
    for max_length in range(max(5, stride + 2 + len(columns)), 41):
        rows = np.flatnonzero(takes(which, *both, room(max_length, len(columns)), stride))
        texts = [[column[row] for row in rows] for column in columns]
        tokens = [tokenizer(tf.constant(text)) for text in texts]
        cut = windows([text.row_lengths() for text in tokens], max_length, which, stride)
        ids, segments = TextPacker(tokenizer, max_length).join(
            [cut.take(number, text) for number, text in enumerate(tokens)]
        )
        theirs = reference(
            *texts, truncation=which, max_length=max_length, stride=stride, return_overflowing_tokens=True
        )
        assert ids.to_list() == theirs["input_ids"]
        assert segments.to_list() == theirs["token_type_ids"]
        assert cut.rows.numpy().tolist() == theirs["overflow_to_sample_mapping"]
        num_windows += len(theirs["input_ids"]) - len(rows)
    assert num_windows > 500


def test_places_in_windows_lead_to_the_spans_of_the_tokens(tokenizer, reference, pairs):
    def spans(*texts, **settings):
        return reference(*texts, return_offsets_mapping=True, **settings)["offset_mapping"]

    whole = [tf.ragged.constant(spans(texts, add_special_tokens=False), ragged_rank=1) for texts in pairs]
    cut = windows([text.row_lengths() for text in whole], 40, "only_first", 7)
    rows = np.flatnonzero(takes("only_first", *(text.row_lengths().numpy() for text in whole), 37, 7))
    kept = np.isin(cut.rows.numpy(), rows)
    none = tf.zeros([len(kept), 1, 2], tf.int32)
    ours = tf.concat([none, cut.take(0, whole[0]), none, cut.take(1, whole[1]), none], axis=1)
    theirs = spans(
        *([column[row] for row in rows] for column in pairs),
        truncation="only_first",
        max_length=40,
        stride=7,
        return_overflowing_tokens=True,
    )
    assert len(theirs) > len(rows) > 40
    assert tf.ragged.boolean_mask(ours, kept).to_list() == [[[*span] for span in row] for row in theirs]


LENGTHS = np.array([(first, second) for first in range(25) for second in range(25)], np.int32)


def one_by_one(truncation, first, second, space):
    """Take tokens one by one from the longer text; between equals, from the one that began as the shorter.

    Or from the text that is named until it has one left, then from the other.
    """
    begin = (first, second)
    while first + second > space:
        if truncation == "longest_first":
            from_first = first > second or (first == second and begin[0] <= begin[1])
        else:
            from_first = first > 1 if truncation == "only_first" else second <= min(begin[1], 1)
        first, second = (first - 1, second) if from_first else (first, second - 1)
    return first, second


@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("max_length", [5, 6, 7, 8, 13, 20])
def test_any_two_lengths_are_cut_by_the_rule_and_as_transformers_does(tmp_path, max_length, truncation):
    TINY.save(tmp_path / "vocab.txt")
    reference = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    cut = truncate(LENGTHS.T, max_length, truncation)
    ours = np.stack([places.row_lengths().numpy() for places in cut.places], axis=1)
    assert ours.tolist() == [[*one_by_one(truncation, *pair, max_length - 3)] for pair in LENGTHS.tolist()]
    rows = takes(truncation, *LENGTHS.T, max_length - 3, 0)
    texts = [
        [piece * count for count in column[rows]]
        for piece, column in zip(("a ", "b "), LENGTHS.T, strict=True)
    ]
    theirs = reference(*texts, truncation=truncation, max_length=max_length)["input_ids"]
    assert ours[rows].tolist() == [[row.count(TINY.ids["a"]), row.count(TINY.ids["b"])] for row in theirs]
    assert cut.rows.numpy().tolist() == list(range(len(LENGTHS)))


@pytest.mark.parametrize("stride", [0, 1, 4, 9])
@pytest.mark.parametrize("cut", [0, 1])
def test_windows_of_any_two_lengths_cover_the_text_and_fit(cut, stride):
    space = 10
    taken = windows(LENGTHS.T, space + 3, ("only_first", "only_second")[cut], stride)
    rows, sides = taken.rows.numpy(), [places.to_list() for places in taken.places]
    assert sorted(set(rows)) == list(range(len(LENGTHS))) and (np.diff(rows) >= 0).all()
    for row, lengths in enumerate(LENGTHS.tolist()):
        begin, end = np.searchsorted(rows, [row, row + 1])
        parts, others = sides[cut][begin:end], sides[1 - cut][begin:end]
        assert sorted({place for part in parts for place in part}) == list(range(lengths[cut]))
        for before, after in zip(parts, parts[1:], strict=False):
            assert before[len(before) - stride :] == after[:stride] and len(after) > stride
        kept = min(lengths[1 - cut], space - min(lengths[cut], stride + 1))
        assert others == [list(range(kept))] * len(parts)
        full = {kept + len(part) for part in parts[:-1]}
        assert full <= {space} and kept + len(parts[-1]) <= space


def test_the_end_is_cut_not_the_beginning():
    for truncation, kept in {
        "longest_first": ([0, 1], [0, 1]),
        "only_first": ([0], [0, 1, 2]),
        "only_second": ([0, 1, 2], [0]),
    }.items():
        cut = truncate([tf.constant([3]), tf.constant([3])], 7, truncation)
        assert tuple(places.to_list()[0] for places in cut.places) == kept
    for truncation in ("longest_first", "only_first"):
        assert truncate([tf.constant([4, 0])], 5, truncation).places[0].to_list() == [[0, 1, 2], []]


def test_of_a_long_document_the_first_128_and_the_last_382_tokens_stay():
    lengths = [510, 511, 700, 5000, 3, 0]
    cut = truncate([tf.constant(lengths)], 512, "head_tail")
    documents = [list(range(length)) for length in lengths]
    assert cut.places[0].to_list() == [
        tokens if len(tokens) <= 510 else tokens[:128] + tokens[-382:] for tokens in documents
    ]


def test_of_a_pair_the_middles_are_cut():
    texts = ([b"abcdefghijklmnop", b"ab"], [b"ABCDEFGHI", b""])
    tokens = [tf.ragged.constant([[*row] for row in text]) for text in texts]
    cut = truncate([text.row_lengths() for text in tokens], 16, "head_tail")
    first, second = [[bytes(row) for row in cut.take(text, tokens[text]).to_list()] for text in (0, 1)]
    assert (first, second) == ([b"ablmnop", b"ab"], [b"ABFGHI", b""])


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


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_a_batch_without_rows_is_packed_to_no_rows(truncation):
    none = tf.constant([], tf.string)
    for texts in ([none], [none, none])[truncation == "only_second" :]:
        packed = tiny_packer(9, truncation)(texts)
        assert [value.shape.as_list() for value in packed.values()] == [[0, 1]] * 3
    cut = windows([tf.constant([], tf.int32)], 9, "only_first", 2)
    assert cut.rows.shape == [0] and cut.places[0].to_list() == []


def test_a_length_that_holds_no_pair_is_refused():
    with pytest.raises(UserError, match=r"config\.text\.max_length is 4"):
        tiny_packer(4)


def test_settings_that_cannot_be_are_refused():
    one, two = [tf.constant([20])], [tf.constant([20]), tf.constant([20])]
    with pytest.raises(
        UserError, match="truncation is 'last'; here it takes one of longest_first, only_first, "
    ):
        tiny_packer(9, "last").pack([tf.constant(["a"])])
    with pytest.raises(UserError, match="'only_second', but there is one text; use 'only_first'"):
        tiny_packer(9, "only_second").pack([tf.constant(["a"])])
    with pytest.raises(UserError, match="'only_second', but there is one text; use 'only_first'"):
        windows(one, 9, "only_second", 1)
    for truncation in ("longest_first", "head_tail"):
        with pytest.raises(
            UserError, match=f"truncation is '{truncation}'; here it takes one of only_first, "
        ):
            windows(two, 9, truncation, 1)
    for lengths, stride, most in ((one, 7, 6), (two, 6, 5), (two, -1, 5)):
        with pytest.raises(
            UserError, match=f"stride is {stride}, but .* {most + 1} tokens .*give 0 to {most},"
        ):
            windows(lengths, 9, "only_first", stride)
        windows(lengths, 9, "only_first", most)


def test_the_config_offers_the_truncations_there_are():
    keys = {key.name: key for key in dataclasses.fields(TextConfig)}
    assert keys["truncation"].metadata["one_of"] == TRUNCATIONS


def test_columns_of_different_lengths_are_refused():
    for first, second in ((["a", "b"], ["a", "b", "a"]), (["a"], ["a", "b"]), (["a", "b"], ["a"])):
        with pytest.raises(tf.errors.InvalidArgumentError):
            tiny_packer(9)([tf.constant(first), tf.constant(second)])
        with pytest.raises(tf.errors.InvalidArgumentError):
            windows([tf.ones([len(first)]), tf.ones([len(second)])], 9, "only_first", 1)


def test_check_rank_gives_back_the_tensor_it_passes():
    tensor = tf.constant([[1, 2], [3, 4]])
    assert check_rank("token_ids", tensor, 2).numpy().tolist() == tensor.numpy().tolist()
    traced = tf.function(lambda ids: check_rank("token_ids", ids, 2)).get_concrete_function(
        tf.TensorSpec([None, 3], tf.int32)
    )
    assert traced.structured_outputs.shape.as_list() == [None, 3]


TEXTS = [tf.TensorSpec([None], tf.string, name=name) for name in (features.TEXT, features.TEXT_PAIR)]


LONG_TEXTS = {
    features.TEXT: [b"a b", b"b a b b a a a b a b a", b""],
    features.TEXT_PAIR: [b"a b a b b b a", b"a a b", b"b"],
}


def windows_of(packer, text, text_pair):
    """What question answering needs: inputs, and for every window its row and the places of its tokens."""
    tokens = [packer.tokenizer(text), packer.tokenizer(text_pair)]
    cut = windows([text.row_lengths() for text in tokens], packer.max_length, "only_second", 1)
    inputs = packer.pad(*packer.join([cut.take(0, tokens[0]), cut.take(1, tokens[1])]))
    return inputs | {"rows": cut.rows, "places": cut.places[1].to_tensor(-1)}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Answers of an exported packer run as a model server runs it: it can be fed any shape."""

    class Bundle(tf.Module):
        def __init__(self):
            super().__init__()
            self.packer = tiny_packer(9)
            self.head_tail = tiny_packer(9, "head_tail")

        @tf.function(input_signature=TEXTS)
        def pack(self, text, text_pair):
            return self.packer([text, text_pair])

        @tf.function(input_signature=TEXTS[:1])
        def ends(self, text):
            return self.head_tail([text])

        @tf.function(input_signature=TEXTS)
        def windows(self, text, text_pair):
            return windows_of(self.packer, text, text_pair)

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name=features.TOKEN_IDS)])
        def ids(self, token_ids):
            return {"length": tf.shape(check_rank(features.TOKEN_IDS, token_ids, 2))[1]}

        def signatures(self):
            return {name: getattr(self, name) for name in ("pack", "ends", "windows", "ids")}

    bundle, path = Bundle(), tmp_path_factory.mktemp("export")
    tf.saved_model.save(bundle, str(path), signatures=bundle.signatures())

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
    texts = {name: c_api.encode_tensor(np.array(texts, object)) for name, texts in LONG_TEXTS.items()}
    requests["ends"] = {"signature": "ends", "inputs": {features.TEXT: texts[features.TEXT]}}
    requests["windows"] = {"signature": "windows", "inputs": texts}
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


def test_an_exported_packer_cuts_as_it_does_here(answers):
    texts = [tf.constant(text) for text in LONG_TEXTS.values()]
    here = {"ends": tiny_packer(9, "head_tail")(texts[:1]), "windows": windows_of(tiny_packer(9), *texts)}
    for name, outputs in here.items():
        there = {key: c_api.decode_tensor(value) for key, value in answers[name]["outputs"].items()}
        assert {key: value.tolist() for key, value in there.items()} == {
            key: value.numpy().tolist() for key, value in outputs.items()
        }
        assert there[features.TOKEN_IDS].shape[1] == 9
    assert there["rows"].tolist() == [0, 0, 1, 1, 2]
    assert there["places"].tolist() == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [0, 1, -1, -1],
        [1, 2, -1, -1],
        [0, -1, -1, -1],
    ]


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
