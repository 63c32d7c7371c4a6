"""The three clients against the embedded server: the same methods, results and errors."""

import asyncio

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401  (the ops of a bundle)

from serving.client import AsyncPredictClient, PredictClient
from serving.errors import DeadlineExceeded, InvalidRequest, NotFound
from serving.rest_client import RestPredictClient
from serving.server import serve
from tests.conformance import write_models


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    with serve(model_config_file=root / "models.config", port=0, rest_api_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(tiny_bundle):
    with serve("tiny", str(tiny_bundle), port=0, rest_api_port=0) as server:
        yield server


def over_grpc(server, model, method, *arguments, **keywords):
    with PredictClient(server.address, model) as client:
        return getattr(client, method)(*arguments, **keywords)


def over_asyncio(server, model, method, *arguments, **keywords):
    async def ask():
        async with AsyncPredictClient(server.address, model) as client:
            return await getattr(client, method)(*arguments, **keywords)

    return asyncio.run(ask())


def over_rest(server, model, method, *arguments, **keywords):
    with RestPredictClient(f"127.0.0.1:{server.rest_port}", model) as client:
        return getattr(client, method)(*arguments, **keywords)


@pytest.fixture(params=[over_grpc, over_asyncio, over_rest])
def ask(request):
    return request.param


def test_texts_are_answered_by_version_and_label(server, ask):
    texts = ["a", b"bb", "h\u00e9"]
    for keywords, factor in (
        ({}, 10.0),
        ({"version": 1}, 1.0),
        ({"label": "stable"}, 1.0),
        ({"label": "canary"}, 10.0),
    ):
        assert ask(server, "texts", "predict", texts, **keywords) == [
            {"length": 1, "score": factor, "upper": "A"},
            {"length": 2, "score": 2 * factor, "upper": "BB"},
            {"length": 3, "score": 3 * factor, "upper": "H\u00e9"},
        ]


def test_pairs_and_bytes_that_are_not_utf_8_are_answered(server, ask):
    pairs = ["a", b"\xff"], ["b", "\udcfe"]
    answers = ask(server, "texts", "predict", *pairs, signature_name="pair")
    assert answers == [{"joined": "a|b"}, {"joined": "\ufffd|\ufffd"}]
    inputs = {"text": pairs[0], "text_pair": pairs[1]}
    outputs = ask(server, "texts", "run", inputs, signature_name="pair")
    assert outputs["joined"].tolist() == [b"a|b", b"\xff|\xfe"]


def test_numbers_go_and_come_as_arrays(server, ask):
    outputs = ask(server, "texts", "run", {"x": np.float32([0.1, np.inf])}, signature_name="twice")
    np.testing.assert_array_equal(outputs["y"], np.float32([0.1, np.inf]) * 2)
    assert outputs["y"].dtype == np.float32
    [answer] = ask(server, "texts", "predict_rows", {"x": np.float32([np.nan])}, signature_name="twice")
    assert np.isnan(answer["y"])


def test_examples_are_classified_and_regressed(server, ask):
    examples = [{"x": [1.0, 2.0]}, {"x": np.float32([3, 1]), "more": "text"}]
    answers = ask(server, "examples", "classify", examples)
    assert [[one["label"] for one in answer] for answer in answers] == [["no", "yes"]] * 2
    wanted = [[0.11920291, 0.880797], [0.98201376, 0.017986208]]  # as the stock server has them
    found = np.float32([[one["score"] for one in answer] for answer in answers])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert ask(server, "examples", "regress", examples, signature_name="regress") == [6.0, 8.0]


def test_more_than_a_batch_of_texts_and_examples_comes_back_in_order(server, ask):
    texts = ["x" * number for number in range(300)]
    answers = ask(server, "texts", "predict", texts)
    assert [answer["length"] for answer in answers] == list(range(300))
    examples = [{"x": [float(number), 0.0]} for number in range(150)]
    values = ask(server, "examples", "regress", examples, signature_name="regress")
    assert values == [2.0 * number for number in range(150)]


def test_status_and_metadata_are_the_same(server, ask):
    assert ask(server, "texts", "status") == {2: "AVAILABLE", 1: "AVAILABLE"}
    assert ask(server, "texts", "status", version=1) == {1: "AVAILABLE"}
    signatures = ask(server, "examples", "metadata")
    assert signatures == over_grpc(server, "examples", "metadata", version=1)
    assert signatures["regress"] == {
        "method_name": "tensorflow/serving/regress",
        "inputs": {"inputs": ("string", (-1,))},
        "outputs": {"outputs": ("float32", (-1,))},
    }


@pytest.mark.parametrize(
    ("model", "method", "arguments", "keywords", "kind"),
    [
        ("nobody", "predict", (["a"],), {}, NotFound),
        ("nobody", "status", (), {}, NotFound),
        ("texts", "predict", (["a"],), {"version": 9}, NotFound),
        ("texts", "predict", (["a"],), {"label": "nightly"}, InvalidRequest),
        ("texts", "predict", (["a"],), {"signature_name": "nothing"}, InvalidRequest),
        ("texts", "predict", (["a"], ["b"]), {}, InvalidRequest),
        ("texts", "run", ({"text": [1]},), {}, InvalidRequest),
        ("examples", "classify", ([{"z": 1}],), {}, InvalidRequest),
        ("texts", "predict", (["a"],), {"timeout": 0}, DeadlineExceeded),
    ],
)
def test_errors_are_of_the_same_kind(server, ask, model, method, arguments, keywords, kind):
    with pytest.raises(kind) as caught:
        ask(server, model, method, *arguments, **keywords)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        ("predict", ("a text",), TypeError, "texts is a list of strings, not one string"),
        ("predict", (["a"], ["b", "c"]), ValueError, "inputs differ in their number of rows: text 1, text_p"),
        ("run", ({"text": ["a", 1]},), TypeError, "strings among other values"),
        ("run", ({"text": [["a"], ["b", "c"]]},), TypeError, "lists of unequal length"),
        ("run", ({"text": [1j]},), TypeError, "complex"),
        ("classify", ([{"x": [1j]}],), TypeError, "feature x|complex"),
    ],
)
def test_what_cannot_be_sent_is_refused(server, ask, method, arguments, error, message):
    with pytest.raises(error, match=message):
        ask(server, "texts", method, *arguments)


