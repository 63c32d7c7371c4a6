import base64
import json
import shutil
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conftest import fresh_flags
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix
from tensorflow_serving.apis import predict_pb2
from test_serving_loadtest import stand_in
from test_serving_server import ROOT, entry, write_config

import run
from keras_bert_app.errors import UserError
from serving import server, targets
from serving.compare import as_json, ask, compare, difference, interval, report
from serving.targets import Target, TargetError, parse
from tests.stand_ins import write_certificates

# ---- Specs ----


def test_a_spec_names_address_model_and_version():
    assert parse("localhost:8500/m") == Target("localhost:8500", "m")
    assert parse("localhost:8500/m@12") == Target("localhost:8500", "m", version=12)
    assert parse("[::1]:8500/m@canary") == Target("[::1]:8500", "m", label="canary")
    assert parse("h:1@3", "m") == Target("h:1", "m", version=3)
    assert parse("h:1/n", "m") == Target("h:1", "n")
    for spec in ("h:1/m", "h:1/m@0", "h:1/m@stable"):
        assert str(parse(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("h:1", "names no model"),
        ("h:1/", "names no model"),
        ("h/m", "is no address; write host:port"),
        ("h:1/m@", "no version after"),
    ],
)
def test_a_spec_that_lacks_something_is_refused(spec, message):
    with pytest.raises(TargetError, match=message):
        parse(spec)


# ---- Arithmetic ----


def labelled(label, score, **more):
    outputs = {"label": np.array([label.encode()], object), "score": np.float32([score])}
    return outputs | {name: np.asarray(value) for name, value in more.items()}


def answers(labels_a, labels_b, scores_a, scores_b):
    return [
        ((str(place).encode(),), labelled(*a), labelled(*b), 0.001, 0.002)
        for place, (a, b) in enumerate(
            zip(zip(labels_a, scores_a, strict=True), zip(labels_b, scores_b, strict=True), strict=True)
        )
    ]


def test_disagreement_and_confusion_are_those_of_scikit_learn():
    generator = np.random.default_rng(2)
    names = ["good", "bad", "so-so"]
    a, b = generator.choice(names, 500), generator.choice(names, 500)
    scores = generator.uniform(size=(2, 500)).astype(np.float32)
    found = compare(answers(a.tolist(), b.tolist(), *scores))
    assert found.rate == pytest.approx(1 - accuracy_score(a, b))
    table = [[found.confusion.get((row, column), 0) for column in names] for row in names]
    assert table == confusion_matrix(a, b, labels=names).tolist()
    apart = np.abs(scores[0].astype(float) - scores[1])
    assert found.differences["score"] == pytest.approx((apart.max(), apart.mean()))
    confidences = [min(scores[0][int(c.row[0])], scores[1][int(c.row[0])]) for c in found.changes]
    assert confidences == sorted(confidences, reverse=True)
    assert found.latency_ms["b"]["p50"] == pytest.approx(2.0)


@pytest.mark.parametrize(("changed", "count"), [(0, 20), (3, 40), (40, 40), (17, 5000)])
def test_the_interval_is_clopper_and_pearsons(changed, count):
    low = stats.beta.ppf(0.025, changed, count - changed + 1) if changed else 0.0
    high = stats.beta.ppf(0.975, changed + 1, count - changed) if changed < count else 1.0
    assert interval(changed, count) == pytest.approx((low, high), abs=1e-9)


def test_numbers_decide_where_there_are_no_labels():
    def rows(*pairs):
        return [((b"t",), {"y": np.float32([a])}, {"y": np.float32([b])}, 0.0, 0.0) for a, b in pairs]

    pairs = (1.0, 1.0), (1.0, 1.25), (1.0, 3.0), (np.nan, np.nan), (np.nan, 1.0), (np.inf, np.inf)
    assert len(compare(rows(*pairs)).changes) == 3
    found = compare(rows(*pairs), tolerance=0.5)
    assert [float(change.b["y"][0]) for change in found.changes] == [1.0, 3.0]
    assert found.confusion is None and found.differences["y"][0] == np.inf
    assert difference([[0, -1]], [[2, -1]]).tolist() == [[2.0, 0.0]]
    assert difference(np.float32(3), np.float32(1)) == 2


