"""One version of one model: a SavedModel loaded into a session."""

import functools

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the ops of an exported tokenizer)
from tensorflow.core.protobuf import config_pb2

from serving import tensors
from serving.batching import add_batching
from serving.status import CODES, RequestError, invalid_argument


class Servable:
    """A loaded SavedModel, its signatures in `signatures`.

    Args:
        name: the model's name.
        version: its version, an integer.
        path: the version's folder.
        batching: serving.batching.Parameters; None: each request is run by itself.

    Raises what TensorFlow raises where the folder holds no SavedModel that can be loaded.
    """

    def __init__(self, name, version, path, batching=None):
        self.name = name
        self.version = version
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], path)
                self.signatures = dict(meta_graph.signature_def)
                self._twins = add_batching(graph, self.signatures, batching) if batching else []
        except Exception:
            self._session.close()
            raise
        # A compiled call for every set of tensors asked for; bounded, as clients choose the sets.
        self._callable = functools.lru_cache(maxsize=64)(self._make_callable)

    def _make_callable(self, feeds, fetches):
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        # The one way into a session that, like the stock server's, does not check ranks in Python.
        return self._session._make_callable_from_options(options)

    def run(self, feeds, fetches):
        """The arrays of the tensors named `fetches`, given {TensorInfo name: (dtype, array)}.

        Raises RequestError where an array is not of the dtype, or the graph refuses it.
        """
        for index, (wanted, array) in enumerate(feeds.values()):
            sent = tf.as_dtype(array.dtype)
            if sent != wanted:
                raise invalid_argument(
                    f"Expects arg[{index}] to be {tensors.dtype_name(wanted)} "
                    f"but {tensors.dtype_name(sent)} is provided"
                )
        names, arrays = tuple(feeds), [array for _, array in feeds.values()]
        if all(array.ndim and len(array) for array in arrays):
            for twin_feeds, twin_fetches in self._twins:
                if twin_feeds.keys() == feeds.keys() and twin_fetches.keys() >= set(fetches):
                    names = tuple(twin_feeds[name] for name in names)
                    fetches = [twin_fetches[name] for name in fetches]
                    break
        try:
            return self._callable(names, tuple(fetches))(*map(np.asarray, arrays))
        except tf.errors.OpError as error:
            raise RequestError(CODES[error.error_code], error.message) from None
        except UnicodeDecodeError as error:
            # A message that quotes a request's bytes, which is lost to Python, and its code with it.
            raise invalid_argument(error.object.decode("utf-8", "replace")) from None

    def close(self):
        """Free what the version holds; no request may be under way."""
        self._callable.cache_clear()
        self._session.close()
