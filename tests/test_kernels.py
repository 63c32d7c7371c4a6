"""TensorFlow's kernels against the same arithmetic in keras.ops: values and every gradient."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.model import BertEncoder, arithmetic, kernels, portable

LENGTHS = [7, 1, 3, 12, 2, 2, 9, 5, 4, 11]
TINY = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}


def make_batch(mask):
    """Random ids and segments at the places of a mask, bool [B, S]."""
    draw = np.random.default_rng(3)
    return {
        features.TOKEN_IDS: np.where(mask, draw.integers(1, 50, mask.shape), 0).astype("int32"),
        features.SEGMENT_IDS: (mask & (draw.random(mask.shape) < 0.5)).astype("int32"),
        features.PADDING_MASK: mask,
    }


def rows_of(lengths, padded_to=None):
    return np.arange(padded_to or max(lengths)) < np.array(lengths)[:, None]


def make_encoder(dtype="float64", **settings):
    encoder = BertEncoder(**TINY | settings, dtype=dtype)
    encoder.build(None)
    draw = np.random.default_rng(2)
    for weight in encoder.weights:
        weight.assign(weight + draw.normal(0, 0.3, weight.shape))
    return encoder


def values_and_gradients(encoder, batch, training=False):
    """What is given for real tokens, and the gradient of a random sum of it by every weight."""
    draw = np.random.default_rng(4)
    with tf.GradientTape() as tape:
        outputs = encoder(batch, training=training)
        sequence = tf.boolean_mask(outputs[features.SEQUENCE], batch[features.PADDING_MASK])
        pooled = outputs[features.POOLED]
        total = tf.reduce_sum(sequence * draw.normal(size=sequence.shape))
        total += tf.reduce_sum(pooled * draw.normal(size=pooled.shape))
    gradients = tape.gradient(total, [weight.value for weight in encoder.trainable_weights])
    return [sequence, pooled, *(tf.convert_to_tensor(gradient) for gradient in gradients)]


def in_keras_ops(monkeypatch):
    """Within the test everything is computed in keras.ops, on rows with their padding."""
    for module in ("attention", "embeddings", "encoder"):
        for name in arithmetic.__all__:
            target = f"keras_bert_app.model.{module}.{name}"
            monkeypatch.setattr(target, getattr(portable, name), raising=False)


MASKS = {
    "mixed": rows_of(LENGTHS),
    "padded further": rows_of(LENGTHS, 20),
    "one text": rows_of([5]),
    "all alike": rows_of([6] * 9),
    "fewer texts than groups": rows_of([4, 9, 2]),
    "holes and padding in front": np.random.default_rng(1).random((8, 9)) < 0.5,
    "a row without tokens": rows_of([3, 0, 4, 0, 1]),
}


@pytest.mark.parametrize(
    ("name", "pooling"), [*((name, "first") for name in MASKS), ("mixed", "mean"), ("mixed", "max")]
)
def test_tokens_alone_give_what_rows_with_padding_give(name, pooling, monkeypatch):
    encoder, batch = make_encoder(pooling=pooling), make_batch(MASKS[name])
    found = values_and_gradients(encoder, batch)
    in_keras_ops(monkeypatch)
    wanted = values_and_gradients(encoder, batch)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


def test_texts_that_share_a_row_are_kept_apart(monkeypatch):
    numbers = np.array(
        [[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2], [1, 0, 0, 0, 0, 0, 0, 0]], "int32"
    )
    encoder = make_encoder()
    batch = make_batch(numbers > 0) | {features.SEQUENCE_IDS: numbers}
    found = values_and_gradients(encoder, batch)
    in_keras_ops(monkeypatch)
    for one, other in zip(found, values_and_gradients(encoder, batch), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("settings", [{"position_offset": 2}, {"embedding_dim": 6}, {"num_segments": 0}])
def test_relatives_of_bert_are_the_same_on_tokens_alone(settings, monkeypatch):
    encoder, batch = make_encoder(**settings), make_batch(rows_of(LENGTHS))
    found = values_and_gradients(encoder, batch)
    in_keras_ops(monkeypatch)
    for one, other in zip(found, values_and_gradients(encoder, batch), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11)


def test_the_gelu_of_training_has_the_values_and_gradients_of_keras_ops(monkeypatch):
    encoder = make_encoder(dropout=0.0, attention_dropout=0.0)
    batch = make_batch(rows_of(LENGTHS))
    found = values_and_gradients(encoder, batch, training=True)
    in_keras_ops(monkeypatch)
    for one, other in zip(found, values_and_gradients(encoder, batch, training=True), strict=True):
        # TensorFlow's has a square root of 2 in float32, whatever the dtype.
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_no_texts_give_no_vectors():
    outputs = make_encoder()(make_batch(np.zeros((0, 5), bool)))
    assert outputs[features.SEQUENCE].shape == (0, 5, 16)
    assert outputs[features.POOLED].shape == (0, 16)


@contextlib.contextmanager
def frozen(layer):
    """A session in whose graph the layer's weights are constants, as in a bundle."""
    values = [(weight, weight.numpy()) for weight in layer.weights]
    with contextlib.ExitStack() as stack:
        stack.enter_context(tf.Graph().as_default())
        constants = [(weight, tf.constant(value)) for weight, value in values]
        stack.enter_context(keras.StatelessScope(constants))
        yield stack.enter_context(tf.compat.v1.Session())


