"""Importing this imports TensorFlow in half the time, without what it logs before it reads its log level.

What it said is shown if the import fails. A module, so that processes that fork can be told to import it.
"""

import gc
import os
import sys
import tempfile

# What Keras and TensorFlow take along where it is installed, and do without where it isn't: for wrappers and
# plots of Keras' and for a converter of TensorFlow's that nothing here uses. It is half of the import's time.
_UNUSED = ("sklearn", "matplotlib", "jax")


def _start() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    hidden = [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # to import it is an ImportError now
    # Nothing of what an import makes is garbage, and looking for some takes a fifth of its time.
    gc.disable()
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
            gc.enable()
            for name in hidden:
                del sys.modules[name]


_start()
# Going through all these objects again and again would take half a second at the process's end alone.
gc.freeze()
