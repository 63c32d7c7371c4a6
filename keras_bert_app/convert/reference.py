"""What the library that a source comes from computes with it, in a process of its own.

The process imports the library while this one goes on, and reads nothing before it is asked.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, to_dict
from keras_bert_app.convert.pretrained import Pretrained
from keras_bert_app.model.networks import Network

# Format -> the packages that its reference needs.
LIBRARIES = {"huggingface": ("transformers", "torch"), "kerashub": ("keras_hub",)}
_NUM_TEXTS, _LENGTH, _NUM_CHOICES = 4, 24, 3


class Reference:
    """A process that answers for a library; use it in a `with` statement.

    Args:
        format: a key of convert.formats.FORMATS.
    """

    def __init__(self, format: str):
        packages = LIBRARIES.get(format, ())
        self.library = packages[0] if packages else None
        self._process = None
        if packages and all(importlib.util.find_spec(package) for package in packages):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "keras_bert_app.convert.library", format],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "KERAS_BACKEND": "tensorflow"},
            )

    @property
    def is_there(self) -> bool:
        """Whether the library is installed."""
        return self._process is not None

    def outputs(
        self, pretrained: Pretrained, encoder: EncoderConfig, batch: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray] | str:
        """What the library computes with the source, by the names of features.py; or why it couldn't.

        Args:
            batch: see `random_batch`.
        """
        with tempfile.TemporaryDirectory() as folder:
            asked, answered = Path(folder, "asked.npz"), Path(folder, "answered.npz")
            np.savez(asked, **batch)
            question = {
                "path": str(pretrained.where),
                "class_name": pretrained.provenance["class"],
                "encoder": to_dict(encoder),
                "network": dataclasses.asdict(pretrained.network),
                "batch": str(asked),
                "answer": str(answered),
            }
            text = json.dumps(question)
            _, errors = self._process.communicate(text.encode())
            if self._process.returncode or not answered.exists():
                lines = errors.decode("utf-8", "replace").strip().splitlines()
                return lines[-1] if lines else f"exit code {self._process.returncode}"
            with np.load(answered) as arrays:
                return dict(arrays)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def random_batch(network: Network, encoder: EncoderConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of `network.build`, of several lengths: random tokens, padding behind them."""
    draw = np.random.default_rng(seed)
    length = min(_LENGTH, encoder.max_positions)
    choices = (_NUM_CHOICES,) if network.kind == "multiple_choice" else ()
    lengths = draw.integers(min(2, length), length + 1, (_NUM_TEXTS, *choices))
    lengths.flat[0] = length
    mask = np.arange(length) < lengths[..., None]
    # RoBERTa finds positions by counting what isn't padding's id.
    padding = max(0, encoder.position_offset - 1)
    token_ids = draw.integers(min(5, encoder.vocabulary_size - 1), encoder.vocabulary_size, mask.shape)
    segment_ids = mask & (np.arange(length) >= lengths[..., None] // 2) & (encoder.num_segments > 1)
    batch = {
        features.TOKEN_IDS: np.where(mask, token_ids, padding).astype("int32"),
        features.SEGMENT_IDS: segment_ids.astype("int32"),
        features.PADDING_MASK: mask,
    }
    if "masked_head" in network.heads:
        places = np.broadcast_to(np.arange(length), (_NUM_TEXTS, length))
        batch[features.MASKED_POSITIONS] = places.astype("int32")
    return batch


def largest_differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], mask: np.ndarray
) -> dict[str, float]:
    """Output name -> the largest absolute difference, places of padding aside."""
    differences = {}
    for name in theirs.keys() & ours.keys():
        difference = np.abs(np.asarray(ours[name], "float64") - np.asarray(theirs[name], "float64"))
        if difference.ndim == 3:
            difference = difference[mask]
        differences[name] = float(difference.max())
    return differences
