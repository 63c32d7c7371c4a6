"""Signals while a run trains."""

import os
import signal
import types

import pytest

from keras_bert_app.training import stopping
from keras_bert_app.training.stopping import StopRequests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_does_what_it_did_before(number, capsys, monkeypatch):
    arrived, clock = [], [50.0]
    monkeypatch.setattr(stopping, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    before = signal.signal(number, lambda *arguments: arrived.append(arguments[0]))
    try:
        with StopRequests() as requests:
            assert requests.signal is None
            os.kill(os.getpid(), number)
            assert (requests.signal, arrived) == (number, [])
            os.kill(os.getpid(), number)  # the same one, to the process's group
            clock[0] += 0.9
            os.kill(os.getpid(), number)
            assert arrived == []
            clock[0] += 0.2
            os.kill(os.getpid(), number)
            assert arrived == [number]
        os.kill(os.getpid(), number)
        assert arrived == [number] * 2
    finally:
        signal.signal(number, before)
    assert "saving after this update" in capsys.readouterr().err
