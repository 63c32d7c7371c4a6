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
                [sys.executable, "-m", __name__, format],
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


def _answer_huggingface():
    import torch
    import transformers

    question = json.loads(sys.stdin.read())
    path, model_class = Path(question["path"]), getattr(transformers, question["class_name"])
    model = model_class.from_pretrained(
        path if path.is_dir() else path.parent,
        attn_implementation="eager",
        dtype=torch.float32,
        local_files_only=True,
    ).eval()
    with np.load(question["batch"]) as batch:
        inputs = {
            "input_ids": torch.tensor(batch[features.TOKEN_IDS].astype("int64")),
            "attention_mask": torch.tensor(batch[features.PADDING_MASK].astype("int64")),
        }
        if model.config.model_type != "distilbert":
            inputs["token_type_ids"] = torch.tensor(batch[features.SEGMENT_IDS].astype("int64"))
    with torch.no_grad():
        np.savez(question["answer"], **huggingface_outputs(model(**inputs)))


def _answer_kerashub():
    import keras_hub  # noqa: F401 (takes long, and is wanted before there is a question)

    from keras_bert_app.convert import kerashub

    question = json.loads(sys.stdin.read())
    model = kerashub.make_model(EncoderConfig(**question["encoder"]), Network(**question["network"]))
    kerashub.load_into(model, Path(question["path"]))
    with np.load(question["batch"]) as batch:
        np.savez(question["answer"], **kerashub_outputs(model, dict(batch)))


def kerashub_outputs(model, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A KerasHub model's outputs, by the names of `Network.build`; a classifier's without activation."""
    inputs = {name: batch[name] for name in (features.TOKEN_IDS, features.SEGMENT_IDS, features.PADDING_MASK)}
    inputs = {name: value.astype("int32") for name, value in inputs.items()}
    if features.MASKED_POSITIONS in batch:
        positions = {"mask_positions": batch[features.MASKED_POSITIONS]}
        return {features.MASKED_LOGITS: np.asarray(model(inputs | positions))}
    answers = model(inputs)
    if isinstance(answers, dict):
        names = {features.SEQUENCE: "sequence_output", features.POOLED: "pooled_output"}
        return {ours: np.asarray(answers[theirs]) for ours, theirs in names.items()}
    return {features.LOGITS: np.asarray(answers)}


def huggingface_outputs(output) -> dict[str, np.ndarray]:
    """transformers' outputs of whatever class, by the names of `Network.build`."""
    kind = type(output).__name__
    if "start_logits" in output:
        stacked = np.stack([output.start_logits.numpy(), output.end_logits.numpy()], axis=-1)
        return {features.LOGITS: stacked}
    if "prediction_logits" in output:
        return {
            features.MASKED_LOGITS: output.prediction_logits.numpy(),
            features.PAIR_LOGITS: output.seq_relationship_logits.numpy(),
        }
    if "logits" in output:
        names = {
            "MaskedLMOutput": features.MASKED_LOGITS,
            "NextSentencePredictorOutput": features.PAIR_LOGITS,
        }
        return {names.get(kind, features.LOGITS): output.logits.numpy()}
    answers = {features.SEQUENCE: output.last_hidden_state.numpy()}
    if output.get("pooler_output") is not None:
        answers[features.POOLED] = output.pooler_output.numpy()
    return answers


if __name__ == "__main__":
    {"huggingface": _answer_huggingface, "kerashub": _answer_kerashub}[sys.argv[1]]()