def test_strings_that_are_no_labels_must_be_equal():
    rows = [((b"t",), {"pieces": np.array(a, object)}, {"pieces": np.array([b"x"], object)}, 0.0, 0.0)
            for a in ([b"x"], [b"y"])]  # fmt: skip
    assert compare(rows, tolerance=9.0).rate == 0.5


def test_an_output_of_another_shape_is_named_and_not_compared():
    a, b = labelled("x", 0.5, probabilities=[[0.5, 0.5]], old=[1]), labelled("x", 0.5, probabilities=[[1.0]])
    found = compare([((b"t",), a, b, 0.0, 0.0)])
    assert (found.rate, found.not_compared) == (0.0, ["old", "probabilities"])
    assert "not compared" in report(found, "A", "B", 1)


def test_answers_with_nothing_in_common_and_no_answers_are_refused():
    with pytest.raises(TargetError, match="a gives x, b y; choose another"):
        compare([((b"t",), {"x": np.ones(1)}, {"y": np.ones(1)}, 0.0, 0.0)])
    with pytest.raises(TargetError, match="no texts"):
        compare([])


def test_a_change_is_json_that_keeps_bytes_and_numbers_that_json_lacks():
    a, b = labelled("x", np.nan), labelled("y", 0.5, probabilities=[[0.25, 0.75]])
    [change] = compare([((b"\xff", "\u00e9".encode()), a, b, 0.0, 0.0)]).changes
    assert as_json(change) == {
        "text": {"b64": base64.b64encode(b"\xff").decode()},
        "text_pair": "\u00e9",
        "a": {"label": "x", "score": "nan"},
        "b": {"label": "y", "score": 0.5, "probabilities": [0.25, 0.75]},
    }


# ---- The command ----


def save(path, most):
    """A model that calls texts of up to `most` bytes short."""
    module = tf.Module()

    def classify(text):
        length = tf.strings.length(text)
        return {
            "label": tf.where(length <= most, "short", "long"),
            "score": tf.cast(length, tf.float32) / 100.0,
        }

    texts = tf.TensorSpec([None], tf.string, name="text")
    pairs = tf.TensorSpec([None], tf.string, name="text_pair")
    module.classify = tf.function(classify, [texts])
    module.measure = tf.function(lambda text: {"length": tf.strings.length(text) + most}, [texts])
    module.join = tf.function(
        lambda text, text_pair: {"label": tf.strings.join([text, text_pair])}, [texts, pairs]
    )
    signatures = {"serving_default": module.classify, "measure": module.measure, "join": module.join}
    tf.saved_model.save(module, str(path), signatures)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Versions 1 (stable) and 2 (canary) of `lengths`, which differ for texts of 6 to 8 bytes."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "m" / "1", 5)
    save(folder / "m" / "2", 8)
    more = (
        'model_version_policy { all {} } version_labels { key: "stable" value: 1 } '
        'version_labels { key: "canary" value: 2 }'
    )
    with server.serve(model_config_file=write_config(folder, entry(folder / "m", more)), port=0) as running:
        yield running.address
    shutil.rmtree(folder)


TEXTS = [b"a", b"sixsix", b"seven77", b"longer than that", b"eight888"]


@pytest.fixture
def command(monkeypatch, tmp_path, address):
    """Runs `compare` of the two labels with flags; the exit code."""
    (tmp_path / "in.txt").write_bytes(b"\n".join(TEXTS) + b"\n")
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")

    def call(*arguments):
        fresh_flags(monkeypatch)
        specs = [f"--a={address}/lengths@stable", f"--b={address}/lengths@canary"]
        try:
            run.main(["compare", *specs, f"--input={tmp_path / 'in.txt'}", *arguments])
        except SystemExit as end:
            return end.code
        return 0

    return call


def test_the_texts_that_change_between_two_labels_are_told_most_confident_first(command, tmp_path, capsys):
    assert command(f"--output={tmp_path / 'changes.jsonl'}", "--limit=1") == 0
    written = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert [row["text"] for row in written] == ["eight888", "seven77", "sixsix"]
    assert written[0]["a"] == {"label": "long", "score": pytest.approx(0.08)}
    assert written[0]["b"] == {"label": "short", "score": pytest.approx(0.08)}
    said = capsys.readouterr().out
    assert "3 of 5 differ: 60.00% (95 % interval 14.66% to 94.73%)" in said
    assert "        3  long -> short\n" in said and "score: differs by 0 at most" in said
    assert said.count('{"text": ') == 1 and "latency of a: ms p50" in said


