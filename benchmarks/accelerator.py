"""Encoder forward and training step on an accelerator: these layers on JAX, and transformers on PyTorch.

    python -m benchmarks.accelerator --output=accelerator.json
    JAX_PLATFORMS=cpu python -m benchmarks.accelerator --sizes=tiny --lengths=16 --slots=64 --steps=2

Needs jax, keras, torch and transformers, of this project's requirements absl-py and numpy beside them, and no
TensorFlow. Both sides compute the same texts from the same weights: forward in bfloat16; a step of masked
language modelling (15 % of the tokens, gathered before the vocabulary's product) with float32 weights,
bfloat16 arithmetic, dropout and AdamW. Shapes are fixed, everything is compiled, buffers are donated.
`padded`: a text a row. `packed`: several, each seeing itself alone.

"keras_bert_app, fused" is the same with keras.ops.dot_product_attention, which takes cuDNN's kernels where it
can, in place of the layer's products and softmax; it has no dropout of attention weights, so that training
has it only with --dropout=0. Sides take turns, --rounds times --steps steps; time is the median round's.
Model FLOP utilisation counts real tokens' products alone (keras_bert_app/model/flops.py).
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some memory too

import keras
import numpy as np
from absl import app, flags

from benchmarks import accelerator_jax, accelerator_torch
from configs.sizes import SIZES
from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.model.flops import TRAINING_PASSES, encoder_flops, text_lengths

SIZE = flags.DEFINE_list("sizes", ["base", "large"], "of configs/sizes.py")
LENGTHS = flags.DEFINE_list("lengths", ["128", "512"], "tokens in a row")
LAYOUTS = flags.DEFINE_list("layouts", ["padded", "packed"], "how texts lie in rows")
WORK = flags.DEFINE_list("work", ["forward", "train"], "what is timed")
SLOTS = flags.DEFINE_integer("slots", 2**14, "tokens of a batch, padding included")
STEPS = flags.DEFINE_integer("steps", 10, "steps of a round", 1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "turns that each side takes", 1)
DROPOUT = flags.DEFINE_float("dropout", 0.1, "of the training step")
OUTPUT = flags.DEFINE_string("output", None, "file for the results as JSON")

MASKED_SHARE = 0.15
VOCABULARY_SIZE = 30522
# TFLOP/s of dense bfloat16 products with float32 sums, by the vendor's data sheets.
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
}


def draw_lengths(random: np.random.Generator, longest: int, count: int) -> np.ndarray:
    """Tokens of texts, int [count]: most are short, few are long, as in real collections (log-normal)."""
    return np.clip(random.lognormal(np.log(longest / 5), 0.8, count).astype(int), 4, longest)


def make_rows(lengths: np.ndarray, num_rows: int, length: int, packed: bool) -> list[list[int]]:
    """Lengths of the texts of each row; packed: each text goes into the first row that has room for it."""
    if not packed:
        return [[text] for text in lengths[:num_rows].tolist()]
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    for text in lengths.tolist():
        row = next((row for row in rows if sum(row) + text <= length), None)
        if row is not None:
            row.append(text)
    return rows


def make_batch(random: np.random.Generator, rows: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """A batch of random tokens with masked positions, as features.py has it; `sequence_ids` always."""
    most = max(1, int(MASKED_SHARE * length))
    shape, masked_shape = (len(rows), length), (len(rows), most)
    batch = {
        features.TOKEN_IDS: random.integers(1000, VOCABULARY_SIZE, shape).astype("int32"),
        features.SEGMENT_IDS: np.zeros(shape, "int32"),
        features.SEQUENCE_IDS: np.zeros(shape, "int32"),
        features.MASKED_POSITIONS: np.zeros(masked_shape, "int32"),
        features.MASKED_IDS: random.integers(1000, VOCABULARY_SIZE, masked_shape).astype("int32"),
        features.MASKED_WEIGHTS: np.zeros(masked_shape, "float32"),
    }
    for place, texts in enumerate(rows):
        batch[features.SEQUENCE_IDS][place, : sum(texts)] = np.repeat(np.arange(len(texts)) + 1, texts)
        masked = np.sort(random.choice(sum(texts), max(1, int(MASKED_SHARE * sum(texts))), replace=False))
        batch[features.MASKED_POSITIONS][place, : len(masked)] = masked
        batch[features.MASKED_WEIGHTS][place, : len(masked)] = 1
    batch[features.PADDING_MASK] = batch[features.SEQUENCE_IDS] > 0
    return batch


def step_flops(encoder: EncoderConfig, batch: Mapping[str, np.ndarray], work: str) -> float:
    """Floating-point operations that the real tokens need; training has the head and no pooler."""
    lengths, hidden = text_lengths(batch), encoder.hidden_dim
    flops = encoder_flops(encoder, lengths)
    if work == "forward":
        return flops
    masked = float(batch[features.MASKED_WEIGHTS].sum())
    pooler = 2 * hidden**2 * len(lengths)
    return TRAINING_PASSES * (flops - pooler + 2 * masked * hidden * (hidden + encoder.vocabulary_size))


def time_in_turns(sides: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds a step of each round. A side's function enqueues steps and waits for the last one."""
    for run in sides.values():
        run()  # compiled and warm
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS.value):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / STEPS.value)
    return seconds


