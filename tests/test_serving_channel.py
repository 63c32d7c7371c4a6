"""Deadlines, retries, several targets, TLS and pings of both gRPC clients, against servers that fail so."""

import asyncio
import contextlib
import socket
import threading
import time

import grpc
import pytest

from serving.client import AsyncPredictClient, PredictClient
from serving.connection import Tls
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotPermitted,
    Overloaded,
    ServerError,
    ServerFault,
    Unreachable,
)
from serving.rest_client import RestPredictClient
from tests.stand_ins import Script, grpc_server, upper, write_certificates

OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
DEAD = "127.0.0.1:1"


def ask_blocking(target, *arguments, options=None, times=1, **keywords):
    with PredictClient(target, "m", **options or {}) as client:
        return [client.predict(*arguments, **keywords) for _ in range(times)][-1]


def ask_async(target, *arguments, options=None, times=1, **keywords):
    async def ask():
        async with AsyncPredictClient(target, "m", **options or {}) as client:
            return [await client.predict(*arguments, **keywords) for _ in range(times)][-1]

    return asyncio.run(ask())


@pytest.fixture(params=[ask_blocking, ask_async])
def ask(request):
    """Asks the model m of a target with either client."""
    return request.param


@contextlib.contextmanager
def scripted(*replies):
    """A server's address and what it was asked; where replies end with `upper`, it answers from there on."""
    script = Script(*[upper if reply is upper else reply for reply in replies])

    def answer(request, context):
        reply = script(request, context)
        return upper(request) if reply is upper else reply

    with grpc_server(answer) as port:
        yield f"127.0.0.1:{port}", script.requests


# ---- Retries and deadlines ----


@pytest.mark.parametrize("size", [1, 400_000])
@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_a_server_that_could_not_is_asked_again(ask, code, size):
    with scripted((grpc.StatusCode[code], "no"), (grpc.StatusCode[code], "no"), upper) as (target, requests):
        assert ask(target, ["a" * size]) == [{"label": "A" * size}]
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("FAILED_PRECONDITION", InvalidRequest),
        ("NOT_FOUND", NotFound),
        ("PERMISSION_DENIED", NotPermitted),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("INTERNAL", ServerFault),
        ("ABORTED", ServerError),
    ],
)
def test_what_another_attempt_cannot_mend_is_asked_once(ask, code, kind):
    with scripted((grpc.StatusCode[code], "the reason")) as (target, requests), pytest.raises(kind) as caught:
        ask(target, ["a"])
    assert len(requests) == 1
    assert type(caught.value) is kind and (caught.value.code, caught.value.message) == (code, "the reason")
    assert str(caught.value).startswith(f"{target}: ") and f"({code}: the reason)" in str(caught.value)


@pytest.mark.parametrize("attempts", [1, 2])
def test_attempts_have_an_end(ask, attempts):
    said = "too much to do; send less at once, or later"
    with scripted(OVERLOADED) as (target, requests), pytest.raises(Overloaded, match=said):
        ask(target, ["a"], options={"attempts": attempts})
    assert len(requests) == attempts


def test_attempts_end_with_the_deadline(ask):
    ended = pytest.raises((DeadlineExceeded, Overloaded))
    with scripted(OVERLOADED) as (target, requests), ended:
        ask(target, ["a"], timeout=0.5)  # five would take 2.6 s at the least
    assert 1 <= len(requests) < 5


@pytest.mark.parametrize(
    ("keywords", "least", "most"), [({}, 0, 61), ({"timeout": 500}, 61, 501), ({"timeout": None}, 1e9, None)]
)
def test_a_call_ends_after_a_minute_unless_told_otherwise(ask, keywords, least, most):
    seen = []

    def answer(request, context):
        seen.append(context.time_remaining())
        return upper(request)

    with grpc_server(answer) as port:
        ask(f"127.0.0.1:{port}", ["a"], **keywords)
    [left] = seen
    assert (left is None or left > least) if most is None else least < left <= most


