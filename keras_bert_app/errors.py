"""What ends a command early and is no defect: a mistake that the user can mend, a wish to stop."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in a file, flag or folder: the message says what, where, and what to write instead.

    `run.py` prints it as one line and exits with code 2; it never shows a traceback for it.
    """


class Stopped(Exception):
    """A run was asked to stop and has saved; the same command goes on.

    signal: the number of the signal that came, None where it came to another process of the run. step: the
    step that was saved.
    """

    def __init__(self, signal: int | None, step: int):
        super().__init__(f"stopped; the checkpoint of step {step} is saved, the same command goes on from it")
        self.signal = signal
        self.step = step


@contextlib.contextmanager
def needing_beam() -> Iterator[None]:
    """Within it is imported what needs Apache Beam, an extra.

    Raises:
        UserError: it isn't installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UserError(
            "--beam: Apache Beam isn't installed; pip install 'keras_bert_app[beam]', or leave --beam out"
        ) from None
