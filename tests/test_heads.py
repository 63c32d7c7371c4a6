"""Heads against plain NumPy, under every dtype policy."""

import keras
import numpy as np
import pytest

from keras_bert_app.model import ClassificationHead

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
