"""What the embedded server costs: overhead over a call in process, behaviour at twice its capacity, memory.

    python -m benchmarks.embedded_server --export_dir=exported/sentiment [--part=overhead,overload,memory]

The server is a process of its own on the same cores as the clients, which are counted in its capacity so.

overhead: p50 of one text through gRPC and through the same signature in this process, in turns, batching off.
overload: requests a second that 32 connections get answered, then twice as many sent whether or not earlier
    ones are answered; what is answered of these, and when.
memory: the server's resident memory after 10,000 requests and after 100,000 more, from 8 connections.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
from absl import app, flags

from serving import messages
from serving.client import PredictClient

EXPORT_DIR = flags.DEFINE_string("export_dir", None, "folder of a bundle's versions", required=True)
PART = flags.DEFINE_list("part", ["overhead", "overload", "memory"], "what to measure")
SERVER_FLAGS = flags.DEFINE_list("server_flags", [], "of the server in the overload part")
TEXTS_PER_REQUEST = flags.DEFINE_integer("texts_per_request", 1, "of the overload part")
ROUNDS = flags.DEFINE_integer("rounds", 5, "of each measurement of a part")
REQUESTS = flags.DEFINE_integer("requests", 100_000, "of the memory part, after the first 10,000")
SECONDS = flags.DEFINE_float("seconds", 15, "of each load of the overload part")
TEXTS = (
    "a quiet triumph",
    "so dull that the seats were the best part of it",
    "not one of its jokes lands , and there are many ; the cast , all better elsewhere , look bored",
)


@contextlib.contextmanager
def running_server(*options):
    """The address of a server, and its process's number."""
    command = [sys.executable, "-m", "serving.server", "--model_name=m", "--port=0"]
    command += [f"--model_base_path={EXPORT_DIR.value}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())[0], process.pid
        finally:
            process.terminate()


def overhead():
    """p50 in milliseconds of one text by gRPC, and by the signature in this process; a row a round."""
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from serving.servable import Servable, tf

    folder = max(
        (path for path in tf.io.gfile.listdir(EXPORT_DIR.value) if path.strip("/").isdigit()), key=int
    )
    servable = Servable("m", 1, f"{EXPORT_DIR.value}/{folder}")
    signature = servable.signatures["serving_default"]
    name = signature.inputs["text"].name
    fetches = [info.name for info in signature.outputs.values()]

    def in_process(text):
        servable.run({name: (tf.string, np.array([text.encode()], object))}, fetches)

    rows = []
    with running_server() as (address, _), grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def by_grpc(text):
            request = predict_pb2.PredictRequest(model_spec={"name": "m"})
            request.inputs["text"].CopyFrom(tf.make_tensor_proto([text]))
            return stub.Predict(request, timeout=60)

        for _ in range(ROUNDS.value):
            rows.append([p50(in_process), p50(by_grpc)])
    return {
        "in process, p50 ms": spread([row[0] for row in rows]),
        "gRPC, p50 ms": spread([row[1] for row in rows]),
        "difference, ms": spread([row[1] - row[0] for row in rows]),
        "ratio": spread([row[1] / row[0] for row in rows]),
    }


def p50(call, count=300):
    """The median of `count` calls in milliseconds, after some that don't count."""
    taken = []
    for number in range(count + 30):
        started = time.perf_counter()
        call(TEXTS[number % len(TEXTS)])
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken[30:])


def overload():
    """Peak throughput, and what is answered, refused and how late at twice of it; a row a round."""
    rows = []
    for _ in range(ROUNDS.value):
        with running_server(*SERVER_FLAGS.value) as (address, _):
            request = prepared_requests()
            asyncio.run(closed_loop(address, request, 3))
            peak, asking = with_cores(closed_loop(address, request, SECONDS.value))
            answers, sending = with_cores(open_loop(address, request, 2 * peak, SECONDS.value))
            left = (os.cpu_count() - asking) / (os.cpu_count() - sending)
            rows.append([peak, *answers, sending, answers[0] / peak, answers[0] / peak * left])
    names = (
        "peak, answers/s",
        "answers/s at twice the peak",
        "refused/s",
        "other failures",
        "p99 of answers, ms",
        "p99 of refusals, ms",
        "late by at most, ms",
        "cores that sending takes",
        "kept",
        "kept, of the cores that sending leaves",
    )
    return dict(zip(names, map(spread, zip(*rows, strict=True)), strict=True))


