"""The embedded server over gRPC against what the stock server answered."""

import math

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)

from serving.server import serve
from tests.conformance import (
    OBSERVED,
    ask,
    classify,
    example,
    metadata,
    multi,
    predict,
    regress,
    rounded,
    status,
    tensor,
    texts,
    with_spec,
    write_models,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.fixture(scope="module")
def channel(models):
    with (
        serve(model_config_file=models / "models.config", port=0) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield channel


def reload(text):
    return text_format.Parse(f"config {{ {text} }}", model_management_pb2.ReloadConfigRequest())


HELLO = {"text": texts(b"hello")}
EXAMPLE = example(x=[1.0, 2.0])
REQUESTS = {
    "predict one": predict(HELLO),
    "predict three": predict({"text": texts(b"a", b"bb", b"ccc")}),
    "predict none": predict({"text": texts()}),
    "predict version 1": predict(HELLO, version=1),
    "predict label stable": predict(HELLO, version_label="stable"),
    "predict label canary": predict(HELLO, version_label="canary"),
    "predict unknown model": predict(HELLO, model="nobody"),
    "predict no model name": predict(HELLO, model=""),
    "predict unknown version": predict(HELLO, version=9),
    "predict negative version": predict(HELLO, version=-1),
    "predict unknown label": predict(HELLO, version_label="nightly"),
    "predict missing input": predict({}),
    "predict other input": predict({"words": texts(b"hello")}),
    "predict extra input": predict({**HELLO, "more": texts(b"x")}),
    "predict wrong dtype": predict({"text": tensor(tf.int32, [2], int_val=[1, 2])}),
    "predict scalar": predict({"text": tensor(tf.string, [], string_val=[b"hello"])}),
    "predict rank 2": predict({"text": tensor(tf.string, [2, 2], string_val=[b"a", b"b", b"c", b"d"])}),
    "predict unknown signature": predict(HELLO, signature_name="nothing"),
    "predict empty signature name": predict(HELLO, signature_name=""),
    "predict pair": predict(
        {"text": texts(b"a", b"b"), "text_pair": texts(b"c", b"d")}, signature_name="pair"
    ),
    "predict pair of other sizes": predict(
        {"text": texts(b"a", b"b"), "text_pair": texts(b"c", b"d", b"e")}, signature_name="pair"
    ),
    "predict pair missing one": predict({"text": texts(b"a")}, signature_name="pair"),
    "predict filter": predict(HELLO, ["score"]),
    "predict filter unknown": predict(HELLO, ["nothing"]),
    "predict filter twice": predict(HELLO, ["score", "score"]),
    "predict too few values": predict({"text": tensor(tf.string, [3], string_val=[b"a"])}),
    "predict too many values": predict({"text": tensor(tf.string, [1], string_val=[b"a", b"b"])}),
    "predict no values": predict({"text": tensor(tf.string, [2])}),
    "predict negative dimension": predict({"text": tensor(tf.string, [-1], string_val=[b"a"])}),
    "predict unknown rank": predict({"text": tensor(tf.string, [], unknown_rank=True, string_val=[b"a"])}),
    "predict invalid dtype": predict(
        {"text": tensor_pb2.TensorProto(tensor_shape={"dim": [{"size": 1}]}, string_val=[b"a"])}
    ),
    "predict huge dimension": predict({"text": tensor(tf.string, [2**40], string_val=[b"a"])}),
    "predict bytes not utf-8": predict({"text": texts(b"\xff\xfe")}),
    "predict float content": predict(
        {"x": tensor(tf.float32, [2], tensor_content=b"\0\0\x80?\0\0\0@")}, signature_name="twice"
    ),
    "predict float content too short": predict(
        {"x": tensor(tf.float32, [2], tensor_content=b"\0\0\x80?")}, signature_name="twice"
    ),
    "predict nan": predict(
        {"x": tensor(tf.float32, [2], float_val=[math.nan, math.inf])}, signature_name="twice"
    ),
    "predict on a classify signature": predict(
        {"inputs": texts(EXAMPLE.SerializeToString())}, model="examples"
    ),
    "classify": classify([EXAMPLE, example(x=[3.0, 1.0])]),
    "classify no examples": classify([]),
    "classify no input": with_spec(classification_pb2.ClassificationRequest(), "examples"),
    "classify missing feature": classify([example(z=[1.0, 2.0])]),
    "classify wrong feature type": classify([example(x=[1, 2])]),
    "classify wrong feature size": classify([example(x=[1.0])]),
    "classify extra feature": classify([example(x=[1.0, 2.0], z=[b"more"])]),
    "classify with context": classify([example(z=[b"own"])], EXAMPLE),
    "classify a regress signature": classify([EXAMPLE], signature_name="regress"),
    "classify a predict signature": classify([EXAMPLE], signature_name="predict"),
    "classify unknown signature": classify([EXAMPLE], signature_name="nothing"),
    "classify unknown model": classify([EXAMPLE], model="nobody"),
    "classify a text model": classify([EXAMPLE], model="texts"),
    "regress": regress([EXAMPLE, example(x=[3.0, 1.0])]),
    "regress a classify signature": regress([EXAMPLE], "serving_default"),
    "regress no examples": regress([]),
    "multi": multi(
        [("examples", "serving_default", "classify"), ("examples", "regress", "regress")], [EXAMPLE]
    ),
    "multi no tasks": multi([], [EXAMPLE]),
    "multi same signature twice": multi([("examples", "regress", "regress")] * 2, [EXAMPLE]),
    "multi two models": multi([("examples", "regress", "regress"), ("texts", "twice", "regress")], [EXAMPLE]),
    "multi unknown method": multi([("examples", "regress", "guess")], [EXAMPLE]),
    "multi wrong method": multi([("examples", "regress", "classify")], [EXAMPLE]),
    "multi no examples": multi([("examples", "regress", "regress")], []),
    "metadata": metadata("signature_def", model="examples"),
    "metadata of version 1": metadata("signature_def", version=1),
    "metadata no field": metadata(),
    "metadata unknown field": metadata("nothing"),
    "metadata unknown model": metadata("signature_def", model="nobody"),
    "status": status(),
    "status version 1": status(version=1),
    "status label": status(version_label="stable"),
    "status unknown version": status(version=9),
    "status unknown model": status(model="nobody"),
    "status no name": status(model=""),
}


@pytest.mark.parametrize("case", sorted(REQUESTS))
def test_the_answer_is_the_stock_servers(channel, case):
    expected = {key: value for key, value in OBSERVED[case].items() if key != "case"}
    assert ask(channel, REQUESTS[case]) == rounded(expected)


# In this order: each is about what those before it left.
RELOADS = {
    "reload nothing": reload(""),
    "after that": REQUESTS["predict one"],
    "reload without texts": reload(
        'model_config_list { config { name: "examples" base_path: "ROOT/examples" '
        'model_platform: "tensorflow" } }'
    ),
    "after texts was removed": REQUESTS["predict one"],
    "status of the removed": REQUESTS["status"],
    "classify still": classify([EXAMPLE]),
}


def test_a_reloaded_configuration_is_served_as_the_stock_server_serves_it(models):
    answers = {}
    with (
        serve(model_config_file=models / "models.config", port=0) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for case, request in RELOADS.items():
            if isinstance(request, model_management_pb2.ReloadConfigRequest):
                request = reload(str(request.config).replace("ROOT", str(models)))
            answers[case] = {"case": case, **ask(channel, request)}
    assert answers == rounded({case: OBSERVED[case] for case in RELOADS})


def test_every_observation_over_grpc_is_tried():
    assert {case for case, row in OBSERVED.items() if "rpc" in row} == REQUESTS.keys() | RELOADS.keys()


@pytest.mark.parametrize(
    "request_class",
    [
        predict_pb2.PredictRequest,
        classification_pb2.ClassificationRequest,
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_status_pb2.GetModelStatusRequest,
    ],
)
def test_a_request_without_a_model_spec_is_refused(channel, request_class):
    answer = ask(channel, request_class())
    assert (answer["code"], answer["message"]) == ("INVALID_ARGUMENT", "Missing ModelSpec")


@pytest.mark.parametrize(
    "signature_name, inputs, code",
    [
        ("__saved_model_init_op", {}, "OUT_OF_RANGE"),
        ("serving_default", {"text": tensor(tf.string, [1] * 100, string_val=[b"a"])}, "INVALID_ARGUMENT"),
        ("serving_default", {"text": tensor(tf.string, [2**62, 4], string_val=[b"a"])}, "INVALID_ARGUMENT"),
        ("serving_default", {"text": tensor(tf.string, [2], tensor_content=b"\xff\xff")}, "INVALID_ARGUMENT"),
        ("serving_default", {"text": tensor(tf.resource, [1])}, "INVALID_ARGUMENT"),
        ("twice", {"x": tensor(tf.float32, [2**34], float_val=[1.0])}, "INVALID_ARGUMENT"),
    ],
)
def test_an_odd_request_gets_a_status_and_the_next_one_an_answer(channel, signature_name, inputs, code):
    assert ask(channel, predict(inputs, signature_name=signature_name))["code"] == code
    assert ask(channel, REQUESTS["predict one"])["code"] == "OK"


def test_a_long_error_text_is_cut_as_the_stock_server_cuts_it(channel):
    answer = ask(channel, predict(HELLO, signature_name="n" * 2000))
    assert answer["code"] == "FAILED_PRECONDITION"
    assert answer["message"] == ('Serving signature key "' + "n" * 2000)[:1024] + "...TRUNCATED"
