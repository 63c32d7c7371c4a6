"""What the stock server answered, serving_conformance/observed.jsonl, and the models it was asked."""

import json
import pathlib

import grpc
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

OBSERVED = {
    row["case"]: row
    for row in map(
        json.loads,
        (pathlib.Path(__file__).parent / "serving_conformance" / "observed.jsonl")
        .read_text("utf-8")
        .splitlines(),
    )
}


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
    set_method_names(folder, {"serving_default": "classify", "regress": "regress"})


def set_method_names(folder, names):
    """Give the signatures of a SavedModel the methods that Python can't."""
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for signature, method in names.items():
        saved.meta_graphs[0].signature_def[signature].method_name = f"tensorflow/serving/{method}"
    path.write_bytes(saved.SerializeToString())


def write_models(root):
    """The models of the observations, and the path of a config that serves them."""
    write_texts(root / "texts" / "1", 1.0)
    write_texts(root / "texts" / "2", 10.0)
    write_examples(root / "examples" / "1")
    config = root / "models.config"
    config.write_text(f'''model_config_list {{
        config {{ name: "texts" base_path: "{root}/texts" model_platform: "tensorflow"
                  model_version_policy {{ all {{}} }}
                  version_labels {{ key: "stable" value: 1 }} version_labels {{ key: "canary" value: 2 }} }}
        config {{ name: "examples" base_path: "{root}/examples" model_platform: "tensorflow" }} }}''')
    return config


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


def example(**features):
    made = tf.train.Example()
    for name, values in features.items():
        kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(values[0])]
        getattr(made.features.feature[name], kind).value.extend(values)
    return made


def given(examples, context=None):
    """The `input` of a request."""
    if context is None:
        return {"example_list": {"examples": examples}}
    return {"example_list_with_context": {"examples": examples, "context": context}}


def classify(examples, context=None, model="examples", **spec):
    request = classification_pb2.ClassificationRequest(input=given(examples, context))
    return with_spec(request, model, **spec)


def regress(examples, signature_name="regress", model="examples", **spec):
    request = regression_pb2.RegressionRequest(input=given(examples))
    return with_spec(request, model, signature_name=signature_name, **spec)


def multi(tasks, examples):
    """tasks: (model, signature, method) each."""
    return inference_pb2.MultiInferenceRequest(
        input=given(examples),
        tasks=[
            {
                "model_spec": {"name": model, "signature_name": signature},
                "method_name": f"tensorflow/serving/{method}",
            }
            for model, signature, method in tasks
        ],
    )


RPCS = {
    "ClassificationRequest": "Classify",
    "RegressionRequest": "Regress",
    "ReloadConfigRequest": "HandleReloadConfigRequest",
}


def first_line(message):
    """A message without the node of the graph and the signature, as the observations have it."""
    return message.split("\n")[0].split(" Signature was")[0]


def ask(channel, request):
    """The answer to a request in the form of the observations."""
    name = type(request).__name__
    rpc = RPCS.get(name, name.removesuffix("Request"))
    prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    stub = prediction if hasattr(prediction, rpc) else model_service_pb2_grpc.ModelServiceStub(channel)
    try:
        response = getattr(stub, rpc)(request, timeout=60)
    except grpc.RpcError as error:
        return {"rpc": rpc, "code": error.code().name, "message": first_line(error.details())}
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
    return pytest.approx(value, rel=1e-6, abs=0, nan_ok=True) if isinstance(value, float) else value
