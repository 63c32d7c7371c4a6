"""Batches made ahead."""

import threading

import pytest

from keras_bert_app.training.prefetch import Prefetcher

_PATIENCE = 30.0


class _Batches:
    """Numbers in place of batches; remembers which were made, and in which thread."""

    def __init__(self, first, broken=None):
        self.first, self.broken = first, broken
        self.made = {}
        self.changed = threading.Condition()

    def __getitem__(self, place):
        with self.changed:
            self.made[place] = threading.current_thread()
            self.changed.notify_all()
        if place == self.broken:
            raise ValueError(f"no batch {place}")
        return self.first + place

    def wait_for(self, place):
        with self.changed:
            return self.changed.wait_for(lambda: place in self.made, _PATIENCE)


def test_the_next_batch_is_made_in_another_thread_before_it_is_asked_for():
    batches = _Batches(100)
    with Prefetcher() as prefetcher:
        batch, waited = prefetcher.take(batches, 0)
        assert (batch, waited >= 0) == (100, True)
        assert batches.wait_for(1)
    assert batches.made[1] is not threading.current_thread()


def test_whatever_is_asked_for_is_what_one_gets():
    one, other = _Batches(100), _Batches(200)
    with Prefetcher() as prefetcher:
        asked = [(one, 0), (one, 1), (one, 7), (other, 0), (other, 1), (one, 2), (one, 3)]
        assert [prefetcher.take(*wanted)[0] for wanted in asked] == [100, 101, 107, 200, 201, 102, 103]


def test_an_error_comes_with_the_batch_it_is_of():
    batches = _Batches(100, broken=2)
    with Prefetcher() as prefetcher:
        assert prefetcher.take(batches, 1)[0] == 101
        assert batches.wait_for(2)
        with pytest.raises(ValueError, match="no batch 2"):
            prefetcher.take(batches, 2)


def test_an_error_in_a_batch_that_nobody_takes_is_none():
    batches = _Batches(100, broken=2)
    with Prefetcher() as prefetcher:
        prefetcher.take(batches, 1)
        assert batches.wait_for(2)