def measure(size: str, length: int, layout: str, work: str, peak: float | None) -> list[dict[str, Any]]:
    """A row of results for each side."""
    random = np.random.default_rng(0)
    rates = {"dropout": DROPOUT.value, "attention_dropout": DROPOUT.value} if work == "train" else {}
    known = {"vocabulary_size": VOCABULARY_SIZE, "max_positions": 512}
    # Wide enough that each layer's share in what comes out is seen.
    rates["initializer_range"] = SIZES[size]["hidden_dim"] ** -0.5
    encoder = complete_encoder(EncoderConfig(**SIZES[size], **rates), known)
    lengths = draw_lengths(random, length, SLOTS.value)
    batch = make_batch(random, make_rows(lengths, SLOTS.value // length, length, layout == "packed"), length)
    sides, answers, memory = {}, {}, {}
    for fused in (False, True):
        if fused and work == "train" and DROPOUT.value:
            continue
        name = "keras_bert_app, fused" if fused else "keras_bert_app"
        keras.utils.set_random_seed(0)
        side = accelerator_jax.Side(encoder, batch, work, layout == "packed", fused, STEPS.value)
        sides[name], answers[name], memory[name] = side.run, side.answer(), side.peak_bytes
        weights = side.weights()
    peer = accelerator_torch.Side(encoder, weights, batch, work, layout == "packed", STEPS.value)
    sides["transformers"], answers["transformers"] = peer.run, peer.answer()
    seconds = time_in_turns(sides)
    memory["transformers"] = peer.peak_bytes()
    tokens, flops = int(batch[features.PADDING_MASK].sum()), step_flops(encoder, batch, work)
    return [
        {
            "size": size,
            "length": length,
            "layout": layout,
            "work": work,
            "side": name,
            "rows": SLOTS.value // length,
            "tokens": tokens,
            "milliseconds": 1e3 * statistics.median(times),
            "spread": [1e3 * min(times), 1e3 * max(times)],
            "tokens_per_second": tokens / statistics.median(times),
            "utilisation": peak and flops / statistics.median(times) / peak,
            "peak_bytes": memory[name],
            "difference": float(np.abs(answers[name] - answers["transformers"]).max()),
        }
        for name, times in seconds.items()
    ]


def main(_) -> None:
    """Measure each row, print it when it is there, write all of them."""
    chip = accelerator_jax.device_name()
    peak = next((1e12 * value for name, value in PEAKS.items() if name in chip), None)
    print(f"{chip}, peak {f'{peak / 1e12:g} TFLOP/s' if peak else 'unknown'}")
    print(f"{'':<46}{'ms (least to largest)':<28}{'tokens/s':>11}  use   memory  largest difference")
    rows = []
    for size in SIZE.value:
        for length in map(int, LENGTHS.value):
            for layout in LAYOUTS.value:
                for work in WORK.value:
                    for row in measure(size, length, layout, work, peak):
                        rows.append(row)
                        print(line(row), flush=True)
    if OUTPUT.value:
        versions = {name: module.__version__ for name, module in accelerator_torch.MODULES.items()}
        versions |= accelerator_jax.versions()
        content = {"chip": chip, "date": time.strftime("%Y-%m-%d"), "versions": versions, "rows": rows}
        Path(OUTPUT.value).write_text(json.dumps(content, indent=1) + "\n")


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    what = f"{row['size']} {row['length']} {row['layout']} {row['work']}, {row['side']}"
    times = f"{row['milliseconds']:.2f} ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})"
    use = f"{row['utilisation']:.0%}" if row["utilisation"] else "-"
    memory = f"{row['peak_bytes'] / 2**30:.2f} G" if row["peak_bytes"] else "-"
    speed = f"{row['tokens_per_second']:>11,.0f}"
    return f"{what:<46}{times:<28}{speed}  {use:<5} {memory:<7} {row['difference']:.2g}"


if __name__ == "__main__":
    app.run(main)
