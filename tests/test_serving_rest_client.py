"""The REST client against what the stock server answered, kept in serving_conformance/observed.jsonl."""

import contextlib
import json
import pathlib
import ssl
import subprocess
import sys
import threading

import numpy as np
import pytest

from serving.connection import Tls
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotPermitted,
    Overloaded,
    ServerError,
    ServerFault,
    Unreachable,
    WrongServer,
)
from serving.rest_client import RestPredictClient
from tests.stand_ins import http_server, write_certificates

ROOT = pathlib.Path(__file__).parent.parent
OBSERVED = {
    row["case"]: row
    for row in map(
        json.loads,
        (ROOT / "tests" / "serving_conformance" / "observed.jsonl").read_text("utf-8").splitlines(),
    )
}
DEAD = "127.0.0.1:1"
TEXT, NUMBER = "DT_STRING", "DT_FLOAT"


def described(**outputs):
    """The metadata of a model whose signatures all have these outputs, {name: DataType}."""
    tensors = {
        name: {"dtype": dtype, "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}}
        for name, dtype in outputs.items()
    }
    inputs = dict.fromkeys(("text", "text_pair", "x"), tensors[next(iter(tensors))])
    signature = {"inputs": inputs, "outputs": tensors, "method_name": "tensorflow/serving/predict"}
    return {
        "model_spec": {"name": "m", "version": "1", "signature_name": ""},
        "metadata": {
            "signature_def": {"signature_def": dict.fromkeys(("serving_default", "twice"), signature)}
        },
    }


@contextlib.contextmanager
def answering(*replies, metadata=None, ssl_context=None):
    """A stand-in's address and the (verb, path, JSON) it was asked.

    A reply is (status, value as JSON), bytes of another type, None to drop the connection, or a function
    of the request; the last one is repeated. `metadata` is what GET .../metadata answers.
    """
    asked, remaining = [], list(replies)

    def answer(verb, path, body):
        if metadata and path.endswith("/metadata"):
            return 200, "application/json", json.dumps(metadata).encode()
        asked.append((verb, path, json.loads(body) if body else None))
        reply = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if callable(reply):
            reply = reply(asked[-1][2])
        if reply is None or isinstance(reply[1], bytes):
            return reply and (reply[0], "text/html", reply[1])
        return reply[0], "application/json", json.dumps(reply[1]).encode()

    with http_server(answer, ssl_context) as port:
        yield f"127.0.0.1:{port}", asked


def seen(case):
    """A reply as the stock server gave it."""
    row = OBSERVED[case]
    return row["code"], row["response"]


OUTPUTS = described(upper=TEXT, length="DT_INT32", score=NUMBER)


# ---- Results ----


def test_texts_come_back_a_dict_each():
    with (
        answering(seen("rest columns"), metadata=OUTPUTS) as (target, asked),
        RestPredictClient(target, "texts") as client,
    ):
        assert client.predict(["a", b"bb"]) == [
            {"length": 1, "score": 10.0, "upper": "A"},
            {"length": 2, "score": 20.0, "upper": "BB"},
        ]
    assert asked == [("POST", "/v1/models/texts:predict", {"inputs": {"text": ["a", "bb"]}})]


def test_outputs_come_back_as_arrays_of_their_dtypes():
    with (
        answering(seen("rest columns"), metadata=OUTPUTS) as (target, _),
        RestPredictClient(target, "texts") as client,
    ):
        outputs = client.run({"text": ["a", "bb"]})
    assert {name: (array.dtype, array.tolist()) for name, array in outputs.items()} == {
        "length": (np.int32, [1, 2]),
        "score": (np.float32, [10.0, 20.0]),
        "upper": (object, [b"A", b"BB"]),
    }


def test_a_lone_output_gets_its_name_back():
    reply = 200, {"outputs": [float("nan"), float("inf"), -4.0]}
    with (
        answering(reply, metadata=described(y=NUMBER)) as (target, asked),
        RestPredictClient(target, "m") as client,
    ):
        inputs = {"x": np.float32([np.nan, np.inf, -2])}
        [first, second, third] = client.predict_rows(inputs, signature_name="twice")
    assert np.isnan(first["y"]) and (second, third) == ({"y": float("inf")}, {"y": -4.0})
    [(_, _, body)] = asked
    assert body["signature_name"] == "twice" and np.isnan(body["inputs"]["x"][0])


def test_versions_labels_and_pairs_are_asked_for():
    reply = 200, {"outputs": ["a|b"]}
    with (
        answering(reply, metadata=described(joined=TEXT)) as (target, asked),
        RestPredictClient(target, "a model") as client,
    ):
        assert client.predict(["a"], ["b"], version=3) == [{"joined": "a|b"}]
        client.predict(["a"], ["b"], label="canary")
    assert [path for _, path, _ in asked] == [
        "/v1/models/a%20model/versions/3:predict",
        "/v1/models/a%20model/labels/canary:predict",
    ]
    assert asked[0][2] == {"inputs": {"text": ["a"], "text_pair": ["b"]}}


def test_bytes_that_are_not_utf_8_are_sent_and_read():
    def echo(body):
        return 200, {"outputs": body["inputs"]["text"]}

    texts = [b"\xff\xfe", "h\u00e9 \U0001f600", "\udcff", b"nul\0"]
    with (
        answering(echo, metadata=described(text_bytes=TEXT)) as (target, asked),
        RestPredictClient(target, "m") as client,
    ):
        outputs = client.run({"text": texts})
    assert asked[0][2]["inputs"]["text"] == [{"b64": "//4="}, "h\u00e9 \U0001f600", {"b64": "/w=="}, "nul\0"]
    assert outputs["text_bytes"].tolist() == [b"\xff\xfe", "h\u00e9 \U0001f600".encode(), b"\xff", b"nul\0"]


def test_strings_that_are_not_utf_8_are_read_where_the_server_sends_them_bare():
    raw = b'{"outputs": ["a\xff"]}'
    with (
        answering((200, raw), metadata=described(text=TEXT)) as (target, _),
        RestPredictClient(target, "m") as client,
    ):
        assert client.run({"text": ["x"]})["text"].tolist() == [b"a\xff"]


def test_batches_come_back_in_order():
    def echo(body):
        return 200, {"outputs": [text.upper() for text in body["inputs"]["text"]]}

    texts = [f"text {number}" for number in range(100)]
    with (
        answering(echo, metadata=described(label=TEXT)) as (target, asked),
        RestPredictClient(target, "m", batch_size=7, concurrency=3) as client,
    ):
        assert client.predict(texts) == [{"label": text.upper()} for text in texts]
        assert client.predict([]) == []
    assert sorted(len(body["inputs"]["text"]) for _, _, body in asked) == [2] + [7] * 14


def test_a_version_with_other_outputs_is_described_anew():
    metadata = described(y=NUMBER)
    with (
        answering((200, {"outputs": [1.0]}), seen("rest columns"), metadata=metadata) as (target, _),
        RestPredictClient(target, "m") as client,
    ):
        assert client.predict(["a"]) == [{"y": 1.0}]
        metadata.update(OUTPUTS)
        assert client.predict(["a", "bb"])[1] == {"length": 2, "score": 20.0, "upper": "BB"}
        metadata.update(described(a=NUMBER, b=NUMBER))
        with pytest.raises(ServerFault, match="the outputs are not those that the metadata describes"):
            RestPredictClient(target, "m").predict(["a"])


def test_examples_are_classified_and_regressed():
    with answering(seen("rest classify")) as (target, asked), RestPredictClient(target, "examples") as client:
        answers = client.classify([{"x": [1.0, 2.0]}, {"x": np.float32([3.5, 1.5])}])
    wanted = OBSERVED["classify"]["response"]["result"]["classifications"]
    for answer, one in zip(answers, wanted, strict=True):
        assert [row["label"] for row in answer] == [row["label"] for row in one["classes"]]
        assert [np.float32(row["score"]) for row in answer] == [
            np.float32(row["score"]) for row in one["classes"]
        ]
    assert asked[0] == (
        "POST",
        "/v1/models/examples:classify",
        {"examples": [{"x": [1.0, 2.0]}, {"x": [3.5, 1.5]}]},
    )
    with answering(seen("rest regress")) as (target, asked), RestPredictClient(target, "examples") as client:
        assert client.regress([{"x": [2.0, 2.0], "s": b"\xff", "t": "text"}], signature_name="regress") == [
            8.0
        ]
    example = {"x": [2.0, 2.0], "s": {"b64": "/w=="}, "t": "text"}
    assert asked[0][2] == {"signature_name": "regress", "examples": [example]}


def test_status_and_metadata_are_as_over_grpc():
    with answering(seen("rest status")) as (target, asked), RestPredictClient(target, "texts") as client:
        assert client.status() == {2: "AVAILABLE", 1: "AVAILABLE"}
        client.status(version=1)
    assert [path for _, path, _ in asked] == ["/v1/models/texts", "/v1/models/texts/versions/1"]
    with answering(seen("rest metadata")) as (target, asked), RestPredictClient(target, "examples") as client:
        signatures = client.metadata(version=1)
    assert asked[0][1] == "/v1/models/examples/versions/1/metadata"
    assert signatures["regress"] == {
        "method_name": "tensorflow/serving/regress",
        "inputs": {"inputs": ("string", (-1,))},
        "outputs": {"outputs": ("float32", (-1,))},
    }
    assert list(signatures) == ["predict", "regress", "serving_default"]


# ---- Errors and retries ----


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("rest unknown model", NotFound),
        ("rest unknown label", InvalidRequest),
        ("rest unknown signature", InvalidRequest),
        ("rest wrong type", InvalidRequest),
        ("rest unknown path", WrongServer),
    ],
)
def test_the_servers_refusal_is_an_error_of_its_kind(case, kind):
    code, response = seen(case)
    reply = (code, response) if response else (code, b"")
    with (
        answering(reply) as (target, asked),
        RestPredictClient(target, "m") as client,
        pytest.raises(kind) as caught,
    ):
        client.predict(["a"])
    assert len(asked) == 1 and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"http://{target}: ")
    if response:
        assert caught.value.message == response["error"]


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (429, Overloaded, 2),
        (503, Unreachable, 2),
        (502, Unreachable, 2),
        (504, DeadlineExceeded, 1),
        (401, NotPermitted, 1),
        (413, InvalidRequest, 1),
        (500, ServerFault, 1),
        (501, WrongServer, 1),
        (302, WrongServer, 1),
        (409, ServerError, 1),
    ],
)
def test_a_status_is_an_error_of_its_kind(status, kind, attempts):
    with (
        answering((status, b"no")) as (target, asked),
        RestPredictClient(target, "m", attempts=2) as client,
        pytest.raises(kind) as caught,
    ):
        client.predict(["a"])
    assert type(caught.value) is kind and f"HTTP {status}" in caught.value.message
    assert len(asked) == attempts


