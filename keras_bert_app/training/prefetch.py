"""The next batch, made while the devices are at the one before."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import tensorflow as tf

from keras_bert_app.data.batches import Batches


class Prefetcher:
    """Makes the batch after each one that is taken, in a thread of its own; a context manager.

    Which is wanted next is a guess: where a phase ends by the clock, another one is, and is made when asked
    for. A batch is a function of its place, so nothing but time depends on it.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "batches")
        self._batches: Batches | None = None
        self._place = 0
        self._next: Future | None = None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, batches: Batches, place: int) -> tuple[Mapping[str, tf.Tensor], float]:
        """-> the batch of this place, and the seconds that the caller waited for it.

        Raises:
            What the making of this batch raised.
        """
        begun = time.monotonic()
        # By identity: equality would compare all examples.
        if self._batches is not batches or self._place != place:
            self._make(batches, place)
        batch = self._next.result()
        self._make(batches, place + 1)
        return batch, time.monotonic() - begun

    def _make(self, batches: Batches, place: int) -> None:
        self._batches, self._place = batches, place
        self._next = self._thread.submit(batches.__getitem__, place)