@pytest.mark.parametrize(("most", "code"), [("0.59", 1), ("0.6", 0), ("1", 0), ("0", 1)])
def test_more_disagreement_than_allowed_is_exit_code_1(command, most, code):
    assert command(f"--max_disagreement={most}") == code


def test_equal_versions_pass_the_strictest_gate(command, address, tmp_path):
    changes = tmp_path / "changes.jsonl"
    same = (f"--a={address}/lengths@2", f"--b={address}", "--model=lengths", f"--output={changes}")
    assert command(*same, "--max_disagreement=0") == 0
    assert changes.read_text() == ""


def test_a_signature_without_labels_is_compared_by_its_numbers(command):
    assert command("--signature=measure", "--tolerance=2.9", "--max_disagreement=0") == 1
    assert command("--signature=measure", "--tolerance=3", "--max_disagreement=0") == 0


def test_pairs_are_sent_where_the_signature_takes_them(command, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text_pair": "b", "text": "a"}\n')
    assert command("--signature=join", f"--input={tmp_path / 'in.jsonl'}", "--max_disagreement=0") == 0


def test_pairs_reach_the_inputs_they_are_for(address):
    target = targets.parse(f"{address}/lengths")
    assert targets.text_inputs(target, "join") == ("text", "text_pair")
    [(_, a, _, _, _)] = ask(target, target, "join", ("text", "text_pair"), [(b"a", b"b")])
    assert a["label"].tolist() == [b"ab"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--a=127.0.0.1:1/lengths"], "no model server answers there"),
        (["--b=ADDRESS/other"], "no such model or version there"),
        (["--b=ADDRESS/lengths@7"], "no such model or version there"),
        (["--b=ADDRESS/lengths@old"], "version label: old"),
        (["--b=ADDRESS"], "names no model"),
        (["--input=missing.txt"], "missing.txt: no such file"),
        (["--input=EMPTY"], "no text in it"),
        (["--signature=none"], "has no signature none"),
        (["--signature=join"], "holds one text a line, not pairs"),
        (["--max_disagreement=1.5"], "max_disagreement"),
        (["--tolerance=inf"], "give a finite number"),
    ],
)
def test_a_mistake_is_told_in_one_line(command, address, tmp_path, arguments, message):
    (tmp_path / "empty.txt").touch()
    arguments = [
        argument.replace("ADDRESS", address).replace("EMPTY", str(tmp_path / "empty.txt"))
        for argument in arguments
    ]
    with pytest.raises(UserError, match=message) as caught:
        command(*arguments, f"--output={tmp_path / 'changes.jsonl'}")
    assert "\n" not in str(caught.value) and not (tmp_path / "changes.jsonl").exists()


def test_servers_over_tls_are_compared(command, tmp_path):
    write_certificates(tmp_path)
    pair = [((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())]
    response = predict_pb2.PredictResponse()
    response.outputs["label"].CopyFrom(tf.make_tensor_proto([b"good"]))
    with stand_in(lambda *_: response, credentials=grpc.ssl_server_credentials(pair)) as address:
        specs = (f"--a={address}/m", f"--b={address}/m@2")
        assert command(*specs, f"--root_certificates={tmp_path / 'ca.pem'}", "--max_disagreement=0") == 0


def test_a_server_that_fails_part_way_is_a_mistake_and_no_agreement(command):
    left = threading.Semaphore(4)
    response = predict_pb2.PredictResponse()
    response.outputs["label"].CopyFrom(tf.make_tensor_proto([b"good"]))

    def answer(request, context):
        if not left.acquire(blocking=False):
            context.abort(grpc.StatusCode.INTERNAL, "broken")
        return response

    with stand_in(answer) as address, pytest.raises(UserError, match="INTERNAL: broken"):
        command(f"--a={address}/m", f"--b={address}/m", "--max_disagreement=0")


def test_as_a_program_a_mistake_is_exit_code_2():
    process = subprocess.run(
        [sys.executable, "run.py", "compare", "--a=127.0.0.1:1/m", "--b=127.0.0.1:1/m", "--input=in.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith("error: 127.0.0.1:1: no model server answers there")


def test_neither_tool_imports_tensorflow_nor_the_application():
    code = (
        "import sys, serving.loadtest, serving.compare; "
        "print({'tensorflow', 'keras_bert_app', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert process.stdout == "set()\n"
