"""What a SavedModel's file says of it, read without loading it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_bert_app.errors import UserError

FILE = "saved_model.pb"
# What TensorFlow Serving calls the methods of its API; tensorflow/python/saved_model/signature_constants.py.
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


def read(path: Path) -> meta_graph_pb2.MetaGraphDef:
    """The graph that a model server loads from a version folder: the one with the tag "serve".

    Raises:
        UserError: there is no such file, it is cut, or holds no such graph.
    """
    file = path / FILE
    try:
        graphs = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    except OSError as error:
        raise UserError(f"{file}: can't be read: {error.strerror}; export it again") from error
    except DecodeError as error:
        raise UserError(f"{file}: no SavedModel, or cut; copy or export it again") from error
    for graph in graphs:
        if "serve" in graph.meta_info_def.tags:
            return graph
    raise UserError(f"{file}: has no graph with the tag 'serve'; export it again")


def signatures(graph: meta_graph_pb2.MetaGraphDef) -> dict[str, dict[str, Any]]:
    """Signature name -> `method_name`, `inputs`, `outputs`, without those the loader keeps for itself.

    Inputs and outputs are {name: {"dtype": as in NumPy, "shape": with None for any size}}, ready for JSON.
    """
    return {
        name: {
            "method_name": signature.method_name,
            "inputs": _tensors(signature.inputs),
            "outputs": _tensors(signature.outputs),
        }
        for name, signature in sorted(graph.signature_def.items())
        if not name.startswith("__saved_model_")
    }


def _tensors(tensors: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "dtype": tf.as_dtype(info.dtype).name,
            "shape": None
            if info.tensor_shape.unknown_rank
            else [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim],
        }
        for name, info in sorted(tensors.items())
    }
