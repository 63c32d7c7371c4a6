"""The REST side of the embedded server: TensorFlow Serving's paths, by the handlers that gRPC has.

Follows TensorFlow Serving's `http_rest_api_handler.cc`, `http_rest_api_util.cc` and `http_server.cc`.
"""

import functools
import http
import logging
import re
import threading
import time
import urllib.parse
import zlib

import grpc
import waitress
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)

from serving import inference, json_tensors, service
from serving.config import StartError
from serving.status import RequestError, invalid_argument

log = logging.getLogger(__name__)
_WHICH = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
PREDICTION = re.compile(rf"(?ia)/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)")
STATUS = re.compile(rf"(?ia)/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<more>metadata))?")
_ORIGIN = re.compile(r"(?i)^https?://[^/?]*")
CODES = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}


def _predict(store, request):
    """A Predict request whose inputs are still a JSON document's, which a signature gives their dtypes."""
    document, proto = _parsed(request)
    with store.use(proto.model_spec) as servable:
        key = proto.model_spec.signature_name or inference.DEFAULT_SIGNATURE
        if key not in servable.signatures:
            raise invalid_argument(f'Serving signature name: "{key}" not found in signature def')
        infos = servable.signatures[key].inputs
        if not infos:
            raise invalid_argument(
                f"Failed to get input map for signature: {proto.model_spec.signature_name or 'DEFAULT'}"
            )
        is_row_format = json_tensors.fill_inputs(document, dict(infos), proto.inputs)
        response = inference.predict(servable, proto)
    return json_tensors.predictions(response.outputs, is_row_format)


def _parsed(request):
    body, proto = request
    document = json_tensors.parse(body)
    json_tensors.fill_signature_name(document, proto.model_spec)
    return document, proto


def _classify(store, request):
    document, proto = _parsed(request)
    json_tensors.fill_examples(document, proto.input)
    result = service.classify(store, proto).result
    return {
        "results": [
            [[one.label, json_tensors.decimal(one.score)] for one in row.classes]
            for row in result.classifications
        ]
    }


def _regress(store, request):
    document, proto = _parsed(request)
    json_tensors.fill_examples(document, proto.input)
    result = service.regress(store, proto).result
    return {"results": [json_tensors.decimal(one.value) for one in result.regressions]}


def _status(store, request):
    return _document(service.get_model_status(store, request))


def _metadata(store, request):
    response = service.get_model_metadata(store, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {
        "model_spec": _document(response.model_spec),
        "metadata": {"signature_def": _document(signatures)},
    }


_document = functools.partial(
    json_format.MessageToDict,
    preserving_proto_field_name=True,
    always_print_fields_with_no_presence=True,
)
POST = {
    "predict": (_predict, predict_pb2.PredictRequest),
    "classify": (_classify, classification_pb2.ClassificationRequest),
    "regress": (_regress, regression_pb2.RegressionRequest),
}


def handle(answer, method, path, body):
    """The document that answers an HTTP request, its path not yet unquoted; raises RequestError.

    Args:
        answer: function of a method, which takes a store and a request, of that request, and of whether it is
            inference.
    """
    match = {"POST": PREDICTION, "GET": STATUS}.get(method, re.compile("")).fullmatch(path)
    if not match:
        raise invalid_argument(f"Malformed request: {method} {path}")
    if match["name"] is None:
        raise invalid_argument("Missing model name in request.")
    if method == "GET":
        function, request = _status, get_model_status_pb2.GetModelStatusRequest()
        if match["more"]:
            function = _metadata
            request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        _fill_spec(match, request.model_spec)
        return answer(function, request, False)
    function, request_class = POST[match["method"].lower()]
    request = request_class()
    _fill_spec(match, request.model_spec)
    # Parsed in its turn: that is work too.
    return answer(function, (body, request), True)


def _fill_spec(match, spec):
    spec.name = urllib.parse.unquote(match["name"])
    if match["version"]:
        digits = match["version"].lstrip("0")
        if len(digits) > 19 or int(digits or 0) >= 1 << 63:
            raise invalid_argument(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(digits or 0)
    if match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])