def test_a_server_of_another_kind_is_said_to_be_one():
    for body in (b"<html>", b"[1]", b"{}"):
        with (
            answering((200, body)) as (target, _),
            RestPredictClient(target, "m") as client,
            pytest.raises(WrongServer, match="does not speak TensorFlow Serving's API"),
        ):
            client.status()


@pytest.mark.parametrize("failure", [(429, {"error": "full"}), (503, {"error": "no"}), None])
def test_a_server_that_could_not_is_asked_again(failure):
    fine = 200, {"outputs": ["A"]}
    with (
        answering(failure, failure, fine, metadata=described(label=TEXT)) as (target, asked),
        RestPredictClient(target, "m") as client,
    ):
        assert client.predict(["a"]) == [{"label": "A"}]
    assert len(asked) == 3


def test_attempts_end_with_the_deadline():
    with (
        answering((429, {"error": "full"})) as (target, asked),
        RestPredictClient(target, "m") as client,
        pytest.raises((Overloaded, DeadlineExceeded)),
    ):
        client.predict(["a"], timeout=0.5)
    assert 1 <= len(asked) < 5


def test_an_answer_that_takes_too_long_is_said_to():
    release = threading.Event()

    def slow(body):
        release.wait(60)
        return 200, {"outputs": ["A"]}

    with answering(slow) as (target, asked), RestPredictClient(target, "m") as client:
        with pytest.raises(DeadlineExceeded, match="no answer in time"):
            client.predict(["a"], timeout=0.3)
        release.set()
    assert len(asked) == 1


