"""What goes over gRPC without TensorFlow, against what TensorFlow makes of the same."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import any_pb2, wrappers_pb2
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    status_pb2,
)

from serving import protocol, tensors
from serving.messages import examples_request, model_spec, to_array, to_example, to_tensor

ORIGINALS = {
    message.DESCRIPTOR.name: message.DESCRIPTOR
    for message in (
        tensor_shape_pb2.TensorShapeProto.Dim,
        tensor_shape_pb2.TensorShapeProto,
        tensor_pb2.TensorProto,
        wrappers_pb2.Int64Value,
        model_pb2.ModelSpec,
        predict_pb2.PredictRequest,
        predict_pb2.PredictResponse,
        any_pb2.Any,
        meta_graph_pb2.TensorInfo,
        meta_graph_pb2.SignatureDef,
        get_model_metadata_pb2.SignatureDefMap,
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_metadata_pb2.GetModelMetadataResponse,
        status_pb2.StatusProto,
        get_model_status_pb2.ModelVersionStatus,
        get_model_status_pb2.GetModelStatusRequest,
        get_model_status_pb2.GetModelStatusResponse,
        feature_pb2.BytesList,
        feature_pb2.FloatList,
        feature_pb2.Int64List,
        feature_pb2.Feature,
        feature_pb2.Features,
        example_pb2.Example,
        input_pb2.ExampleList,
        input_pb2.Input,
        classification_pb2.Class,
        classification_pb2.Classifications,
        classification_pb2.ClassificationResult,
        classification_pb2.ClassificationRequest,
        classification_pb2.ClassificationResponse,
        regression_pb2.Regression,
        regression_pb2.RegressionResult,
        regression_pb2.RegressionRequest,
        regression_pb2.RegressionResponse,
    )
}


def on_the_wire(field):
    """What of a field's declaration decides its bytes."""
    kind = field.TYPE_INT32 if field.type == field.TYPE_ENUM else field.type
    message = field.message_type
    if message is None:
        return field.number, kind, field.is_repeated, None
    if message.GetOptions().map_entry:
        return field.number, kind, True, [on_the_wire(part) for part in message.fields]
    return field.number, kind, field.is_repeated, message.name


@pytest.mark.parametrize("name", protocol.MESSAGES)
def test_a_message_is_the_original_on_the_wire(name):
    original = ORIGINALS[name].fields_by_name
    for field in protocol.CLASSES[name].DESCRIPTOR.fields:
        assert on_the_wire(field) == on_the_wire(original[field.name])


def test_dtypes_and_states_have_their_numbers():
    for number, name in protocol.DTYPES.items():
        assert tf.as_dtype(number).name == name
    states = get_model_status_pb2.ModelVersionStatus.State.items()
    assert {name: number for number, name in protocol.STATES.items()} == dict(states)


@pytest.mark.parametrize(
    "values",
    [
        [b"a", b"nul\0", b"\xff"],
        ["h\u00e9", "\U0001f600"],
        [["a"], ["b\0"]],
        [1, 2],
        [1.5],
        [True],
        np.float32([[1, 2]]),
        np.uint8([3]),
        np.array("one"),
        np.array(["a", "bb"]),
    ],
)
def test_tensors_go_out_as_tensorflow_makes_them(values):
    sent = tensor_pb2.TensorProto.FromString(to_tensor(values).SerializeToString())
    dtype = None if isinstance(values, np.ndarray) else tf.as_dtype(sent.dtype)
    expected = tf.make_tensor_proto(values, dtype)
    np.testing.assert_array_equal(tf.make_ndarray(sent), tf.make_ndarray(expected))
    assert sent.dtype == expected.dtype


def test_no_texts_are_a_tensor_of_no_strings():
    sent = to_tensor([])
    assert (sent.dtype, [dim.size for dim in sent.tensor_shape.dim]) == (tf.string.as_datatype_enum, [0])


def test_bytes_of_the_command_line_stay_what_they_were():
    assert to_tensor([b"\xff\xfe".decode("utf-8", "surrogateescape")]).string_val == [b"\xff\xfe"]


def test_values_that_cannot_be_sent_are_refused():
    with pytest.raises(TypeError, match="complex128"):
        to_tensor([1j])


@pytest.mark.parametrize(
    "dtype",
    [
        tf.float32,
        tf.float64,
        tf.float16,
        tf.bfloat16,
        tf.int8,
        tf.int32,
        tf.int64,
        tf.uint32,
        tf.bool,
        tf.string,
    ],
)
@pytest.mark.parametrize("as_content", [False, True])
def test_tensors_come_back_whichever_field_holds_them(dtype, as_content):
    values = [b"a", b"\xff\0"] if dtype == tf.string else [1, 0]
    array = np.array(values, dtype.as_numpy_dtype)
    sent = tf.make_tensor_proto(array) if as_content else tensors.encode(array, dtype)
    received = to_array(protocol.CLASSES["TensorProto"].FromString(sent.SerializeToString()))
    assert received.tolist() == values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ("h\u00e9", "bytes_list"),
        (b"nul\0", "bytes_list"),
        (["a", b"\xff\0"], "bytes_list"),
        (3, "int64_list"),
        ([1, -(2**40)], "int64_list"),
        (1.5, "float_list"),
        (np.float64([1, 2]), "float_list"),
        (np.int32([1, 2]), "int64_list"),
    ],
)
def test_features_go_out_as_tensorflow_makes_them(values, kind):
    example = example_pb2.Example.FromString(to_example({"x": values}).SerializeToString())
    flat = values if isinstance(values, list) else np.atleast_1d(np.asarray(values, object)).tolist()
    flat = [value.encode() if isinstance(value, str) else value for value in flat]
    wanted = example_pb2.Example()
    getattr(wanted.features.feature["x"], kind).value.extend(flat)
    assert example == wanted


def test_examples_are_read_by_tensorflow():
    request = examples_request(
        "ClassificationRequest", model_spec("m", 3, None, "s"), [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}]
    )
    sent = classification_pb2.ClassificationRequest.FromString(request.SerializeToString())
    examples = [example.SerializeToString() for example in sent.input.example_list.examples]
    parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})
    assert parsed["x"].numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    spec = sent.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, "s")
