"""Worker processes of one verb on this machine, watched, and started again together: `run.py launch`.

Standard library alone: TensorFlow would take devices and memory from the processes that train.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from keras_bert_app.training import heartbeat

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL; a worker that waits for another can't react
START_SECONDS = 600.0  # that a worker has at least until its first beat: imports, data, compilation
_FINISHED, _USER_ERROR, _STOPPED = 0, 2, os.EX_TEMPFAIL
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def run(
    command: Sequence[str], num_workers: int, hang_seconds: float, restarts: int, checkpoints: Path
) -> int:
    """Start the workers, and all of them again when one dies or hangs, until they have ended by themselves.

    Each has its TF_CONFIG, with free ports of 127.0.0.1, and is to call heartbeat.beat(). What worker 0
    writes passes through; the lines of others go to stderr, with `[worker 1] ` before them. SIGTERM and
    SIGINT are passed on as SIGTERM, for which a worker saves and exits with 75; a second signal, a second or
    more later, kills.

    When one dies, the others are ended within POLL_SECONDS + GRACE_SECONDS; when one hangs, all are, within
    hang_seconds more after its last beat. One that ends with 2, a user's mistake, or with 130 or 143,
    interrupted by others, ends the rest for good.

    Args:
        command: a worker's, the same for each.
        hang_seconds: so long without a beat means that a worker hangs; before its first it has START_SECONDS,
            if that is more. Those that wait for it may be named in its place.
        restarts: at most so many in a row without a new checkpoint.
        checkpoints: the folder of the checkpoints, `step-*`.

    Returns:
        0: finished; 1: no restarts left; 2: a user's mistake; 75: stopped, all workers saved; 130: the same
        for SIGINT, or not all saved; 143: not all saved.
    """
    failures = 0
    with _Signals() as signals:
        while True:
            known = _names(checkpoints)
            failed, codes = _run_once(command, num_workers, hang_seconds, signals)
            code = _exit_code([code for _, code in failed], codes, signals)
            what = ", ".join(how for how, _ in failed)
            if code is not None:
                if failed and code != _USER_ERROR:
                    _say(f"{what}; not started again")
                return code
            failures = failures + 1 if _names(checkpoints) == known else 1
            if failures > restarts:
                _say(f"{what}; giving up after {restarts} restarts without a new checkpoint")
                return 1
            _say(f"{what}; all start again from the last checkpoint, restart {failures} of {restarts}")


def _run_once(
    command: Sequence[str], num_workers: int, hang_seconds: float, signals: "_Signals"
) -> tuple[list[tuple[str, int | None]], list[int]]:
    """Start all workers, wait until all have ended; what `_watch` returns, and every worker's exit code."""
    addresses = _free_addresses(num_workers)
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="heartbeats-") as folder:
        try:
            for index in range(num_workers):
                workers.append(_Worker(command, index, addresses, Path(folder, str(index))))
            failed = _watch(workers, hang_seconds, signals)
            _terminate(workers)
            give_up = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < give_up and any(worker.runs() for worker in workers):
                if signals.again:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            for worker in workers:
                worker.kill()
    return failed, [worker.process.returncode for worker in workers]


def _watch(
    workers: "list[_Worker]", hang_seconds: float, signals: "_Signals"
) -> list[tuple[str, int | None]]:
    """Wait until all have ended, or the others have to be ended; passes the first signal on.

    Returns:
        Of each worker that failed: how, in words, and its exit code, None where it hangs.
    """
    passed_on = False
    while True:
        time.sleep(POLL_SECONDS)
        if signals.first and not passed_on:
            passed_on = True
            _say("asking the workers to save and stop; a second signal kills them")
            _terminate(workers)
        running = [worker for worker in workers if worker.runs()]
        died = [worker for worker in workers if worker.process.returncode not in (None, _FINISHED, _STOPPED)]
        hung = [worker for worker in running if worker.hangs(hang_seconds)]
        # While they stop, one may still be saving after another has failed.
        if not running or hung or signals.again or (died and not signals.first):
            return [(worker.failure(), worker.process.returncode) for worker in (*died, *hung)]


def _exit_code(failed: Sequence[int | None], codes: Sequence[int], signals: "_Signals") -> int | None:
    """What launch exits with, from the codes of those that failed and of all; None: all start again."""
    if _USER_ERROR in codes:
        return _USER_ERROR
    if not failed and set(codes) <= {_FINISHED, _STOPPED}:
        if _STOPPED not in codes:
            return _FINISHED
        return 128 + signal.SIGINT if signals.first == signal.SIGINT else _STOPPED
    if signals.first:
        return 128 + signals.first
    return next((code for code in failed if code in _INTERRUPTED), None)


class _Worker:
    """One worker process, its last sign of life, and the thread that passes its lines on."""

    def __init__(self, command: Sequence[str], index: int, addresses: Sequence[str], beats: Path):
        self.index = index
        self._beats, self._last_beat, self._since = beats, None, time.monotonic()
        task = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
        own = {
            "TF_CONFIG": json.dumps(task),
            heartbeat.FILE: str(beats),
            heartbeat.LAUNCHER: str(os.getpid()),
        }
        self.process = subprocess.Popen(
            command,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if index else None,
            stderr=subprocess.STDOUT if index else None,
            # Away from the terminal, whose Ctrl-C is for the launcher.
            start_new_session=True,
        )
        self._relay = threading.Thread(target=self._pass_on, daemon=True)
        self._relay.start()

    def runs(self) -> bool:
        """Whether it hasn't ended."""
        return self.process.poll() is None

    def hangs(self, hang_seconds: float) -> bool:
        """Whether its last beat is too long ago, by this process's clock."""
        beat = self._beats.stat().st_mtime_ns if self._beats.exists() else None
        if beat != self._last_beat:
            self._last_beat, self._since = beat, time.monotonic()
        self._allowed = max(hang_seconds, START_SECONDS) if beat is None else hang_seconds
        return time.monotonic() - self._since > self._allowed

    def failure(self) -> str:
        """How it failed, in words."""
        code = self.process.returncode
        if code is None:
            return f"worker {self.index} gave no sign of life for {self._allowed:g} s"
        if code < 0:
            return f"worker {self.index} was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"worker {self.index} ended with exit code {code}"

    def kill(self) -> None:
        """End it and what it has started, if it still runs, and wait for its last lines."""
        if self.runs():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._relay.join(GRACE_SECONDS)

    def _pass_on(self) -> None:
        with self.process.stdout or contextlib.nullcontext(()) as lines:
            for line in lines:
                sys.stderr.buffer.write(b"[worker %d] %s\n" % (self.index, line.rstrip(b"\r\n")))
                sys.stderr.buffer.flush()


class _Signals:
    """SIGTERM and SIGINT while it is open: the first of them, and whether there was another.

    Another within a second is taken for the same one: supervisors send it to a process and to its group.
    """

    def __init__(self):
        self.first: int | None = None
        self.again = False
        self._at = 0.0

    def __enter__(self) -> "_Signals":
        self._before = {
            number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _) -> None:
        if self.first is None:
            self.first, self._at = number, time.monotonic()
        elif time.monotonic() - self._at > 1:
            self.again = True


def _terminate(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()


def _free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        # All open at once, so that no two are the same.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]


def _names(checkpoints: Path) -> set[str]:
    return {path.name for path in checkpoints.glob("step-*")}


def _say(message: str) -> None:
    # On a terminal worker 0 may have left a progress bar's line open.
    new_line = "\n" if sys.stderr.isatty() else ""
    print(f"{new_line}launch: {message}", file=sys.stderr, flush=True)
