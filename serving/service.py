"""The gRPC side of the embedded server: PredictionService and ModelService over a ModelStore.

Methods that are not in `METHODS` are answered UNIMPLEMENTED by gRPC itself.
"""

import functools
import logging
from concurrent import futures

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serving.config import StartError
from serving.models import ModelStore
from serving.servable import RequestError, invalid_argument

# The stock server cuts its error texts after so many bytes.
MAX_MESSAGE_BYTES = 1024
# Requests run side by side; each of them is spread over the processor's cores by TensorFlow.
MAX_THREADS = 16
OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # as the stock server: a batch of long texts is no error
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
)


def predict(store, request):
    """`Predict`: run one signature."""
    return store.find(request.model_spec).predict(request)


def get_model_metadata(store, request):
    """`GetModelMetadata`: the signatures of a version."""
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    servable = store.find(request.model_spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, signature in servable.signatures.items():
        signatures.signature_def[key].CopyFrom(signature)
        signatures.signature_def[key].ClearField("defaults")  # as the stock server since 2.20
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response


def get_model_status(store, request):
    """`GetModelStatus`: which versions there are, and how they do."""
    return store.status(request.model_spec)


# {service: {method: (function of a store and a request, request class, response class)}}
METHODS = {
    "tensorflow.serving.PredictionService": {
        "Predict": (predict, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
        "GetModelMetadata": (
            get_model_metadata,
            get_model_metadata_pb2.GetModelMetadataRequest,
            get_model_metadata_pb2.GetModelMetadataResponse,
        ),
    },
    "tensorflow.serving.ModelService": {
        "GetModelStatus": (
            get_model_status,
            get_model_status_pb2.GetModelStatusRequest,
            get_model_status_pb2.GetModelStatusResponse,
        ),
    },
}


def _cut(message):
    data = message.encode("utf-8", "replace")
    if len(data) <= MAX_MESSAGE_BYTES:
        return message
    return data[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"


class ModelServer:
    """An embedded model server on `host`:`port` (0: any free one).

    Bound when made, answering once `start` has loaded the models; a context manager that stops at the end.
    Raises StartError where the address is taken or no address of this machine.
    """

    def __init__(self, host, port):
        self.store = None
        self._server = grpc.server(futures.ThreadPoolExecutor(MAX_THREADS), options=OPTIONS)
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    service,
                    {
                        name: grpc.unary_unary_rpc_method_handler(
                            functools.partial(self._answer, function),
                            request_class.FromString,
                            response_class.SerializeToString,
                        )
                        for name, (function, request_class, response_class) in methods.items()
                    },
                )
                for service, methods in METHODS.items()
            ]
        )
        host = f"[{host}]" if ":" in host else host  # an IPv6 address
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {host}:{port}: the port is taken, or the address is not "
                "one of this machine; choose another with --port or --host"
            ) from error
        self.address = f"{host}:{self.port}"

    def start(self, plans):
        """Load the models of {name: serving.config.ModelPlan} and answer requests; raises StartError."""
        try:
            self.answer_from(ModelStore(plans))
        except StartError:
            self.stop()
            raise
        return self

    def answer_from(self, store):
        """Answer requests with what is in `store`, loaded already; it is closed with the server."""
        self.store = store
        self._server.start()

    def _answer(self, function, request, context):
        try:
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            return function(self.store, request)
        except RequestError as error:
            code, message = error.code, error.message
        except Exception as error:
            # Its text may quote the request, which is not for logs.
            logging.error("%s failed with %s", function.__name__, type(error).__name__)
            code, message = grpc.StatusCode.INTERNAL, f"{type(error).__name__} in the embedded server"
        return context.abort(code, _cut(message))

    def stop(self, grace_s=0.0):
        """Take no more requests, let those under way finish within `grace_s` seconds, and unload."""
        self._server.stop(grace_s).wait()
        if self.store:
            self.store.close()
            self.store = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()
