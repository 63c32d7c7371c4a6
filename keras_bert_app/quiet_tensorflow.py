"""Importing this imports TensorFlow, without what it logs before it reads its log level.

What it said is shown if the import fails. A module, so that processes that fork can be told to import it.
"""

import gc
import os
import tempfile


def _start() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as log:
        standard_error = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except ImportError:
            log.seek(0)
            os.write(standard_error, log.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


_start()
# Going through all these objects again and again would take half a second at the process's end alone.
gc.freeze()
