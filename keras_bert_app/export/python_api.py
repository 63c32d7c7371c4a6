"""Run a SavedModel through Python TensorFlow, with none of this project's code.

The twin of c_api.py, with the same request, reply and exit codes; run it as a file, in a process of its own:

    python python_api.py < request.json > reply.json
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, when TensorFlow is imported
# Run as a file this isn't part of a package, and importing the package would spoil the proof that none of it
# is needed; so c_api.py comes in as the sibling it is, from a folder that `python -I` leaves out.
sys.path.append(str(pathlib.Path(__file__).resolve().parent))

import c_api
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops of tokenizers


class SavedModel:
    """A SavedModel loaded by tf.saved_model.load, with the methods of c_api.SavedModel."""

    def __init__(self, export_dir: str):
        try:
            self._model = tf.saved_model.load(export_dir)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise c_api.RequestError(str(error)) from error
        self.signatures = self._model.signatures

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def input_dtypes(self, signature: str) -> dict[str, str]:
        """The dtype of each of a signature's inputs."""
        _, specs = self.signatures[signature].structured_input_signature
        return {name: spec.dtype.name for name, spec in specs.items()}

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All of a signature's outputs; strings are object arrays of bytes, in and out.

        Raises RequestError with TensorFlow's message when the graph refuses the inputs.
        """
        dtypes = self.input_dtypes(signature)
        try:
            tensors = {name: tf.constant(array, dtypes[name]) for name, array in inputs.items()}
            outputs = self.signatures[signature](**tensors)
        except (TypeError, ValueError, tf.errors.OpError) as error:
            raise c_api.RequestError(str(error)) from error
        # A string scalar is bytes to NumPy, which cuts trailing NULs unless told that it is an object.
        return {
            name: np.array(tensor.numpy(), dtype=object) if tensor.dtype == tf.string else tensor.numpy()
            for name, tensor in outputs.items()
        }


if __name__ == "__main__":
    sys.exit(c_api.main(SavedModel))