def test_one_deadline_holds_for_all_batches(ask):
    release = threading.Event()
    served = []

    def answer(request, context):
        served.append(1)
        if len(served) > 2:
            release.wait(60)
        return upper(request)

    with grpc_server(answer) as port:
        options = {"batch_size": 1, "concurrency": 1}
        with pytest.raises(DeadlineExceeded, match="no answer in time"):
            ask(f"127.0.0.1:{port}", list("abcdef"), options=options, timeout=2)
        release.set()
    assert len(served) == 3


# ---- Batches ----


def test_batches_run_side_by_side_and_come_back_in_order(ask):
    together = threading.Barrier(3)
    sizes, under_way, most = [], [], []

    def answer(request, context):
        under_way.append(1)
        most.append(len(under_way))
        sizes.append(len(request.inputs["text"].string_val))
        together.wait(60)  # three have to be here at once
        response = upper(request)
        under_way.pop()
        return response

    texts = [f"text {number}" for number in range(40)]
    with grpc_server(answer) as port:
        answers = ask(f"127.0.0.1:{port}", texts, options={"batch_size": 7, "concurrency": 3})
    assert [answer["label"] for answer in answers] == [text.upper() for text in texts]
    assert sorted(sizes) == [5, 7, 7, 7, 7, 7] and max(most) == 3


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_failed_batch_ends_the_call(ask, concurrency):
    def answer(request, context):
        asked.append(request)
        if b"51" in request.inputs["text"].string_val:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no 51")
        time.sleep(0.01)
        return upper(request)

    asked, options = [], {"batch_size": 1, "concurrency": concurrency}
    with grpc_server(answer) as port, pytest.raises(InvalidRequest, match="no 51"):
        ask(f"127.0.0.1:{port}", [str(number) for number in range(1000)], options=options)
    assert len(asked) < 1000


def test_a_call_that_is_cancelled_is_so_at_the_server():
    gone = threading.Event()

    def answer(request, context):
        context.add_callback(gone.set)
        asked.set()
        gone.wait(60)
        return upper(request)

    async def ask(target):
        async with AsyncPredictClient(target, "m") as client:
            task = asyncio.create_task(client.predict(["a"]))
            await asyncio.to_thread(asked.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(gone.wait, 30)

    asked = threading.Event()
    with grpc_server(answer) as port:
        asyncio.run(ask(f"127.0.0.1:{port}"))


def test_no_texts_have_no_answers_and_need_no_server(ask):
    assert ask(DEAD, []) == []


# ---- Several targets ----


def test_one_dead_target_is_no_failure(ask):
    with scripted(upper) as (target, requests):
        assert ask(f"{DEAD},{target},no-such-host.invalid:8500", ["a"], times=10) == [{"label": "A"}]
    assert len(requests) == 10


def test_a_target_that_dies_is_replaced_by_another():
    with contextlib.ExitStack() as living, contextlib.ExitStack() as dying:
        dead, _ = dying.enter_context(scripted(upper))
        alive, requests = living.enter_context(scripted(upper))
        with PredictClient(f"{dead},{alive}", "m") as client:
            client.predict(["a"])
            dying.close()
            for _ in range(10):
                assert client.predict(["a"]) == [{"label": "A"}]
        assert len(requests) >= 10


def test_targets_share_the_work():
    with (
        scripted(upper) as (one, to_one),
        scripted(upper) as (other, to_other),
        PredictClient(f"{one},{other}", "m") as client,
    ):
        for _ in range(1000):
            client.predict(["a"])
            if to_one and to_other:
                break
    assert to_one and to_other


def test_targets_that_are_all_dead_are_said_to_be(ask):
    with pytest.raises(Unreachable, match="no model server answers there"):
        ask(f"{DEAD},127.0.0.1:2", ["a"], options={"attempts": 1})
    with pytest.raises(Unreachable, match="none of these hosts has an address"):
        ask("no-such-host.invalid:1,nor-this.invalid:1", ["a"])


@pytest.mark.parametrize("target", ["localhost", "host:99999", "host:0", "", "a b:1", "h:1,", "http://h:1"])
def test_what_is_no_address_is_refused(ask, target):
    with pytest.raises(ValueError, match="is no address; write host:port, such as localhost:8500"):
        ask(target, ["a"])


def test_grpcs_own_names_are_left_to_it(ask):
    with scripted(upper) as (target, _):
        assert ask(f"dns:///{target}", ["a"]) == [{"label": "A"}]


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"concurrency": 0}, {"attempts": 0}, {"attempts": 6}])
def test_a_number_that_cannot_be_is_refused(numbers):
    for client in (PredictClient, RestPredictClient):
        with pytest.raises(ValueError, match="1 or more, attempts 1 to 5; not"):
            client("localhost:8500", "m", **numbers)


