"""ONNX Runtime, with the transformer optimizer that it documents for BERT, and dynamic quantization to int8.

The export is transformers' eager attention through PyTorch's TorchScript exporter, whose attention the
optimizer fuses. The CPU provider has no bfloat16 kernels on x86.
"""

from pathlib import Path

import numpy as np

from benchmarks.speed.worker import NUM_THREADS, Tokenizing, softmax

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def make(folder: Path) -> None:
    """Write onnx/float32.onnx and onnx/int8.onnx."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    from benchmarks.speed.pytorch_peer import load

    model, target = load(folder, attn_implementation="eager"), folder / "onnx"
    target.mkdir(exist_ok=True)
    example, axes = torch.ones((2, 16), dtype=torch.int64), dict.fromkeys(NAMES, {0: "batch", 1: "tokens"})
    torch.onnx.export(
        model,
        (example, example, 0 * example),
        target / "exported.onnx",
        input_names=list(NAMES),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    heads, size = model.config.num_attention_heads, model.config.hidden_size
    optimized = optimizer.optimize_model(
        str(target / "exported.onnx"), "bert", num_heads=heads, hidden_size=size
    )
    if optimized.get_fused_operator_statistics()["Attention"] != model.config.num_hidden_layers:
        raise RuntimeError("ONNX Runtime's optimizer did not fuse every layer's attention")
    optimized.save_model_to_file(str(target / "float32.onnx"))
    quantize_dynamic(
        target / "float32.onnx",
        target / "int8.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        # Shape inference knows nothing of fused operators' types.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


class Model(Tokenizing):
    """Padded ids in, probabilities out."""

    def __init__(self, folder: Path, setting: str, precision: str):
        import onnxruntime

        super().__init__(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = NUM_THREADS, 1
        self._session = onnxruntime.InferenceSession(
            folder / "onnx" / f"{precision}.onnx", options, providers=["CPUExecutionProvider"]
        )

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """token_ids, padding_mask [B, S] -> probabilities [B, C]."""
        token_ids = batch["token_ids"].astype(np.int64)
        arrays = (token_ids, batch["padding_mask"].astype(np.int64), np.zeros_like(token_ids))
        return softmax(self._session.run(None, dict(zip(NAMES, arrays, strict=True)))[0])
