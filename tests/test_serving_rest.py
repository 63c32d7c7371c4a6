"""The embedded server over REST against what the stock server answered, and what its source says of more."""

import base64
import gzip
import http.client
import json
import os
import re
import resource
import socket
import threading
import urllib.error
import urllib.request

import grpc
import pytest
import tensorflow as tf

from serving import json_tensors, rest
from serving.server import serve
from serving.status import RequestError
from tests.conformance import OBSERVED, rounded, write_models

TEXTS, EXAMPLES = "/v1/models/texts", "/v1/models/examples"
BASE64 = {"b64": base64.b64encode(b"abc").decode()}
# {case: what is posted; None where the observed request has no body}
BODIES = {
    "rest status": None,
    "rest status version": None,
    "rest status label": None,
    "rest status unknown model": None,
    "rest status unknown version": None,
    "rest metadata": None,
    "rest row strings": {"instances": ["a", "bb"]},
    "rest row objects": {"instances": [{"text": "a"}, {"text": "bb"}]},
    "rest columns": {"inputs": {"text": ["a", "bb"]}},
    "rest columns of the one input": {"inputs": ["a", "bb"]},
    "rest version": {"instances": ["a"]},
    "rest label": {"instances": ["a"]},
    "rest unknown label": {"instances": ["a"]},
    "rest unknown version": {"instances": ["a"]},
    "rest unknown model": {"instances": ["a"]},
    "rest signature": {"signature_name": "twice", "instances": [1.5, -2]},
    "rest unknown signature": {"signature_name": "nothing", "instances": ["a"]},
    "rest pair": {"signature_name": "pair", "instances": [{"text": "a", "text_pair": "b"}]},
    "rest pair missing one": {"signature_name": "pair", "instances": [{"text": "a"}]},
    "rest both forms": {"instances": ["a"], "inputs": ["a"]},
    "rest neither form": {"signature_name": "twice"},
    "rest no instances": {"instances": []},
    "rest instances no list": {"instances": "a"},
    "rest wrong type": {"instances": [1, 2]},
    "rest string for a number": {"signature_name": "twice", "instances": ["1"]},
    "rest mixed types": {"instances": ["a", 1]},
    "rest mixed shapes": {"instances": ["a", ["b"]]},
    "rest nested": {"instances": [["a"], ["b"]]},
    "rest unknown key in object": {"instances": [{"words": "a"}]},
    "rest b64": {"instances": [BASE64]},
    "rest b64 object": {"instances": [{"text": BASE64}]},
    "rest bad b64": {"instances": [{"b64": "***"}]},
    "rest unicode": {"instances": ["h\u00e9llo \u4e16\u754c \U0001f600"]},
    "rest not json": "{instances: 1",
    "rest empty body": "",
    "rest json array": [1],
    "rest null": {"instances": [None]},
    "rest nan out": '{"signature_name":"twice","instances":[NaN, Infinity]}',
    "rest classify": {"examples": [{"x": [1.0, 2.0]}, {"x": [3.5, 1.5]}]},
    "rest classify with context": {"context": {"x": [1.5, 2.5]}, "examples": [{"z": "own"}]},
    "rest classify integers": {"examples": [{"x": [1, 2]}]},
    "rest classify missing feature": {"examples": [{"z": [1.5, 2.5]}]},
    "rest classify no examples": {"examples": []},
    "rest regress": {"signature_name": "regress", "examples": [{"x": [1.5, 2.5]}]},
    "rest regress a classify signature": {"examples": [{"x": [1.5, 2.5]}]},
    "rest get on predict": None,
    "rest post on status": {},
    "rest unknown verb": {},
    "rest unknown path": None,
    "rest root": None,
    "rest bad version": None,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = write_models(tmp_path_factory.mktemp("models"))
    with serve(model_config_file=config, port=0, rest_api_port=0) as server:
        yield server


def ask(server, method, path, body=None, headers=None):
    """Status, content type and content (None where it is no JSON) of an HTTP answer."""
    if body is not None and not isinstance(body, (str, bytes)):
        body = json.dumps(body)
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.rest_port}{path}",
        method=method,
        data=body.encode() if isinstance(body, str) else body,
        headers=headers or {},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            status, kind, text = reply.status, reply.headers["Content-Type"], reply.read()
    except urllib.error.HTTPError as error:
        with error:
            status, kind, text = error.code, error.headers["Content-Type"], error.read()
    try:
        return status, kind, json.loads(text)
    except ValueError:
        return status, kind, None


