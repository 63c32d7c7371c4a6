"""Random and malicious requests: each gets a status, and the next one its answer."""

import json
import random

import grpc
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.server import serve
from serving.service import METHODS
from tests.conformance import ask, classify, example, multi, predict, regress, tensor, texts, write_models
from tests.test_serving_rest import ask as ask_rest

GOOD = predict({"text": texts(b"hello")})
# What a bad request may be answered; INTERNAL is for bytes that are no message at all.
STATUSES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = write_models(tmp_path_factory.mktemp("models"))
    with serve(model_config_file=config, port=0, rest_api_port=0) as server:
        yield server


def random_bytes(rng):
    return rng.choice(
        [
            b"",
            rng.randbytes(rng.randrange(40)),
            b"\xff\xfe\x00" * rng.randrange(5),
            "naïve 中文 \U0001f600".encode(),
            b"x" * rng.choice([1, 1000, 300_000]),
        ]
    )


def random_tensor(rng):
    """Any dtype, shape and values, which seldom fit, or some that a signature takes."""
    if rng.random() < 0.4:
        return rng.choice([texts(random_bytes(rng)), tensor(tf.float32, [2], float_val=[1.0, 2.0])])
    rank = rng.choice([0, 1, 1, 1, 2, 3, 300])
    sizes = [rng.choice([0, 1, 1, 2, 3, -1, 2**31, 2**62]) for _ in range(rank)]
    proto = tensor_pb2.TensorProto(
        dtype=rng.choice([*range(27), 101, 107, 10**6]),
        tensor_shape={"dim": [{"size": size} for size in sizes], "unknown_rank": rng.random() < 0.1},
    )
    count = rng.randrange(4)
    fill = rng.randrange(6)
    if fill == 0:
        proto.tensor_content = random_bytes(rng)
    elif fill == 1:
        proto.float_val.extend(rng.choice([0.0, 1e38, float("nan")]) for _ in range(count))
    elif fill == 2:
        proto.int_val.extend(rng.randrange(-(2**31), 2**31) for _ in range(count))
    elif fill == 3:
        proto.half_val.extend(rng.randrange(-(2**31), 2**31) for _ in range(count))
    else:
        proto.string_val.extend(random_bytes(rng) for _ in range(count))
    return proto


def random_example(rng):
    values = rng.choice([[1.0, 2.0], [1.0], [1, 2], [random_bytes(rng)], [float("nan")] * 2])
    return example(**{rng.choice(["x", "x", "z"]): values})


def random_request(rng):
    """A method's full name and the bytes of a request to it."""
    spec = {
        "model": rng.choice(["texts", "texts", "examples", "nobody", ""]),
        "signature_name": rng.choice(["", "", "pair", "twice", "regress", "predict", "none", "\0"]),
    }
    if rng.random() < 0.2:
        spec["version"] = rng.choice([1, 2, -1, 2**63 - 1])
    elif rng.random() < 0.2:
        spec["version_label"] = rng.choice(["stable", "canary", "none", ""])
    examples = [random_example(rng) for _ in range(rng.randrange(4))]
    task = (spec["model"], spec["signature_name"], rng.choice(["classify", "regress", "guess"]))
    made = {
        "Predict": predict(
            {
                rng.choice(["text", "x", "text_pair", "inputs", "\0"]): random_tensor(rng)
                for _ in range(rng.choice([0, 1, 1, 1, 2]))
            },
            rng.sample(["score", "y", "upper", "none", "upper"], rng.choice([0, 0, 1, 2])),
            **spec,
        ),
        "Classify": classify(examples, rng.choice([None, random_example(rng)]), **spec),
        "Regress": regress(examples, **spec),
        "MultiInference": multi([task] * rng.randrange(3), examples),
    }
    method = rng.choice(list(made))
    data = made[method].SerializeToString()
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)]
    elif rng.random() < 0.1:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + rng.randbytes(3) + data[place:]
    return f"/tensorflow.serving.PredictionService/{method}", data


def random_json(rng, depth=0):
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 6:
        return [None, True, 1 << rng.randrange(70), rng.random(), "text", {"b64": "YQ="}][kind]
    if kind == 6:
        return {
            rng.choice(["text", "x", "b64", "text_pair"]): random_json(rng, depth + 1)
            for _ in range(rng.randrange(3))
        }
    return [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]


def random_body(rng):
    body = {
        rng.choice(["instances", "inputs", "examples", "context", "signature_name"]): random_json(rng)
        for _ in range(rng.randrange(4))
    }
    if rng.random() < 0.3:
        body = {
            "instances": [rng.choice(["a", "\0\u4e16", {"b64": "/w=="}]) for _ in range(rng.randrange(4))]
        }
    elif rng.random() < 0.5:
        body["signature_name"] = rng.choice(["twice", "pair", "regress"])
    text = json.dumps(body)
    if rng.random() < 0.1:
        depth = rng.choice([100, 990, 3000, 200_000])
        text = '{"instances": ' + "[" * depth + "]" * rng.choice([depth, 1]) + "}"
    data = text.encode()
    if rng.random() < 0.2:
        place = rng.randrange(len(data))
        data = rng.choice([data[:place], data[:place] + rng.randbytes(2) + data[place:]])
    return data


def test_random_requests_over_grpc_get_a_status_and_the_next_an_answer(server):
    rng = random.Random(0)
    with grpc.insecure_channel(server.address) as channel:
        wanted = ask(channel, GOOD)
        seen = set()
        for number in range(3000):
            method, data = random_request(rng)
            try:
                channel.unary_unary(method)(data, timeout=60)
                seen.add("OK")
            except grpc.RpcError as error:
                code = error.code().name
                if code == "INTERNAL":
                    # Only what isn't a message of the method, which gRPC itself answers.
                    request_class = METHODS["tensorflow.serving.PredictionService"][method.split("/")[-1]][1]
                    with pytest.raises(Exception, match="(?i)pars|utf"):
                        request_class.FromString(data)
                else:
                    assert code in STATUSES, (number, code, error.details())
                seen.add(code)
            if number % 10 == 0:
                assert ask(channel, GOOD) == wanted
        assert ask(channel, GOOD) == wanted
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= seen


def test_random_requests_over_rest_get_a_status_and_the_next_an_answer(server):
    rng = random.Random(0)
    seen = set()
    for _ in range(2000):
        path = rng.choice(
            ["/v1/models/texts", "/v1/models/examples", "/v1/models/nobody", "/v1/models/texts/labels/stable"]
        ) + rng.choice([":predict", ":classify", ":regress"])
        status, kind, content = ask_rest(server, "POST", path, random_body(rng))
        assert status in (200, 400, 404, 501) and kind == "application/json"
        assert status == 200 or content["error"]
        seen.add(status)
    assert {200, 400, 404} <= seen
    assert ask_rest(server, "POST", "/v1/models/texts:predict", {"instances": ["a"]})[0] == 200
