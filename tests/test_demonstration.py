import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from keras_bert_app import demonstration


@pytest.fixture
def verbs(monkeypatch, tmp_path):
    """The verbs that the demonstration runs, which only write what the next ones look for."""
    monkeypatch.chdir(tmp_path)
    called = []

    def run(_, verb, *__):
        called.append(verb)
        folder = Path(
            {"finetune": demonstration.WORKDIR, "export": f"{demonstration.EXPORT_DIR}/1"}.get(verb, ".")
        )
        folder.mkdir(parents=True, exist_ok=True)
        if verb == "finetune":
            (folder / "metrics.json").write_text('{"metrics": {"accuracy": 0.8125}}')

    monkeypatch.setattr(demonstration, "run", run)
    monkeypatch.setattr(demonstration, "_server", lambda *_: contextlib.nullcontext())
    return called


def test_what_is_there_is_used_the_second_time(verbs, capsys):
    demonstration.main(Path("run.py"))
    assert verbs == ["finetune", "export", "verify", "query"]
    shown = capsys.readouterr().out
    assert "0.8125" in shown and f"{demonstration.EXPORT_DIR}/1" in shown
    verbs.clear()
    demonstration.main(Path("run.py"))
    assert verbs == ["verify", "query"]


def test_a_run_newer_than_its_bundle_is_exported_again(verbs):
    demonstration.main(Path("run.py"))
    verbs.clear()
    newest = Path(demonstration.EXPORT_DIR, "1").stat().st_mtime
    os.utime(Path(demonstration.WORKDIR, "metrics.json"), (newest + 10, newest + 10))
    demonstration.main(Path("run.py"))
    assert verbs == ["export", "verify", "query"]


def test_a_verb_that_fails_ends_the_demonstration_with_its_code(tmp_path):
    (tmp_path / "fails.py").write_text("import sys\nsys.exit(7)\n")
    with pytest.raises(SystemExit) as error:
        demonstration.run(tmp_path / "fails.py", "finetune")
    assert error.value.code == 7


def test_an_interrupted_demonstration_lets_the_verb_clean_up(tmp_path):
    (tmp_path / "verb.py").write_text(
        "import pathlib, signal, sys, os, time\n"
        "def stop(*_):\n    pathlib.Path(sys.argv[1]).write_text('cleaned up')\n    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    assert threading.current_thread() is threading.main_thread() and sys.platform != "win32"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            demonstration.run(tmp_path / "verb.py", str(tmp_path / "note"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "note").read_text() == "cleaned up"