@pytest.mark.parametrize("case", sorted(BODIES))
def test_the_answer_is_the_stock_servers(server, case):
    row = OBSERVED[case]
    status, kind, content = ask(server, *row["rest"].split(" ", 1), BODIES[case])
    expected = row["response"]
    if status >= 400 and content:
        content = {"error": content["error"].split("\n\t")[0]}
        if case == "rest not json":  # the words of a parser
            content = expected = {}
    assert (status, kind, content) == (row["code"], row["content_type"], rounded(expected))


def test_every_observation_over_rest_is_tried():
    assert {case for case, row in OBSERVED.items() if "rest" in row} == BODIES.keys()


PREDICT, CLASSIFY = TEXTS + ":predict", EXAMPLES + ":classify"
PAIR, TWICE = {"signature_name": "pair"}, {"signature_name": "twice"}


@pytest.mark.parametrize(
    "path, body, message",
    [
        (PREDICT, {"instances": [["a"], ["b", "c"]]}, "Expecting tensor size: 1 but got: 2"),
        (PREDICT, {"instances": [["a", ["b"]]]}, "list at unexpected level: 1 expected < 1"),
        (PREDICT, {"instances": [{"text": "a"}, "b"]}, "Expecting object but got list at item 1"),
        (PREDICT, {"instances": ["a", {"text": "b"}]}, "Expecting value/list but got object"),
        (PREDICT, PAIR | {"instances": ["a"]}, "expecting list of objects"),
        (PREDICT, PAIR | {"inputs": ["a"]}, "inputs is a plain value/list"),
        (PREDICT, PAIR | {"inputs": {"text": ["a"]}}, "Missing named input: text_pair"),
        (PREDICT, {"signature_name": 3, "instances": ["a"]}, "must be a string value"),
        (
            PREDICT,
            {"signature_name": "twice", "instances": [True]},
            "Type: True is not of expected type: float",
        ),
        (PREDICT, {"inputs": {"b64": 3}}, "Missing named input: text"),
        (PREDICT, b'{"instances": ["\\ud800"]}', "surrogate pair"),
        (PREDICT, b"[" * 100_000, "JSON Parse error"),
        (PREDICT, '{"instances": ' + "[" * 900 + "]" * 900 + "}", ""),
        (PREDICT, '{"instances": [' + "9" * 5000 + "]}", "JSON Parse error"),
        (CLASSIFY, {"examples": [{"x": [1.5, "a"]}]}, "element type in feature: x expecting type: float"),
        (CLASSIFY, {"examples": [{"x": None}]}, "unexpected JSON type: Null"),
        (CLASSIFY, {"examples": [{"x": 1 << 63}]}, "Only int64_t is supported"),
        (CLASSIFY, {"examples": [3]}, "Example must be JSON object but got JSON Number"),
        (CLASSIFY, {"examples": 3}, "value to be an list/array"),
        (CLASSIFY, {}, "key 'examples' is expected"),
    ],
)
def test_more_bad_requests_get_the_messages_of_the_source(server, path, body, message):
    found, kind, content = ask(server, "POST", path, body)
    assert (found, kind) == (400, "application/json")
    assert message in content["error"]


@pytest.mark.parametrize(
    "method, path, status, message",
    [
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", TEXTS + "/versions/" + "9" * 30, 400, "Failed to convert version"),
        ("GET", TEXTS + "/versions/" + "9" * 5000, 400, "Failed to convert version"),
        ("PUT", PREDICT, 400, f"Malformed request: PUT {PREDICT}"),
        ("GET", "/v1/models/%6eobody", 404, "model nobody"),
    ],
)
def test_more_bad_paths_get_the_messages_of_the_source(server, method, path, status, message):
    found, kind, content = ask(server, method, path)
    assert (found, kind) == (status, "application/json")
    assert message in content["error"]


def test_the_path_may_be_quoted_and_in_any_case_and_have_a_query(server):
    body = {"signature_name": "twice", "instances": [1.5]}
    for path in ("/V1/Models/te%78ts/versions/1:PREDICT?really", "/v1/models/texts/labels/stabl%65:predict"):
        assert ask(server, "POST", path, body) == (200, "application/json", {"predictions": [3.0]})


def test_what_follows_the_document_is_not_looked_at(server):
    assert ask(server, "POST", PREDICT, '{"signature_name":"twice","inputs":[1]} more')[2] == {
        "outputs": [2.0]
    }


