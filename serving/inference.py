"""Predict, Classify, Regress and MultiInference: request protos run on a Servable.

The checks, their order and their wording are those of TensorFlow Serving's `predict_util.cc`,
`classifier.cc`, `regressor.cc` and `multi_inference.cc`, so that a client cannot tell the two servers apart.
"""

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from serving import tensors
from serving.status import RequestError, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def predict(servable, request):
    """The PredictResponse to a PredictRequest; raises RequestError."""
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if key not in servable.signatures:
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
    signature = servable.signatures[key]
    _check_sizes(signature, request)
    inputs = _read_inputs(signature, request)
    aliases = _output_aliases(signature, request.output_filter)
    feeds = {
        signature.inputs[alias].name: (tf.as_dtype(signature.inputs[alias].dtype), array)
        for alias, array in inputs.items()
    }
    results = servable.run(feeds, [signature.outputs[alias].name for alias in aliases])
    response = predict_pb2.PredictResponse()
    _fill_spec(response.model_spec, servable, request.model_spec)
    for alias, result in zip(aliases, results, strict=True):
        dtype = tf.as_dtype(signature.outputs[alias].dtype)
        response.outputs[alias].CopyFrom(tensors.encode(result, dtype))
    return response


def classify(servable, request):
    """The ClassificationResponse to a ClassificationRequest; raises RequestError."""
    response = classification_pb2.ClassificationResponse()
    _answer_examples(servable, request, CLASSIFY, response.model_spec, response.result)
    return response


def regress(servable, request):
    """The RegressionResponse to a RegressionRequest; raises RequestError."""
    response = regression_pb2.RegressionResponse()
    _answer_examples(servable, request, REGRESS, response.model_spec, response.result)
    return response


def _answer_examples(servable, request, method, model_spec, result):
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if key not in servable.signatures:
        raise invalid_argument(f"No signature was found with the name: {key}")
    signature = servable.signatures[key]
    input_name, outputs = METHODS[method][0](signature)
    examples = _serialized_examples(request.input)
    arrays = dict(
        zip(outputs, servable.run({input_name: (tf.string, examples)}, [*outputs.values()]), strict=True)
    )
    METHODS[method][1](arrays, len(examples), result)
    _fill_spec(model_spec, servable, request.model_spec)


def multi_inference(servable, request):
    """The MultiInferenceResponse to a MultiInferenceRequest, in one run; raises RequestError."""
    tasks = {}
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != servable.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if key in tasks:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
        if key not in servable.signatures:
            raise invalid_argument(f"Requested signature not found in model graph: {key}")
        if task.method_name not in METHODS:
            raise RequestError(
                grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
            )
        tasks[key] = METHODS[task.method_name][0](servable.signatures[key])
    examples = _serialized_examples(request.input)
    feeds = {input_name: (tf.string, examples) for input_name, _ in tasks.values()}
    fetches = sorted({name for _, outputs in tasks.values() for name in outputs.values()})
    arrays = dict(zip(fetches, servable.run(feeds, fetches), strict=True))
    response = inference_pb2.MultiInferenceResponse()
    for task, (_, outputs) in zip(request.tasks, tasks.values(), strict=True):
        result = response.results.add()
        _fill_spec(result.model_spec, servable, task.model_spec)
        _, fill, field = METHODS[task.method_name]
        fill({alias: arrays[name] for alias, name in outputs.items()}, len(examples), getattr(result, field))
    return response


def _fill_spec(model_spec, servable, asked):
    model_spec.name = asked.name
    model_spec.signature_name = asked.signature_name or DEFAULT_SIGNATURE
    model_spec.version.value = servable.version


def _serialized_examples(request_input):
    """string [B] of an Input's examples, each behind the context's bytes, whose features it may override."""
    kind = request_input.WhichOneof("kind")
    examples = getattr(request_input, kind).examples if kind else ()
    if not examples:
        raise invalid_argument("Input is empty.")
    context = b""
    if kind == "example_list_with_context":
        context = request_input.example_list_with_context.context.SerializeToString()
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def _classify_names(signature):
    """The input tensor's name and {alias: output tensor's name} of a signature that Classify can use."""
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid_argument("No classification inputs found in SignatureDef")
    outputs = {
        alias: signature.outputs[alias].name for alias in ("classes", "scores") if alias in signature.outputs
    }
    if not outputs:
        raise invalid_argument(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return signature.inputs["inputs"].name, outputs


def _regress_names(signature):
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid_argument("No regression inputs found in SignatureDef")
    if "outputs" not in signature.outputs:
        raise invalid_argument("No regression outputs found in SignatureDef")
    return signature.inputs["inputs"].name, {"outputs": signature.outputs["outputs"].name}


def _fill_classifications(arrays, num_examples, result):
    for alias, dtype in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if alias not in arrays:
            continue
        array = arrays[alias]
        if array.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if _dtype(array) != dtype:
            raise invalid_argument(f"Expected {alias} Tensor of {dtype}. Got: {_dtype(array)}")
        if len(array) != num_examples:
            raise invalid_argument(f"Expected {alias} output batch size of {num_examples}. Got: {len(array)}")
    classes, scores = arrays.get("classes"), arrays.get("scores")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). "
            f"Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    for row in range(num_examples):
        added = result.classifications.add()
        for column in range(next(iter(arrays.values())).shape[1]):
            one = added.classes.add()
            if classes is not None:
                # A proto3 string: bytes that aren't UTF-8 have no place in it.
                one.label = classes[row, column].decode("utf-8", "replace")
            if scores is not None:
                one.score = scores[row, column]


def _fill_regressions(arrays, num_examples, result):
    array = arrays["outputs"]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {_shape(array)}"
        )
    if len(array) != num_examples:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {num_examples} vs. {len(array)}"
        )
    if _dtype(array) != "DT_FLOAT":
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(array)}")
    for value in array.ravel():
        result.regressions.add().value = value


# {method name: (names of its tensors in a signature, filling of its result, field of an InferenceResult)}
METHODS = {
    CLASSIFY: (_classify_names, _fill_classifications, "classification_result"),
    REGRESS: (_regress_names, _fill_regressions, "regression_result"),
}


def _shape(array):
    return f"[{','.join(map(str, array.shape))}]"


def _dtype(array):
    return tensors.proto_name(tf.as_dtype(array.dtype))


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
