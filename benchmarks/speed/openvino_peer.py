"""OpenVINO: the model converted from PyTorch, and NNCF's post-training quantization to int8.

Settings as documented: for one request at a time the latency hint and as many threads as cores; for many of
one text the throughput hint, a stream for each core. The precision is set by its hint. int8 is NNCF's scheme
for transformers, calibrated on 300 reviews, its other layers in bfloat16.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.speed import inputs
from benchmarks.speed.worker import NUM_THREADS, Tokenizing, softmax

NAMES = ("input_ids", "attention_mask", "token_type_ids")
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}


def make(folder: Path) -> None:
    """Write openvino/float32.xml and openvino/int8.xml."""
    import nncf
    import openvino
    import torch

    from benchmarks.speed.pytorch_peer import load

    example = dict.fromkeys(NAMES, torch.ones((2, 16), dtype=torch.int64))
    model = openvino.convert_model(load(folder, attn_implementation="sdpa"), example_input=example)
    openvino.save_model(model, folder / "openvino" / "float32.xml", compress_to_fp16=False)
    rows = inputs.read(folder)["calibration"]["ids"]
    data = nncf.Dataset([arrays(inputs.pad([ids])) for ids in rows])
    quantized = nncf.quantize(
        model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows), fast_bias_correction=True
    )
    openvino.save_model(quantized, folder / "openvino" / "int8.xml", compress_to_fp16=False)


def arrays(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch under the model's names, int64 [B, S]."""
    token_ids = batch["token_ids"].astype(np.int64)
    values = (token_ids, batch["padding_mask"].astype(np.int64), np.zeros_like(token_ids))
    return dict(zip(NAMES, values, strict=True))


class Model(Tokenizing):
    """Padded ids in, probabilities out; `predict` may be called by several threads."""

    def __init__(self, folder: Path, setting: str, precision: str):
        import openvino

        super().__init__(folder)
        file = "int8" if precision == "int8" else "float32"
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": NUM_THREADS}
        if setting != "streams":
            settings = {"PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_NUM_THREADS": NUM_THREADS, "INFERENCE_PRECISION_HINT": HINTS[precision]}
        path = folder / "openvino" / f"{file}.xml"
        self._compiled = openvino.Core().compile_model(path, "CPU", settings)
        self._of_thread = threading.local()
        if setting == "streams":
            pool = ThreadPoolExecutor(NUM_THREADS)
            self.concurrently = lambda calls: list(pool.map(lambda call: call(), calls))

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """token_ids, padding_mask [B, S] -> probabilities [B, C]."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        return softmax(self._of_thread.request.infer(arrays(batch))["logits"])
