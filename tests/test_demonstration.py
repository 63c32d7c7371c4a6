import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from configs import pretrain_demo
from keras_bert_app import demonstration


@pytest.fixture
def verbs(monkeypatch, tmp_path):
    """The verbs that the demonstration runs, which only write what the next ones look for."""
    monkeypatch.chdir(tmp_path)
    called = []

    def run(_, verb, *arguments):
        called.append(verb)
        flags = dict(argument.removeprefix("--").split("=") for argument in arguments if "=" in argument)
        if verb == "vocab":
            Path(flags["output"]).parent.mkdir(parents=True)
            Path(flags["output"]).write_text("[PAD]\n")
        elif verb == "prepare":
            Path(flags["output"]).mkdir()
        elif verb in ("pretrain", "finetune"):
            Path(flags["workdir"]).mkdir(parents=True)
            metrics = {"accuracy": 0.8125, "mlm_loss": 5.678, "unigram_entropy": 6.108}
            Path(flags["workdir"], "metrics.json").write_text(json.dumps({"metrics": metrics}))
        elif verb == "export":
            Path(flags["export_dir"], "1").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(demonstration, "run", run)
    monkeypatch.setattr(demonstration, "_server", lambda *_: contextlib.nullcontext())
    return called


def test_what_is_there_is_used_the_second_time(verbs, capsys):
    demonstration.main(Path("run.py"))
    assert verbs == ["vocab", "prepare", "pretrain", "finetune", "export", "verify", "query"]
    shown = capsys.readouterr().out
    assert (
        "5.68 nats" in shown
        and "6.11 by frequency" in shown
        and "0.8125" in shown
        and f"{demonstration.EXPORT_DIR}/1" in shown
    )
    verbs.clear()
    demonstration.main(Path("run.py"))
    assert verbs == ["verify", "query"]


def test_the_pretraining_stage_goes_on_where_it_was_left(verbs):
    Path(demonstration.VOCABULARY).parent.mkdir(parents=True)
    Path(demonstration.VOCABULARY).write_text("[PAD]\n")
    demonstration.pretrain(Path("run.py"))
    assert verbs == ["prepare", "pretrain"]


def test_its_config_names_what_the_demonstration_makes():
    config = pretrain_demo.get_config()
    assert Path(demonstration.PRETRAIN_CONFIG).stem == pretrain_demo.__name__.rsplit(".")[-1]
    assert (config.text.vocabulary, config.data.train) == (demonstration.VOCABULARY, demonstration.EXAMPLES)


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
