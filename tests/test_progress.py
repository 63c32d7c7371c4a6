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
    assert lines[0] == "train: step 2/10, 00:48 left, loss 0.5, 1 examples/s, 00:12 gone"
    assert lines[-1] == "train: step 10/10, loss 0.5, 1 examples/s, 01:00 gone"
    assert len(lines) == 5


def test_steps_done_before_count_for_neither_speed_nor_time_left(clock, capsys):
    with Progress("train", 100, done=90) as progress:
        clock[0] += 20.0
        progress.advance(40)
    assert capsys.readouterr().err == "train: step 91/100, 03:00 left, 2 examples/s, 00:20 gone\n"


def test_tokens_padding_and_utilisation_are_shown_where_they_are_known(clock, capsys):
    with Progress("train", 4, peak_flops=1e12) as progress:
        for _ in range(3):
            clock[0] += 10.0
            progress.advance(8, tokens=15_000, slots=20_000, flops=3e12, waited=0.05)
    assert progress.rates() == pytest.approx(
        {
            "examples_per_second": 0.8,
            "tokens_per_second": 1500,
            "padding_share": 0.25,
            "model_flop_utilisation": 0.3,
            "input_wait_share": 0.005,
        }
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "train: step 3/4, 00:10 left, 1,500 tokens/s, 25 % padding, 30.0 % of peak FLOP/s, "
        "0.5 % waiting for batches, 00:30 gone"
    )


def test_without_a_peak_there_is_no_utilisation(clock):
    with Progress("train", 4) as progress:
        clock[0] += 1.0
        progress.advance(8, tokens=100, slots=100, flops=1e9)
    assert progress.rates() == {"examples_per_second": 8, "tokens_per_second": 100, "padding_share": 0}


def test_neither_compilation_nor_what_is_long_past_counts(clock):
    with Progress("train", 1000) as progress:
        clock[0] += 100.0
        progress.advance(1, tokens=60)
        assert progress.rates()["tokens_per_second"] == pytest.approx(0.6)
        for _ in range(10):
            clock[0] += 1.0
            progress.advance(1, tokens=60)
        assert progress.rates()["tokens_per_second"] == pytest.approx(60)
        for _ in range(320):
            clock[0] += 0.1
            progress.advance(1, tokens=60)
        assert progress.rates()["tokens_per_second"] == pytest.approx(600)


def test_a_pause_lowers_no_rate_but_counts_for_the_time_left(clock, capsys):
    with Progress("train", 100) as progress:
        for _ in range(11):
            clock[0] += 1.0
            progress.advance(1, tokens=60)
        with progress.pause():
            clock[0] += 10.0
        for _ in range(10):
            clock[0] += 1.0
            progress.advance(1, tokens=60)
    assert progress.rates()["tokens_per_second"] == pytest.approx(60)
    # 20 steps in 30 seconds since the first, so 79 in 118.5.
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("step 21/100, 01:58 left, 60 tokens/s, 00:31 gone")
    )


def test_a_stage_that_ends_by_the_clock_says_what_share_is_done(clock, capsys):
    with Progress("train", None, done=7, done_share=0.5) as progress:
        for second in range(1, 11):
            clock[0] += 6.0
            progress.advance(4, share=0.5 + second * 6 / 3600)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: step 9, 50 % done, 29:48 left, 1 examples/s, 00:12 gone"
    assert lines[-1] == "train: step 17, 52 % done, 29:00 left, 1 examples/s, 01:00 gone"


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
    assert (
        "100%" in terminal.getvalue() and "2/2" in terminal.getvalue() and "loss 0.125" in terminal.getvalue()
    )
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
