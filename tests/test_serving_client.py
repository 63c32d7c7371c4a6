import pathlib
import subprocess
import sys
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    model_pb2,
    predict_pb2,
)

from serving.client import PredictClient
from serving.errors import ServerError

ROOT = pathlib.Path(__file__).parent.parent
PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture
def fake():
    """The address of a server whose Predict does as the test says, and the requests it got."""
    requests, replies = [], []

    def answer(request, context):
        requests.append(request)
        reply = replies.pop()
        if isinstance(reply, threading.Event):
            reply.wait(60)
        elif isinstance(reply, tuple):
            context.abort(*reply)
        return predict_pb2.PredictResponse() if isinstance(reply, threading.Event) else reply

    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.PredictionService",
                {
                    "Predict": grpc.unary_unary_rpc_method_handler(
                        answer,
                        predict_pb2.PredictRequest.FromString,
                        predict_pb2.PredictResponse.SerializeToString,
                    )
                },
            )
        ]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", requests, replies
    server.stop(0).wait()


def test_texts_come_back_labelled_and_in_order(fake):
    address, requests, replies = fake
    response = predict_pb2.PredictResponse()
    for name, value in {
        "label": [b"good", b"bad"],
        "score": np.float32([0.75, 1]),
        "probabilities": np.float32([[0.25, 0.75], [1, 0]]),
    }.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    replies.append(response)
    with PredictClient(address, "sentiment") as client:
        answers = client.predict(["a", b"b"], ["c", "d"], signature_name="pair", version=3, timeout=60)
    assert answers == [
        {"label": "good", "score": 0.75, "probabilities": [0.25, 0.75]},
        {"label": "bad", "score": 1.0, "probabilities": [1.0, 0.0]},
    ]
    [request] = requests
    assert request.model_spec == model_pb2.ModelSpec(
        name="sentiment", signature_name="pair", version=wrappers_pb2.Int64Value(value=3)
    )
    assert tf.make_ndarray(request.inputs["text"]).tolist() == [b"a", b"b"]
    assert tf.make_ndarray(request.inputs["text_pair"]).tolist() == [b"c", b"d"]


def test_one_string_in_place_of_a_list_is_refused():
    with PredictClient("127.0.0.1:1", "m") as client, pytest.raises(TypeError, match="list of strings"):
        client.predict("a text")


@pytest.mark.parametrize(
    "code, message, line",
    [
        (
            "NOT_FOUND",
            "Servable not found for request: Latest(m)",
            "no such model or version there (NOT_FOUND: Servable not found for request: Latest(m))",
        ),
        (
            "INVALID_ARGUMENT",
            "two\n\t lines",
            "the request doesn't fit the model: other inputs, or a signature or label that it hasn't "
            "(INVALID_ARGUMENT: two lines)",
        ),
    ],
)
def test_the_servers_refusal_is_one_line_with_its_words(fake, code, message, line):
    address, _, replies = fake
    replies.append((grpc.StatusCode[code], message))
    with PredictClient(address, "m") as client, pytest.raises(ServerError) as caught:
        client.predict(["a"], timeout=60)
    assert (caught.value.code, caught.value.message) == (code, message)
    assert str(caught.value) == f"{address}: {line}"


def test_an_unreachable_server_is_said_to_be_so():
    with PredictClient("127.0.0.1:1", "m") as client, pytest.raises(ServerError) as caught:
        client.predict(["a"], timeout=60)
    assert caught.value.code == "UNAVAILABLE"
    assert str(caught.value).startswith("127.0.0.1:1: no model server answers there; is it running")
    assert "\n" not in str(caught.value)


def test_an_answer_that_takes_too_long_is_said_to(fake):
    address, _, replies = fake
    asked_enough = threading.Event()
    replies.append(asked_enough)
    with PredictClient(address, "m") as client, pytest.raises(ServerError) as caught:
        client.predict(["a"], timeout=0.2)
    asked_enough.set()
    assert caught.value.code == "DEADLINE_EXCEEDED" and "no answer in time" in str(caught.value)


def test_a_server_of_another_kind_is_said_to_be_one(fake):
    with PredictClient(fake[0], "m") as client, pytest.raises(ServerError, match="does not speak") as caught:
        client.status(timeout=60)
    assert caught.value.code == "UNIMPLEMENTED"


@pytest.mark.parametrize("module", ["client", "server"])
def test_client_and_server_modules_do_not_import_tensorflow(module):
    code = (
        f"import sys, serving.{module}; "
        "print({'tensorflow', 'keras_bert_app'} & set(sys.modules) or 'none')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert process.stdout == "none\n"
