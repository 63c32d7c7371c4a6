"""The embedded server against what the stock server answered: serving_conformance/observed.jsonl."""

import json
import math
import pathlib

import grpc
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.server import serve

OBSERVED = {
    row["case"]: row
    for row in map(
        json.loads,
        (pathlib.Path(__file__).parent / "serving_conformance" / "observed.jsonl")
        .read_text("utf-8")
        .splitlines(),
    )
}
RPCS = ("Predict", "GetModelMetadata", "GetModelStatus")


# ---- The models that the observations are of ----


def strings(name):
    return tf.TensorSpec([None], tf.string, name=name)


def floats(name):
    return tf.TensorSpec([None], tf.float32, name=name)


def write_texts(folder, factor):
    module = tf.Module()
    module.factor = tf.Variable(factor)

    def describe(text):
        length = tf.strings.length(text)
        return {
            "upper": tf.strings.upper(text),
            "length": length,
            "score": tf.cast(length, tf.float32) * module.factor,
        }

    module.describe = tf.function(describe, [strings("text")])
    module.join = tf.function(
        lambda text, text_pair: {"joined": tf.strings.join([text, text_pair], "|")},
        [strings("text"), strings("text_pair")],
    )
    module.double = tf.function(lambda x: {"y": x * 2.0}, [floats("x")])
    tf.saved_model.save(
        module, str(folder), {"serving_default": module.describe, "pair": module.join, "twice": module.double}
    )


def write_examples(folder):
    module = tf.Module()
    module.scale = tf.Variable(2.0)

    def parse(inputs):
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]

    def classify(inputs):
        scores = tf.nn.softmax(parse(inputs) * module.scale)
        return {"classes": tf.tile([["no", "yes"]], [tf.shape(scores)[0], 1]), "scores": scores}

    def regress(inputs):
        return {"outputs": tf.reduce_sum(parse(inputs), 1) * module.scale}

    module.classify = tf.function(classify, [strings("inputs")])
    module.regress = tf.function(regress, [strings("inputs")])
    module.predict = tf.function(lambda x: {"y": x * module.scale}, [floats("x")])
    tf.saved_model.save(
        module,
        str(folder),
        {"serving_default": module.classify, "regress": module.regress, "predict": module.predict},
    )
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    signatures["serving_default"].method_name = "tensorflow/serving/classify"
    signatures["regress"].method_name = "tensorflow/serving/regress"
    path.write_bytes(saved.SerializeToString())


@pytest.fixture(scope="module")
def channel(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_texts(root / "texts" / "1", 1.0)
    write_texts(root / "texts" / "2", 10.0)
    write_examples(root / "examples" / "1")
    config = root / "models.config"
    config.write_text(f'''model_config_list {{
        config {{ name: "texts" base_path: "{root}/texts" model_platform: "tensorflow"
                  model_version_policy {{ all {{}} }}
                  version_labels {{ key: "stable" value: 1 }} version_labels {{ key: "canary" value: 2 }} }}
        config {{ name: "examples" base_path: "{root}/examples" model_platform: "tensorflow" }} }}''')
    with serve(model_config_file=config, port=0) as server, grpc.insecure_channel(server.address) as channel:
        yield channel


# ---- The requests ----


def tensor(dtype, shape, **values):
    return tensor_pb2.TensorProto(
        dtype=dtype.as_datatype_enum,
        tensor_shape={
            "dim": [{"size": size} for size in shape],
            "unknown_rank": values.pop("unknown_rank", False),
        },
        **values,
    )


def texts(*values):
    return tensor(tf.string, [len(values)], string_val=values)


def with_spec(request, model="texts", version=None, **spec):
    request.model_spec.SetInParent()
    request.model_spec.MergeFrom(type(request.model_spec)(name=model, **spec))
    if version is not None:
        request.model_spec.version.value = version
    return request


def predict(inputs, output_filter=(), **spec):
    return with_spec(predict_pb2.PredictRequest(inputs=inputs, output_filter=output_filter), **spec)


def metadata(*fields, **spec):
    return with_spec(get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields), **spec)