def run(session, fetch, feeds):
    """The value, and the nodes that gave it, by operation."""
    metadata, nodes = tf.compat.v1.RunMetadata(), {}
    options = tf.compat.v1.RunOptions(output_partition_graphs=True)
    value = session.run(fetch, feeds, options=options, run_metadata=metadata)
    for graph in metadata.partition_graphs:
        for node in graph.node:
            nodes.setdefault(node.op, []).append(node)
    return value, nodes


@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
def test_a_frozen_graph_has_the_layer_normalisation_that_was_asked_for(epsilon, rows):
    """The optimizer puts oneDNN's in its place, whose epsilon is 0.001."""
    layer = keras.layers.LayerNormalization(epsilon=epsilon)
    layer.build((None, 8))
    layer.gamma.assign(np.arange(1, 9))
    x = np.random.default_rng(0).normal(0, 0.01, (rows, 8)).astype("float32")
    wanted = layer(x)
    with frozen(layer) as session:
        given = tf.compat.v1.placeholder(tf.float32, [None, 8])
        normal = kernels.normalize(layer, given * 1.0)
        found, nodes = run(session, normal, {given: x})
    assert len(nodes["_MklLayerNorm"]) == 1
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_the_graph_is_made_of_the_forms_that_are_fused():
    """Grappler's remapper and oneDNN's rewriting leave no bias, activation, scale or mask by itself."""
    encoder = make_encoder("float32")
    batch = make_batch(rows_of(LENGTHS))
    with frozen(encoder) as session:
        inputs = {
            name: tf.compat.v1.placeholder(dtype, [None, None])
            for name, dtype in features.ENCODER_INPUTS.items()
        }
        pooled = encoder(inputs, training=False)[features.POOLED]
        _, nodes = run(session, pooled, {inputs[name]: value for name, value in batch.items()})
    assert not {"MatMul", "BiasAdd", "Erf"} & nodes.keys()
    fused = [list(node.attr["fused_ops"].list.s) for node in sum(nodes.values(), [])]
    assert fused.count([b"BiasAdd", b"GeluExact"]) == TINY["num_layers"]
    assert fused.count([b"Mul", b"Add"]) == TINY["num_layers"] * (6 + 1)  # groups, or all if few
    assert len(nodes["_MklLayerNorm"]) == 1 + 2 * TINY["num_layers"]
