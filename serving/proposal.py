"""Batching parameters proposed for a model server, from how long batches take in it."""

import math
import threading
import time

import grpc
import numpy as np

from serving import targets
from serving.targets import TargetError

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
IN_FLIGHT = (1, 2, 4, 8, 16)
SECONDS, LEAST_CALLS = 1.0, 3  # of each measurement
ENOUGH = 0.9  # of the best throughput; what is beyond costs latency, or cores, for little
TIMEOUT = 60.0  # seconds


def time_batches(calls, make, target):
    """Seconds that a batch takes alone, the median: {size: s}.

    Ends at a size that takes longer than `target` (s), or that the server refuses.

    `make(size)` gives the bytes of a request. Raises TargetError where not even one text is answered.
    """
    seconds = {}
    for size in SIZES:
        taken = []
        try:
            calls[0](make(size), timeout=TIMEOUT)  # the first of a shape may take longer
            while len(taken) < LEAST_CALLS or sum(taken) < SECONDS:
                request, start = make(size), time.perf_counter()
                calls[0](request, timeout=TIMEOUT)
                taken.append(time.perf_counter() - start)
        except grpc.RpcError as error:
            if size == 1:
                said = " ".join((error.details() or "").split())
                raise TargetError(f"the server answers no text: {said} ({error.code().name})") from None
            return seconds
        seconds[size] = float(np.median(taken))
        if seconds[size] > target:
            break
    return seconds


def time_in_flight(calls, make, size):
    """Texts a second in batches of `size` with so many under way at once: {number: texts/s}.

    Ends at a number at which the server sheds.
    """
    rates = {}
    for number in IN_FLIGHT:
        counts, refused = [0] * number, threading.Event()
        start = time.perf_counter()

        def ask(place, counts=counts, refused=refused, start=start):
            try:
                while time.perf_counter() - start < SECONDS or counts[place] < LEAST_CALLS:
                    calls[place % len(calls)](make(size), timeout=TIMEOUT)
                    counts[place] += 1
            except grpc.RpcError:
                refused.set()

        threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if refused.is_set():
            break
        rates[number] = size * sum(counts) / (time.perf_counter() - start)
    return rates


def batch_size(seconds, target):
    """The size from {size: s}: the smallest with 0.9 of the best throughput.

    Of those only that take half of `target` (s): a request may wait for one batch and then be in the next.
    """
    fitting = {size: size / taken for size, taken in seconds.items() if taken <= target / 2} or {1: 1.0}
    return min(size for size, rate in fitting.items() if rate >= ENOUGH * max(fitting.values()))


def num_threads(rates):
    """The number from {number in flight: texts/s}: the smallest with 0.9 of the best throughput."""
    best = max(rates.values())
    return min(number for number, rate in rates.items() if rate >= ENOUGH * best)


def parameters(size, threads, rates, target):
    """{name: value} of BatchingParameters, and {name: why}, from what was measured.

    Args:
        size, threads: as of batch_size and num_threads.
        rates: {batches in flight: texts/s} for that size.
        target: s within which 99 in 100 requests are to be answered.
    """
    taken = size * threads / rates[threads]  # s of a full batch when all threads have one
    queued = max(1, math.floor((target - taken) / taken * threads))
    return {
        "max_batch_size": (
            size,
            f"the smallest of the sizes measured with {ENOUGH:.0%} of the best throughput, of those that "
            "take at most half of the target",
        ),
        "batch_timeout_micros": (
            0,
            "batches fill while all threads are busy, and when one is idle, waiting for more texts only adds "
            f"latency; a full batch takes {1000 * taken:.1f} ms when {threads} run at once",
        ),
        "max_enqueued_batches": (
            queued,
            f"full batches ahead of a request that still leave it time to run within {1000 * target:.0f} ms: "
            f"({1000 * target:.0f} - {1000 * taken:.1f}) / {1000 * taken:.1f} x {threads}, at least 1",
        ),
        "num_batch_threads": (
            threads,
            f"the smallest number of batches at once with {ENOUGH:.0%} of the best throughput",
        ),
    }


def propose(calls, target, signature_name, names, rows, target_ms, seed):
    """Measure, and give the proposal: {"text": a --batching_parameters_file, and the measurements}."""
    generator = np.random.default_rng(seed)
    lock = threading.Lock()

    def make(size):
        with lock:
            chosen = generator.integers(len(rows), size=size)
        return targets.request(target, signature_name, names, [rows[place] for place in chosen])

    seconds = time_batches(calls, make, target_ms / 1000)
    size = batch_size(seconds, target_ms / 1000)
    rates = time_in_flight(calls, make, size)
    if not rates:
        raise TargetError(f"{target} refuses a batch of {size} that it answered before; is it under load?")
    chosen = parameters(size, num_threads(rates), rates, target_ms / 1000)
    measured = [
        f"# Measured with {target}, signature {signature_name}, p99 within {target_ms:g} ms as the target:",
        *(f"# a batch of {size}: {1000 * s:.2f} ms, {size / s:.0f} texts/s" for size, s in seconds.items()),
        *(f"# batches of {size}, {number} at once: {rate:.0f} texts/s" for number, rate in rates.items()),
    ]
    lines = [f"# {why}\n{name} {{ value: {value} }}" for name, (value, why) in chosen.items()]
    return {
        "text": "\n".join([*measured, "", *lines, ""]),
        "parameters": {name: value for name, (value, _) in chosen.items()},
        "batch_ms": {size: 1000 * s for size, s in seconds.items()},
        "texts_per_second_in_flight": rates,
    }