def with_cores(load):
    """What a coroutine gives, and the cores that this process was busy on meanwhile."""
    started, cpu = time.monotonic(), time.process_time()
    found = asyncio.run(load)
    return found, (time.process_time() - cpu) / (time.monotonic() - started)


def prepared_requests():
    """The bytes of a Predict request for each of TEXTS."""
    spec, count = messages.model_spec("m"), TEXTS_PER_REQUEST.value
    return [messages.predict_request(spec, {"text": [text] * count}).SerializeToString() for text in TEXTS]


def connections(address, count):
    """`count` channels with connections of their own."""
    return [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(count)
    ]


METHOD = "/tensorflow.serving.PredictionService/Predict"


async def closed_loop(address, requests, seconds):
    """Answers a second where each of 32 connections asks again once it is answered."""
    ends, counts = time.monotonic() + seconds, []

    async def keep_asking(channel):
        call, count = channel.unary_unary(METHOD), 0
        while time.monotonic() < ends:
            await call(requests[count % len(requests)])
            count += time.monotonic() < ends
        counts.append(count)

    channels = connections(address, 32)
    await asyncio.gather(*map(keep_asking, channels))
    for channel in channels:
        await channel.close()
    return sum(counts) / seconds


async def open_loop(address, requests, rate, seconds):
    """Answers and refusals a second, failures, and p99 of both in ms, where `rate` are sent a second."""
    answered, refused, failures, late = [], [], 0, 0.0

    async def ask(call, request):
        nonlocal failures
        due = time.monotonic()
        try:
            await call(request, timeout=60)
            answered.append(time.monotonic() - due)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                refused.append(time.monotonic() - due)
            else:
                failures += 1

    channels = connections(address, 32)
    calls = [channel.unary_unary(METHOD) for channel in channels]
    started, tasks = time.monotonic(), []
    for number in range(int(rate * seconds)):
        due = started + number / rate
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        late = max(late, time.monotonic() - due)
        tasks.append(asyncio.create_task(ask(calls[number % 32], requests[number % len(requests)])))
    await asyncio.gather(*tasks)
    took = time.monotonic() - started
    for channel in channels:
        await channel.close()
    p99 = [float(np.percentile(values, 99) * 1000) if values else 0.0 for values in (answered, refused)]
    return len(answered) / took, len(refused) / took, failures, *p99, late * 1000


def memory():
    """Resident memory of the server in MB, after 10,000 requests and after more."""
    with running_server() as (address, pid):
        keep_asking(address, 10_000)
        before = resident_mb(pid)
        keep_asking(address, REQUESTS.value)
        after = resident_mb(pid)
    return {
        "after 10,000, MB": before,
        f"after {REQUESTS.value:,} more, MB": after,
        "growth, MB": after - before,
    }


def resident_mb(pid):
    """A process's resident memory in MB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) / 1000


def keep_asking(address, count):
    """Send `count` requests from 8 threads, each on a connection of its own."""

    def ask():
        with PredictClient(address, "m") as client:
            for number in range(count // 8):
                client.predict([TEXTS[number % len(TEXTS)]] * (number % 4 + 1), timeout=60)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def spread(values):
    """The median, and lowest to highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(_):
    print(f"load before: {os.getloadavg()[0]:.1f}", flush=True)
    for part in PART.value:
        found = {"overhead": overhead, "overload": overload, "memory": memory}[part]()
        print(json.dumps({part: found}, indent=1), flush=True)


if __name__ == "__main__":
    app.run(main)
