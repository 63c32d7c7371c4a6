"""Ask a model server, embedded or stock, over gRPC: strings in, labelled results out.

    with PredictClient("localhost:8500", "sentiment") as client:
        client.predict(["a quiet triumph", "so dull"])

Needs grpcio, protobuf and NumPy, not TensorFlow.
"""

import json
import sys

import grpc
import numpy as np

from serving import protocol

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
QUERY_TIMEOUT = 60.0  # seconds
HINTS = {
    "UNAVAILABLE": "no model server answers there; is it running, and is the address right?",
    "DEADLINE_EXCEEDED": "no answer in time; allow more, or send fewer texts at once",
    "UNIMPLEMENTED": "what listens there does not speak TensorFlow Serving's gRPC API",
    "NOT_FOUND": "no such model or version there",
}


class ServerError(Exception):
    """A call that got no result.

    Attributes:
        code: name of the gRPC status code, such as "NOT_FOUND".
        message: the server's own words, or gRPC's where no server was reached.
    """

    def __init__(self, target, code, message):
        self.code = code
        self.message = message
        said = " ".join(message.split())
        hint = HINTS.get(code)
        super().__init__(f"{target}: {hint} ({code}: {said})" if hint else f"{target}: {said} ({code})")


def to_tensor(values):
    """The TensorProto of an array, or of a (nested) list of str, bytes or numbers.

    Strings are sent as UTF-8, escaped surrogates (as the command line has them) as the bytes they stand for.
    Raises TypeError for a dtype that has no place in a request.
    """
    is_texts = isinstance(values, list) and all(isinstance(value, (str, bytes)) for value in values)
    # As objects: NumPy's own strings take the longest one's room for each, and drop NULs at the end.
    array = np.asarray(values, object if is_texts else None)
    if array.dtype.kind in "USO":
        name = "string"
        flat = [
            text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
            for text in array.ravel().tolist()
        ]
    else:
        name, flat = array.dtype.name, array.ravel().tolist()
    if name not in NUMBERS or name in ("float16", "bfloat16"):
        raise TypeError(f"values of type {array.dtype} cannot be sent; send strings, integers or floats")
    proto = protocol.CLASSES["TensorProto"](dtype=NUMBERS[name])
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, VALUE_FIELDS[name]).extend(flat)
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


def _plain(value):
    """One row of an output as JSON has it."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value.item()


class PredictClient:
    """A connection to one model of the server at `target` ("host:port"); may be shared by threads.

    Connects when first asked. Every method raises ServerError where no result comes back. Close it, or use
    it as a context manager.
    """

    def __init__(self, target, model):
        self.target = target
        self.model = model
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if target.rsplit(":", 1)[0] in ("localhost", "127.0.0.1", "[::1]"):
            options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's own loopback
        self._channel = grpc.insecure_channel(target, options=options)

    def predict(self, texts, text_pairs=None, signature_name=None, version=None, label=None, timeout=None):
        """The outputs for `texts` (str or bytes), a dict for each, in order.

        Args:
            texts, text_pairs: lists of equal length; pairs only for models that take them.
            signature_name: the server's default where None.
            version, label: an integer, or the name of a version; the latest where both are None.
            timeout: seconds to wait; without end where None.

        Returns:
            for a classifier `{"label": str, "score": float, "probabilities": [float]}` each.
        """
        if isinstance(texts, (str, bytes)):
            raise TypeError("texts is a list of strings, not one string")
        inputs = {"text": list(texts)}
        if text_pairs is not None:
            inputs["text_pair"] = list(text_pairs)
        outputs = self.run(inputs, signature_name, version, label, timeout)
        return [{name: _plain(array[row]) for name, array in outputs.items()} for row in range(len(texts))]

    def run(self, inputs, signature_name=None, version=None, label=None, timeout=None):
        """Run a signature: arrays or lists by input name in, NumPy arrays by output name back."""
        request = protocol.CLASSES["PredictRequest"](model_spec=self._spec(version, label))
        request.model_spec.signature_name = signature_name or ""
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(to_tensor(values))
        response = self._call("PredictionService/Predict", request, "PredictResponse", timeout)
        return {name: to_array(response.outputs[name]) for name in sorted(response.outputs)}

    def metadata(self, version=None, label=None, timeout=None):
        """The signatures: {signature: {"method_name": str, "inputs" and "outputs": {name: (dtype, shape)}}}.

        A size of -1 in a shape is any; a shape of None is unknown.
        """
        request = protocol.CLASSES["GetModelMetadataRequest"](
            model_spec=self._spec(version, label), metadata_field=["signature_def"]
        )
        response = self._call(
            "PredictionService/GetModelMetadata", request, "GetModelMetadataResponse", timeout
        )
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

    def status(self, version=None, timeout=None):
        """The state of every version the server knows, or of one: {version: "AVAILABLE"}, newest first."""
        request = protocol.CLASSES["GetModelStatusRequest"](model_spec=self._spec(version, None))
        response = self._call("ModelService/GetModelStatus", request, "GetModelStatusResponse", timeout)
        return {
            status.version: protocol.STATES.get(status.state, "UNKNOWN")
            for status in response.model_version_status
        }

    def _spec(self, version, label):
        spec = protocol.CLASSES["ModelSpec"](name=self.model, version_label=label or "")
        if version is not None:
            spec.version.value = version
        return spec

    def _call(self, method, request, response_name, timeout):
        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            type(request).SerializeToString,
            protocol.CLASSES[response_name].FromString,
        )
        try:
            return call(request, timeout=timeout)
        except grpc.RpcError as error:
            raise ServerError(self.target, error.code().name, error.details() or "") from error

    def close(self):
        """Close the connection."""
        self._channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _described(tensors):
    described = {}
    for name, info in sorted(tensors.items()):
        shape = info.tensor_shape
        sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
        described[name] = (protocol.DTYPES.get(info.dtype, "other"), sizes)
    return described


def query(target, model, texts):
    """Print the answers to `texts`, one JSON object a line; where there are none, exit with one line."""
    with PredictClient(target, model) as client:
        try:
            answers = client.predict(texts, timeout=QUERY_TIMEOUT)
        except ServerError as error:
            sys.exit(str(error))
    for text, answer in zip(texts, answers, strict=True):
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        print(json.dumps({"text": shown, **answer}, ensure_ascii=False))
