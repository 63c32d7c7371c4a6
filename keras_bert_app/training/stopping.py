"""SIGTERM and SIGINT while a run trains: asked to stop, it saves first."""

import signal
import threading

from keras_bert_app.training.progress import say


class StopRequests:
    """Notes the first SIGTERM or SIGINT; a context manager, in the main thread only.

    A second signal of either kind does what it would have done without this. signal: the number of the one
    that came, None until then.
    """

    def __init__(self):
        self.signal: int | None = None
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
        self.signal = number
        self.__exit__()
        say("asked to stop: saving after this update; once more stops at once")
