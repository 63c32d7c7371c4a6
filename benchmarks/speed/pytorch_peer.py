"""transformers on PyTorch: scaled dot product attention, eager or compiled by Inductor with frozen weights.

Compiled as PyTorch documents for processors: freezing, a graph for each shape. bfloat16 is the weights', int8
torch.ao.quantization.quantize_dynamic over the linear layers, the way PyTorch documents for BERT.
"""

from pathlib import Path

import numpy as np
import torch
import torch._inductor.config
from transformers import AutoModelForSequenceClassification

from benchmarks.speed.worker import NUM_THREADS, Tokenizing

torch._inductor.config.freezing = True
torch._dynamo.config.cache_size_limit = 64


def load(folder: Path, **options) -> torch.nn.Module:
    """The published weights."""
    return AutoModelForSequenceClassification.from_pretrained(folder / "huggingface", **options).eval()


class Model(Tokenizing):
    """Padded ids in, probabilities out."""

    def __init__(self, folder: Path, setting: str, precision: str):
        super().__init__(folder)
        torch.set_num_threads(NUM_THREADS)
        model = load(folder, attn_implementation="sdpa")

        if precision == "int8":
            linear = {torch.nn.Linear}
            model = torch.ao.quantization.quantize_dynamic(model, linear, dtype=torch.qint8)
        else:
            model = model.to(getattr(torch, precision))
        self._model = torch.compile(model, dynamic=False) if setting == "compiled" else model

    @torch.inference_mode()
    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """token_ids, padding_mask [B, S] -> probabilities [B, C]."""
        token_ids = torch.from_numpy(batch["token_ids"]).long()
        mask = torch.from_numpy(batch["padding_mask"]).long()
        logits = self._model(input_ids=token_ids, attention_mask=mask).logits
        return torch.softmax(logits.double(), -1).numpy()
