"""Versions that come and go under requests."""

import concurrent.futures
import contextlib
import itertools
import os
import re
import shutil
import threading
import time

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    predict_pb2,
    prediction_log_pb2,
)

from serving import inference, warmup
from serving.server import serve
from tests.conformance import ask, predict, status, texts, with_spec


def write_version(folder, number):
    """A version that answers with its own number."""
    module = tf.Module()
    module.number = tf.Variable(number)
    module.answer = tf.function(
        lambda text: {"number": tf.fill([tf.size(text)], module.number)},
        [tf.TensorSpec([None], tf.string, name="text")],
    )
    tf.saved_model.save(module, str(folder / f"unpublished-{number}"), {"serving_default": module.answer})
    return folder / f"unpublished-{number}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {number: write_version(folder, number) for number in (1, 2, 3, 4)}


def publish(made, number, base):
    """Version `number` appears in `base` whole."""
    base.mkdir(exist_ok=True)
    shutil.copytree(made[number], base / "copying")
    os.rename(base / "copying", base / str(number))


@contextlib.contextmanager
def running(base, **options):
    options = {"file_system_poll_wait_seconds": 0} | options
    with serve("m", base, port=0, **options) as server, grpc.insecure_channel(server.address) as channel:
        yield server, channel


def number_of(channel, **spec):
    answer = ask(channel, predict({"text": texts(b"a")}, model="m", **spec))
    return int(answer["response"]["outputs"]["number"]["int_val"][0]) if answer["code"] == "OK" else answer


def states(channel):
    rows = ask(channel, status(model="m"))["response"]["model_version_status"]
    return {int(row["version"]): row["state"] for row in rows}


def test_a_new_version_takes_over_and_the_old_one_goes(made, tmp_path):
    publish(made, 1, tmp_path)
    with running(tmp_path) as (server, channel):
        publish(made, 2, tmp_path)
        server.store.poll()
        assert number_of(channel) == 2
        assert states(channel) == {2: "AVAILABLE", 1: "END"}


def test_versions_are_looked_for_in_the_background(made, tmp_path):
    publish(made, 1, tmp_path)
    with running(tmp_path, file_system_poll_wait_seconds=1) as (_, channel):
        publish(made, 2, tmp_path)
        ends = time.monotonic() + 60
        while number_of(channel) != 2 and time.monotonic() < ends:
            time.sleep(0.1)
        assert number_of(channel) == 2


def test_a_deleted_version_is_rolled_back_to_the_one_before(made, tmp_path):
    publish(made, 1, tmp_path)
    publish(made, 2, tmp_path)
    with running(tmp_path) as (server, channel):
        shutil.rmtree(tmp_path / "2")
        server.store.poll()
        assert number_of(channel) == 1
        assert states(channel) == {2: "END", 1: "AVAILABLE"}


def test_a_version_that_fails_to_load_leaves_the_old_one_and_is_tried_again_when_mended(
    made, tmp_path, caplog
):
    publish(made, 1, tmp_path)
    with running(tmp_path) as (server, channel):
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "saved_model.pb").write_bytes(b"broken")
        for _ in range(3):
            server.store.poll()
        assert caplog.text.count("version 2 of model m does not load") == 1
        assert number_of(channel) == 1
        rows = ask(channel, status(model="m"))["response"]["model_version_status"]
        assert (rows[0]["state"], "saved_model.pb" in rows[0]["status"]["error_message"]) == ("END", True)
        shutil.rmtree(tmp_path / "2")
        publish(made, 2, tmp_path)
        server.store.poll()
        assert number_of(channel) == 2


def test_an_emptied_folder_leaves_what_is_served(made, tmp_path, caplog):
    publish(made, 1, tmp_path)
    with running(tmp_path) as (server, channel):
        shutil.rmtree(tmp_path / "1")
        server.store.poll()
        server.store.poll()
        assert number_of(channel) == 1
        assert caplog.text.count("what is served of it is kept") == 1


def reload(channel, entry):
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(f"config {{ model_config_list {{ {entry} }} }}", request)
    return ask(channel, request)


def entry(base, more):
    return f'config {{ name: "m" base_path: "{base}" model_platform: "tensorflow" {more} }}'


