"""Heads against plain NumPy, under every dtype policy."""

import keras
import numpy as np
import pytest

from keras_bert_app.model import ClassificationHead
from keras_bert_app.model.heads import MaskedLanguageModelHead

POOLED = np.random.default_rng(0).normal(size=(4, 8))


def test_logits_are_a_dense_layer_of_the_pooled_vector():
    head = ClassificationHead(3, initializer_range=0.5)
    logits = head(POOLED.astype("float32"))
    kernel, bias = (np.asarray(weight) for weight in head.weights)
    assert kernel.shape == (8, 3) and kernel.std() > 0.1 and not bias.any()
    np.testing.assert_allclose(logits, POOLED @ kernel + bias, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("float32", "float32"), ("mixed_bfloat16", "float32"), ("bfloat16", "float32"), ("float64", "float64")],
)
def test_logits_have_at_least_float32(policy, dtype):
    head = ClassificationHead(3, dtype=policy)
    assert head(keras.ops.cast(POOLED, head.compute_dtype)).dtype == dtype
    inputs = keras.Input((8,), dtype=head.compute_dtype)
    assert keras.Model(inputs, head(inputs)).outputs[0].dtype == dtype


def test_dropout_works_in_training_only():
    head, pooled = ClassificationHead(3, dropout=0.5), POOLED.astype("float32")
    still = np.asarray(head(pooled))
    np.testing.assert_array_equal(head(pooled, training=False), still)
    assert np.abs(np.asarray(head(pooled, training=True)) - still).max() > 1e-4


def test_a_head_comes_back_from_its_configuration():
    head = ClassificationHead(3, dropout=0.2, initializer_range=0.03, name="mine", dtype="mixed_bfloat16")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert again.get_config() == head.get_config()
    assert (again.num_classes, again.dropout, again.initializer_range) == (3, 0.2, 0.03)
    assert again.dtype_policy == head.dtype_policy


def masked_head_inputs(embedding_dim=8):
    draw = np.random.default_rng(1)
    sequence, embeddings = draw.normal(size=(3, 6, 8)), draw.normal(size=(11, embedding_dim))
    return (
        sequence.astype("float32"),
        np.array([[0, 5], [3, 3], [1, 0]], "int32"),
        embeddings.astype("float32"),
    )


@pytest.mark.parametrize("width", [8, 5])
def test_masked_logits_are_the_gathered_vectors_times_the_embeddings(width):
    head = MaskedLanguageModelHead("relu", epsilon=1e-3)
    sequence, positions, embeddings = masked_head_inputs(width)
    head.build(sequence.shape, positions.shape, embeddings.shape)
    shapes = [tuple(weight.shape) for weight in head.weights]
    assert shapes == [(11,), (8, width), (width,), (width,), (width,)]
    draw = np.random.default_rng(2)
    for weight in head.weights:
        weight.assign(draw.normal(size=weight.shape))
    bias, kernel, dense_bias, gamma, beta = (np.asarray(weight) for weight in head.weights)
    gathered = np.stack([row[places] for row, places in zip(sequence, positions, strict=True)])
    x = np.maximum(gathered @ kernel + dense_bias, 0)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * gamma + beta
    np.testing.assert_allclose(head(sequence, positions, embeddings), x @ embeddings.T + bias, atol=2e-5)


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("float32", "float32"), ("mixed_bfloat16", "float32"), ("bfloat16", "float32"), ("float64", "float64")],
)
def test_masked_logits_have_at_least_float32(policy, dtype):
    head = MaskedLanguageModelHead(dtype=policy)
    sequence, positions, embeddings = masked_head_inputs()
    assert head(sequence, positions, embeddings).dtype == dtype
    inputs = [keras.Input((None, 8)), keras.Input((None,), dtype="int32"), keras.Input(batch_shape=(11, 8))]
    outputs = MaskedLanguageModelHead(dtype=policy)(*inputs)
    assert outputs.dtype == dtype and outputs.shape[-1] == 11


def test_a_masked_head_comes_back_from_its_configuration():
    head = MaskedLanguageModelHead("gelu_new", 1e-5, 0.03, name="mine", dtype="mixed_bfloat16")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert again.get_config() == head.get_config()
    assert (again.activation, again.epsilon, again.initializer_range) == ("gelu_new", 1e-5, 0.03)
    assert again.dtype_policy == head.dtype_policy


def test_an_unknown_activation_of_a_masked_head_is_refused():
    with pytest.raises(ValueError, match="activation is 'swish'; it takes one of gelu, gelu_new, relu"):
        MaskedLanguageModelHead("swish")
