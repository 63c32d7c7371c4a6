"""Servers that stand in for a model server and do as a test says, and certificates for them."""

import contextlib
import datetime
import http.server
import ipaddress
import threading
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tensorflow_serving.apis import classification_pb2, predict_pb2, regression_pb2

METHODS = {
    "Predict": (predict_pb2.PredictRequest, predict_pb2.PredictResponse),
    "Classify": (classification_pb2.ClassificationRequest, classification_pb2.ClassificationResponse),
    "Regress": (regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
}


@contextlib.contextmanager
def grpc_server(answer, credentials=None, threads=8, port=0):
    """The port of a server on 127.0.0.1 whose methods are answer(request, context)."""
    server = grpc.server(
        futures.ThreadPoolExecutor(threads),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
    )
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)
        for name, (request, response) in METHODS.items()
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers)]
    )
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield bound
    finally:
        server.stop(0).wait()


class Script:
    """An answer for `grpc_server` that takes its replies from a list, and keeps the requests.

    A reply is a response, or (grpc.StatusCode, message) to end the call with; the last one is repeated.
    """

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []

    def __call__(self, request, context):
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, tuple):
            context.abort(*reply)
        return reply


def upper(request, context=None):
    """A Predict that gives back the texts in upper case, as `label`."""
    response = predict_pb2.PredictResponse()
    label = response.outputs["label"]
    label.CopyFrom(request.inputs["text"])
    label.string_val[:] = [text.upper() for text in request.inputs["text"].string_val]
    return response


@contextlib.contextmanager
def http_server(answer, ssl_context=None):
    """The port of an HTTP server on 127.0.0.1: answer(verb, path, body) gives (status, type, bytes).

    Where it gives None, the connection is dropped.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = answer(self.command, self.path, body)
            if reply is None:
                self.close_connection = True
                return
            status, content_type, data = reply
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that goes is what some tests are about
    if ssl_context:
        server.socket = ssl_context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_certificates(folder):
    """Write ca.pem, server.pem/.key (for "models.test" and 127.0.0.1) and client.pem/.key, and other.pem.

    other.pem is an authority that signed none of them.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("authority", authority_key, "authority", authority_key)
    _write(folder, "ca", authority)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("models.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    for name, alternative in (("server", names), ("client", None)):
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, name, _certificate(name, key, "authority", authority_key, alternative), key)
    other_key = ec.generate_private_key(ec.SECP256R1())
    _write(folder, "other", _certificate("other", other_key, "other", other_key))


def _certificate(subject, key, issuer, issuer_key, names=None):
    def name(common):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])

    now = datetime.datetime.now(datetime.UTC)
    is_authority = subject == issuer
    builder = (
        x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, is_authority, is_authority, False, False),
            critical=True,
        )
    )
    if names:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _write(folder, name, certificate, key=None):
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    if key:
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