def status(**spec):
    return with_spec(get_model_status_pb2.GetModelStatusRequest(), **spec)


HELLO = {"text": texts(b"hello")}
EXAMPLE = tf.train.Example()
EXAMPLE.features.feature["x"].float_list.value.extend([1.0, 2.0])
REQUESTS = {
    "predict one": predict(HELLO),
    "predict three": predict({"text": texts(b"a", b"bb", b"ccc")}),
    "predict none": predict({"text": texts()}),
    "predict version 1": predict(HELLO, version=1),
    "predict label stable": predict(HELLO, version_label="stable"),
    "predict label canary": predict(HELLO, version_label="canary"),
    "predict unknown model": predict(HELLO, model="nobody"),
    "predict no model name": predict(HELLO, model=""),
    "predict unknown version": predict(HELLO, version=9),
    "predict negative version": predict(HELLO, version=-1),
    "predict unknown label": predict(HELLO, version_label="nightly"),
    "predict missing input": predict({}),
    "predict other input": predict({"words": texts(b"hello")}),
    "predict extra input": predict({**HELLO, "more": texts(b"x")}),
    "predict wrong dtype": predict({"text": tensor(tf.int32, [2], int_val=[1, 2])}),
    "predict scalar": predict({"text": tensor(tf.string, [], string_val=[b"hello"])}),
    "predict rank 2": predict({"text": tensor(tf.string, [2, 2], string_val=[b"a", b"b", b"c", b"d"])}),
    "predict unknown signature": predict(HELLO, signature_name="nothing"),
    "predict empty signature name": predict(HELLO, signature_name=""),
    "predict pair": predict(
        {"text": texts(b"a", b"b"), "text_pair": texts(b"c", b"d")}, signature_name="pair"
    ),
    "predict pair of other sizes": predict(
        {"text": texts(b"a", b"b"), "text_pair": texts(b"c", b"d", b"e")}, signature_name="pair"
    ),
    "predict pair missing one": predict({"text": texts(b"a")}, signature_name="pair"),
    "predict filter": predict(HELLO, ["score"]),
    "predict filter unknown": predict(HELLO, ["nothing"]),
    "predict filter twice": predict(HELLO, ["score", "score"]),
    "predict too few values": predict({"text": tensor(tf.string, [3], string_val=[b"a"])}),
    "predict too many values": predict({"text": tensor(tf.string, [1], string_val=[b"a", b"b"])}),
    "predict no values": predict({"text": tensor(tf.string, [2])}),
    "predict negative dimension": predict({"text": tensor(tf.string, [-1], string_val=[b"a"])}),
    "predict unknown rank": predict({"text": tensor(tf.string, [], unknown_rank=True, string_val=[b"a"])}),
    "predict invalid dtype": predict(
        {"text": tensor_pb2.TensorProto(tensor_shape={"dim": [{"size": 1}]}, string_val=[b"a"])}
    ),
    "predict huge dimension": predict({"text": tensor(tf.string, [2**40], string_val=[b"a"])}),
    "predict bytes not utf-8": predict({"text": texts(b"\xff\xfe")}),
    "predict float content": predict(
        {"x": tensor(tf.float32, [2], tensor_content=b"\0\0\x80?\0\0\0@")}, signature_name="twice"
    ),
    "predict float content too short": predict(
        {"x": tensor(tf.float32, [2], tensor_content=b"\0\0\x80?")}, signature_name="twice"
    ),
    "predict nan": predict(
        {"x": tensor(tf.float32, [2], float_val=[math.nan, math.inf])}, signature_name="twice"
    ),
    "predict on a classify signature": predict(
        {"inputs": texts(EXAMPLE.SerializeToString())}, model="examples"
    ),
    "metadata": metadata("signature_def", model="examples"),
    "metadata of version 1": metadata("signature_def", version=1),
    "metadata no field": metadata(),
    "metadata unknown field": metadata("nothing"),
    "metadata unknown model": metadata("signature_def", model="nobody"),
    "status": status(),
    "status version 1": status(version=1),
    "status label": status(version_label="stable"),
    "status unknown version": status(version=9),
    "status unknown model": status(model="nobody"),
    "status no name": status(model=""),
}


