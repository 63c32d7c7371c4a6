"""A worker's sign of life."""

import os
from pathlib import Path

import pytest

from keras_bert_app.training import heartbeat


@pytest.fixture
def now(monkeypatch):
    """A clock that stands: [seconds]."""
    clock = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(heartbeat, "_last", 0.0)
    return clock


@pytest.fixture
def file(now, monkeypatch, tmp_path):
    """The file that is touched."""
    monkeypatch.setenv(heartbeat.FILE, str(tmp_path / "file"))
    monkeypatch.setenv(heartbeat.LAUNCHER, str(os.getppid()))
    return tmp_path / "file"


def test_nothing_beats_without_a_launcher(now, monkeypatch):
    monkeypatch.delenv(heartbeat.FILE, raising=False)
    monkeypatch.setattr(Path, "touch", lambda _: pytest.fail("touched"))
    heartbeat.beat()


def test_a_beat_changes_the_time_of_the_file_once_a_second_at_most(now, file):
    heartbeat.beat()
    assert file.exists()
    os.utime(file, (5, 5))
    now[0] += 0.9
    heartbeat.beat()
    assert file.stat().st_mtime == 5
    now[0] += 0.2
    heartbeat.beat()
    assert file.stat().st_mtime > 5


def test_a_process_without_its_launcher_ends(now, file, monkeypatch):
    monkeypatch.setenv(heartbeat.LAUNCHER, str(os.getpid()))
    with pytest.raises(SystemExit, match="the launcher is gone"):
        heartbeat.beat()
    assert not file.exists()