def test_answers_without_an_entry_a_row_are_left_to_run(server, ask):
    """A scalar goes through this signature, and there is no row in what comes back."""
    outputs = ask(server, "texts", "run", {"text": np.array("abc")})
    assert outputs["length"].tolist() == 3 and outputs["upper"].tolist() == b"ABC"


def test_ids_are_answered_as_the_graph_answers_them(tiny, tiny_bundle, ask):
    inputs = {
        "token_ids": np.int32([[2, 6, 3, 0], [2, 7, 6, 3]]),
        "segment_ids": np.zeros((2, 4), np.int32),
        "padding_mask": np.array([[True, True, True, False], [True] * 4]),
    }
    rows = ask(tiny, "tiny", "predict_rows", inputs, signature_name="token_ids")
    signature = tf.saved_model.load(str(tiny_bundle / "1")).signatures["token_ids"]
    for name, value in signature(**{key: tf.constant(array) for key, array in inputs.items()}).items():
        np.testing.assert_allclose([row[name] for row in rows], value, rtol=1e-5, atol=1e-6)


def test_a_classifiers_answers_are_labelled_and_the_same_from_each_client(tiny, ask):
    texts = ["the film was good", "was dull"]
    answers = ask(tiny, "tiny", "predict", texts)
    assert answers == over_grpc(tiny, "tiny", "predict", texts)
    for answer in answers:
        assert answer["label"] in ("gut", "\u00fcbel") and answer["score"] == max(answer["probabilities"])
