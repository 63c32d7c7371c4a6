"""How weights enter a model: everything in its place, or nothing at all."""

import keras
import numpy as np
import pytest

from keras_bert_app import features
from keras_bert_app.convert.pretrained import assign, relative_paths
from keras_bert_app.errors import UserError
from keras_bert_app.model import BertEncoder

TINY = {
    "vocabulary_size": 11,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 4,
    "intermediate_dim": 6,
    "max_positions": 8,
}


@pytest.fixture
def encoder():
    layer = BertEncoder(**TINY)
    layer.build(None)
    return layer


@pytest.fixture
def tensors(encoder):
    draw = np.random.default_rng(0)
    return {
        path: draw.normal(size=weight.shape).astype("float32")
        for path, weight in relative_paths(encoder).items()
    }


def values(layer):
    return {path: np.asarray(weight) for path, weight in relative_paths(layer).items()}


def test_every_weight_has_a_path_of_its_own(encoder):
    paths = relative_paths(encoder)
    assert len(paths) == len(encoder.weights) == 23
    assert paths["block_0/attention/query/kernel"] is encoder.blocks[0].attention.query.kernel
    assert paths["embeddings/position"] is encoder.embeddings.position


def test_paths_are_the_same_inside_a_model_whatever_the_names_around(encoder):
    inputs = {
        name: keras.Input((None,), dtype=dtype, name=name) for name, dtype in features.ENCODER_INPUTS.items()
    }
    inside = BertEncoder(**TINY, name="encoder")
    keras.Model(inputs, inside(inputs), name="my_encoder")
    assert set(relative_paths(inside)) == set(relative_paths(encoder))

    class Wrapper(keras.layers.Layer):
        def build(self, input_shape):
            self.inner = BertEncoder(**TINY, name="encoder")
            self.inner.build(None)

    wrapper = Wrapper(name="my_encoder")
    wrapper.build(None)
    assert set(relative_paths(wrapper.inner)) == set(relative_paths(encoder))


def test_assigned_tensors_are_the_weights(encoder, tensors):
    assign(encoder, tensors, "there")
    for path, value in values(encoder).items():
        np.testing.assert_array_equal(value, tensors[path])


def test_everything_that_does_not_fit_is_named_and_nothing_is_set(encoder, tensors):
    before = values(encoder)
    tensors["block_0/output/kernel"] = tensors["block_0/output/kernel"].T
    tensors["block_7/output/bias"] = tensors.pop("block_0/output/bias")
    with pytest.raises(UserError) as caught:
        assign(encoder, tensors, "some/folder")
    message = str(caught.value)
    assert message.startswith("some/folder: ")
    assert "block_0/output/bias is missing" in message
    assert "block_7/output/bias has no place in the model" in message
    assert "block_0/output/kernel has shape [4, 6], the model's [6, 4]" in message
    for path, value in values(encoder).items():
        np.testing.assert_array_equal(value, before[path])


def test_optional_tensors_may_be_missing_on_either_side(encoder, tensors):
    pooler = values(encoder)["pooler/kernel"]
    without = {path: tensor for path, tensor in tensors.items() if not path.startswith("pooler/")}
    with pytest.raises(UserError, match="pooler/bias is missing; pooler/kernel is missing"):
        assign(encoder, without, "there")
    assign(encoder, without, "there", optional=("pooler/",))
    np.testing.assert_array_equal(values(encoder)["pooler/kernel"], pooler)
    np.testing.assert_array_equal(values(encoder)["block_0/output/bias"], tensors["block_0/output/bias"])

    other = BertEncoder(**TINY, pooling="mean")
    other.build(None)
    with pytest.raises(UserError, match="pooler/bias has no place in the model"):
        assign(other, tensors, "there")
    assign(other, tensors, "there", optional=("pooler/",))
    np.testing.assert_array_equal(values(other)["embeddings/position"], tensors["embeddings/position"])


def test_an_optional_tensor_of_another_shape_is_refused_all_the_same(encoder, tensors):
    with pytest.raises(UserError, match=r"pooler/bias has shape \[3\]"):
        assign(encoder, tensors | {"pooler/bias": np.zeros(3, "float32")}, "there", optional=("pooler/",))
