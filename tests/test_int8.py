import math

import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app.model.int8 import Quantized, int8_dense, quantize, quantize_weights

_ERF = np.vectorize(math.erf)
_INPUTS, _OUTPUTS, _LARGEST = 48, 80, 3.0


def _gelu(x):
    return x * 0.5 * (1 + _ERF(x / math.sqrt(2)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def layer(rng):
    """A kernel whose columns differ in size a hundredfold, with one of zeros, and a bias."""
    kernel = rng.standard_normal((_INPUTS, _OUTPUTS)) * np.geomspace(0.01, 1, _OUTPUTS)
    kernel[:, 7] = 0
    return kernel.astype("float32"), rng.standard_normal(_OUTPUTS).astype("float32")


def _products(x, kernel, bias):
    """What integer arithmetic makes of it, in float64: [T, O]."""
    steps = np.rint(np.clip(x.astype("float64") * 127 / _LARGEST, -127, 127)).astype("int64")
    values, scales = quantize_weights(kernel)
    return steps @ values.astype("int64") * (_LARGEST / 127) * scales.astype("float64") + bias


def _run(build, *arrays):
    """Twice, as the operation keeps weights and bias from its first call."""
    function = tf.function(build)
    first, second = function(*map(tf.constant, arrays)), function(*map(tf.constant, arrays))
    np.testing.assert_array_equal(first, second)
    return second.numpy().astype("float64")


def test_weights_come_back_within_half_a_step_of_their_column(layer):
    kernel, _ = layer
    values, scales = quantize_weights(kernel)
    assert values.dtype == np.int8 and scales.dtype == np.float32
    assert (np.abs(values * scales - kernel) <= scales * 0.5001).all()
    assert (np.abs(np.delete(values, 7, axis=1)).max(axis=0) == 127).all()
    assert (values[:, 7] == 0).all() and scales[7] > 0


@pytest.mark.parametrize("tokens", [1, 5, 67])
def test_outputs_are_those_of_integer_arithmetic(rng, layer, tokens):
    kernel, bias = layer
    x = (rng.standard_normal((tokens, _INPUTS)) * 1.5).astype("float32")  # some exceed the range
    found = _run(lambda x: int8_dense(quantize(x, _LARGEST), quantize_weights(kernel), bias), x)
    np.testing.assert_allclose(found, _products(x, kernel, bias), rtol=1e-5, atol=1e-5)


def test_no_length_is_too_short(layer):
    kernel, bias = layer
    x = np.zeros((0, _INPUTS), "float32")
    found = _run(lambda x: int8_dense(quantize(x, _LARGEST), quantize_weights(kernel), bias), x)
    assert found.shape == (0, _OUTPUTS)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_outputs_have_the_dtype_asked_for(rng, layer, dtype):
    kernel, bias = layer
    x = rng.standard_normal((9, _INPUTS)).astype("float32")
    found = _run(lambda x: int8_dense(quantize(x, _LARGEST), quantize_weights(kernel), bias, dtype=dtype), x)
    tolerance = 1e-5 if dtype == tf.float32 else 2e-2
    np.testing.assert_allclose(found, _products(x, kernel, bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("gelu", _gelu),
        ("gelu_new", lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("relu", lambda x: np.maximum(x, 0)),
    ],
)
def test_activations_are_those_of_the_model(rng, layer, activation, function):
    kernel, bias = layer
    x = rng.standard_normal((9, _INPUTS)).astype("float32")
    found = _run(lambda x: int8_dense(quantize(x, _LARGEST), quantize_weights(kernel), bias, activation), x)
    np.testing.assert_allclose(found, function(_products(x, kernel, bias)), rtol=1e-5, atol=2e-5)


def test_a_rounded_output_goes_into_the_next_layer(rng, layer):
    kernel, bias = layer
    back = (rng.standard_normal((_OUTPUTS, _INPUTS)) * 0.1).astype("float32")
    x = rng.standard_normal((33, _INPUTS)).astype("float32")
    low, high = -0.17, 6.0

    def build(x):
        inner = int8_dense(
            quantize(x, _LARGEST), quantize_weights(kernel), bias, "gelu", output_range=(low, high)
        )
        assert isinstance(inner, Quantized) and inner.values.dtype == tf.quint8
        steps = tf.cast(tf.bitcast(inner.values, tf.uint8), tf.float32)
        output = int8_dense(inner, quantize_weights(back), bias[:_INPUTS])
        return tf.concat([steps, output], axis=1)

    steps, output = np.split(_run(build, x), [_OUTPUTS], axis=1)
    step = (high - low) / 255
    expected = np.rint(np.clip((_gelu(_products(x, kernel, bias)) - low) / step, 0, 255))
    assert np.abs(steps - expected).max() <= 1  # a float32 sum may fall to the other side of a half
    assert (steps != expected).mean() < 0.01 and steps.max() == 255

    values, scales = quantize_weights(back)
    exact = (steps * step + low) @ (values.astype("float64") * scales) + bias[:_INPUTS]
    np.testing.assert_allclose(output, exact, rtol=1e-5, atol=1e-4)


def test_impossible_requests_are_refused(layer):
    kernel, bias = layer
    with pytest.raises(ValueError, match="above 0"):
        quantize(tf.zeros((1, 2)), 0.0)
    x = Quantized(tf.zeros((1, 2)), -1.0, 1.0)
    with pytest.raises(ValueError, match="'tanh'; it takes None, gelu, gelu_new, relu"):
        int8_dense(x, quantize_weights(kernel), bias, "tanh")


def test_a_session_loads_it_from_a_saved_model(tmp_path, rng, layer):
    """As servers do: a SavedModel read into a new graph and a session."""
    kernel, bias = layer
    module = tf.Module()
    module.answer = tf.function(
        lambda x: {"y": int8_dense(quantize(x, _LARGEST), quantize_weights(kernel), bias, "gelu")},
        input_signature=[tf.TensorSpec((None, _INPUTS), tf.float32)],
    )
    tf.saved_model.save(module, tmp_path, signatures=module.answer)
    x = rng.standard_normal((9, _INPUTS)).astype("float32")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path))
        signature = loaded.signature_def["serving_default"]
        found = session.run(signature.outputs["y"].name, {signature.inputs["x"].name: x})
    np.testing.assert_allclose(found, _gelu(_products(x, kernel, bias)), rtol=1e-5, atol=2e-5)
