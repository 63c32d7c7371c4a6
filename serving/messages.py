"""Requests and answers of TensorFlow Serving's gRPC API as Python and NumPy have them, and back."""

import numpy as np

from serving import protocol
from serving.rows import sendable

VALUE_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "uint8": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint16": "int_val",
    "string": "string_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "bfloat16": "half_val",
    "float16": "half_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}
NUMBERS = {name: number for number, name in protocol.DTYPES.items()}
# Method -> its path and the message that it answers with.
METHODS = {
    "Predict": ("PredictionService/Predict", "PredictResponse"),
    "Classify": ("PredictionService/Classify", "ClassificationResponse"),
    "Regress": ("PredictionService/Regress", "RegressionResponse"),
    "GetModelMetadata": ("PredictionService/GetModelMetadata", "GetModelMetadataResponse"),
    "GetModelStatus": ("ModelService/GetModelStatus", "GetModelStatusResponse"),
}


def to_tensor(values):
    """The TensorProto of an array, or of a (nested) list of str, bytes or numbers.

    Strings are sent as UTF-8, escaped surrogates (as the command line has them) as the bytes they stand for;
    numbers as their bytes. Raises TypeError for a dtype that has no place in a request.
    """
    array = sendable(values)
    name = "string" if array.dtype == object else array.dtype.name
    if name not in NUMBERS or name in ("float16", "bfloat16"):
        raise TypeError(f"values of type {array.dtype} cannot be sent; send strings, integers or floats")
    proto = protocol.CLASSES["TensorProto"](dtype=NUMBERS[name])
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if name == "string":
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return proto


def to_array(proto):
    """The array of a TensorProto: strings as objects (bytes), bfloat16 widened to float32."""
    name = protocol.DTYPES[proto.dtype]
    values = getattr(proto, VALUE_FIELDS[name])
    if name == "string":
        array = np.empty(len(values), object)
        array[:] = values[:]
    elif name in ("float16", "bfloat16"):
        bits = (
            np.frombuffer(proto.tensor_content, np.uint16)
            if proto.tensor_content
            else np.array(values, np.uint16)
        )
        widened = (bits.astype(np.uint32) << 16).view(np.float32)  # a bfloat16 is the upper half of a float32
        array = bits.view(np.float16) if name == "float16" else widened
    elif proto.tensor_content:
        array = np.frombuffer(proto.tensor_content, name)
    else:
        array = np.array(values, name)
    return array.reshape([dim.size for dim in proto.tensor_shape.dim])


def model_spec(model, version=None, label=None, signature_name=None):
    """The ModelSpec of a version, or of the version with a label; of the latest where both are None."""
    spec = protocol.CLASSES["ModelSpec"](
        name=model, version_label=label or "", signature_name=signature_name or ""
    )
    if version is not None:
        spec.version.value = version
    return spec


def predict_request(spec, inputs):
    """The PredictRequest for {input: array or list}."""
    request = protocol.CLASSES["PredictRequest"](model_spec=spec)
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(to_tensor(values))
    return request


def outputs(response):
    """{output: array} of a PredictResponse, in the order of their names."""
    return {name: to_array(response.outputs[name]) for name in sorted(response.outputs)}


def to_example(features):
    """The tf.Example of {feature: str, bytes, int, float, or a list or array of one of these}.

    Raises TypeError for values of another type, or of more than one.
    """
    example = protocol.CLASSES["Example"]()
    for name, values in features.items():
        array = sendable(values)
        feature = example.features.feature[name]
        if array.dtype == object:
            feature.bytes_list.value.extend(array.ravel().tolist())
        elif array.dtype.kind in "iu":
            feature.int64_list.value.extend(array.ravel().tolist())
        elif array.dtype.kind == "f":
            feature.float_list.value.extend(array.ravel().tolist())
        else:
            raise TypeError(f"feature {name}: a tf.Example holds strings, integers or floats, not {values!r}")
    return example


def examples_request(kind, spec, examples):
    """The "ClassificationRequest" or "RegressionRequest" for a list of {feature: value}."""
    request = protocol.CLASSES[kind](model_spec=spec)
    request.input.example_list.examples.extend(map(to_example, examples))
    return request


def classifications(response):
    """[[{"label": str, "score": float}, ...], ...] of a ClassificationResponse."""
    return [
        [{"label": one.label, "score": one.score} for one in row.classes]
        for row in response.result.classifications
    ]


def regressions(response):
    """[float, ...] of a RegressionResponse."""
    return [row.value for row in response.result.regressions]


def signatures(response):
    """The signatures of a GetModelMetadataResponse, as `PredictClient.metadata` has them."""
    found = protocol.CLASSES["SignatureDefMap"].FromString(response.metadata["signature_def"].value)
    return {
        key: {
            "method_name": signature.method_name,
            "inputs": _described(signature.inputs),
            "outputs": _described(signature.outputs),
        }
        for key, signature in sorted(found.signature_def.items())
        if key != "__saved_model_init_op"
    }


def _described(tensors):
    described = {}
    for name, info in sorted(tensors.items()):
        shape = info.tensor_shape
        sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
        described[name] = (protocol.DTYPES.get(info.dtype, "other"), sizes)
    return described


def states(response):
    """{version: state} of a GetModelStatusResponse."""
    return {
        status.version: protocol.STATES.get(status.state, "UNKNOWN")
        for status in response.model_version_status
    }