class RestServer:
    """An HTTP server on `host`:`port` (0: any free one), bound when made, answering once started.

    Raises StartError where the address is taken or no address of this machine.
    """

    def __init__(self, answer, host, port, num_threads, max_bytes):
        self._answer = answer
        self._max_bytes = max_bytes
        try:
            self._server = waitress.create_server(
                self._respond,
                host=host,
                port=port,
                threads=num_threads,
                max_request_body_size=max_bytes,
                channel_request_lookahead=1,  # so that a caller who hangs up is noticed
                connection_limit=1000,
                asyncore_use_poll=True,  # select() fails for good at descriptor 1024
                ident=None,
            )
        except (OSError, ValueError) as error:
            raise StartError(
                f"cannot listen on {host}:{port} for REST: {error}; choose another --rest_api_port or --host"
            ) from error
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self.port = self._server.effective_port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rest")

    def start(self):
        """Answer requests."""
        self._thread.start()

    def _run(self):
        # What waitress does in `run`, in steps, as its sockets may be closed in no other thread.
        server = self._server
        while not self._stopping.is_set():
            self._step()
        server.del_channel()
        server.socket.close()  # no more connections
        for channel in server.active_channels.values():
            channel.readable = bool  # False: no more requests on those there are
        while time.monotonic() < self._ends and self._is_busy():
            self._step()
        server.task_dispatcher.shutdown(timeout=1)
        for channel in list(server.active_channels.values()):
            channel.handle_close()

    def _is_busy(self):
        tasks, channels = self._server.task_dispatcher, self._server.active_channels
        return tasks.queue or tasks.active_count or any(one.total_outbufs_len for one in channels.values())

    def _step(self):
        self._server.asyncore.loop(
            timeout=0.1, map=self._server._map, use_poll=self._server.adj.asyncore_use_poll, count=1
        )

    def _respond(self, environ, start_response):
        status, content_type, body = self._result(environ)
        reason = http.HTTPStatus(status).phrase if status != 499 else "Client Closed Request"
        start_response(
            f"{status} {reason}", [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _result(self, environ):
        # Proxies' form of a request has the whole URI in it (RFC 9112, 3.2.2).
        path = _ORIGIN.sub("", environ["REQUEST_URI"]).partition("?")[0]
        if not path.lower().startswith("/v1/"):
            return 404, "text/html", b"<html><title>404 Not Found</title><h1>Not Found</h1></html>\n"

        def answer(function, request, is_inference):
            has_gone = environ["waitress.client_disconnected"]
            return self._answer(function, request, lambda: not has_gone(), is_inference)

        try:
            document = handle(answer, environ["REQUEST_METHOD"], path, self._body(environ))
            return 200, "application/json", json_tensors.serialize(document)
        except RequestError as error:
            return (
                CODES.get(error.code, 500),
                "application/json",
                json_tensors.serialize({"error": error.message}),
            )
        except Exception as error:
            # Neither its text nor the path, both of which the caller may have written, is for logs.
            log.error("a REST request failed with %s", type(error).__name__)
            return 500, "application/json", json_tensors.serialize({"error": "the embedded server failed"})

    def _body(self, environ):
        body = environ["wsgi.input"].read()
        if environ.get("HTTP_CONTENT_ENCODING", "").lower() != "gzip":
            return body
        unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            body = unpacking.decompress(body, self._max_bytes)
        except zlib.error as error:
            raise invalid_argument(f"the body is no gzip: {error}") from None
        if not unpacking.eof:
            raise invalid_argument(
                f"the body is cut short, or larger than {self._max_bytes:,} bytes unpacked"
            )
        return body

    def stop(self, grace_s):
        """Take no more connections and give the requests under way `grace_s` seconds."""
        self._ends = time.monotonic() + grace_s
        self._stopping.set()
        if self._thread.is_alive():
            self._server.pull_trigger()
            self._thread.join()
        self._server.close()
