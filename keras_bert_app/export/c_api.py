"""Run a SavedModel through TensorFlow's C API, with no Python TensorFlow and none of this project's code.

A stand-alone script: it takes only the standard library and NumPy, so that what it answers can only come from
the exported folder and from TensorFlow's own shared libraries. Run it as a file, in a process of its own:

    python c_api.py < request.json > reply.json

The request is `{"export_dir": path, "requests": [{"signature": name, "inputs": {name: tensor}}]}`, a tensor
being what `encode_tensor` makes. The reply is `{"answers": [...], "modules": {...}}`: for each request in
turn `{"outputs": {name: tensor}}` or `{"error": message}`, and for "tensorflow" and "keras_bert_app" whether
this process imported them. Where nothing could be run the reply has no answers but a top-level "error".

Exit codes: 0 when every request has outputs, 1 when some have an error, 2 when nothing could be run. A
process that TensorFlow aborts ends by a signal and replies nothing.

Follows tensorflow/c/c_api.h, tf_tensor.h, tf_tstring.h, and the messages of meta_graph.proto.
"""

import base64
import ctypes
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import NamedTuple

import numpy as np

# TF_DataType in tf_datatype.h, with NumPy's names; "string" is an object array of bytes.
DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 9: "int64",
    10: "bool", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
_DTYPE_CODES = {name: code for code, name in DTYPES.items()}
_STRING_BYTES = 24  # sizeof(TF_TString)


class RequestError(Exception):
    """A folder, request or library that can't be used; the message says what was wrong."""


# The tensors of requests and replies


def encode_tensor(array: np.ndarray) -> dict:
    """An array as JSON can carry it, exactly: `{"dtype", "shape", "values"}`, flat and in row-major order.

    Arrays of bytes or text become `{"dtype": "string", "shape", "b64"}`, text as UTF-8. Floats keep every bit
    but a NaN's payload; Python's json module writes NaN and the infinities under these names. Raises
    RequestError for a dtype that isn't in DTYPES.
    """
    array = np.asarray(array)
    dtype, shape, values = array.dtype.name, list(array.shape), array.ravel().tolist()
    if array.dtype.kind in "OSU":
        texts = [value.encode() if isinstance(value, str) else value for value in values]
        return {"dtype": "string", "shape": shape, "b64": [base64.b64encode(text).decode() for text in texts]}
    if dtype not in _DTYPE_CODES:
        raise RequestError(f"a tensor of dtype {dtype} can't be sent; use one of {_listed(_DTYPE_CODES)}")
    return {"dtype": dtype, "shape": shape, "values": values}