def ask(channel, request):
    """The answer to a request in the form of the observations."""
    rpc = type(request).__name__.removesuffix("Request")
    service = (
        model_service_pb2_grpc.ModelServiceStub
        if rpc == "GetModelStatus"
        else (prediction_service_pb2_grpc.PredictionServiceStub)
    )
    try:
        response = getattr(service(channel), rpc)(request, timeout=60)
    except grpc.RpcError as error:
        # The runtime adds the node of the graph on further lines; the observations leave it out.
        return {"rpc": rpc, "code": error.code().name, "message": error.details().split("\n")[0]}
    return {
        "rpc": rpc,
        "code": "OK",
        "response": json_format.MessageToDict(response, preserving_proto_field_name=True),
    }


def rounded(value):
    """`value` with every number in it to be compared to a relative 1e-6."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, rel=1e-6, abs=0) if isinstance(value, float) else value


@pytest.mark.parametrize("case", sorted(REQUESTS))
def test_the_answer_is_the_stock_servers(channel, case):
    expected = {key: value for key, value in OBSERVED[case].items() if key != "case"}
    assert ask(channel, REQUESTS[case]) == rounded(expected)


def test_every_observation_of_these_calls_is_tried():
    # What follows a reload of the configuration needs a call that the server does not have.
    after_reload = {"after that", "after texts was removed", "status of the removed"}
    assert {
        case for case, row in OBSERVED.items() if row.get("rpc") in RPCS
    } == REQUESTS.keys() | after_reload


@pytest.mark.parametrize("rpc", ["Classify", "Regress", "MultiInference"])
def test_calls_that_the_server_does_not_have_are_unimplemented(channel, rpc):
    call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{rpc}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "request_class",
    [
        predict_pb2.PredictRequest,
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_status_pb2.GetModelStatusRequest,
    ],
)
def test_a_request_without_a_model_spec_is_refused(channel, request_class):
    answer = ask(channel, request_class())
    assert (answer["code"], answer["message"]) == ("INVALID_ARGUMENT", "Missing ModelSpec")


@pytest.mark.parametrize(
    "signature_name, inputs, code",
    [
        ("__saved_model_init_op", {}, "OUT_OF_RANGE"),
        ("serving_default", {"text": tensor(tf.string, [1] * 100, string_val=[b"a"])}, "INVALID_ARGUMENT"),
        ("serving_default", {"text": tensor(tf.string, [2**62, 4], string_val=[b"a"])}, "INVALID_ARGUMENT"),
        ("serving_default", {"text": tensor(tf.string, [2], tensor_content=b"\xff\xff")}, "INVALID_ARGUMENT"),
        ("serving_default", {"text": tensor(tf.resource, [1])}, "INVALID_ARGUMENT"),
        ("twice", {"x": tensor(tf.float32, [2**34], float_val=[1.0])}, "INVALID_ARGUMENT"),
    ],
)
def test_an_odd_request_gets_a_status_and_the_next_one_an_answer(channel, signature_name, inputs, code):
    assert ask(channel, predict(inputs, signature_name=signature_name))["code"] == code
    assert ask(channel, REQUESTS["predict one"])["code"] == "OK"


def test_a_long_error_text_is_cut_as_the_stock_server_cuts_it(channel):
    answer = ask(channel, predict(HELLO, signature_name="n" * 2000))
    assert answer["code"] == "FAILED_PRECONDITION"
    assert answer["message"] == ('Serving signature key "' + "n" * 2000)[:1024] + "...TRUNCATED"
