"""Ask a model server, embedded or stock, over gRPC: strings in, labelled results out.

    with PredictClient("localhost:8500", "sentiment") as client:
        client.predict(["a quiet triumph", "so dull"])

    async with AsyncPredictClient("localhost:8500", "sentiment") as client:
        await client.predict(["a quiet triumph", "so dull"])

Needs grpcio, protobuf and NumPy, not TensorFlow. `serving.rest_client` does the same over REST.
"""

import collections
import operator

import grpc
import grpc.aio

from serving import messages, protocol
from serving.channel import open_channel
from serving.connection import ATTEMPTS, BATCH_SIZE, CONCURRENCY, TIMEOUT, Deadline, check_numbers
from serving.errors import ServerError as ServerError  # where callers look for it
from serving.errors import error_of
from serving.rows import batches, in_order, joined, rows, text_inputs

_only = operator.itemgetter(0)


class _Client:
    """What both clients share: everything but the call itself, which `_ask` makes.

    `_ask(method, requests, timeout, read, join)` sends each request, up to `concurrency` at once, and gives
    `join([read(response), ...])`, in the order of the requests.
    """

    _library = None  # grpc or grpc.aio, whose functions have the same names

    def __init__(
        self,
        target,
        model,
        *,
        tls=None,
        attempts=ATTEMPTS,
        batch_size=BATCH_SIZE,
        concurrency=CONCURRENCY,
        keep_alive=None,
    ):
        check_numbers(attempts, batch_size, concurrency)
        self.target = target
        self.model = model
        self.batch_size = batch_size
        self.concurrency = concurrency
        self._channel = open_channel(self._library, target, tls, attempts, keep_alive)
        self._calls = {
            method: self._channel.unary_unary(
                f"/tensorflow.serving.{path}",
                lambda request: request.SerializeToString(),
                protocol.CLASSES[response_name].FromString,
            )
            for method, (path, response_name) in messages.METHODS.items()
        }

    def predict(self, texts, text_pairs=None, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """The outputs for `texts` (str or bytes), a dict for each, in order; sent in batches.

        Args:
            texts, text_pairs: lists of equal length; pairs only for models that take them.
            signature_name: the server's default where None.
            version, label: an integer, or the name of a version; the latest where both are None.
            timeout: seconds for all of it; without end where None.

        Returns:
            for a classifier `{"label": str, "score": float, "probabilities": [float]}` each.
        """
        return self.predict_rows(text_inputs(texts, text_pairs), signature_name, version, label, timeout)

    def predict_rows(self, inputs, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """`predict` for a signature of any inputs: {name: list or NumPy array [B, ...]}, such as token ids.

        Raises ValueError where inputs differ in length, or outputs have no entry for each row.
        """
        spec = messages.model_spec(self.model, version, label, signature_name)
        requests = (messages.predict_request(spec, batch) for batch in batches(inputs, self.batch_size))
        count = max(map(len, inputs.values()), default=0)
        return self._ask(
            "Predict",
            requests,
            timeout,
            lambda response: rows(messages.outputs(response)),
            lambda parts: joined(parts, count),
        )

    def run(self, inputs, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """Run a signature once: arrays or lists by input name in, NumPy arrays by output name back."""
        spec = messages.model_spec(self.model, version, label, signature_name)
        return self._ask("Predict", [messages.predict_request(spec, inputs)], timeout, messages.outputs)

    def classify(self, examples, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """The classes of each of `examples`, tf.Examples as {feature: value or list of values}.

        Features are strings, integers or floats; so many examples are one request, not batches.

        Returns:
            `[{"label": str, "score": float}, ...]` for each.
        """
        return self._ask_examples("Classify", examples, signature_name, version, label, timeout)

    def regress(self, examples, signature_name=None, version=None, label=None, timeout=TIMEOUT):
        """The value, a float, of each of `examples`, which are as for `classify`."""
        return self._ask_examples("Regress", examples, signature_name, version, label, timeout)

    def _ask_examples(self, method, examples, signature_name, version, label, timeout):
        kind, read = {
            "Classify": ("ClassificationRequest", messages.classifications),
            "Regress": ("RegressionRequest", messages.regressions),
        }[method]
        spec = messages.model_spec(self.model, version, label, signature_name)
        requests = (
            messages.examples_request(kind, spec, batch["examples"])
            for batch in batches({"examples": examples}, self.batch_size)
        )
        return self._ask(method, requests, timeout, read, lambda parts: joined(parts, len(examples)))

    def metadata(self, version=None, label=None, timeout=TIMEOUT):
        """The signatures: {signature: {"method_name": str, "inputs" and "outputs": {name: (dtype, shape)}}}.

        A size of -1 in a shape is any; a shape of None is unknown.
        """
        request = protocol.CLASSES["GetModelMetadataRequest"](
            model_spec=messages.model_spec(self.model, version, label), metadata_field=["signature_def"]
        )
        return self._ask("GetModelMetadata", [request], timeout, messages.signatures)

    def status(self, version=None, timeout=TIMEOUT):
        """The state of every version the server knows, or of one: {version: "AVAILABLE"}, newest first."""
        request = protocol.CLASSES["GetModelStatusRequest"](
            model_spec=messages.model_spec(self.model, version)
        )
        return self._ask("GetModelStatus", [request], timeout, messages.states)

    def _error(self, error):
        return error_of(self.target, error.code().name, error.details() or "")


class PredictClient(_Client):
    """A connection to one model of the servers at `target`; may be shared by threads.

    Connects when first asked. Every method raises a ServerError where no result comes back (see
    `serving.errors`). Close it, or use it as a context manager.

    Args:
        target: "host:port"; several with commas between are asked in turn, and one that is dead is passed
            over. Names among several are looked up when the client is made. Or one of gRPC's own names, such
            as "dns:///name:8500", looked up again whenever connections break.
        model: its name at the server.
        tls: a `serving.connection.Tls`; no encryption where None.
        attempts: at most so many, 1 to 5, where the server is not reached (UNAVAILABLE) or has too much to do
            (RESOURCE_EXHAUSTED), with growing, jittered delays between, within the timeout.
        batch_size: rows in a request at most, where a method sends several.
        concurrency: requests of one call under way at once.
        keep_alive: seconds without a sign of life until the server is pinged, and, up to 20, for its answer;
            never where None. Servers close connections that are pinged more often than they permit, which is
            every 300 s unless they say otherwise.

    Raises ValueError, one line, for an address, file or number that can't be.
    """

    _library = grpc

    def _ask(self, method, requests, timeout, read, join=_only):
        call, deadline = self._calls[method], Deadline(timeout, self.target)
        try:
            return join(
                in_order(
                    lambda request: read(call(request, timeout=deadline.left())), requests, self.concurrency
                )
            )
        except grpc.RpcError as error:
            raise self._error(error) from error

    def close(self):
        """Close the connection."""
        self._channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class AsyncPredictClient(_Client):
    """`PredictClient` for asyncio: the same arguments and methods, which are awaited.

    Make it where an event loop runs, use it in that loop; `async with` closes it.
    """

    _library = grpc.aio

    async def _ask(self, method, requests, timeout, read, join=_only):
        call, deadline, parts = self._calls[method], Deadline(timeout, self.target), []
        pending = collections.deque()
        try:
            for request in requests:
                if len(pending) == self.concurrency:
                    parts.append(read(await pending.popleft()))
                pending.append(call(request, timeout=deadline.left()))
            while pending:
                parts.append(read(await pending.popleft()))
        except grpc.RpcError as error:
            raise self._error(error) from error
        finally:
            for unfinished in pending:
                unfinished.cancel()
        return join(parts)

    async def close(self):
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exception):
        await self.close()
