"""How weights enter a model: everything in its place, or nothing at all."""

import keras
import numpy as np
import pytest

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert.pretrained import Pretrained, Tensor, assign, relative_paths
from keras_bert_app.errors import UserError
from keras_bert_app.model import BertEncoder
from keras_bert_app.model.networks import Network

TINY = {
    "vocabulary_size": 11,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 4,
    "intermediate_dim": 6,
    "max_positions": 8,
}
ENCODER = complete_encoder(EncoderConfig(), TINY)
CLASSIFIER = Network("sequence_classification", ("a", "b", "c"))


@pytest.fixture
def encoder():
    layer = BertEncoder(**TINY)
    layer.build(None)
    return layer


@pytest.fixture
def model():
    return CLASSIFIER.build(ENCODER, "float32")


@pytest.fixture
def arrays(model):
    draw = np.random.default_rng(0)
    return {weight.path: draw.normal(size=weight.shape).astype("float32") for weight in model.weights}


def source(arrays):
    tensors = {
        path: Tensor(array.shape, array.dtype.name, lambda array=array: array)
        for path, array in arrays.items()
    }
    return Pretrained(CLASSIFIER, TINY, None, None, tensors, provenance={"path": "some/folder"})


def values(model):
    return {weight.path: np.asarray(weight) for weight in model.weights}


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


def test_assigned_tensors_are_the_weights(model, arrays):
    assert assign(model, source(arrays)) == ([], [])
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, arrays[path])


def test_an_encoder_of_any_name_takes_those_of_the_encoder(arrays):
    encoder = BertEncoder(**TINY, name="mine")
    encoder.build(None)
    kept, over = assign(encoder, source(arrays))
    assert kept == [] and over == ["head/logits/kernel", "head/logits/bias"]
    for path, weight in relative_paths(encoder).items():
        np.testing.assert_array_equal(weight, arrays[f"encoder/{path}"])


def test_everything_that_does_not_fit_is_named_and_nothing_is_set(model, arrays):
    before = values(model)
    arrays["encoder/block_0/output/kernel"] = arrays["encoder/block_0/output/kernel"].T
    arrays["encoder/block_7/output/bias"] = arrays.pop("encoder/block_0/output/bias")
    with pytest.raises(UserError) as caught:
        assign(model, source(arrays))
    message = str(caught.value)
    assert message.startswith("some/folder: ")
    assert "encoder/block_0/output/bias is missing" in message
    assert "encoder/block_7/output/bias has no place in the model" in message
    assert "encoder/block_0/output/kernel has shape [4, 6], the model's [6, 4]" in message
    assert "fresh" not in message
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_what_is_missing_starts_fresh_if_it_is_named(model, arrays):
    before = values(model)
    without = {path: array for path, array in arrays.items() if "pooler" not in path and "head" not in path}
    with pytest.raises(UserError, match=r"--config.fresh=\"\('pooler', 'head'\)\"$"):
        assign(model, source(without))
    kept, over = assign(model, source(without), ("pooler", "head"))
    assert sorted(kept) == sorted(arrays.keys() - without.keys()) and over == []
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, without.get(path, before[path]))


def test_what_is_there_starts_fresh_too_if_it_is_named(model, arrays):
    before = values(model)
    kept, over = assign(model, source(arrays), ("head",))
    assert kept == ["head/logits/kernel", "head/logits/bias"] and over == []
    np.testing.assert_array_equal(values(model)[kept[0]], before[kept[0]])


def test_a_head_or_pooler_that_the_model_lacks_is_left_over(arrays):
    other = Network("encoder").build(complete_encoder(EncoderConfig(pooling="mean"), TINY), "float32")
    kept, over = assign(other, source(arrays))
    assert kept == [] and len(over) == 4
    np.testing.assert_array_equal(
        values(other)["encoder/embeddings/position"], arrays["encoder/embeddings/position"]
    )


@pytest.mark.parametrize("name", ["masked_head", "pooling", ""])
def test_an_unknown_layer_can_not_start_fresh(model, arrays, name):
    with pytest.raises(UserError, match="config.fresh has .*, which the model has not; it has embeddings, "):
        assign(model, source(arrays), (name,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(model, arrays, value):
    arrays["encoder/block_0/output/bias"][1] = arrays["head/logits/kernel"][2, 1] = value
    message = "some/folder: NaN or infinity in encoder/block_0/output/bias, head/logits/kernel"
    with pytest.raises(UserError, match=message):
        assign(model, source(arrays))
    with pytest.raises(UserError, match=message):
        source(arrays).arrays()