# ---- TLS ----


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder


@pytest.fixture
def secure(certificates):
    """Gives the port of a server over TLS, which asks for a client's certificate where told to."""

    @contextlib.contextmanager
    def serve(asks_for_certificate=False):
        pair = [((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())]
        roots = (certificates / "ca.pem").read_bytes() if asks_for_certificate else None
        credentials = grpc.ssl_server_credentials(pair, roots, asks_for_certificate)
        with grpc_server(upper, credentials) as port:
            yield port

    return serve


def test_a_server_is_asked_over_tls(ask, secure, certificates):
    trusted = Tls(str(certificates / "ca.pem"))
    with secure() as port:
        assert ask(f"127.0.0.1:{port}", ["a"], options={"tls": trusted}) == [{"label": "A"}]
        for target in (f"127.0.0.1:{port},{DEAD}", f"ipv4:127.0.0.1:{port}"):
            assert ask(target, ["a"], options={"tls": trusted}) == [{"label": "A"}]
        named = Tls(str(certificates / "ca.pem"), server_name="models.test")
        assert ask(f"localhost:{port}", ["a"], options={"tls": named}) == [{"label": "A"}]


def test_a_server_that_is_not_the_one_meant_is_not_asked(ask, secure, certificates):
    with secure() as port:
        for tls in (
            Tls(),
            Tls(str(certificates / "other.pem")),
            Tls(str(certificates / "ca.pem"), server_name="else"),
            None,
        ):
            with pytest.raises(Unreachable, match="are address and TLS right"):
                ask(f"127.0.0.1:{port}", ["a"], options={"tls": tls, "attempts": 1})


def test_a_client_shows_its_certificate_where_the_server_asks_for_one(ask, secure, certificates):
    own = [str(certificates / name) for name in ("ca.pem", "client.pem", "client.key")]
    with secure(asks_for_certificate=True) as port:
        assert ask(f"127.0.0.1:{port}", ["a"], options={"tls": Tls(*own)}) == [{"label": "A"}]
        with pytest.raises(Unreachable):
            ask(f"127.0.0.1:{port}", ["a"], options={"tls": Tls(own[0]), "attempts": 1})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("none.pem", None, None), "none.pem: can't be used for TLS: No such file or directory"),
        (("server.key", None, None), "server.key: can't be used for TLS: .*; give PEM files"),
        ((None, "client.pem", None), "a client certificate and its key go together"),
        ((None, "client.pem", "server.key"), "can't be used for TLS: .*; give PEM files"),
    ],
)
def test_files_that_are_no_use_for_tls_are_refused_in_one_line(ask, certificates, names, message):
    with pytest.raises(ValueError, match=message) as caught:
        ask(DEAD, ["a"], options={"tls": Tls(*(name and str(certificates / name) for name in names))})
    assert "\n" not in str(caught.value)


# ---- Pings ----


def test_a_connection_that_went_dead_is_noticed_by_its_pings(ask):
    """Behind a connection that is open and carries nothing, a call ends long before its deadline."""
    silent = socket.create_server(("127.0.0.1", 0))
    held = []

    def forward():
        with contextlib.suppress(OSError):
            while True:
                held.append(silent.accept()[0])
                # An empty SETTINGS frame, which a client takes for a server; nothing follows.
                held[-1].sendall(b"\0\0\0\4\0\0\0\0\0")

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unreachable):
            ask(target, ["a"], options={"keep_alive": 0.5, "attempts": 1}, timeout=60)
        with pytest.raises(DeadlineExceeded):
            ask(target, ["a"], options={"attempts": 1}, timeout=2)
    finally:
        silent.shutdown(socket.SHUT_RDWR)
        silent.close()
        thread.join()
        for connection in held:
            connection.close()