def test_labels_and_versions_change_by_a_reload(made, tmp_path):
    for number in (1, 2, 3):
        publish(made, number, tmp_path)
    policy = "model_version_policy { specific { versions: 1 versions: 2 } } "
    label = 'version_labels { key: "stable" value: %d }'
    with running(tmp_path) as (_, channel):
        assert number_of(channel) == 3
        assert reload(channel, entry(tmp_path, policy + label % 1))["code"] == "OK"
        assert (number_of(channel), number_of(channel, version_label="stable")) == (2, 1)
        assert number_of(channel, version=3)["code"] == "NOT_FOUND"
        assert reload(channel, entry(tmp_path, policy + label % 2))["code"] == "OK"
        assert number_of(channel, version_label="stable") == 2


@pytest.mark.parametrize(
    "text, reason",
    [
        ('config { base_path: "BASE" model_platform: "tensorflow" }', "a model without a name"),
        ('config { name: "m" model_platform: "tensorflow" }', "needs an absolute base_path"),
        ('config { name: "m" base_path: "BASE" model_platform: "tensorflow" }' * 2, "is listed twice"),
        ('config { name: "m" base_path: "BASE/nowhere" model_platform: "tensorflow" }', "cannot be read"),
        ('config { name: "n" base_path: "BASE/broken" model_platform: "tensorflow" }', "does not load"),
        ("", "names no model"),
    ],
)
def test_a_bad_reload_is_refused_and_changes_nothing(made, tmp_path, text, reason):
    publish(made, 1, tmp_path)
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with running(tmp_path) as (_, channel):
        answer = reload(channel, text.replace("BASE", str(tmp_path)))
        assert answer["code"] == "INVALID_ARGUMENT" and reason in answer["message"]
        assert number_of(channel) == 1


def test_a_config_file_is_read_again_and_a_broken_one_changes_nothing(made, tmp_path, caplog):
    publish(made, 1, tmp_path / "one")
    publish(made, 2, tmp_path / "two")
    config = tmp_path / "models.config"
    config.write_text(f"model_config_list {{ {entry(tmp_path / 'one', '')} }}")
    options = {"model_config_file": str(config), "model_config_file_poll_wait_seconds": 1}
    with serve(port=0, **options) as server, grpc.insecure_channel(server.address) as channel:
        config.write_text("model_config_list {")
        ends = time.monotonic() + 60
        while "no ModelServerConfig" not in caplog.text and time.monotonic() < ends:
            time.sleep(0.1)
        assert number_of(channel) == 1
        config.write_text(f"model_config_list {{ {entry(tmp_path / 'two', '')} }}")
        while number_of(channel) != 2 and time.monotonic() < ends:
            time.sleep(0.1)
        assert number_of(channel) == 2


def test_a_request_under_way_keeps_its_version_until_it_is_answered(made, tmp_path, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    original = inference.tensors.decode

    def slow(proto):
        if proto.string_val == [b"slow"]:
            entered.set()
            assert leave.wait(60)
        return original(proto)

    monkeypatch.setattr(inference.tensors, "decode", slow)
    publish(made, 1, tmp_path)
    with running(tmp_path) as (server, channel), concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, channel, predict({"text": texts(b"slow")}, model="m"))
        assert entered.wait(60)
        publish(made, 2, tmp_path)
        polled = pool.submit(server.store.poll)
        while states(channel).get(2) != "AVAILABLE":
            time.sleep(0.01)
        assert number_of(channel) == 2
        assert states(channel)[1] == "UNLOADING" and not polled.done()
        leave.set()
        assert asked.result()["response"]["outputs"]["number"]["int_val"] == [1]
        polled.result()
        assert states(channel)[1] == "END"


def test_requests_are_all_answered_while_versions_come_go_and_break(made, tmp_path):
    publish(made, 1, tmp_path)
    stop, answers = threading.Event(), []

    def keep_asking(channel):
        while not stop.is_set():
            answers.append(number_of(channel))

    with running(tmp_path) as (server, channel), concurrent.futures.ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking, channel) for _ in range(8)]
        for number in itertools.chain((2, 3), (4,)):
            publish(made, number, tmp_path)
            server.store.poll()
        (tmp_path / "5").mkdir()
        (tmp_path / "5" / "saved_model.pb").write_bytes(b"\0" * 100)
        server.store.poll()
        shutil.rmtree(tmp_path / "4")
        server.store.poll()
        stop.set()
        for one in asking:
            one.result()
    assert set(answers) == {1, 2, 3, 4}


def write_warmup(folder, *logs):
    (folder / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / warmup.FILE)) as writer:
        for log in logs:
            writer.write(log if isinstance(log, bytes) else log.SerializeToString())


