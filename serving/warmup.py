"""Warm-up: the requests that a bundle brings along are answered before a client's are.

The file and its limits are those of TensorFlow Serving's `saved_model_warmup_util.cc`.
"""

import os

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving import inference
from serving.status import RequestError, invalid_argument

FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000
_FUNCTIONS = {
    "predict_log": inference.predict,
    "classify_log": inference.classify,
    "regress_log": inference.regress,
    "multi_inference_log": inference.multi_inference,
}


def warm_up(servable, path):
    """Answer the warm-up requests of the version in folder `path`, where it has any; returns how many.

    Raises RequestError where the file is broken, or a request fails.
    """
    file = os.path.join(path, FILE)
    if not os.path.exists(file):
        return 0
    count = 0
    try:
        for record in tf.compat.v1.io.tf_record_iterator(file):
            count += 1
            if count > MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}"
                )
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind is None:
                continue
            if kind not in _FUNCTIONS:
                raise RequestError(
                    grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind} in {file}"
                )
            _FUNCTIONS[kind](servable, getattr(log, kind).request)
    except (DecodeError, tf.errors.OpError) as error:
        raise invalid_argument(f"Failed to parse warmup record {count} from {file}") from error
    except RequestError as error:
        raise RequestError(error.code, f"warmup record {count} of {file}: {error.message}") from error
    return count