def test_one_dead_target_is_no_failure():
    fine = 200, {"outputs": ["A"]}
    with (
        answering(fine, metadata=described(label=TEXT)) as (target, asked),
        RestPredictClient(f"{DEAD},{target}", "m") as client,
    ):
        for _ in range(5):
            assert client.predict(["a"]) == [{"label": "A"}]
    assert len(asked) == 5


def test_an_unreachable_server_is_said_to_be_so():
    with (
        RestPredictClient(DEAD, "m", attempts=1) as client,
        pytest.raises(Unreachable, match="no model server answers there; is it running") as caught,
    ):
        client.predict(["a"])
    assert "\n" not in str(caught.value)


def test_what_is_no_address_is_refused():
    with pytest.raises(ValueError, match="is no address; write host:port"):
        RestPredictClient("http://localhost:8501", "m")


def test_a_server_is_asked_over_tls(tmp_path):
    write_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    own = [str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key")]
    with answering(seen("rest status"), ssl_context=context) as (target, _):
        local = target.replace("127.0.0.1", "localhost")
        for name, tls in ((target, Tls(*own)), (local, Tls(*own, server_name="models.test"))):
            with RestPredictClient(name, "texts", tls=tls) as client:
                assert client.status() == {2: "AVAILABLE", 1: "AVAILABLE"}
        for tls in (Tls(own[0]), Tls(), Tls(*own, server_name="else"), None):
            with (
                RestPredictClient(target, "texts", tls=tls, attempts=1) as client,
                pytest.raises(Unreachable, match="are address and TLS right"),
            ):
                client.status()


def test_the_module_imports_neither_tensorflow_nor_grpc_nor_protobuf():
    code = (
        "import sys, serving.rest_client; "
        "print({'tensorflow', 'grpc', 'google.protobuf', 'keras_bert_app'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert process.stdout == "set()\n"