def test_bytes_that_are_not_utf8_go_through_as_they_are(server):
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.rest_port}{TEXTS}:predict", data=b'{"instances": ["\xff"]}'
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert b'"upper": "\xff"' in reply.read()


def exchange(server, data):
    """What comes back for bytes that ask, last of all, to close the connection."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as connection:
        connection.sendall(data)
        with connection.makefile("rb") as reply:
            return reply.read()


def test_a_head_request_is_answered_without_content(server):
    reply = exchange(server, f"HEAD {TEXTS} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert reply.endswith(b"\r\n\r\n") and b"Malformed" not in reply


def test_a_path_may_be_a_whole_uri(server):
    request = f"GET http://localhost:{server.rest_port}{TEXTS} HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert exchange(server, request.encode()).startswith(b"HTTP/1.1 200 ")


def test_an_error_of_the_servers_own_leaves_nothing_of_the_request_in_the_log(server, monkeypatch, caplog):
    def broken(*arguments):
        raise KeyError("a secret")

    monkeypatch.setattr(rest, "handle", broken)
    assert ask(server, "GET", "/v1/models/secret?secret")[0] == 500
    assert "KeyError" in caplog.text and "secret" not in caplog.text


def test_more_than_a_thousand_descriptors_leave_the_server_answering(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1050)]
    try:
        assert ask(server, "POST", PREDICT, {"instances": ["a"]})[0] == 200
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ask(server, "POST", PREDICT, {"instances": ["a"]})[0] == 200


def test_a_body_over_the_limit_is_refused(tmp_path):
    config = write_models(tmp_path)
    limit = "grpc.max_receive_message_length=1000"
    with serve(model_config_file=config, port=0, rest_api_port=0, grpc_channel_arguments=limit) as server:
        assert ask(server, "POST", PREDICT, {"instances": ["a" * 2000]})[0] == 413
        assert ask(server, "POST", PREDICT, {"instances": ["a"]})[0] == 200
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"a" * 2000, timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_names_that_end_in_bytes_and_other_dtypes():
    outputs = {
        "raw_bytes": tf.make_tensor_proto([b"\xff", b"a"]),
        "flags": tf.make_tensor_proto([True, False]),
        "counts": tf.make_tensor_proto([[1, 2], [3, 4]], tf.int64),
    }
    for proto in outputs.values():  # values in their fields, as the server has them
        array = tf.make_ndarray(proto)
        proto.CopyFrom(json_tensors.tensors.encode(array, tf.as_dtype(proto.dtype)))
    rows = json_tensors.predictions(outputs, True)["predictions"]
    assert rows == [
        {"raw_bytes": {"b64": "/w=="}, "flags": True, "counts": [1, 2]},
        {"raw_bytes": {"b64": "YQ=="}, "flags": False, "counts": [3, 4]},
    ]
    outputs["one"] = tf.make_tensor_proto(1)
    with pytest.raises(RequestError, match="has no shape information"):
        json_tensors.predictions(outputs, True)


def test_a_float_is_written_with_the_digits_that_stand_for_it():
    for value in (0.1, 1 / 3, 16777216.0, 3.4e38, -0.0):
        value = float(tf.constant(value))
        written = json_tensors.decimal(value)
        assert float(tf.constant(written)) == value and len(repr(written)) <= 16


def test_a_long_value_is_cut_in_a_message():
    shown = json_tensors.debug_string({"a": list(range(1000)), "b": 1})
    assert re.match(r'{\n    "a": \[0, 1, 2, ', shown) and 256 <= len(shown) < 270


def test_a_body_may_be_gzip(server):
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"signature_name":"twice","inputs":[1]}')
    assert ask(server, "POST", PREDICT, body, headers)[2] == {"outputs": [2.0]}
    for broken in (b"no gzip", body[:-9], gzip.compress(bytes(80 << 20))):
        status, _, content = ask(server, "POST", PREDICT, broken, headers)
        assert status == 400 and "the body is" in content["error"]


def test_a_kept_connection_takes_no_more_requests_once_the_server_stops(tmp_path):
    config = write_models(tmp_path)
    with serve(model_config_file=config, port=0, rest_api_port=0) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
        connection.request("GET", TEXTS)
        connection.getresponse().read()
        stopping = threading.Thread(target=server.stop, args=(60,))
        stopping.start()
        with pytest.raises((OSError, http.client.HTTPException)):
            while True:
                connection.request("GET", TEXTS)
                connection.getresponse().read()
        stopping.join(30)
        assert not stopping.is_alive()
        connection.close()
