import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving import config, server
from serving.client import PredictClient, ServerError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    """A model of versions 2 and 10 that says how long a text is."""
    folder = tmp_path_factory.mktemp("model")
    module = tf.Module()
    module.measure = tf.function(
        lambda text: {"length": tf.strings.length(text)}, [tf.TensorSpec([None], tf.string, name="text")]
    )
    tf.saved_model.save(module, str(folder / "2"), {"serving_default": module.measure})
    shutil.copytree(folder / "2", folder / "10")
    (folder / "notes").mkdir()
    return folder


@pytest.fixture
def running(base_path):
    with server.serve("lengths", base_path, port=0) as running:
        yield running


def test_the_highest_number_is_the_latest_version(running):
    with PredictClient(running.address, "lengths") as client:
        assert client.status() == {10: "AVAILABLE"}
        with pytest.raises(ServerError, match=r"Specific\(lengths, 2\)"):
            client.predict(["a"], version=2)


def test_the_server_listens_on_loopback_unless_told_otherwise(running):
    assert running.address == f"127.0.0.1:{running.port}"


def test_many_clients_at_once_get_their_own_answers(running):
    def ask(number):
        with PredictClient(running.address, "lengths") as client:
            texts = [["x" * (number + row)] for row in range(5)]
            return [client.predict(text, timeout=60) for text in texts]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(64)))
    assert answers == [[[{"length": number + row}] for row in range(5)] for number in range(64)]


def test_an_error_of_the_servers_own_is_answered_and_the_request_is_not_logged(running, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("about a secret")

    with PredictClient(running.address, "lengths") as client:
        with monkeypatch.context() as patch:
            patch.setattr(running.store, "use", fail)
            with pytest.raises(ServerError) as caught:
                client.predict(["a secret"])
        assert (caught.value.code, "secret" in str(caught.value)) == ("INTERNAL", False)
        assert "RuntimeError" in caplog.text and "secret" not in caplog.text
        assert client.predict(["ab"]) == [{"length": 2}]


def test_bytes_that_are_no_request_leave_the_server_running(running):
    with grpc.insecure_channel(running.address) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError):
            call(b"\xff" * 20, timeout=60)
    with PredictClient(running.address, "lengths") as client:
        assert client.predict(["ab"]) == [{"length": 2}]


def test_a_request_larger_than_grpcs_own_limit_is_answered(running):
    with PredictClient(running.address, "lengths") as client:
        assert client.predict(["x" * 6_000_000]) == [{"length": 6_000_000}]


# ---- Starting ----


def write_config(folder, text):
    path = folder / "models.config"
    path.write_text(f"model_config_list {{ {text} }}")
    return str(path)


def entry(base_path, more="", name="lengths"):
    return f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" {more} }}'


def refused(capsys, monkeypatch, **arguments):
    """The one line on standard error with which the server does not start."""
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    assert server.main(**{"port": 0, **arguments}) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    "flag, value, says",
    [
        ("port", 70000, "0 to 65535"),
        ("rest_api_port", -7, "-1 to 65535"),
        ("grpc_max_threads", 0, "1 or more"),
        ("file_system_poll_wait_seconds", -1, "0 or more"),
        ("grpc_channel_arguments", "grpc.max_receive_message_length=much", "a number of bytes, not much"),
    ],
)
def test_a_number_that_cannot_be_is_refused(base_path, flag, value, says):
    with pytest.raises(config.StartError, match=says) as caught:
        server.serve(**{"model_name": "x", "model_base_path": str(base_path), flag: value})
    assert flag in str(caught.value) or value.split("=")[0] in str(caught.value)


def test_a_number_of_more_than_64_bits_is_no_version(tmp_path):
    for name in ("1", "99999999999999999999"):
        (tmp_path / name).mkdir()
    entry = config.one_model("x", tmp_path).model_config_list.config[0]
    assert config.wanted_versions(entry).keys() == {1}


def test_a_missing_folder_is_named(capsys, monkeypatch, tmp_path):
    line = refused(capsys, monkeypatch, model_name="m", model_base_path=str(tmp_path / "nothing"))
    assert f"{tmp_path}/nothing of model m cannot be read: No such file" in line


def test_a_folder_without_a_version_is_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "latest").mkdir()
    line = refused(capsys, monkeypatch, model_name="m", model_base_path=str(tmp_path))
    assert f"{tmp_path} of model m has no version in it" in line


@pytest.mark.parametrize("content", [None, b"", b"no proto \xff"])
def test_a_broken_saved_model_is_named(capsys, monkeypatch, tmp_path, content):
    (tmp_path / "3").mkdir()
    if content is not None:
        (tmp_path / "3" / "saved_model.pb").write_bytes(content)
    line = refused(capsys, monkeypatch, model_name="m", model_base_path=str(tmp_path))
    assert f"version 3 of model m in {tmp_path}/3 does not load" in line


def test_a_taken_port_is_named(capsys, monkeypatch, base_path, running):
    line = refused(capsys, monkeypatch, model_name="m", model_base_path=str(base_path), port=running.port)
    assert f"cannot listen on 127.0.0.1:{running.port}" in line


