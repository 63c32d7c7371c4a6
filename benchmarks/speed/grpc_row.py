"""Text in, label out through gRPC: 32 connections, each of which asks again once it is answered."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.speed import grpc_server, team
from benchmarks.speed.contenders import Contender
from serving import messages, protocol

PREDICT = "/tensorflow.serving.PredictionService/Predict"
# Those that have a server of their own, or are the fastest of the mixed row.
LIBRARIES = ("ours", "openvino", "onnxruntime")
ROW, CONNECTIONS = "grpc", 32
BATCHING = """
max_batch_size { value: 64 }
batch_timeout_micros { value: 3000 }
max_enqueued_batches { value: 64 }
num_batch_threads { value: 1 }
"""


class Server:
    """A contender's server in a process of its own."""

    def __init__(self, contender: Contender, folder: Path):
        self.contender = contender
        command = [sys.executable, "-m", "benchmarks.speed.grpc_server", contender.name, str(folder)]
        if contender.is_ours:
            batching = folder / "batching.txt"
            batching.write_text(BATCHING)
            command = [sys.executable, "-m", "serving.server", "--model_name=speed", "--port=0"]
            command += [f"--model_base_path={folder / contender.precision}", "--enable_batching"]
            # Warmed up by the texts whose labels are compared, as all are.
            command += [f"--batching_parameters_file={batching}", "--enable_model_warmup=false"]
        self._log = (folder / f"{contender.name}-grpc.log").open("w")
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "TOKENIZERS_PARALLELISM": "true"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        said = self._process.stdout.readline()
        if not (found := re.search(r"127\.0\.0\.1:\d+", said)):
            self.stop()
            raise RuntimeError(f"{contender.name}'s server did not start; see {self._log.name}")
        self.address = found[0]

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def request(self, text: str) -> bytes:
        """What is sent."""
        if not self.contender.is_ours:
            return text.encode()
        return messages.predict_request(messages.model_spec("speed"), {"text": [text]}).SerializeToString()

    @property
    def method(self) -> str:
        """Which is asked."""
        return PREDICT if self.contender.is_ours else grpc_server.METHOD

    def labels(self, texts: Sequence[str]) -> list[str]:
        """Answers to the texts, one after the other."""
        with grpc.insecure_channel(self.address) as channel:
            call = channel.unary_unary(self.method)
            answers = [call(self.request(text)) for text in texts]
        if not self.contender.is_ours:
            return [answer.decode() for answer in answers]
        responses = map(protocol.CLASSES["PredictResponse"].FromString, answers)
        return [bytes(messages.outputs(response)["label"][0]).decode() for response in responses]

    def load(self, texts: Sequence[str], seconds: float) -> tuple[float, float]:
        """Answers a second, and the 99th percentile of seconds until one."""
        requests = [self.request(text) for text in texts]
        return asyncio.run(closed_loop(self.address, self.method, requests, seconds))


async def closed_loop(
    address: str, method: str, requests: Sequence[bytes], seconds: float
) -> tuple[float, float]:
    """As Server.load; the requests go round, and the first second's answers don't count."""
    begins = time.monotonic() + 1.0
    ends, taken, number = begins + seconds, [], 0

    async def keep_asking():
        nonlocal number
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            call = channel.unary_unary(method)
            while (asked := time.monotonic()) < ends:
                number += 1
                await call(requests[number % len(requests)], timeout=60)
                answered = time.monotonic()
                if begins <= answered < ends:
                    taken.append(answered - asked)

    await asyncio.gather(*(keep_asking() for _ in range(CONNECTIONS)))
    return len(taken) / seconds, float(np.percentile(taken, 99))


def measure(
    contenders: Sequence[Contender],
    folder: Path,
    texts: Sequence[str],
    expected: Sequence[str],
    rounds: int,
    seconds: float = 6.0,
) -> list[dict[str, Any]]:
    """Load all in turns; `seconds` of an entry are 1 / its answers a second, `p99` those of the slowest."""
    servers, entries = [], []
    try:
        for contender in contenders:
            servers.append(Server(contender, folder))
            entry = contender._asdict() | {"contender": contender.name, "row": ROW, "arrangement": "padded"}
            off = team.difference(servers[-1].labels(texts), expected)
            equal = team.is_equal(off, contender.precision)
            entries.append(entry | {"seconds": [], "p99": [], "difference": off, "equal": equal})
        for number in range(rounds):
            take_turns(servers, entries, texts, seconds, number)
    finally:
        for server in servers:
            server.stop()
    return entries


def take_turns(servers, entries, texts, seconds: float, number: int) -> None:
    """One round: everyone once."""
    order = np.random.default_rng(number).permutation(len(servers))
    for place in order:
        rate, p99 = servers[place].load(texts, seconds)
        entries[place]["seconds"].append(1 / rate)
        entries[place]["p99"].append(p99)
