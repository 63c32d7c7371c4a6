"""One version of one model: a SavedModel loaded into a session, and its signatures run on request protos.

The checks, their order and their wording are those of TensorFlow Serving's `predict_util.cc` and
TensorFlow's `GetInputValues`, so that a client cannot tell the two servers apart.
"""

import functools

import grpc
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the ops of an exported tokenizer)
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import predict_pb2

from serving import tensors

STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """A request that is answered with `code` (grpc.StatusCode) and `message` instead of a result."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


def invalid_argument(message):
    """The RequestError most requests end with."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


class Servable:
    """A loaded SavedModel.

    Args:
        name: the model's name.
        version: its version, an integer.
        path: the version's folder.

    Raises what TensorFlow raises where the folder holds no SavedModel that can be loaded.
    """

    def __init__(self, name, version, path):
        self.name = name
        self.version = version
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], path)
        except Exception:
            self._session.close()
            raise
        self.signatures = dict(meta_graph.signature_def)
        # A compiled call for every set of tensors asked for; bounded, as clients choose the sets.
        self._callable = functools.lru_cache(maxsize=64)(self._make_callable)

    def _make_callable(self, feeds, fetches):
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        # The one way into a session that, like the stock server's, does not check ranks in Python.
        return self._session._make_callable_from_options(options)

    def predict(self, request):
        """The PredictResponse to a PredictRequest; raises RequestError."""
        key = request.model_spec.signature_name or "serving_default"
        if key not in self.signatures:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.'
            )
        signature = self.signatures[key]
        _check_sizes(signature, request)
        inputs = _read_inputs(signature, request)
        aliases = _output_aliases(signature, request.output_filter)
        results = self._run(signature, inputs, aliases)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.signature_name = key
        response.model_spec.version.value = self.version
        for alias, result in zip(aliases, results, strict=True):
            dtype = tf.as_dtype(signature.outputs[alias].dtype)
            response.outputs[alias].CopyFrom(tensors.encode(result, dtype))
        return response

    def _run(self, signature, inputs, aliases):
        for index, (alias, array) in enumerate(inputs.items()):
            wanted, sent = tf.as_dtype(signature.inputs[alias].dtype), tf.as_dtype(array.dtype)
            if sent != wanted:
                raise invalid_argument(
                    f"Expects arg[{index}] to be {wanted.name} but {sent.name} is provided"
                )
        feeds = tuple(signature.inputs[alias].name for alias in inputs)
        fetches = tuple(signature.outputs[alias].name for alias in aliases)
        try:
            return self._callable(feeds, fetches)(*inputs.values())
        except tf.errors.OpError as error:
            raise RequestError(STATUS_CODES[error.error_code], error.message) from None

    def close(self):
        """Free what the version holds; no request may be under way."""
        self._callable.cache_clear()
        self._session.close()


def _names(names):
    return ",".join(sorted(names))


def _check_sizes(signature, request):
    sent, known = set(request.inputs), set(signature.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not signature.defaults):
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(known)} len({{{_names(sent)}}}) != "
            f"len({{{_names(known)}}}). Sent extra: {{{_names(sent - known)}}}. "
            f"Missing but required: {{{_names(known - sent)}}}."
        )


def _read_inputs(signature, request):
    """The arrays of the signature's inputs by alias, defaults filled in."""
    inputs = {}
    for alias in sorted(signature.inputs):
        if alias in request.inputs:
            proto = request.inputs[alias]
        elif alias in signature.defaults:
            proto = signature.defaults[alias]
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in "
                f"request and no default value provided. Inputs expected to be in the request "
                f"{{{_names(request.inputs)}}}, or default input alias set: {_names(signature.defaults)}"
            )
        try:
            inputs[alias] = tensors.decode(proto)
        except (ValueError, MemoryError):
            raise invalid_argument(f"tensor parsing error: {alias}") from None
    used = inputs.keys() & set(request.inputs)
    if len(used) != len(request.inputs):
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {_names(used)}, "
            f"request input: {_names(request.inputs)}"
        )
    return inputs


def _output_aliases(signature, output_filter):
    """The outputs to fetch: those asked for, or all."""
    seen = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to "
                f"be in the set {{{_names(signature.outputs)}}}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return seen or sorted(signature.outputs)
