import json
import pathlib
import subprocess
import sys
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import any_pb2, wrappers_pb2
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    status_pb2,
)

from serving import protocol, tensors
from serving.client import PredictClient, ServerError, query, to_array, to_tensor

ROOT = pathlib.Path(__file__).parent.parent
PREDICT = "/tensorflow.serving.PredictionService/Predict"
ORIGINALS = {
    message.DESCRIPTOR.name: message.DESCRIPTOR
    for message in (
        tensor_shape_pb2.TensorShapeProto.Dim,
        tensor_shape_pb2.TensorShapeProto,
        tensor_pb2.TensorProto,
        wrappers_pb2.Int64Value,
        model_pb2.ModelSpec,
        predict_pb2.PredictRequest,
        predict_pb2.PredictResponse,
        any_pb2.Any,
        meta_graph_pb2.TensorInfo,
        meta_graph_pb2.SignatureDef,
        get_model_metadata_pb2.SignatureDefMap,
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_metadata_pb2.GetModelMetadataResponse,
        status_pb2.StatusProto,
        get_model_status_pb2.ModelVersionStatus,
        get_model_status_pb2.GetModelStatusRequest,
        get_model_status_pb2.GetModelStatusResponse,
    )
}


# ---- Messages ----


def on_the_wire(field):
    """What of a field's declaration decides its bytes."""
    kind = field.TYPE_INT32 if field.type == field.TYPE_ENUM else field.type
    message = field.message_type
    if message is None:
        return field.number, kind, field.is_repeated, None
    if message.GetOptions().map_entry:
        return field.number, kind, True, [on_the_wire(part) for part in message.fields]
    return field.number, kind, field.is_repeated, message.name


@pytest.mark.parametrize("name", protocol.MESSAGES)
def test_a_message_is_the_original_on_the_wire(name):
    original = ORIGINALS[name].fields_by_name
    for field in protocol.CLASSES[name].DESCRIPTOR.fields:
        assert on_the_wire(field) == on_the_wire(original[field.name])


def test_dtypes_and_states_have_their_numbers():
    for number, name in protocol.DTYPES.items():
        assert tf.as_dtype(number).name == name
    states = get_model_status_pb2.ModelVersionStatus.State.items()
    assert {name: number for number, name in protocol.STATES.items()} == dict(states)


@pytest.mark.parametrize(
    "values",
    [
        [b"a", b"nul\0", b"\xff"],
        ["h\u00e9", "\U0001f600"],
        [["a"], ["b"]],
        [1, 2],
        [1.5],
        [True],
        np.float32([[1, 2]]),
        np.uint8([3]),
        np.array("one"),
        np.array(["a", "bb"]),
    ],
)
def test_tensors_go_out_as_tensorflow_makes_them(values):
    sent = tensor_pb2.TensorProto.FromString(to_tensor(values).SerializeToString())
    dtype = None if isinstance(values, np.ndarray) else tf.as_dtype(sent.dtype)
    expected = tf.make_tensor_proto(values, dtype)
    np.testing.assert_array_equal(tf.make_ndarray(sent), tf.make_ndarray(expected))
    assert sent.dtype == expected.dtype


def test_no_texts_are_a_tensor_of_no_strings():
    sent = to_tensor([])
    assert (sent.dtype, [dim.size for dim in sent.tensor_shape.dim]) == (tf.string.as_datatype_enum, [0])


def test_bytes_of_the_command_line_stay_what_they_were():
    assert to_tensor([b"\xff\xfe".decode("utf-8", "surrogateescape")]).string_val == [b"\xff\xfe"]


def test_values_that_cannot_be_sent_are_refused():
    with pytest.raises(TypeError, match="complex128"):
        to_tensor([1j])


@pytest.mark.parametrize(
    "dtype",
    [
        tf.float32,
        tf.float64,
        tf.float16,
        tf.bfloat16,
        tf.int8,
        tf.int32,
        tf.int64,
        tf.uint32,
        tf.bool,
        tf.string,
    ],
)
@pytest.mark.parametrize("as_content", [False, True])
def test_tensors_come_back_whichever_field_holds_them(dtype, as_content):
    values = [b"a", b"\xff\0"] if dtype == tf.string else [1, 0]
    array = np.array(values, dtype.as_numpy_dtype)
    sent = tf.make_tensor_proto(array) if as_content else tensors.encode(array, dtype)
    received = to_array(protocol.CLASSES["TensorProto"].FromString(sent.SerializeToString()))
    assert received.tolist() == values


# ---- Calls ----


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
        ("INVALID_ARGUMENT", "two\n\t lines", "two lines (INVALID_ARGUMENT)"),
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


def test_a_query_prints_an_object_a_line(fake, capsys):
    address, _, replies = fake
    response = predict_pb2.PredictResponse()
    response.outputs["label"].CopyFrom(tf.make_tensor_proto([b"good", b"bad"]))
    replies.append(response)
    query(address, "m", ["h\u00e9", "\udcff"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"text": "h\u00e9", "label": "good"},
        {"text": "\ufffd", "label": "bad"},
    ]


def test_a_query_without_an_answer_exits_with_one_line():
    with pytest.raises(SystemExit) as caught:
        query("127.0.0.1:1", "m", ["a"])
    assert "no model server answers there" in caught.value.code and "\n" not in caught.value.code


def test_client_and_server_modules_import_neither_tensorflow_nor_flags():
    code = (
        "import sys, serving.client, serving.server; "
        "print({'tensorflow', 'absl.flags', 'keras_bert_app'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert process.stdout == "set()\n"