def test_a_server_without_a_model_says_what_to_give(capsys, monkeypatch):
    assert "--model_name" in refused(capsys, monkeypatch)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "names no model"),
        ("config {", "no ModelServerConfig"),
        ('config { name: "lengths" base_path: "/models" }', 'needs model_platform: "tensorflow"'),
        (entry("models"), "absolute base_path"),
        (entry("BASE", name=""), "without a name"),
        (entry("BASE") * 2, "listed twice"),
        (
            entry("BASE", "model_version_policy { specific { versions: 3 } }"),
            "asks for version 3; BASE has 2, 10",
        ),
        (entry("BASE", "model_version_policy { specific {} }"), "names none; BASE has 2, 10"),
        (
            entry("BASE", 'version_labels { key: "old" value: 2 }'),
            "label old of model lengths names version 2",
        ),
    ],
)
def test_a_bad_configuration_is_refused_with_its_reason(tmp_path, base_path, text, reason):
    path = write_config(tmp_path, text.replace("BASE", str(base_path)))
    with pytest.raises(config.StartError, match=re.escape(reason.replace("BASE", str(base_path)))):
        server.serve(model_config_file=path, port=0)


@pytest.mark.parametrize(
    "policy, versions",
    [
        ("", [10]),
        ("latest { num_versions: 2 }", [10, 2]),
        ("all {}", [10, 2]),
        ("specific { versions: 2 }", [2]),
    ],
)
def test_a_version_policy_chooses_what_is_served(tmp_path, base_path, policy, versions):
    path = write_config(tmp_path, entry(base_path, f"model_version_policy {{ {policy} }}"))
    with (
        server.serve(model_config_file=path, port=0) as running,
        PredictClient(running.address, "lengths") as client,
    ):
        assert list(client.status()) == versions


# ---- As a process ----


@contextlib.contextmanager
def start(*command):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_program_says_what_it_serves_and_stops_on_sigint(base_path):
    arguments = ("--model_name=lengths", f"--model_base_path={base_path}", "--port=0")
    with start("-m", "serving.server", *arguments) as process:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"embedded server: model lengths version 10 on (127\.0\.0\.1:\d+) \(gRPC\)\n", line
        )
        assert found, line + process.stderr.read()
        with PredictClient(found[1], "lengths") as client:
            assert client.predict(["abc"], timeout=60) == [{"length": 3}]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors


def test_a_program_that_cannot_start_says_so_in_one_line(tmp_path):
    arguments = ("--model_name=m", f"--model_base_path={tmp_path}", "--port=0")
    with start("-m", "serving.server", *arguments) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert re.fullmatch(
        f"embedded server: folder {re.escape(str(tmp_path))} of model m has no version .*\n", errors
    )


SLOW_SERVER = """
import sys
from serving import inference, server

def slow(servable, request):
    print("entered", flush=True)
    sys.stdin.readline()
    return predict(servable, request)

predict, inference.predict = inference.predict, slow
server.wait(server.serve("lengths", sys.argv[1], port=0))
"""


def test_sigterm_lets_a_request_under_way_finish_and_takes_no_new_one(base_path):
    with start("-c", SLOW_SERVER, str(base_path)) as process:
        address = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())[0]
        request = predict_pb2.PredictRequest(model_spec={"name": "lengths"})
        request.inputs["text"].CopyFrom(tf.make_tensor_proto(["abc"]))
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                predict_pb2.PredictRequest.SerializeToString,
                predict_pb2.PredictResponse.FromString,
            )
            answer = call.future(request, timeout=60)
            assert process.stdout.readline() == "entered\n"
            process.send_signal(signal.SIGTERM)
            assert "stopping" in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            while not refuses(address):
                time.sleep(0.05)
            process.stdin.write("\n")
            process.stdin.flush()
            assert list(answer.result().outputs["length"].int_val) == [3]
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors


def refuses(address):
    try:
        with PredictClient(address, "lengths") as client:
            client.status(timeout=60)
    except ServerError as error:
        return error.code == "UNAVAILABLE"
    return False


# ---- The stock server ----


def test_the_stock_server_is_taken_where_it_is_installed(tmp_path, monkeypatch):
    program = tmp_path / "tensorflow_model_server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert server.stock_command(8500, "sentiment", "exported/sentiment") == [
        str(program),
        "--port=8500",
        "--model_name=sentiment",
        f"--model_base_path={tmp_path}/exported/sentiment",
    ]
    assert server.stock_command(8500, model_config_file="models.config") == [
        str(program),
        "--port=8500",
        f"--model_config_file={tmp_path}/models.config",
    ]


def test_the_stock_server_takes_the_place_of_run_and_is_named(tmp_path):
    program = tmp_path / "tensorflow_model_server"
    program.write_text('#!/bin/sh\necho "got $*"\n')
    program.chmod(0o755)
    code = "from serving import server; server.run('/exported', 'sentiment', host='127.0.0.1', port=8500)"
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    arguments = "--port=8500 --model_name=sentiment --model_base_path=/exported"
    assert (
        output == f"stock server, on every address of this machine: {program} {arguments}\ngot {arguments}\n"
    )


def test_there_is_no_stock_command_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server.stock_command(8500, "sentiment", "exported/sentiment") is None
