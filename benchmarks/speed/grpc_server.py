"""A peer behind gRPC: text in, label out, its tokenizer in front, requests computed together.

    python -m benchmarks.speed.grpc_server NAME FOLDER

As this project's server and the stock one do, a free thread takes the texts that wait, at most 64, once they
are 64 or the first has waited 3 ms. Where the contender has streams, each takes one text at a time. Requests
and answers are bare bytes, the cheapest there are.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from benchmarks.speed.worker import NUM_THREADS, load

METHOD = "/speed.Speed/Label"
MOST_TEXTS, SECONDS_TO_WAIT = 64, 0.003


class Batcher:
    """Texts that come at the same time are labelled together."""

    def __init__(self, label, most: int, num_threads: int):
        self._label, self._most = label, most
        self._waiting: asyncio.Queue = asyncio.Queue()
        self._pool = ThreadPoolExecutor(num_threads)
        self._tasks = [asyncio.create_task(self._keep_labelling()) for _ in range(num_threads)]

    async def label(self, text: bytes, _) -> bytes:
        """A request."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((text, answer))
        return await answer

    async def _keep_labelling(self):
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            ends = loop.time() + SECONDS_TO_WAIT
            while len(batch) < self._most:
                try:
                    async with asyncio.timeout_at(ends):
                        batch.append(await self._waiting.get())
                except TimeoutError:
                    break
            texts = [text.decode() for text, _ in batch]
            labels = await loop.run_in_executor(self._pool, self._label, texts)
            for (_, answer), label in zip(batch, labels, strict=True):
                answer.set_result(label.encode())


async def serve(name: str, folder: Path) -> None:
    """Say the port, answer until killed."""
    model = load(name, folder)
    streams = hasattr(model, "concurrently")
    batcher = Batcher(model.label, *((1, NUM_THREADS) if streams else (MOST_TEXTS, 1)))
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(batcher.label)
    service, method = METHOD[1:].split("/")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
