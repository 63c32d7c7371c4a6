"""SIGTERM and SIGINT while a run trains: asked to stop, it saves first."""

import os
import signal
import threading
import time

from keras_bert_app.training.progress import say


class StopRequests:
    """Notes the first SIGTERM or SIGINT; a context manager, in the main thread only.

    A second signal of either kind does what it would have done without this, unless it comes within a second:
    supervisors send the same one to a process and to its group. signal: the number of the one that came, None
    until then.
    """

    def __init__(self):
        self.signal: int | None = None
        self._at = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame) -> None:
        if self.signal is not None:
            if time.monotonic() - self._at > 1:
                self.__exit__()
                os.kill(os.getpid(), number)
            return
        self.signal, self._at = number, time.monotonic()
        say("asked to stop: saving after this update; once more stops at once")
