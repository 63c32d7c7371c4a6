"""REST's JSON <-> request and response protos, by the rules of TensorFlow Serving's `json_tensor.cc`.

The checks, their order and their wording are those of that file. Where a text is no JSON at all, the message
is the parser's own.
"""

import base64
import binascii
import json
import math

import tensorflow as tf
from tensorflow.core.example import example_pb2

from serving import tensors
from serving.status import RequestError, grpc, invalid_argument

MAX_DEBUG_CHARACTERS = 256
# The values that a field holds: (Python type, lowest, highest); None where any will do.
_INT32, _INT64 = (int, -(1 << 31), (1 << 31) - 1), (int, -(1 << 63), (1 << 63) - 1)
_KINDS = {
    tf.float32: (float, None, None),
    tf.float64: (float, None, None),
    tf.int32: _INT32,
    tf.int16: _INT32,
    tf.int8: _INT32,
    tf.uint8: _INT32,
    tf.int64: _INT64,
    tf.uint32: (int, 0, (1 << 32) - 1),
    tf.uint64: (int, 0, (1 << 64) - 1),
    tf.string: (str, None, None),
    tf.bool: (bool, None, None),
}
_TYPE_NAMES = {
    type(None): "Null",
    bool: "Bool",
    int: "Number",
    float: "Number",
    str: "String",
    list: "Array",
    dict: "Object",
}


def parse(body):
    """The object that the bytes of a request are; raises RequestError.

    As in the stock server bytes that aren't UTF-8 are kept, and what follows the object isn't looked at.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    text = body.decode("utf-8", "surrogateescape").lstrip(" \t\r\n")
    try:
        document, _ = DECODER.raw_decode(text)
    except ValueError as error:
        message = getattr(error, "msg", error)
        where = getattr(error, "pos", 0)
        raise invalid_argument(f"JSON Parse error: {message} at offset: {where}") from None
    except RecursionError:
        raise invalid_argument("JSON Parse error: too many levels") from None
    if not isinstance(document, dict):
        raise _format_error(document, "Is not object")
    return document


def _first_of_each(pairs):
    document = {}
    for key, value in pairs:
        document.setdefault(_valid(key), value)
    return document


def _number(text):
    """An integer of 64 bits, or what is larger as the float it is to the stock server."""
    if len(text) < 21 and -(1 << 63) <= (value := int(text)) < 1 << 64:
        return value
    if math.isinf(value := float(text)):
        raise ValueError("a number too big")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_first_of_each, parse_int=_number)


def fill_signature_name(document, model_spec):
    """Take over a document's `signature_name`."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {debug_string(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    model_spec.signature_name = _valid(name)


def _valid(name):
    """A name, which is nothing's if it has bytes that aren't UTF-8."""
    return name.encode("utf-8", "replace").decode()


def fill_inputs(document, infos, inputs):
    """Fill a PredictRequest's `inputs` from a document; returns whether it is in row format.

    Args:
        infos: {alias: TensorInfo} of the signature.
    """
    if "instances" in document and "inputs" in document:
        raise _format_error(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise _format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise _format_error(document, "No values in 'instances' array")
        _fill_rows(instances, infos, inputs)
        return True
    if "inputs" not in document:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    _fill_columns(document["inputs"], infos, inputs)
    return False


def _fill_rows(instances, infos, inputs):
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    named = _is_named(instances[0])
    shapes = {}
    for place, element in enumerate(instances):
        where = f"Failed to process element: {place}"
        if named != _is_named(element):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {expected} but got {got} at item {place} of input list")
        items = element.items() if named else [(next(iter(infos)), element)]
        for name, item in items:
            try:
                _add_instance(name, item, infos, inputs, shapes)
            except RequestError as error:
                key = f" key: {name}" if named else ""
                code = error.code.name
                raise invalid_argument(
                    f"{where}{key} of 'instances' list. Error: {code}: {error.message}"
                ) from None
        if named and element.keys() != infos.keys():
            raise invalid_argument(
                f"{where} of 'instances' list. JSON object: {debug_string(element)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )
    for name, shape in shapes.items():
        for size in (len(instances), *shape):
            inputs[name].tensor_shape.dim.add().size = size


def _add_instance(name, item, infos, inputs, shapes):
    if name not in infos:
        raise invalid_argument(f"JSON object: does not have named input: {name}")
    shape = _dense_shape(item)
    before = len(_values(inputs[name], infos[name]))
    _fill_values(item, shape, 0, inputs[name], infos[name])
    if name not in shapes:
        shapes[name] = shape
        return
    size, wanted = len(_values(inputs[name], infos[name])) - before, _size(shapes[name])
    if size != wanted:
        raise invalid_argument(f"Expecting tensor size: {wanted} but got: {size}")
    if shape != shapes[name]:
        raise invalid_argument(f"Expecting shape {_bracketed(shapes[name])} but got: {_bracketed(shape)}")


def _fill_columns(value, infos, inputs):
    if not _is_named(value):
        if len(infos) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per tensorinfo_map"
            )
        columns = {next(iter(infos)): value}
    else:
        columns = value
    for name in infos:
        if name not in columns:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        shape = _dense_shape(columns[name])
        _fill_values(columns[name], shape, 0, inputs[name], infos[name])
        inputs[name].tensor_shape.SetInParent()
        for size in shape:
            inputs[name].tensor_shape.dim.add().size = size


def _is_named(value):
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value):
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _dense_shape(value):
    """The sizes of nested lists, as their first elements have them."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _size(shape):
    size = 1
    for one in shape:
        size *= one
    return size


def _bracketed(shape):
    return f"[{','.join(map(str, shape))}]"


def _values(proto, info):
    """The repeated field of a TensorProto that holds the values of a TensorInfo's dtype."""
    proto.dtype = info.dtype
    _, field = tensors.FIELDS_BY_NUMBER.get(info.dtype, (None, "half_val"))
    return getattr(proto, field)


