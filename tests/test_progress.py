"""What a long stage shows."""

import io
import sys
import time

import pytest

from keras_bert_app.training.progress import Progress, StagesProgress, say


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_are_plain_lines(clock, capsys):
    with Progress("train", 10) as progress:
        for _ in range(10):
            clock[0] += 6.0
            progress.advance(8, {"loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: step 2/10, loss 0.5, 1 examples/s, 0:12 gone, 0:48 left"
    assert lines[-1] == "train: step 10/10, loss 0.5, 1 examples/s, 1:00 gone, 0:00 left"
    assert len(lines) == 5


def test_steps_done_before_count_for_neither_speed_nor_time_left(clock, capsys):
    with Progress("train", 100, done=90) as progress:
        clock[0] += 20.0
        progress.advance(40)
    assert capsys.readouterr().err == "train: step 91/100, 2 examples/s, 0:20 gone, 3:00 left\n"


def test_a_stage_without_a_step_shows_nothing(clock, capsys):
    with Progress("train", 5, done=5):
        pass
    assert capsys.readouterr().err == ""


def test_the_last_state_is_shown_when_a_stage_breaks_off(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Progress("train", 5) as progress:
        progress.advance(1)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("train: step 1/5")


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train", 2) as progress:
        progress.advance(8, {"loss": 0.25})
        progress.advance(8, {"loss": 0.125})
    assert "2/2" in terminal.getvalue() and "loss 0.125" in terminal.getvalue()
    assert "\r" in terminal.getvalue()


def test_a_message_is_a_line_of_its_own(capsys):
    say("going on")
    assert capsys.readouterr().err == "going on\n"


def test_stages_without_a_terminal_get_a_line_at_start_and_end_and_now_and_then(clock, capsys):
    with StagesProgress() as progress:
        for done in range(5):
            progress("tokenise", done, 4)
            clock[0] += 6.0
        progress("write", 1, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tokenise: 0 %", "tokenise: 50 %", "tokenise: 100 %", "write: 1"]


def test_stages_on_a_terminal_have_a_bar_each(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with StagesProgress() as progress:
        progress("tokenise", 2, 4)
        progress("tokenise", 4, 4)
        progress("write", 3, 0)
    shown = terminal.getvalue()
    assert "tokenise:  50%" in shown and "tokenise: 100%" in shown and "write: 3.00it" in shown