def predict_log(*values, **spec):
    return prediction_log_pb2.PredictionLog(
        predict_log={
            "request": with_spec(predict_pb2.PredictRequest(inputs={"text": texts(*values)}), "x", **spec)
        }
    )


def test_warm_up_comes_before_a_version_is_available(made, tmp_path, monkeypatch):
    seen = []
    original = inference.predict
    monkeypatch.setitem(warmup._FUNCTIONS, "predict_log", lambda *pair: seen.append(original(*pair)))
    publish(made, 1, tmp_path)
    write_warmup(tmp_path / "1", predict_log(b"a"), predict_log(b"a", b"b"))
    with running(tmp_path):
        assert [len(one.outputs["number"].int_val) for one in seen] == [1, 2]


@pytest.mark.parametrize(
    "log, reason",
    [
        (b"\xff\xff", "Failed to parse warmup record 1"),
        (predict_log(b"a", signature_name="none"), 'record 1 of .*: Serving signature key "none" not found'),
        (prediction_log_pb2.PredictionLog(session_run_log={}), "Unsupported log_type for warmup: session"),
    ],
)
def test_a_broken_warm_up_file_keeps_a_version_from_being_served(made, tmp_path, caplog, log, reason):
    publish(made, 1, tmp_path)
    publish(made, 2, tmp_path / "later")
    write_warmup(tmp_path / "later" / "2", log)
    with running(tmp_path) as (server, channel):
        os.rename(tmp_path / "later" / "2", tmp_path / "2")
        server.store.poll()
        assert number_of(channel) == 1
        assert states(channel) == {2: "END", 1: "AVAILABLE"}
    assert re.search(reason, caplog.text), caplog.text


def test_health_and_reflection_are_the_standard_ones(made, tmp_path):
    publish(made, 1, tmp_path)
    with running(tmp_path) as (_, channel):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        symbol = reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="tensorflow.serving.PredictionService"
        )
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([listing, symbol]), timeout=60
        )
        first, second = answers
    names = {service.name for service in first.list_services_response.service}
    assert {"tensorflow.serving.PredictionService", "grpc.health.v1.Health"} <= names
    assert b"MultiInference" in b"".join(second.file_descriptor_response.file_descriptor_proto)


def test_more_requests_than_threads_are_refused_at_once_and_health_goes_on(made, tmp_path, monkeypatch):
    entered, leave = threading.Semaphore(0), threading.Event()
    original = inference.tensors.decode

    def slow(proto):
        entered.release()
        assert leave.wait(60)
        return original(proto)

    publish(made, 1, tmp_path)
    with (
        running(tmp_path, grpc_max_threads=2, rest_api_port=0) as (server, channel),
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        monkeypatch.setattr(inference.tensors, "decode", slow)
        asked = [pool.submit(number_of, channel) for _ in range(2)]
        assert entered.acquire(timeout=60) and entered.acquire(timeout=60)
        answer = number_of(channel)
        assert answer["code"] == "RESOURCE_EXHAUSTED" and "--grpc_max_threads" in answer["message"]
        from tests.test_serving_rest import ask as ask_rest

        assert ask_rest(server, "POST", "/v1/models/m:predict", {"instances": ["a"]})[0] == 429
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        leave.set()
        assert [one.result() for one in asked] == [1, 1]
        assert number_of(channel) == 1


def test_work_whose_caller_has_gone_is_not_run(made, tmp_path, monkeypatch):
    entered, leave, texts_seen = threading.Event(), threading.Event(), []
    original = inference.tensors.decode

    def slow(proto):
        texts_seen.append(proto.string_val[0])
        entered.set()
        assert leave.wait(60)
        return original(proto)

    publish(made, 1, tmp_path)
    with running(tmp_path) as (server, channel), concurrent.futures.ThreadPoolExecutor() as pool:
        server._service._turns = threading.BoundedSemaphore(1)
        monkeypatch.setattr(inference.tensors, "decode", slow)
        first = pool.submit(ask, channel, predict({"text": texts(b"first")}, model="m"))
        assert entered.wait(60)
        call = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict", predict_pb2.PredictRequest.SerializeToString
        )
        gone = call.future(predict({"text": texts(b"gone")}, model="m"))
        while len(server._service._turns._cond._waiters) == 0:
            time.sleep(0.01)
        gone.cancel()
        time.sleep(0.1)
        leave.set()
        assert first.result()["code"] == "OK"
        assert number_of(channel) == 1
    assert texts_seen == [b"first", b"a"]
