"""transformers' BERT on PyTorch, for benchmarks/accelerator.py: compiled, sdpa, bfloat16, fused AdamW."""

from collections.abc import Mapping

import numpy as np
import torch
import transformers

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig
from keras_bert_app.convert.huggingface_families import BERT_KEYS, FAMILIES
from keras_bert_app.model.networks import Network

MODULES = {"torch": torch, "transformers": transformers}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(encoder: EncoderConfig, weights: Mapping[str, np.ndarray], kind: str) -> torch.nn.Module:
    """transformers' network with our weights, by path."""
    family, network = FAMILIES["bert"], Network(kind)
    settings = {theirs: getattr(encoder, ours) for ours, theirs in BERT_KEYS.items()}
    model_class = getattr(transformers, family.classes[kind])
    model = model_class(transformers.BertConfig(**settings, attn_implementation="sdpa"))
    tensors = {
        family.full_name(row.theirs, kind): torch.tensor(row.transform.theirs(weights[row.ours], ()))
        for row in family.theirs(network, network.encoder(encoder)).rows
    }
    missing, unknown = model.load_state_dict(tensors, strict=False)
    # The decoder's weights are the embeddings', and its bias stands twice.
    if unknown or [name for name in missing if ".decoder." not in name]:
        raise ValueError(f"missing: {missing}; unknown: {unknown}")
    return model.to(DEVICE)


def inputs_of(batch: Mapping[str, np.ndarray], packed: bool) -> dict[str, torch.Tensor]:
    """As BertModel takes them; packed texts see themselves alone, by a mask [B, 1, S, S]."""
    inputs = {"input_ids": batch[features.TOKEN_IDS], "token_type_ids": batch[features.SEGMENT_IDS]}
    if not packed:
        return inputs | {"attention_mask": batch[features.PADDING_MASK].astype("int64")}
    numbers = batch[features.SEQUENCE_IDS]
    same = numbers[:, :, None] == numbers[:, None, :]
    places = np.arange(numbers.shape[1]) - same.argmax(-1)
    return inputs | {"attention_mask": same[:, None], "position_ids": places}


class Side:
    """One network, compiled."""

    def __init__(self, encoder: EncoderConfig, weights, batch, work: str, packed: bool, steps: int):
        torch.set_float32_matmul_precision("high")
        torch.compiler.reset()  # it compiles a function for a few objects at most
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._steps, self._work = steps, work
        self._batch = {name: torch.tensor(array, device=DEVICE) for name, array in batch.items()}
        self._inputs = {
            name: torch.tensor(array, device=DEVICE) for name, array in inputs_of(batch, packed).items()
        }
        model = make_model(encoder, weights, "encoder" if work == "forward" else "masked_lm")
        if work == "forward":
            self._model = model.to(torch.bfloat16).eval()
            self._compiled = torch.compile(self._forward)
        else:
            self._model = model.train()
            self._optimizer = self._adamw()
            self._compiled = torch.compile(self._loss)

    def _adamw(self) -> torch.optim.Optimizer:
        named = list(self._model.named_parameters())
        groups = [
            {"params": [value for _, value in named if value.ndim > 1], "weight_decay": 0.01},
            {"params": [value for _, value in named if value.ndim == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-4, eps=1e-7, fused=True)

    def _forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self._model(**self._inputs)
        return outputs.last_hidden_state, outputs.pooler_output

    def _loss(self) -> torch.Tensor:
        """The masked tokens' vectors are gathered first: the model's own class projects all tokens."""
        sequence = self._model.bert(**self._inputs).last_hidden_state  # [B, S, H]
        places = self._batch[features.MASKED_POSITIONS].long()[:, :, None].expand(-1, -1, sequence.shape[-1])
        logits = self._model.cls(torch.gather(sequence, 1, places)).float()  # [B, P, V]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), self._batch[features.MASKED_IDS].long().flatten(), reduction="none"
        )
        weights = self._batch[features.MASKED_WEIGHTS].flatten()
        return (losses * weights).sum() / weights.sum()

    def _step(self) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = self._compiled()
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def answer(self) -> np.ndarray:
        """float32 [B, S, H] of the real tokens, 0 elsewhere; training: the loss of the first step."""
        if self._work == "train":
            return self._step().float().cpu().numpy()
        with torch.inference_mode():
            sequence = self._compiled()[0]
        return (sequence.float() * self._batch[features.PADDING_MASK][:, :, None]).cpu().numpy()

    def run(self) -> None:
        """So many steps."""
        for _ in range(self._steps):
            if self._work == "train":
                self._step()
            else:
                with torch.inference_mode():
                    self._compiled()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        """Of PyTorch's allocator since this side began; None without a GPU."""
        return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
