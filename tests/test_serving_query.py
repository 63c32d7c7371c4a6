"""run.py query: what it takes, prints, and exits with."""

import json
import pathlib
import subprocess
import sys

import grpc
import pytest
from conftest import fresh_flags

import run
from keras_bert_app.errors import UserError
from serving import query
from tests.stand_ins import Script, grpc_server, http_server, upper, write_certificates

ROOT = pathlib.Path(__file__).parent.parent
SIGNATURE = {
    "inputs": {},
    "outputs": {
        "label": {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1"}], "unknown_rank": False}}
    },
    "method_name": "tensorflow/serving/predict",
}


class Recorder:
    """A client that answers with upper case, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def predict_rows(self, inputs, **options):
        self.asked.append((inputs, options))
        return [{"label": text.decode().upper()} for text in inputs["text"]]


def printed(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def ask(monkeypatch, capsys):
    """What `run.py query --model=m ARGUMENTS` prints."""

    def ask(*arguments):
        fresh_flags(monkeypatch)
        run.main(["query", "--model=m", *arguments])
        return printed(capsys)

    return ask


def test_rows_are_asked_about_in_chunks_and_printed_a_line_each(monkeypatch, capsys):
    monkeypatch.setattr(query, "CHUNK", 2)
    client = Recorder()
    rows = ({"text": text} for text in (b"a", b"b", b"c"))
    query.query(client, rows, version=3)
    assert printed(capsys) == [{"text": text, "label": text.upper()} for text in "abc"]
    assert client.asked == [({"text": [b"a", b"b"]}, {"version": 3}), ({"text": [b"c"]}, {"version": 3})]


def test_texts_of_the_command_line_are_asked_about(ask):
    with grpc_server(upper) as port:
        answers = ask(f"--target=127.0.0.1:{port}", "h\u00e9", "a\udcff")
    assert answers == [{"text": "h\u00e9", "label": "H\u00e9"}, {"text": "a\ufffd", "label": "A\ufffd"}]


def test_flags_reach_the_server(ask):
    script = Script(None)
    with grpc_server(lambda request, context: script(request, context) or upper(request)) as port:
        target = f"--target=127.0.0.1:1,127.0.0.1:{port}"
        ask(target, "--version=3", "--signature=s", "--timeout=0", "a")
        ask(target, "--version_label=canary", "--pairs", "a", "b", "c", "d")
    first, second = script.requests
    spec = first.model_spec
    assert (spec.name, spec.version.value, spec.signature_name, spec.version_label) == ("m", 3, "s", "")
    assert second.model_spec.version_label == "canary" and not second.model_spec.HasField("version")
    assert list(second.inputs["text"].string_val) == [b"a", b"c"]
    assert list(second.inputs["text_pair"].string_val) == [b"b", b"d"]


def test_a_file_is_asked_about(ask, tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"one\n\xff\n")
    rows = [{"text": "a", "text_pair": "b"}, {"text": {"b64": "/w=="}, "text_pair": "c"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with grpc_server(upper) as port:
        target = f"--target=127.0.0.1:{port}"
        texts = ask(target, f"--input={tmp_path / 'texts.txt'}")
        pairs = ask(target, "--pairs", f"--input={tmp_path / 'pairs.jsonl'}")
    assert [answer["label"] for answer in texts] == ["ONE", "\ufffd"]
    assert pairs == [
        {"text": "a", "text_pair": "b", "label": "A"},
        {"text": "\ufffd", "text_pair": "c", "label": "\ufffd"},
    ]


def test_tls_is_asked_for_by_its_files(ask, tmp_path):
    write_certificates(tmp_path)
    pair = [((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())]
    credentials = grpc.ssl_server_credentials(pair, (tmp_path / "ca.pem").read_bytes(), True)
    with grpc_server(upper, credentials) as port:
        assert ask(
            f"--target=localhost:{port}",
            f"--root_certificates={tmp_path / 'ca.pem'}",
            f"--client_certificate={tmp_path / 'client.pem'}",
            f"--client_key={tmp_path / 'client.key'}",
            "--server_name=models.test",
            "a",
        ) == [{"text": "a", "label": "A"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the texts to ask about, such as: run.py query --model=sentiment"),
        (["--input=x.txt", "a"], "give the texts to ask about"),
        (["--input=no/such.txt"], "no/such.txt"),
        (
            ["--pairs", "a", "b", "c"],
            "--pairs takes texts two by two, first and second of each pair; here are 3",
        ),
        (["--target=localhost", "a"], "'localhost' is no address; write host:port"),
        (["--rest", "--target=localhost", "a"], "'localhost' is no address; write host:port"),
        (["--version=1", "--version_label=x", "a"], "give --version or --version_label, not both"),
        (["--root_certificates=none.pem", "a"], "none.pem: can't be used for TLS: No such file"),
        (["--client_key=none.pem", "a"], "a client certificate and its key go together"),
        (["--timeout=-1", "a"], "--timeout=-1"),
    ],
)
def test_a_users_mistake_is_one_line(ask, arguments, message):
    with pytest.raises(UserError) as caught:
        ask(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def program(code, *arguments, without):
    """The process of run.py with these arguments, in which the modules `without` can't be imported."""
    start = f"import sys; sys.modules.update(dict.fromkeys({without!r})); import runpy; "
    start += f"sys.argv = ['run.py', *{list(arguments)!r}]; runpy.run_path('run.py', run_name='__main__')"
    process = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == code, process.stderr
    return process


HEAVY = ["tensorflow", "keras", "tensorflow_text", "tensorflow_serving"]


def test_it_needs_no_tensorflow():
    with grpc_server(upper) as port:
        process = program(0, "query", f"--target=127.0.0.1:{port}", "--model=m", "a", without=HEAVY)
    assert json.loads(process.stdout) == {"text": "a", "label": "A"} and process.stderr == ""


def test_over_rest_it_needs_neither_tensorflow_nor_grpc():
    def answer(verb, path, body):
        if path.endswith("/metadata"):
            signature = {**SIGNATURE, "inputs": {"text": SIGNATURE["outputs"]["label"]}}
            found = {"metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}}
        else:
            assert path == "/v1/models/m/versions/2:predict"
            found = {"outputs": [text.upper() for text in json.loads(body)["inputs"]["text"]]}
        return 200, "application/json", json.dumps(found).encode()

    with http_server(answer) as port:
        arguments = ["--rest", f"--target=127.0.0.1:{port}", "--model=m", "--version=2", "a"]
        process = program(0, "query", *arguments, without=[*HEAVY, "grpc", "google.protobuf"])
    assert json.loads(process.stdout) == {"text": "a", "label": "A"} and process.stderr == ""


@pytest.mark.parametrize("more", [[], ["--rest"], ["--tls"]])
def test_a_server_that_does_not_answer_is_one_line_and_exit_code_1(more):
    process = program(1, "query", "--target=127.0.0.1:1", "--model=m", *more, "a", without=HEAVY)
    assert "no model server answers there" in process.stderr
    assert process.stdout == "" and process.stderr.count("\n") == 1


def test_a_mistake_is_one_line_and_exit_code_2():
    process = program(2, "query", "--target=nowhere", "--model=m", "a", without=HEAVY)
    assert process.stderr.startswith(
        "error: 'nowhere' is no address; write host:port, such as localhost:8500"
    )
    assert process.stderr.count("\n") == 1
