"""The sign of life that a worker process gives to `run.py launch`, whose half is in launch.py."""

import os
import time
from pathlib import Path

FILE = "KERAS_BERT_APP_HEARTBEAT"  # environment: the file whose time of change is the last sign of life
LAUNCHER = "KERAS_BERT_APP_LAUNCHER"  # environment: the process id of the launcher
_SECONDS_BETWEEN = 1.0
_last = -_SECONDS_BETWEEN


def beat() -> None:
    """Say that this process still works; call it often: it does something once a second at most.

    Nothing where no launcher started this process.

    Raises:
        SystemExit: the launcher is gone, and nobody would stop this process any more.
    """
    global _last
    now = time.monotonic()
    if now - _last < _SECONDS_BETWEEN or FILE not in os.environ:
        return
    _last = now
    if os.getppid() != int(os.environ[LAUNCHER]):
        raise SystemExit("the launcher is gone; the same command goes on from the last checkpoint")
    Path(os.environ[FILE]).touch()
