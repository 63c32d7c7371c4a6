"""c_api.py and its twin python_api.py against the process that made the export."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
from tensorflow.core.protobuf import saved_model_pb2

from keras_bert_app.export import c_api

SCRIPTS = [pathlib.Path(c_api.__file__), pathlib.Path(c_api.__file__).with_name("python_api.py")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "##s"]
TEXTS = np.array([b"good films", b"\xff bad\x00", b"", "GOOD \U0001f600 ".encode() * 99], dtype=object)
INPUTS = {
    "text": TEXTS,
    "token_ids": np.array([[0, 7], [1, 2], [3, 3], [5, 4]], np.int32),
    "negate": np.array(True),
    "scale": np.array([1 / 3, np.nan, -np.inf, 1e-42], np.float32),
}


class Scorer(tf.Module):
    """Strings, integers, floats and a scalar bool in and out, with custom ops, a variable and an asset."""

    def __init__(self, label_file: pathlib.Path):
        self.tokenizer = tensorflow_text.FastBertTokenizer(
            VOCABULARY, token_out_type=tf.int32, lower_case_nfd_strip_accents=True
        )
        self.weights = tf.Variable(np.linspace(-1, 1, len(VOCABULARY), dtype=np.float32))
        index = tf.lookup.TextFileIndex
        lines = (tf.int64, index.LINE_NUMBER, tf.string, index.WHOLE_LINE)
        self.labels = tf.lookup.StaticHashTable(tf.lookup.TextFileInitializer(str(label_file), *lines), b"?")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None, None], tf.int32, name="token_ids"),
            tf.TensorSpec([], tf.bool, name="negate"),
            tf.TensorSpec([None], tf.float32, name="scale"),
        ]
    )
    def score(self, text, token_ids, negate, scale):
        ids = self.tokenizer.tokenize(text).merge_dims(1, -1).to_tensor()
        score = tf.reduce_sum(tf.gather(self.weights, ids), 1) * scale
        return {
            "ids": ids,
            "score": tf.where(negate, -score, score),
            "known": tf.reduce_mean(tf.gather(self.weights, token_ids), 1),
            "label": self.labels.lookup(tf.cast(token_ids[:, 0], tf.int64)),
            "text": text,
            "count": tf.size(ids, tf.int64),
            "positive": score > 0,
            "joined": tf.strings.reduce_join(text, separator="|") + b"\x00",
        }

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="x")])
    def half(self, x):
        return {"half": tf.cast(x, tf.bfloat16)}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> tuple[Scorer, pathlib.Path]:
    """A module and its export, moved from where it was written, the file its table came from deleted."""
    folder = tmp_path_factory.mktemp("scorer")
    (folder / "labels.txt").write_text("zero\none\ntwo\nthree\n")
    module = Scorer(folder / "labels.txt")
    signatures = {"serving_default": module.score, "half": module.half}
    tf.saved_model.save(module, str(folder / "written"), signatures=signatures)
    (folder / "labels.txt").unlink()
    return module, pathlib.Path(shutil.move(folder / "written", folder / "moved"))


def encoded(inputs: dict) -> dict:
    return {name: c_api.encode_tensor(array) for name, array in inputs.items()}


def decoded(answer: dict) -> dict:
    assert answer.keys() == {"outputs"}, answer
    return {name: c_api.decode_tensor(tensor) for name, tensor in answer["outputs"].items()}


def run(script: pathlib.Path, request: str) -> tuple[int, dict]:
    """The exit code and reply of a script in isolated mode: neither folder nor environment leads here."""
    done = subprocess.run([sys.executable, "-I", str(script)], input=request, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def assert_same(given: dict, expected: dict):
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        dtype = object if tensor.dtype == tf.string else tensor.dtype.as_numpy_dtype
        assert (given[name].dtype, given[name].shape) == (dtype, tensor.shape), name
        np.testing.assert_array_equal(given[name], np.array(tensor.numpy(), dtype), err_msg=name)


# What replaces the good request's signature or inputs, and what the error has to say.
REFUSED = {
    "signature": (
        {"signature": "none", "inputs": {}},
        "no signature 'none'; the model has half, serving_default",
    ),
    "name": (
        {"inputs": {"body": TEXTS}},
        "takes negate, scale, text, token_ids, not body, negate, scale, token_ids",
    ),
    "missing": ({"inputs": {}}, "takes negate, scale, text, token_ids, not negate, scale, token_ids"),
    "dtype": (
        {"inputs": {"text": np.zeros(4, np.int32)}},
        "input 'text' of signature 'serving_default' takes string, not int32",
    ),
    "graph": ({"inputs": {"text": TEXTS, "token_ids": np.full([4, 2], 99, np.int32)}}, "99 is not in [0, 8)"),
    "bfloat16": ({"signature": "half", "inputs": {"x": np.array(1, np.float32)}}, "float32, float64, int16"),
}


@pytest.fixture(scope="module", params=SCRIPTS, ids=lambda script: script.stem)
def replies(request, scorer) -> tuple[int, dict]:
    """One process for all: a good request, each of REFUSED and a good one again, no texts, many texts."""
    good = {"signature": "serving_default", "inputs": encoded(INPUTS)}
    requests = [good]
    rest = {name: array for name, array in INPUTS.items() if name != "text"}
    for change, _ in REFUSED.values():
        inputs = change["inputs"] if "signature" in change else rest | change["inputs"]
        requests += [good | change | {"inputs": encoded(inputs)}, good]
    requests += [good | {"inputs": encoded(batch(0))}, good | {"inputs": encoded(batch(1000))}]
    return run(request.param, json.dumps({"export_dir": str(scorer[1]), "requests": requests}))


def batch(size: int) -> dict:
    """The inputs repeated up to a number of rows."""
    repeated = {name: np.resize(array, (size, *array.shape[1:])) for name, array in INPUTS.items()}
    return repeated | {"negate": np.array(False)}


def test_a_moved_export_answers_what_the_module_answers(replies, scorer):
    expected = scorer[0].score(**INPUTS)
    assert_same(decoded(replies[1]["answers"][0]), expected)
    assert expected["label"].numpy().tolist() == [b"zero", b"one", b"three", b"?"]
    assert np.isnan(expected["score"][1]) and np.isinf(expected["score"][2])


@pytest.mark.parametrize("index, size", [(-2, 0), (-1, 1000)])
def test_no_rows_and_many_rows_are_answered(replies, scorer, index, size):
    assert_same(decoded(replies[1]["answers"][index]), scorer[0].score(**batch(size)))


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_request_says_why_and_the_next_one_is_answered(replies, scorer, what):
    position = 1 + 2 * list(REFUSED).index(what)
    answers = replies[1]["answers"]
    assert answers[position].keys() == {"error"}
    assert REFUSED[what][1] in answers[position]["error"]
    assert_same(decoded(answers[position + 1]), scorer[0].score(**INPUTS))


def test_some_refused_requests_make_exit_code_1(replies):
    assert replies[0] == 1
    assert "error" not in replies[1]


def test_only_the_twin_imports_tensorflow_and_none_this_project(replies, request):
    twin = "python_api" in request.node.callspec.id
    assert replies[1]["modules"] == {"tensorflow": twin, "keras_bert_app": False}


def test_requests_that_are_all_answered_make_exit_code_0(scorer):
    requests = [{"signature": "serving_default", "inputs": encoded(INPUTS)}]
    code, reply = run(SCRIPTS[0], json.dumps({"export_dir": str(scorer[1]), "requests": requests}))
    assert code == 0
    assert_same(decoded(reply["answers"][0]), scorer[0].score(**INPUTS))


@pytest.mark.parametrize(
    "script, broken, message",
    [
        (SCRIPTS[0], "saved_model.pb", "SavedModel"),
        (SCRIPTS[0], "variables/variables.data-00000-of-00001", "variables"),
        (SCRIPTS[0], "assets/labels.txt", "labels.txt"),
        (SCRIPTS[1], "variables/variables.data-00000-of-00001", "variables"),
    ],
    ids=lambda value: getattr(value, "stem", str(value)),
)
def test_a_broken_export_is_an_error_with_exit_code_2(scorer, tmp_path, script, broken, message):
    export = shutil.copytree(scorer[1], tmp_path / "export")
    (export / broken).unlink()
    code, reply = run(script, json.dumps({"export_dir": str(export), "requests": [{}]}))
    assert code == 2
    assert reply["answers"] == []
    assert message in reply["error"]


def test_an_export_without_its_checkpoint_index_answers_nothing(scorer, tmp_path):
    export = shutil.copytree(scorer[1], tmp_path / "export")
    (
        export / "variables/variables.index"
    ).unlink()  # which the C++ loader takes for a model without variables
    requests = [{"signature": "serving_default", "inputs": encoded(INPUTS)}]
    code, reply = run(SCRIPTS[0], json.dumps({"export_dir": str(export), "requests": requests}))
    assert code == 1
    assert reply["answers"][0].keys() == {"error"}


@pytest.mark.parametrize(
    "request_text", ["", "[]", '{"export_dir": "x"}', '{"export_dir": "x", "requests": 1}']
)
def test_what_is_not_a_request_is_an_error_with_exit_code_2(request_text):
    code, reply = run(SCRIPTS[0], request_text)
    assert code == 2
    assert 'not a JSON object with "export_dir" and "requests"' in reply["error"]


def test_a_missing_tensorflow_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(c_api, "_package_folder", lambda package: None)
    with pytest.raises(c_api.RequestError, match="install tensorflow"):
        c_api.SavedModel("anywhere")


def test_signatures_are_those_that_tensorflow_reads(scorer):
    saved_model = saved_model_pb2.SavedModel.FromString((scorer[1] / "saved_model.pb").read_bytes())
    meta_graph = saved_model.meta_graphs[0]
    signatures = c_api.read_signatures(meta_graph.SerializeToString())
    assert signatures.keys() == {"serving_default", "half"}
    for name, signature in signatures.items():
        for part in ("inputs", "outputs"):
            expected = {
                key: (info.name, c_api.DTYPES.get(info.dtype, f"TF_DataType {info.dtype}"))
                for key, info in getattr(meta_graph.signature_def[name], part).items()
            }
            assert getattr(signature, part) == expected


def test_dtypes_are_tensorflow_s():
    for code, name in c_api.DTYPES.items():
        assert tf.dtypes.as_dtype(code).name == name


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1 / 3, -0.0, np.nan], [np.inf, -np.inf, 1e-45]], np.float32),
        np.array([0.1, 5e-324, 1.7976931348623157e308]),
        np.array([65504, 6e-8], np.float16),
        np.array([-(2**63), 2**63 - 1]),
        np.array([2**64 - 1], np.uint64),
        np.array([[True], [False]]),
        np.array(7, np.int32),
        np.zeros([2, 0, 3], np.float32),
        np.arange(6).reshape(2, 3).T,
        np.array([[b"", b"\x00\xff\x00"]], dtype=object),
        np.array(b"a\x00", dtype=object),
        np.zeros([0, 2], dtype=object),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_a_tensor_survives_json_bit_by_bit(array):
    back = c_api.decode_tensor(json.loads(json.dumps(c_api.encode_tensor(array))))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    if array.dtype == object:
        assert back.tolist() == array.tolist()
    else:
        assert back.tobytes() == array.tobytes()


def test_text_is_sent_as_utf_8():
    for array in (np.array(["é"]), np.array(["é"], dtype=object)):
        assert c_api.decode_tensor(c_api.encode_tensor(array)).tolist() == ["é".encode()]


def test_a_dtype_that_json_cannot_carry_is_refused():
    with pytest.raises(c_api.RequestError, match="complex64"):
        c_api.encode_tensor(np.zeros(1, np.complex64))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"values": [1, 2, 3]}, "shape"),
        ({"values": [1, 2**31]}, "int32"),
        ({"values": [1, "two"]}, "two"),
        ({"dtype": "string"}, "'b64'"),
        ({"dtype": "string", "b64": ["?", ""]}, "not a tensor"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown; use one of bool, float16"),
    ],
)
def test_a_malformed_tensor_is_refused_with_its_fault(change, message):
    with pytest.raises(c_api.RequestError, match=message):
        c_api.decode_tensor({"dtype": "int32", "shape": [2], "values": [1, 2]} | change)
