"""Dense layers in 8-bit integers, for inference, by operations that TensorFlow's x86 builds bring.

`_QuantizedMatMul` runs on oneDNN (AVX512-VNNI, AMX), keeps the weights in the layout that it wants, has a
scale for every output column, and does bias, activation and rounding of the output in one pass.
The public `QuantizedMatMulWithBiasAndDequantize` has one scale, no GELU, and adds a wrongly scaled correction
to the bias where the input's lowest value isn't 0.

Activations have one scale for the tensor, fixed beforehand from examples: measuring the range on each call
costs a pass over the tensor and an output that can't be rounded in the same pass.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_bert_app.model import kernels

_ACTIVATIONS = {"gelu": "GeluExact", "gelu_new": "GeluApproximate", "relu": "Relu"}


class Int8Kernel(NamedTuple):
    """Weights as `values * scales`: values int8 [I, O] in -127 to 127, scales float32 [O]."""

    values: np.ndarray
    scales: np.ndarray


class Quantized(NamedTuple):
    """Activations in 8 bits.

    values: qint8 or quint8 [T, I].
    low, high: what they stand for. qint8: `values * high / 127`, and low is -high;
        quint8: `low + values * (high - low) / 255`.
    """

    values: tf.Tensor
    low: float
    high: float


class IntegerProduct:
    """What takes the place of dense layers side by side: float [T, I] or Quantized -> [T, sum of units].

    Args:
        largest: the largest absolute input that isn't cut.
        activation: a key of portable.ACTIVATIONS.
        output_range: as in `int8_dense`.
    """

    def __init__(self, layers, largest, activation=None, output_range=None, dtype=tf.float32):
        weights = [keras.ops.convert_to_numpy(layer.kernel) for layer in layers]
        biases = [keras.ops.convert_to_numpy(layer.bias) for layer in layers]
        self.kernel = quantize_weights(np.concatenate(weights, axis=1))
        self.bias = np.concatenate(biases).astype("float32")
        self.largest, self.activation, self.output_range = largest, activation, output_range
        self.dtype = dtype

    def __call__(self, x):
        x = x if isinstance(x, Quantized) else quantize(x, self.largest)
        return int8_dense(
            x, self.kernel, self.bias, self.activation, dtype=self.dtype, output_range=self.output_range
        )


def compute_in_integers(
    encoder: keras.Layer, batches: Iterable[Mapping[str, Any]], attention_dtype: str = "float32"
) -> None:
    """Let the dense layers of a BertEncoder's blocks compute in integers, of their weights as they are.

    Args:
        batches: of the encoder's inputs; the ranges of activations are those that it has on them.
        attention_dtype: of queries, keys and values; what is added up from block to block is float32.
    """
    inputs, outputs = {}, {}

    def observe(layers, x, y):
        name = layers[0].path
        inputs[name] = max(inputs.get(name, 0.0), float(tf.reduce_max(tf.abs(x))))
        low, high = outputs.get(name, (0.0, 0.0))
        outputs[name] = min(low, float(tf.reduce_min(y))), max(high, float(tf.reduce_max(y)))

    with kernels.observing(observe):
        for batch in batches:
            encoder(batch, training=False)
    for block in encoder.blocks:
        attention, inner = block.attention, block.intermediate
        for layers, activation, dtype in (
            ((attention.query, attention.key, attention.value), None, attention_dtype),
            ((attention.output_dense,), None, "float32"),
            ((inner,), block.activation, "float32"),
            ((block.output_dense,), None, "float32"),
        ):
            name = layers[0].path
            # What comes out of the activation is the next product's input, and nothing else.
            rounded = outputs[name] if activation else None
            product = IntegerProduct(layers, inputs[name], activation, rounded, tf.as_dtype(dtype))
            for layer in layers:
                layer.integers = product


def quantize_weights(kernel) -> Int8Kernel:
    """Each column rounded with a scale of its own: float [I, O] -> Int8Kernel."""
    kernel = np.asarray(kernel, "float32")
    largest = np.abs(kernel).max(axis=0)  # [O]
    scales = np.where(largest > 0, largest, 1).astype("float32") / np.float32(127)
    return Int8Kernel(np.rint(kernel / scales).astype("int8"), scales)


def quantize(x, largest: float) -> Quantized:
    """Round to -127 to 127, what exceeds `largest` to those: float [T, I] -> Quantized (qint8).

    Raises:
        ValueError: `largest` isn't above 0.
    """
    if not largest > 0:
        raise ValueError(f"largest is {largest}; it must be above 0")
    # oneDNN's kernel, which would replace this one without narrow_range, takes 127.5 steps and twice as long.
    values = tf.raw_ops.QuantizeV2(
        input=tf.cast(x, tf.float32),
        min_range=-float(largest),
        max_range=float(largest),
        T=tf.qint8,
        mode="SCALED",
        round_mode="HALF_TO_EVEN",
        narrow_range=True,
        ensure_minimum_range=0.0,
    ).output
    return Quantized(values, -float(largest), float(largest))


def int8_dense(
    x: Quantized,
    kernel: Int8Kernel,
    bias,
    activation=None,
    dtype=tf.float32,
    output_range=None,
):
    """`activation(x @ kernel + bias)`: integer products, exact sums.

    Works in a graph (a tf.function, or under tf.Graph), not eagerly, on x86 alone, and takes the weights and
    bias of its first call for all later ones.

    Args:
        x: [T, I].
        bias: constant float [O].
        activation: None, "gelu" (exact), "gelu_new" (tanh) or "relu".
        dtype: the output's, float32 or bfloat16.
        output_range: (low, high): the output is rounded to 8 bits for this range, for the next layer.

    Returns:
        [T, O] of `dtype`, or Quantized (quint8) where `output_range` is given.

    Raises:
        ValueError: an unknown activation.
    """
    if activation is not None and activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it takes None, {', '.join(_ACTIVATIONS)}")
    fused = ["BiasAdd"]
    fused += [_ACTIVATIONS[activation]] if activation else []
    fused += ["Requantize"] if output_range else ["Dequantize"]
    tensors = [x.values, tf.bitcast(tf.constant(kernel.values), tf.qint8), tf.constant(bias, tf.float32)]
    largest_weights = kernel.scales * np.float32(127)  # [O]
    ranges = [x.low, x.high, -largest_weights, largest_weights, *(output_range or ())]
    output = _quantized_matmul(tensors, ranges, tf.quint8 if output_range else dtype, fused)  # [T, O]
    output.set_shape([x.values.shape[0], kernel.values.shape[1]])
    return Quantized(output, *map(float, output_range)) if output_range else output


def _quantized_matmul(tensors, ranges, dtype, fused):
    """The operation itself. tf.raw_ops leaves it out, as all whose names start with an underscore."""
    source = tensors[0].dtype
    ranges = [tf.constant(value, tf.float32) for value in ranges]
    range_dtypes = [tf.float32] * 2 if dtype == tf.quint8 else []
    attributes = {
        "T1": source,
        "T2": tf.qint8,
        "Tbias": tf.float32,
        "U": tf.float32,
        "Tout": dtype,
        "Tdevice_inputs": [tensor.dtype for tensor in tensors],
        "Thost_inputs": [tf.float32] * len(ranges),
        "Tdevice_outputs": [dtype],
        "Thost_outputs": range_dtypes,
        "transpose_a": False,
        "transpose_b": False,
        "is_weight_const": True,
        "is_bias_const": True,
        "fused_ops": fused,
        "input_quant_mode": "SCALED" if source == tf.qint8 else "MIN_FIRST",
        "output_quant_mode": "MIN_FIRST",
    }
    operation = tf.compat.v1.get_default_graph().create_op(
        "_QuantizedMatMul",
        tensors + ranges,
        [dtype, *range_dtypes],
        attrs={name: _attribute(value) for name, value in attributes.items()},
        name="quantized_matmul",
    )
    return operation.outputs[0]


def _attribute(value):
    value_type = tf.compat.v1.AttrValue
    match value:
        case bool():
            return value_type(b=value)
        case str():
            return value_type(s=value.encode())
        case tf.DType():
            return value_type(type=value.as_datatype_enum)
    if value and isinstance(value[0], str):
        return value_type(list=value_type.ListValue(s=[item.encode() for item in value]))
    return value_type(list=value_type.ListValue(type=[item.as_datatype_enum for item in value]))
