"""This project's bundles, run as the model servers run them: a session, and callables of a signature.

The session has TensorFlow's own settings: as many threads as there are cores. Batches come padded to their
longest; what the graph makes of the padding is its affair.
"""

from pathlib import Path

import numpy as np

from benchmarks.speed.worker import softmax
from serving.servable import Servable, tf


class Model:
    """A bundle's `token_ids` and `serving_default`."""

    def __init__(self, folder: Path, setting: str, precision: str):
        version = max((folder / precision).glob("[0-9]*"), key=lambda path: int(path.name))
        self._servable = Servable("speed", int(version.name), str(version))

    def _run(self, signature, output, arrays):
        signature = self._servable.signatures[signature]
        feeds = {
            info.name: (tf.as_dtype(info.dtype), arrays[name].astype(tf.as_dtype(info.dtype).as_numpy_dtype))
            for name, info in signature.inputs.items()
        }
        return self._servable.run(feeds, [signature.outputs[output].name])[0]

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """token_ids, padding_mask [B, S] -> probabilities [B, C]."""
        batch = batch | {"segment_ids": np.zeros_like(batch["token_ids"])}
        return softmax(self._run("token_ids", "logits", batch))

    def label(self, texts: list[str]) -> list[str]:
        """Texts -> labels."""
        texts = np.array([text.encode() for text in texts], object)
        return [label.decode() for label in self._run("serving_default", "label", {"text": texts})]
