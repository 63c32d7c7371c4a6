"""What the embedded server answers, whichever way a request came: the methods, how many at once, health.

`Service.answer` is called by the gRPC server of this module and by the REST server of serving.rest.
"""

import logging
import threading
from concurrent import futures

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,  # noqa: F401  (for reflection, as the other one)
    predict_pb2,
    prediction_service_pb2,  # noqa: F401
    regression_pb2,
)

from serving import inference
from serving.config import StartError
from serving.status import RequestError, invalid_argument

# The stock server cuts its error texts after so many bytes.
MAX_MESSAGE_BYTES = 1024
# Threads for what is answered at once: status, health, and that there is too much to do.
SPARE_THREADS = 8
log = logging.getLogger(__name__)


def _on_servable(function):
    """A method that runs a signature of the version that the request's model_spec names."""

    def answer(store, request):
        with store.use(_model_spec(request)) as servable:
            return function(servable, request)

    return answer


def _model_spec(request):
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec


def multi_inference(store, request):
    """`MultiInference`: the version is that of the first task."""
    spec = request.tasks[0].model_spec if request.tasks else inference_pb2.InferenceTask().model_spec
    with store.use(spec) as servable:
        return inference.multi_inference(servable, request)


def get_model_metadata(store, request):
    """`GetModelMetadata`: the signatures of a version."""
    spec = _model_spec(request)
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with store.use(spec) as servable:
        for key, signature in servable.signatures.items():
            signatures.signature_def[key].CopyFrom(signature)
            signatures.signature_def[key].ClearField("defaults")  # as the stock server since 2.20
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response


def get_model_status(store, request):
    """`GetModelStatus`: which versions there are, and how they do."""
    return store.status(_model_spec(request))


def reload_config(store, request):
    """`HandleReloadConfigRequest`: serve other models; what makes no sense changes nothing.

    The stock server hangs on a configuration without a name or path and unloads what it had.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    try:
        store.reload(request.config)
    except StartError as error:
        raise invalid_argument(f"{error}; all goes on as before") from error
    response = model_management_pb2.ReloadConfigResponse()
    response.status.SetInParent()
    return response


predict, classify, regress = map(_on_servable, (inference.predict, inference.classify, inference.regress))
INFERENCE = (predict, classify, regress, multi_inference)
# {service: {method: (function of a store and a request, request class, response class)}}
METHODS = {
    "tensorflow.serving.PredictionService": {
        "Predict": (predict, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
        "Classify": (
            classify,
            classification_pb2.ClassificationRequest,
            classification_pb2.ClassificationResponse,
        ),
        "Regress": (regress, regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
        "MultiInference": (
            multi_inference,
            inference_pb2.MultiInferenceRequest,
            inference_pb2.MultiInferenceResponse,
        ),
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
        "HandleReloadConfigRequest": (
            reload_config,
            model_management_pb2.ReloadConfigRequest,
            model_management_pb2.ReloadConfigResponse,
        ),
    },
}


class Service:
    """The methods on a ModelStore, so many requests at once and no more.

    Args:
        store: serving.models.ModelStore.
        max_requests: requests for inference under way, those that wait included; more are refused.
        max_running: those of them that TensorFlow computes; None: all, as where it batches them.
    """

    def __init__(self, store, max_requests, max_running=None):
        self.store = store
        self._places = threading.BoundedSemaphore(max_requests)
        self._turns = threading.BoundedSemaphore(max_running or max_requests)
        self._refusal = (
            f"{max_requests} requests are under way, as many as --grpc_max_threads; ask again later"
        )

    def answer(self, function, request, is_awaited, is_inference):
        """The response to a request; raises RequestError, and nothing else.

        Args:
            function: of a store and a request, as in METHODS, which raises RequestError.
            is_awaited: function that tells whether the caller still wants to know.
            is_inference: whether it counts as work, rather than being answered at once.
        """
        try:
            if is_inference:
                return self._answer_in_turn(function, request, is_awaited)
            return function(self.store, request)
        except RequestError as error:
            raise RequestError(error.code, _cut(error.message)) from None
        except Exception as error:
            # Its text may quote the request, which is not for logs.
            log.error("%s failed with %s", function.__name__, type(error).__name__)
            raise RequestError(
                grpc.StatusCode.INTERNAL, f"{type(error).__name__} in the embedded server"
            ) from None

    def _answer_in_turn(self, function, request, is_awaited):
        if not self._places.acquire(blocking=False):
            raise RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, self._refusal)
        try:
            with self._turns:
                if not is_awaited():
                    raise RequestError(grpc.StatusCode.CANCELLED, "the caller has gone")
                return function(self.store, request)
        finally:
            self._places.release()


def _cut(message):
    data = message.encode("utf-8", "replace")
    if len(data) <= MAX_MESSAGE_BYTES:
        return data.decode()
    return data[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"


class GrpcServer:
    """A gRPC server on `host`:`port` (0: any free one), bound when made, answering once started.

    Args:
        options: gRPC channel arguments, {name: value}.

    Raises StartError where the address is taken or no address of this machine.
    """

    def __init__(self, service, host, port, max_requests, options):
        self._health = health.HealthServicer()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_requests + SPARE_THREADS), options=tuple(options.items())
        )
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    name, {method: _handler(service, *row) for method, row in methods.items()}
                )
                for name, methods in METHODS.items()
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*METHODS, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
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

    def start(self):
        """Answer, health included."""
        for name in ("", *METHODS):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()

    def stop(self, grace_s):
        """Say that no more is served, take no more requests, and give those under way `grace_s` seconds.

        Returns a threading.Event that is set at the end.
        """
        self._health.enter_graceful_shutdown()
        return self._server.stop(grace_s)


def _handler(service, function, request_class, response_class):
    def handle(request, context):
        try:
            return service.answer(function, request, context.is_active, function in INFERENCE)
        except RequestError as error:
            return context.abort(error.code, error.message)

    def parse(data):
        try:
            return request_class.FromString(data)
        except DecodeError:
            return None  # which gRPC answers with INTERNAL; an exception it would log as well

    return grpc.unary_unary_rpc_method_handler(handle, parse, response_class.SerializeToString)
