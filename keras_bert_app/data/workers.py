"""The processes that tokenise documents and pack examples."""

import gc
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any

from keras_bert_app.errors import UserError

# Forks of this process would inherit TensorFlow's threads, dead; forks of a server that only imports don't.
_CONTEXT = multiprocessing.get_context("forkserver")


def start_importing(*modules: str) -> None:
    """Let the process that workers are forked from import modules, while this one goes on.

    Counts the first time in a process; without it each worker imports what it needs.
    """
    _CONTEXT.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


class Workers:
    """Runs functions of (tool, *arguments): in this process, or in several others.

    The tool is what `make_tool(*tool_arguments)` gives, once in each process. All of them are pickled.
    """

    def __init__(self, num_workers: int, make_tool: Callable[..., Any], *tool_arguments):
        self._num_workers = num_workers
        self._arguments = (make_tool, *tool_arguments)
        self._tool: Any = None
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(
        self, function: Callable, calls: Iterable[tuple], on_done: Callable[[int], None] = lambda number: None
    ) -> list:
        """Make all calls, in no order, two a process under way at a time; on_done takes how many are done.

        Returns:
            What the calls gave, in their order.

        Raises:
            UserError: a process was killed.
        """
        if self._num_workers <= 1:
            return self._run_here(function, calls, on_done)
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self._num_workers, _CONTEXT, _start, self._arguments)
        futures: list[Future] = []
        waiting: set[Future] = set()
        num_done = 0
        try:
            for call in itertools.chain(calls, [None]):
                if call is not None:
                    futures.append(self._executor.submit(_call, function, call))
                    waiting.add(futures[-1])
                while waiting and (call is None or len(waiting) >= 2 * self._num_workers):
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        num_done += 1
                        on_done(num_done)
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; run the same again to go on, "
                "with fewer workers"
            ) from None

    def _run_here(self, function: Callable, calls: Iterable[tuple], on_done: Callable[[int], None]) -> list:
        make_tool, *arguments = self._arguments
        results = []
        for number, call in enumerate(calls, start=1):
            self._tool = self._tool or make_tool(*arguments)
            results.append(function(self._tool, *call))
            on_done(number)
        return results


_tool: Any = None


def _start(make_tool: Callable[..., Any], *arguments) -> None:
    global _tool
    parent = multiprocessing.parent_process()
    # The processes of a pool would wait for ever once their parent was killed.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    _tool = make_tool(*arguments)
    # Garbage collection needn't go through all that was imported.
    gc.freeze()


def _call(function: Callable, call: tuple) -> Any:
    return function(_tool, *call)
