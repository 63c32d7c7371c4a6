"""The one exception that means the user can mend it."""


class UserError(Exception):
    """A mistake in a file, flag or folder: the message says what, where, and what to write instead.

    `run.py` prints it as one line and exits with code 2; it never shows a traceback for it.
    """