def decode_tensor(tensor: dict) -> np.ndarray:
    """The array that `encode_tensor` was given; strings as an object array of bytes.

    Raises RequestError for a missing key, a dtype not in DTYPES, and values that don't fit shape or dtype.
    """
    try:
        dtype, shape = tensor["dtype"], tensor["shape"]
        if dtype not in _DTYPE_CODES:
            raise RequestError(f"dtype {dtype!r} is unknown; use one of {_listed(_DTYPE_CODES)}")
        if dtype == "string":
            array = np.array([base64.b64decode(text, validate=True) for text in tensor["b64"]], dtype=object)
        else:
            array = np.array(tensor["values"], dtype=dtype)
        return array.reshape(shape)
    except KeyError as error:
        raise RequestError(f"a tensor needs {error.args[0]!r}; it has {_listed(tensor)}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"not a tensor of dtype and shape as stated: {error}") from error


def _listed(names) -> str:
    return ", ".join(sorted(names)) or "none"


# The signatures of a MetaGraphDef, read from protocol buffers' wire format


class TensorInfo(NamedTuple):
    """A tensor of the graph: `name` as "operation:output", `dtype` as in DTYPES."""

    name: str
    dtype: str


class Signature(NamedTuple):
    """What a signature takes and gives, by its own names."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) in order: an int for a varint, bytes for everything else."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
        else:
            size, position = {1: (8, position), 5: (4, position)}.get(wire_type) or _varint(message, position)
            value, position = message[position : position + size], position + size
        yield key >> 3, value


def _tensor_info(message: bytes) -> TensorInfo:
    fields = dict(_fields(message))  # name = 1, dtype = 2
    code = fields.get(2, 0)
    return TensorInfo(fields.get(1, b"").decode(), DTYPES.get(code, f"TF_DataType {code}"))


def _map(message: bytes, number: int, parse: Callable) -> dict:
    entries = (dict(_fields(value)) for field, value in _fields(message) if field == number)
    return {entry[1].decode(): parse(entry.get(2, b"")) for entry in entries}  # key = 1, value = 2


def _signature(message: bytes) -> Signature:
    return Signature(_map(message, 1, _tensor_info), _map(message, 2, _tensor_info))


def read_signatures(meta_graph_def: bytes) -> dict[str, Signature]:
    """The signatures of a serialized MetaGraphDef, without those the loader keeps for itself."""
    signatures = _map(meta_graph_def, 5, _signature)  # signature_def = 5
    return {name: value for name, value in signatures.items() if not name.startswith("__saved_model_")}


# TensorFlow's C API


class _Buffer(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("length", c_size_t), ("data_deallocator", c_void_p)]


class _Output(ctypes.Structure):
    _fields_ = [("operation", c_void_p), ("index", c_int)]


_STATUS = c_void_p
# The type of the result, then those of the arguments.
_FUNCTIONS = {
    "TF_AllocateTensor": (c_void_p, c_int, POINTER(c_int64), c_int, c_size_t),
    "TF_CloseSession": (None, c_void_p, _STATUS),
    "TF_DeleteBuffer": (None, POINTER(_Buffer)),
    "TF_DeleteGraph": (None, c_void_p),
    "TF_DeleteSession": (None, c_void_p, _STATUS),
    "TF_DeleteSessionOptions": (None, c_void_p),
    "TF_DeleteStatus": (None, _STATUS),
    "TF_DeleteTensor": (None, c_void_p),
    "TF_Dim": (c_int64, c_void_p, c_int),
    "TF_GetCode": (c_int, _STATUS),
    "TF_GraphOperationByName": (c_void_p, c_void_p, c_char_p),
    "TF_LoadLibrary": (c_void_p, c_char_p, _STATUS),
    "TF_LoadSessionFromSavedModel": (
        c_void_p, c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, POINTER(_Buffer), _STATUS,
    ),
    "TF_Message": (c_char_p, _STATUS),
    "TF_NewBuffer": (POINTER(_Buffer),),
    "TF_NewGraph": (c_void_p,),
    "TF_NewSessionOptions": (c_void_p,),
    "TF_NewStatus": (_STATUS,),
    "TF_NumDims": (c_int, c_void_p),
    "TF_SessionRun": (
        None, c_void_p, c_void_p, POINTER(_Output), POINTER(c_void_p), c_int,
        POINTER(_Output), POINTER(c_void_p), c_int, c_void_p, c_int, c_void_p, _STATUS,
    ),
    "TF_StringCopy": (None, c_void_p, c_char_p, c_size_t),
    "TF_StringDealloc": (None, c_void_p),
    "TF_StringGetDataPointer": (c_void_p, c_void_p),
    "TF_StringGetSize": (c_size_t, c_void_p),
    "TF_StringInit": (None, c_void_p),
    "TF_TensorByteSize": (c_size_t, c_void_p),
    "TF_TensorData": (c_void_p, c_void_p),
    "TF_TensorType": (c_int, c_void_p),
}  # fmt: skip


def _package_folder(package: str) -> pathlib.Path | None:
    """Where a top-level package is installed; looking for its spec doesn't import it."""
    spec = importlib.util.find_spec(package)
    return pathlib.Path(spec.submodule_search_locations[0]) if spec else None


class _TensorFlow:
    """The library's functions as attributes; the ops of tensorflow_text, where installed, are registered."""

    def __init__(self):
        folder = _package_folder("tensorflow")
        libraries = sorted(folder.glob("libtensorflow_cc.so.*")) if folder else []
        if not libraries:
            raise RequestError(f"no libtensorflow_cc.so.* in {folder or 'any package'}: install tensorflow")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read while loading; the first lines come before
        # Global, as in a program linked to it: abseil seeds its hashes with a symbol's address, and a library
        # of ops that binds to its own copy of the symbol misses, in most processes, keys that are in the map.
        library = ctypes.CDLL(str(libraries[0]), ctypes.RTLD_GLOBAL)
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        # All of them, as `import tensorflow_text` does: which an export needs, its graph alone says.
        text = _package_folder("tensorflow_text")
        for ops in sorted(text.glob("python/ops/*.so")) if text else []:
            self.checked(self.TF_LoadLibrary, str(ops).encode())

    def checked(self, function, *arguments):
        """Calls a function whose last argument is a TF_Status; raises RequestError with its message."""
        status = self.TF_NewStatus()
        try:
            result = function(*arguments, status)
            if self.TF_GetCode(status) != 0:
                raise RequestError(self.TF_Message(status).decode(errors="replace"))
            return result
        finally:
            self.TF_DeleteStatus(status)

    def new_tensor(self, array: np.ndarray) -> int:
        """A TF_Tensor with a copy of the array; to be given to `delete_input`."""
        is_string = array.dtype == object
        code = _DTYPE_CODES["string" if is_string else array.dtype.name]
        num_bytes = array.size * _STRING_BYTES if is_string else array.nbytes
        tensor = self.TF_AllocateTensor(code, (c_int64 * array.ndim)(*array.shape), array.ndim, num_bytes)
        data = self.TF_TensorData(tensor)
        if is_string:
            for index, text in enumerate(array.ravel()):
                self.TF_StringInit(data + index * _STRING_BYTES)
                self.TF_StringCopy(data + index * _STRING_BYTES, text, len(text))
        elif num_bytes:
            ctypes.memmove(data, array.tobytes(), num_bytes)
        return tensor

    def delete_input(self, tensor: int) -> None:
        """Deletes what `new_tensor` made; the strings inside are the caller's to free, unlike an output's."""
        if DTYPES[self.TF_TensorType(tensor)] == "string":
            data = self.TF_TensorData(tensor)
            for offset in range(0, self.TF_TensorByteSize(tensor), _STRING_BYTES):
                self.TF_StringDealloc(data + offset)
        self.TF_DeleteTensor(tensor)

    def read_tensor(self, tensor: int) -> np.ndarray:
        """A copy of a TF_Tensor's contents."""
        dtype = DTYPES[self.TF_TensorType(tensor)]
        shape = [self.TF_Dim(tensor, axis) for axis in range(self.TF_NumDims(tensor))]
        data, num_bytes = self.TF_TensorData(tensor), self.TF_TensorByteSize(tensor)
        if dtype != "string":
            return np.frombuffer(ctypes.string_at(data, num_bytes), dtype).reshape(shape)
        texts = [
            ctypes.string_at(self.TF_StringGetDataPointer(data + at), self.TF_StringGetSize(data + at))
            for at in range(0, num_bytes, _STRING_BYTES)
        ]
        return np.array(texts, dtype=object).reshape(shape)


class SavedModel:
    """A SavedModel with the tag "serve", loaded by the C API: a context manager.

    `signatures` has the names that `run` takes. Raises RequestError with TensorFlow's message for a folder
    that it can't load.
    """

    def __init__(self, export_dir: str):
        self._tensorflow = tensorflow = _TensorFlow()
        options, buffer = tensorflow.TF_NewSessionOptions(), tensorflow.TF_NewBuffer()
        self._graph = tensorflow.TF_NewGraph()
        tags = (c_char_p * 1)(b"serve")
        try:
            self._session = tensorflow.checked(
                tensorflow.TF_LoadSessionFromSavedModel, options, None, os.fsencode(export_dir), tags, 1,
                self._graph, buffer,
            )  # fmt: skip
            meta_graph_def = ctypes.string_at(buffer.contents.data, buffer.contents.length)
        finally:
            tensorflow.TF_DeleteBuffer(buffer)
            tensorflow.TF_DeleteSessionOptions(options)
        self.signatures = read_signatures(meta_graph_def)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._tensorflow.checked(self._tensorflow.TF_CloseSession, self._session)
        self._tensorflow.checked(self._tensorflow.TF_DeleteSession, self._session)
        self._tensorflow.TF_DeleteGraph(self._graph)

    def input_dtypes(self, signature: str) -> dict[str, str]:
        """The dtype, as in DTYPES, of each of a signature's inputs."""
        return {name: info.dtype for name, info in self.signatures[signature].inputs.items()}

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All of a signature's outputs; strings are object arrays of bytes, in and out.

        `inputs` holds every input with its dtype, as `checked_inputs` makes sure. Raises RequestError with
        TensorFlow's message when the graph refuses them, and for outputs of a dtype that isn't in DTYPES.
        """
        tensorflow, described = self._tensorflow, self.signatures[signature]
        for name, info in described.outputs.items():
            if info.dtype not in _DTYPE_CODES:
                raise RequestError(f"output {name!r} is {info.dtype}, none of {_listed(_DTYPE_CODES)}")
        feeds = self._graph_outputs([described.inputs[name] for name in inputs])
        fetches = self._graph_outputs(described.outputs.values())
        tensors = [tensorflow.new_tensor(array) for array in inputs.values()]
        values, results = (c_void_p * len(tensors))(*tensors), (c_void_p * len(fetches))()
        try:
            tensorflow.checked(
                tensorflow.TF_SessionRun, self._session, None, feeds, values, len(feeds),
                fetches, results, len(fetches), None, 0, None,
            )  # fmt: skip
            arrays = [tensorflow.read_tensor(tensor) for tensor in results]
            return dict(zip(described.outputs, arrays, strict=True))
        finally:
            for tensor in filter(None, results):
                tensorflow.TF_DeleteTensor(tensor)
            for tensor in tensors:
                tensorflow.delete_input(tensor)

    def _graph_outputs(self, infos) -> ctypes.Array:
        outputs = []
        for info in infos:
            operation, _, index = info.name.rpartition(":")
            pointer = self._tensorflow.TF_GraphOperationByName(self._graph, operation.encode())
            if not pointer:
                raise RequestError(f"the signature names {info.name!r}, a tensor that the graph doesn't have")
            outputs.append(_Output(pointer, int(index)))
        return (_Output * len(outputs))(*outputs)


# The command line


def checked_inputs(model, request: dict) -> tuple[str, dict[str, np.ndarray]]:
    """A request's signature and decoded inputs; RequestError when they aren't what the model takes."""
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), dict):
        raise RequestError('a request is {"signature": name, "inputs": {name: tensor}}')
    signature, tensors = request.get("signature"), request["inputs"]
    if signature not in model.signatures:
        raise RequestError(f"no signature {signature!r}; the model has {_listed(model.signatures)}")
    expected = model.input_dtypes(signature)
    if expected.keys() != tensors.keys():
        raise RequestError(f"signature {signature!r} takes {_listed(expected)}, not {_listed(tensors)}")
    inputs = {name: decode_tensor(tensor) for name, tensor in tensors.items()}
    for name, dtype in expected.items():
        if (given := tensors[name]["dtype"]) != dtype:
            raise RequestError(f"input {name!r} of signature {signature!r} takes {dtype}, not {given}")
    return signature, inputs


def answer(model, request: dict) -> dict:
    """`{"outputs": {name: tensor}}` or `{"error": message}`."""
    try:
        outputs = model.run(*checked_inputs(model, request))
        return {"outputs": {name: encode_tensor(array) for name, array in outputs.items()}}
    except RequestError as error:
        return {"error": str(error)}


def answers(model_class: type, text: str) -> list[dict]:
    """The answers to a whole request as JSON text; RequestError when nothing can be run."""
    try:
        request = json.loads(text)
        export_dir, requests = request["export_dir"], list(request["requests"])
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f'not a JSON object with "export_dir" and "requests": {error!r}') from error
    with model_class(export_dir) as model:
        return [answer(model, one) for one in requests]


def main(model_class: type = SavedModel) -> int:
    """Answers the request on standard input with the reply on standard output; returns the exit code."""
    try:
        reply = {"answers": answers(model_class, sys.stdin.read())}
        code = int(any("error" in one for one in reply["answers"]))
    except RequestError as error:
        reply, code = {"answers": [], "error": str(error)}, 2
    reply["modules"] = {name: name in sys.modules for name in ("tensorflow", "keras_bert_app")}
    json.dump(reply, sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
