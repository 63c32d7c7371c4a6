"""10,000 mixed requests from 32 connections while versions are added, rolled back and broken."""

import concurrent.futures
import os
import random
import shutil
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.server import serve
from tests.conformance import ask, classify, example, multi, predict, regress, set_method_names, texts
from tests.test_serving_rest import ask as ask_rest

NUM_CONNECTIONS, NUM_REQUESTS = 32, 10_000
EXAMPLE = example(x=[1.0])


def write_version(folder, number):
    """A version whose every signature answers with its own number."""
    module = tf.Module()
    module.number = tf.Variable(float(number))

    def rows(values):
        return tf.fill([tf.size(values)], module.number)

    text = tf.TensorSpec([None], tf.string, name="text")
    inputs = tf.TensorSpec([None], tf.string, name="inputs")
    module.predict = tf.function(lambda text: {"one": rows(text), "two": rows(text)}, [text])
    module.classify = tf.function(lambda inputs: {"scores": rows(inputs)[:, None]}, [inputs])
    module.regress = tf.function(lambda inputs: {"outputs": rows(inputs)}, [inputs])
    tf.saved_model.save(
        module,
        str(folder),
        {"serving_default": module.predict, "classify": module.classify, "regress": module.regress},
    )
    set_method_names(folder, {"classify": "classify", "regress": "regress"})


def numbers_in(content):
    """All numbers of an answer that say which version gave it: values, and the model spec's version."""
    if isinstance(content, dict):
        found = [
            numbers_in(value)
            for key, value in content.items()
            if key not in ("dim", "tensor_shape", "dtype", "name", "signature_name")
        ]
        return [number for numbers in found for number in numbers]
    if isinstance(content, list):
        return [number for value in content for number in numbers_in(value)]
    return [float(content)]


def ask_something(server, channel, rng):
    """The versions that answered one random request."""
    kind = rng.randrange(6)
    if kind == 5:
        body = {"instances": ["a"] * rng.randrange(1, 9)}
        status, _, content = ask_rest(server, "POST", "/v1/models/m:predict", body)
        assert status == 200, content
        return set(numbers_in(content))
    request = [
        lambda: predict({"text": texts(*[b"a"] * rng.randrange(1, 9))}, model="m"),
        lambda: predict({"text": texts(b"a")}, ["two"], model="m"),
        lambda: classify([EXAMPLE] * rng.randrange(1, 9), model="m", signature_name="classify"),
        lambda: regress([EXAMPLE], model="m"),
        lambda: multi([("m", "classify", "classify"), ("m", "regress", "regress")], [EXAMPLE] * 2),
    ][kind]()
    answer = ask(channel, request)
    assert answer["code"] == "OK", answer
    return set(numbers_in(answer["response"]))


@pytest.mark.slow
@pytest.mark.parametrize("batching", [False, True])
def test_every_request_is_answered_by_one_version_and_rightly(tmp_path, batching):
    made, base = tmp_path / "made", tmp_path / "base"
    base.mkdir()
    for number in range(1, 6):
        write_version(made / str(number), number)
    broken = made / "6"
    shutil.copytree(made / "5", broken)
    (broken / "variables" / "variables.data-00000-of-00001").write_bytes(b"")

    def publish(number):
        shutil.copytree(made / str(number), base / "copying")
        os.rename(base / "copying", base / str(number))

    def change():
        """Add, roll back and break versions until all requests are answered."""
        while not done.is_set():
            for number in (2, 3, 4, 5, 6):
                publish(number)
                server.store.poll()
                expected.add(number)
            for number in (6, 5, 4, 3, 2):
                shutil.rmtree(base / str(number))
                server.store.poll()
            rounds.append(1)

    def keep_asking(connection):
        rng = random.Random(connection)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options=options) as channel:
            return [ask_something(server, channel, rng) for _ in range(NUM_REQUESTS // NUM_CONNECTIONS + 1)]

    publish(1)
    expected, rounds, done = {1}, [], threading.Event()
    with (
        serve(
            "m", base, port=0, rest_api_port=0, file_system_poll_wait_seconds=0, enable_batching=batching
        ) as server,
        concurrent.futures.ThreadPoolExecutor(NUM_CONNECTIONS + 1) as pool,
    ):
        changing = pool.submit(change)
        asking = [pool.submit(keep_asking, connection) for connection in range(NUM_CONNECTIONS)]
        try:
            answered = [answer for one in asking for answer in one.result()]
        finally:
            done.set()
        changing.result()
    assert len(answered) >= NUM_REQUESTS and rounds
    assert {len(versions) for versions in answered} == {1}
    assert set().union(*answered) == {1.0, 2.0, 3.0, 4.0, 5.0}
    counts = np.bincount([int(next(iter(versions))) for versions in answered])
    assert min(counts[1:]) > 50
