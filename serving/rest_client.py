"""Ask a model server, embedded or stock, over REST: strings in, labelled results out.

    with RestPredictClient("localhost:8501", "sentiment") as client:
        client.predict(["a quiet triumph", "so dull"])

The methods, results and errors of `serving.client.PredictClient`, which is the faster of the two; needs
urllib3, tenacity and NumPy, neither TensorFlow nor grpc nor protobuf.
"""

import base64
import itertools
import json
import urllib.parse

import numpy as np
import tenacity
import urllib3

from serving.connection import (
    ATTEMPTS,
    BATCH_SIZE,
    CONCURRENCY,
    DELAY_FACTOR,
    FIRST_DELAY,
    LONGEST_DELAY,
    TIMEOUT,
    Deadline,
    addresses,
    check_numbers,
)
from serving.errors import (
    KINDS,
    WORTH_RETRYING,
    DeadlineExceeded,
    InvalidRequest,
    ServerFault,
    Unreachable,
    WrongServer,
    error_of,
)
from serving.rows import batches, in_order, joined, rows, sendable, text_inputs

CONNECT_TIMEOUT = 5.0  # seconds; after that the next target is tried
# HTTP status -> gRPC status code, as TensorFlow Serving has it, and proxies before it;
# any other below 500 is a fault of the request, from 500 of the server.
CODES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# `DataType` as JSON has it, as NumPy names it.
DTYPES = {
    "DT_FLOAT": "float32",
    "DT_DOUBLE": "float64",
    "DT_HALF": "float16",
    "DT_BFLOAT16": "bfloat16",
    "DT_STRING": "string",
    "DT_BOOL": "bool",
    **{f"DT_{sign}INT{bits}": f"{sign}int{bits}".lower() for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


class RestPredictClient:
    """`PredictClient` over REST; may be shared by threads, and keeps its connections open between calls.

    Of several targets each attempt asks the next one. The arguments are PredictClient's, without keep_alive.
    A timeout ends the attempts and each wait for the server, not an answer that comes in bit by bit. Proxies
    that the environment names are not asked.
    """

    def __init__(
        self,
        target,
        model,
        *,
        tls=None,
        attempts=ATTEMPTS,
        batch_size=BATCH_SIZE,
        concurrency=CONCURRENCY,
    ):
        check_numbers(attempts, batch_size, concurrency)
        self.target = target
        self.model = model
        self.attempts = attempts
        self.batch_size = batch_size
        self.concurrency = concurrency
        scheme, options = "http", {}
        if tls is not None:
            scheme, options = "https", {"ssl_context": tls.context()}
            if tls.server_name:
                options |= {"server_hostname": tls.server_name, "assert_hostname": tls.server_name}
        self._pools = urllib3.PoolManager(maxsize=concurrency, retries=False, **options)
        self._hosts = itertools.cycle(f"{scheme}://{host}:{port}" for host, port in addresses(target))
        self._signatures = {}

    def predict(self, texts, text_pairs=None, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """As `PredictClient.predict`."""
        return self.predict_rows(text_inputs(texts, text_pairs), signature_name, version, label, timeout)

    def predict_rows(self, inputs, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """As `PredictClient.predict_rows`."""
        deadline = Deadline(timeout, self.target)

        def ask(batch):
            return rows(self._run(batch, signature_name, version, label, deadline))

        parts = in_order(ask, batches(inputs, self.batch_size), self.concurrency)
        return joined(parts, max(map(len, inputs.values()), default=0))

    def run(self, inputs, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """As `PredictClient.run`."""
        return self._run(inputs, signature_name, version, label, Deadline(timeout, self.target))

    def _run(self, inputs, signature_name, version, label, deadline):
        body = {"inputs": _sent(inputs)}
        if signature_name:
            body["signature_name"] = signature_name
        values = self._post("predict", body, version, label, deadline, "outputs")
        for again in (False, True):
            found = self._described(version, label, deadline, again).get(signature_name or "serving_default")
            # Inputs that a signature doesn't know are passed over by the server.
            known = found and inputs.keys() <= found["inputs"].keys()
            if known and (named := _named(values, found["outputs"])):
                return {name: _array(named[name], dtype) for name, (dtype, _) in found["outputs"].items()}
        if found and not known:
            said = f"the signature takes {', '.join(found['inputs'])}, not {', '.join(inputs)}"
            raise InvalidRequest(self.target, "INVALID_ARGUMENT", said)
        raise ServerFault(self.target, "INTERNAL", "the outputs are not those that the metadata describes")

    def classify(self, examples, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """As `PredictClient.classify`."""
        return [
            [{"label": name, "score": float(np.float32(score))} for name, score in classes]
            for classes in self._examples("classify", examples, signature_name, version, label, timeout)
        ]

    def regress(self, examples, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """As `PredictClient.regress`."""
        values = self._examples("regress", examples, signature_name, version, label, timeout)
        return [float(np.float32(value)) for value in values]

    def _examples(self, method, examples, signature_name, version, label, timeout):
        deadline = Deadline(timeout, self.target)

        def ask(batch):
            body = {"examples": [_sent(features) for features in batch["examples"]]}
            if signature_name:
                body["signature_name"] = signature_name
            return self._post(method, body, version, label, deadline, "results")

        parts = in_order(ask, batches({"examples": examples}, self.batch_size), self.concurrency)
        return joined(parts, len(examples))

    def metadata(self, version=None, label=None, timeout=TIMEOUT):
        """As `PredictClient.metadata`."""
        return self._described(version, label, Deadline(timeout, self.target), again=True)

    def _described(self, version, label, deadline, again):
        """The signatures, asked for once or `again`: answers lack dtypes, and the name of a lone output."""
        if again or (version, label) not in self._signatures:
            path = f"{self._path(version, label)}/metadata"
            found = self._ask("GET", path, None, deadline, "metadata")["signature_def"]["signature_def"]
            self._signatures[version, label] = {
                key: {
                    "method_name": signature["method_name"],
                    "inputs": _described(signature["inputs"]),
                    "outputs": _described(signature["outputs"]),
                }
                for key, signature in sorted(found.items())
                if key != "__saved_model_init_op"
            }
        return self._signatures[version, label]

    def status(self, version=None, timeout=TIMEOUT):
        """As `PredictClient.status`."""
        path, deadline = self._path(version, None), Deadline(timeout, self.target)
        statuses = self._ask("GET", path, None, deadline, "model_version_status")
        return {int(status["version"]): status["state"] for status in statuses}

    def _path(self, version, label):
        path = f"/v1/models/{urllib.parse.quote(self.model, safe='')}"
        if version is not None:
            path += f"/versions/{version}"
        return path + (f"/labels/{urllib.parse.quote(label, safe='')}" if label else "")

    def _post(self, method, body, version, label, deadline, key):
        # NumPy and Python write NaN and infinities as TensorFlow Serving reads and writes them.
        data = json.dumps(body, ensure_ascii=False).encode("utf-8")
        return self._ask("POST", f"{self._path(version, label)}:{method}", data, deadline, key)

    def _ask(self, verb, path, body, deadline, key):
        """What stands under `key` in the answer; tried again where that may help, within the deadline."""
        left = deadline.left()
        stop = tenacity.stop_after_attempt(self.attempts)
        if left is not None:
            stop |= tenacity.stop_before_delay(left)
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(tuple(KINDS[code] for code in WORTH_RETRYING)),
            wait=tenacity.wait_exponential(FIRST_DELAY, LONGEST_DELAY, DELAY_FACTOR)
            + tenacity.wait_random(0, FIRST_DELAY),
            stop=stop,
            reraise=True,
        ):
            with attempt:
                return self._try(verb, next(self._hosts), path, body, deadline, key)

    def _try(self, verb, host, path, body, deadline, key):
        left = deadline.left()
        connect = CONNECT_TIMEOUT if left is None else min(left, CONNECT_TIMEOUT)
        try:
            response = self._pools.request(
                verb,
                host + path,
                body=body,
                headers={"Content-Type": "application/json"} if body else {},
                timeout=urllib3.Timeout(connect=connect, read=left),
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            # A refused connection is a ConnectTimeoutError too, of a kind of its own.
            is_late = type(error) is urllib3.exceptions.ConnectTimeoutError and connect == left
            if is_late or isinstance(error, urllib3.exceptions.ReadTimeoutError):
                raise DeadlineExceeded(host, "DEADLINE_EXCEEDED", str(error)) from error
            raise Unreachable(host, "UNAVAILABLE", str(error)) from error
        try:
            # Strings that aren't UTF-8 come as they are, which JSON doesn't know.
            answer = json.loads(response.data.decode("utf-8", "surrogateescape"))
            if response.status == 200:
                return answer[key]
            message = answer["error"]
        except (ValueError, KeyError, TypeError) as error:
            if response.status < 400 or response.status == 404:
                said = f"HTTP {response.status}, and no answer of a model server"
                raise WrongServer(host, "UNIMPLEMENTED", said) from error
            message = f"HTTP {response.status} {response.reason or ''}"
        raise error_of(host, _code(response.status), message)

    def close(self):
        """Close the connections."""
        self._pools.clear()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _code(status):
    return CODES.get(status, "UNKNOWN" if status >= 500 else "INVALID_ARGUMENT")


def _sent(named):
    return {name: _json(sendable(values).tolist()) for name, values in named.items()}


def _json(value):
    """Bytes as JSON has them: a string, or base64 for what isn't UTF-8; all else as it is, lists entered."""
    if isinstance(value, list):
        return [_json(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode("ascii")}


def _named(values, outputs):
    """{output: values} for what a signature's answer holds, where a lone output has no name; else None."""
    if len(outputs) == 1 and not (isinstance(values, dict) and values.keys() != {"b64"}):
        return dict.fromkeys(outputs, values)
    return values if isinstance(values, dict) and values.keys() == outputs.keys() else None


def _array(values, dtype):
    if dtype == "string":
        array = np.array(values, object)
        data = np.empty(array.size, object)
        data[:] = [
            base64.b64decode(one["b64"]) if isinstance(one, dict) else one.encode("utf-8", "surrogateescape")
            for one in array.ravel().tolist()
        ]
        return data.reshape(array.shape)
    return np.asarray(values, "float32" if dtype == "bfloat16" else dtype)


def _described(tensors):
    described = {}
    for name, info in sorted(tensors.items()):
        shape = info["tensor_shape"]
        sizes = None if shape["unknown_rank"] else tuple(int(dim["size"]) for dim in shape["dim"])
        described[name] = (DTYPES.get(info["dtype"], "other"), sizes)
    return described
