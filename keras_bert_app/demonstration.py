"""`run.py demo`: one verb after another on packaged weights and texts, each as a person would type it.

First an encoder is pretrained for a minute, which shows the way. It is far too small to be of use, so the
classifier starts from other weights.
"""

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_bert_app.errors import UserError

SPEECHES, PRETRAIN_CONFIG, PRETRAIN_WORKDIR = "conventions", "configs/pretrain_demo.py", "runs/conventions"
VOCABULARY, EXAMPLES = "data/conventions/vocab.txt", "data/conventions/examples"
WORKDIR, EXPORT_DIR, MODEL = "runs/sentiment", "exported/sentiment", "sentiment"
SENTENCES = (
    "a quiet triumph",
    "so dull",
    "Not one of its jokes lands, and there are many.",
    "It should not work, and yet I have not been this moved in years.",
)
_SECONDS_FOR_SERVER_TO_START = 120


def main(runner: Path) -> None:
    """Run the whole way; what an earlier call has finished is used, not done again.

    Args:
        runner: path of run.py.

    Raises:
        SystemExit: a verb failed, with its exit code; it has said why.
        UserError: the server didn't start.
    """
    started = time.monotonic()
    pretrain(runner)
    if not Path(WORKDIR, "metrics.json").exists():
        run(runner, "finetune", "--config=configs/sentiment.py", f"--workdir={WORKDIR}")
    if not _newest_export_is_of_this_run():
        run(runner, "export", f"--workdir={WORKDIR}", f"--export_dir={EXPORT_DIR}")
    run(runner, "verify", f"--export_dir={EXPORT_DIR}")
    port = _free_port()
    with _server(runner, port):
        run(runner, "query", f"--target=localhost:{port}", f"--model={MODEL}", *SENTENCES)
    accuracy, pretraining = _metrics(WORKDIR)["accuracy"], _metrics(PRETRAIN_WORKDIR)
    loss, by_frequency = pretraining["mlm_loss"], pretraining["unigram_entropy"]
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(
        f"""
Done in {minutes} min {seconds} s.

  test accuracy  {accuracy:.4f}, on reviews of films that training never saw
  report         {WORKDIR}/report.html
  bundle         {_newest_version()}
  Keras model    {WORKDIR}/model.keras
  pretraining    {loss:.2f} nats a hidden token, {by_frequency:.2f} by frequency alone; too small an encoder
                 to start the classifier from, see {PRETRAIN_WORKDIR}/report.html

Go on with your own texts (a CSV with the columns text and label), or serve the bundle:

  {sys.executable} run.py finetune --config=configs/classification.py --workdir=runs/mine \\
      --config.data.train=mine.csv
  {sys.executable} run.py serve --export_dir={EXPORT_DIR} --port=8500
  {sys.executable} run.py query --target=localhost:8500 --model={MODEL} "your text"
"""
    )


def pretrain(runner: Path) -> None:
    """From speeches to a tiny pretrained encoder.

    Raises:
        SystemExit: a verb failed, with its exit code; it has said why.
    """
    config, speeches = f"--config={PRETRAIN_CONFIG}", f"--input={SPEECHES}"
    if not Path(VOCABULARY).exists():
        run(runner, "vocab", speeches, f"--output={VOCABULARY}", "--vocab_size=4000")
    if not Path(EXAMPLES).exists():
        run(runner, "prepare", config, speeches, f"--output={EXAMPLES}")
    if not Path(PRETRAIN_WORKDIR, "metrics.json").exists():
        run(runner, "pretrain", config, f"--workdir={PRETRAIN_WORKDIR}")


def run(runner: Path, *arguments: str) -> None:
    """Show a command and run it.

    Raises:
        SystemExit: it failed, with its exit code.
    """
    print(f"\n$ python run.py {shlex.join(arguments)}", flush=True)
    process = subprocess.Popen([sys.executable, str(runner), *arguments])
    try:
        code = process.wait()
    except BaseException:
        # Asked, not killed, so that it removes its temporary files.
        process.terminate()
        process.wait()
        raise
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


@contextlib.contextmanager
def _server(runner: Path, port: int) -> Iterator[None]:
    arguments = ["serve", f"--export_dir={EXPORT_DIR}", f"--model={MODEL}", f"--port={port}"]
    arguments.append("--rest_api_port=-1")
    print(f"\n$ python run.py {shlex.join(arguments)} &", flush=True)
    process = subprocess.Popen([sys.executable, str(runner), *arguments])
    try:
        _wait_for(process, port)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen, port: int) -> None:
    give_up = time.monotonic() + _SECONDS_FOR_SERVER_TO_START
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.2)
    raise UserError(f"the server on port {port} didn't start; its own message is above")


def _metrics(workdir: str) -> dict[str, Any]:
    return json.loads(Path(workdir, "metrics.json").read_text(encoding="utf-8"))["metrics"]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _newest_version() -> Path | None:
    versions = [path for path in Path(EXPORT_DIR).glob("[0-9]*") if path.name.isdigit()]
    return max(versions, key=lambda path: int(path.name), default=None)


def _newest_export_is_of_this_run() -> bool:
    newest = _newest_version()
    return newest is not None and newest.stat().st_mtime >= Path(WORKDIR, "metrics.json").stat().st_mtime