def _fill_values(value, shape, level, proto, info):
    if isinstance(value, list):
        if level >= len(shape):
            raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise invalid_argument(
                f"Encountered list at unexpected size: {len(value)} at level: {level} "
                f"expected size: {shape[level]}"
            )
        for one in value:
            _fill_values(one, shape, level + 1, proto, info)
        return
    if level != len(shape):
        raise invalid_argument(
            f"JSON Value: {debug_string(value)} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {len(shape)}"
        )
    _values(proto, info).append(_converted(value, tf.as_dtype(info.dtype)))


def _converted(value, dtype):
    if isinstance(value, dict) and dtype == tf.string:
        return _base64_bytes(value)
    if dtype not in _KINDS and not isinstance(value, dict):
        raise RequestError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {debug_string(value)} to type: {tensors.dtype_name(dtype)}",
        )
    kind, least, most = _KINDS.get(dtype, (None, None, None))
    fits = type(value) in ((int, float) if kind is float else (kind,))
    if not fits or (least is not None and not least <= value <= most):
        raise invalid_argument(
            f"JSON Value: {debug_string(value)} Type: {_type_name(value)} "
            f"is not of expected type: {tensors.dtype_name(dtype)}"
        )
    return _bytes(value) if kind is str else float(value) if kind is float else value


def _bytes(text):
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from None


def _base64_bytes(value):
    if not _is_base64(value):
        raise invalid_argument(f"JSON Value: {debug_string(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def fill_examples(document, request_input):
    """Fill a Classify or Regress request's `input` from a document's `examples` and `context`."""
    target = request_input.example_list
    if "context" in document:
        target = request_input.example_list_with_context
        target.context.CopyFrom(_example(document["context"]))
    if "examples" not in document:
        raise _format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    target.examples.extend(map(_example, examples))


def _example(value):
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_type_name(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for one in content if isinstance(content, list) else [content]:
            _add_to_feature(one, name, feature)
    return example


def _add_to_feature(value, name, feature):
    if value is None or isinstance(value, list) or _is_named(value):
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}")
    if isinstance(value, int) and value >= 1 << 63:
        raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    kind = {bool: "int64_list", int: "int64_list", float: "float_list"}.get(type(value), "bytes_list")
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {present.removesuffix('_list')}"
        )
    if kind == "bytes_list":
        value = _base64_bytes(value) if isinstance(value, dict) else _bytes(value)
    getattr(feature, kind).value.append(int(value) if isinstance(value, bool) else value)


def predictions(outputs, is_row_format):
    """The response to a Predict request: {"predictions": rows} or {"outputs": columns}.

    Args:
        outputs: {alias: TensorProto}.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    columns = {name: _to_json(name, proto) for name, proto in sorted(outputs.items())}
    if not is_row_format:
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    num_rows = None
    for name, column in columns.items():
        if not isinstance(column, list):
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if len(column) != (num_rows := len(column) if num_rows is None else num_rows):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(column)} expecting: {num_rows}"
            )
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def _to_json(name, proto):
    dtype = tf.as_dtype(proto.dtype)
    if dtype not in _KINDS:
        raise invalid_argument(f"Failed to write JSON value for tensor type: {tensors.dtype_name(dtype)}")
    values = getattr(proto, tensors.VALUE_FIELDS[dtype])
    if dtype == tf.string and name.endswith("_bytes"):
        values = [{"b64": base64.b64encode(value).decode()} for value in values]
    elif dtype == tf.string:
        values = [value.decode("utf-8", "surrogateescape") for value in values]
    elif dtype == tf.float32:
        values = [decimal(value) for value in values]
    return _nested(iter(values), [dim.size for dim in proto.tensor_shape.dim])


def _nested(values, shape):
    if not shape:
        return next(values)
    return [_nested(values, shape[1:]) for _ in range(shape[0])]


def decimal(value):
    """A float32 as the number of the fewest digits, or nine, that stands for it."""
    short = float(f"{value:.6g}")
    return short if tf.float32.as_numpy_dtype(short) == value else float(f"{value:.9g}")


def serialize(document):
    """The bytes of a response; strings' bytes that aren't UTF-8 as they are, NaN and infinities by name."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")


def debug_string(value):
    """A value as the stock server's messages show it: indented objects, arrays on one line, cut when long."""
    text = ""
    for token in _tokens(value, 0):
        if len(text.encode("utf-8", "replace")) >= MAX_DEBUG_CHARACTERS:
            break
        text += token
    return text.encode("utf-8", "replace").decode()


def _tokens(value, level):
    if not isinstance(value, (dict, list)):
        yield json.dumps(value, ensure_ascii=False)
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    yield opening
    for place, item in enumerate(value):
        if isinstance(value, dict):
            comma = "," if place else ""
            yield comma + "\n" + "    " * (level + 1) + json.dumps(item, ensure_ascii=False)
            first, *rest = _tokens(value[item], level + 1)
            yield ": " + first
        else:
            first, *rest = _tokens(item, level + 1)
            yield (", " if place else "") + first
        yield from rest
    end = "\n" + "    " * level if isinstance(value, dict) and value else ""
    yield end + closing


def _type_name(value):
    if isinstance(value, bool):
        return str(value)
    return _TYPE_NAMES[type(value)]


def _format_error(value, message):
    return invalid_argument(f"JSON Value: {debug_string(value)} {message}")
