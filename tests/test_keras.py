"""Every layer in somebody else's Keras model: masks, configurations, policies, weights, freezing, files."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bert_app.model
from keras_bert_app import features
from keras_bert_app.convert.pretrained import relative_paths
from keras_bert_app.model import (
    BertEmbeddings,
    BertEncoder,
    ClassificationHead,
    MaskedLanguageModelHead,
    MergeChoices,
    SelfAttention,
    SplitChoices,
    TransformerBlock,
)

TINY = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_positions": 32,
}
DRAW = np.random.default_rng(0)
IDS = DRAW.integers(1, 50, (3, 9)).astype("int32")
IDS[:2, 5:] = 0
STATES = DRAW.normal(size=(3, 9, 16)).astype("float32")
BATCH = {
    features.TOKEN_IDS: IDS,
    features.SEGMENT_IDS: (IDS > 25).astype("int32"),
    features.PADDING_MASK: IDS > 0,
}
CHOICES = DRAW.integers(1, 50, (2, 3, 5)).astype("int32")

# One of each public layer, and what it is called with.
LAYERS = {
    BertEmbeddings: (
        {"vocabulary_size": 50, "hidden_dim": 16, "max_positions": 32, "embedding_dim": 8},
        [IDS, BATCH[features.SEGMENT_IDS]],
    ),
    BertEncoder: (TINY, [BATCH]),
    ClassificationHead: ({"num_classes": 3}, [STATES]),
    MaskedLanguageModelHead: ({}, [STATES, IDS[:, :2] % 9, DRAW.normal(size=(50, 8)).astype("float32")]),
    MergeChoices: ({}, [CHOICES]),
    SelfAttention: ({"num_heads": 4, "hidden_dim": 16}, [STATES]),
    SplitChoices: ({}, [DRAW.normal(size=(6, 1)).astype("float32"), CHOICES]),
    TransformerBlock: ({"num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}, [STATES]),
}
every_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
weighty_layer = pytest.mark.parametrize(
    "kind", [kind for kind in LAYERS if "Choices" not in kind.__name__], ids=lambda kind: kind.__name__
)
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float64")


@pytest.fixture(autouse=True)
def seeded():
    """Training elsewhere turns on TensorFlow's determinism, which asks for a seed."""
    keras.utils.set_random_seed(1)


def redraw(model, seed=2):
    """Give every weight a value that no initialiser gives."""
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(draw.normal(0, 0.3, weight.shape))
    return model


def make(kind, **settings):
    return kind(**LAYERS[kind][0] | settings)


def place(kind, **settings):
    """The layer alone in a functional model that knows no length: model, layer, what it is called with."""
    arguments, layer = LAYERS[kind][1], make(kind, **settings)

    def placeholder(array):
        # The table of token embeddings has no batch.
        shape = array.shape if len(array) == 50 else (None,) * min(array.ndim, 2) + array.shape[2:]
        return keras.Input(batch_shape=shape, dtype=array.dtype)

    inputs = keras.tree.map_structure(placeholder, arguments)
    return redraw(keras.Model(inputs, layer(*inputs))), layer, arguments


def arrays(outputs):
    return [np.asarray(keras.ops.cast(one, "float64")) for one in keras.tree.flatten(outputs)]


def difference(one, other):
    pairs = zip(arrays(one), arrays(other), strict=True)
    return max(np.abs(first - second).max() for first, second in pairs)


def test_every_public_layer_is_tried_here():
    assert {kind.__name__ for kind in LAYERS} == set(keras_bert_app.model.__all__)


@every_layer
@pytest.mark.parametrize("policy", POLICIES)
def test_symbolic_shapes_and_dtypes_are_the_real_ones(kind, policy):
    model, layer, arguments = place(kind, dtype=policy)
    said, real = keras.tree.flatten(model.output), keras.tree.flatten(model(arguments))
    assert len(said) == len(real)
    for symbol, tensor in zip(said, real, strict=True):
        assert symbol.dtype == keras.backend.standardize_dtype(tensor.dtype)
        assert all(size in (None, actual) for size, actual in zip(symbol.shape, tensor.shape, strict=True))
        assert symbol.shape[-1] == tensor.shape[-1] or "Choices" in kind.__name__
    if layer.weights:
        shapes = keras.tree.map_structure(lambda array: array.shape, arguments)
        shapes = layer.compute_output_shape(*shapes)
        assert shapes == keras.tree.map_structure(lambda tensor: tuple(tensor.shape), model(arguments))


def test_symbolic_states_and_attention_weights_are_the_real_ones():
    for policy in POLICIES:
        inputs = {key: keras.Input((None,), dtype=dtype) for key, dtype in features.ENCODER_INPUTS.items()}
        encoder = BertEncoder(**TINY, embedding_dim=8, dtype=policy)
        given = {"return_all": True, "return_token_embeddings": True}
        said, real = encoder(inputs, **given), encoder(BATCH, **given)
        keras.tree.assert_same_structure(said, real)
        for symbol, tensor in zip(keras.tree.flatten(said), keras.tree.flatten(real), strict=True):
            assert symbol.dtype == keras.backend.standardize_dtype(tensor.dtype)
            assert all(
                size in (None, actual) for size, actual in zip(symbol.shape, tensor.shape, strict=True)
            )
            assert symbol.shape[-1] in (None, tensor.shape[-1])


@every_layer
def test_a_layer_comes_back_from_its_configuration(kind):
    layer = make(kind, name="mine", dtype="mixed_bfloat16", trainable=False)
    config = json.loads(json.dumps(layer.get_config()))
    again = kind.from_config(config)
    assert again.get_config() == layer.get_config()
    assert not again.trainable and again.dtype_policy == layer.dtype_policy


@weighty_layer
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_reaches_every_sublayer_given_as_a_string_or_as_an_object(kind, policy):
    for given in (policy, keras.DTypePolicy(policy)):
        _, layer, _ = place(kind, dtype=given)
        policies = {one.name: one.dtype_policy.name for one in layer._flatten_layers()}
        # Logits have at least float32.
        assert policies.pop("logits", None) in (None, "float64" if policy == "float64" else "float32")
        assert set(policies.values()) == {policy}


@every_layer
def test_weights_go_from_one_instance_to_another(kind):
    model, layer, arguments = place(kind)
    other_model, other, _ = place(kind)
    other.set_weights([weight + 1 for weight in other.get_weights()])
    if layer.weights:
        assert difference(model(arguments), other_model(arguments)) > 1e-3
    other.set_weights(layer.get_weights())
    assert difference(model(arguments), other_model(arguments)) == 0
    paths = relative_paths(layer)
    assert len(paths) == len(layer.weights) and list(paths) == list(relative_paths(other))


@every_layer
def test_a_model_is_cloned_saved_and_loaded(kind, tmp_path):
    model, _, arguments = place(kind)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    other = redraw(place(kind)[0], seed=3)
    other.load_weights(tmp_path / "model.weights.h5")
    for one in (clone, loaded, other):
        assert difference(model(arguments), one(arguments)) == 0
        assert [weight.shape for weight in one.weights] == [weight.shape for weight in model.weights]
    assert [weight.path for weight in loaded.weights] == [weight.path for weight in model.weights]


@weighty_layer
def test_a_layer_frozen_before_or_after_it_is_built_has_nothing_to_train(kind):
    before, after, thawed = make(kind), make(kind), make(kind)
    before.trainable = thawed.trainable = False
    for layer in (before, after, thawed):
        layer(*LAYERS[kind][1])
    after.trainable, thawed.trainable = False, True
    for layer in (before, after):
        assert not layer.trainable_weights and len(layer.non_trainable_weights) == len(thawed.weights)
    assert len(thawed.trainable_weights) == len(thawed.weights)


@pytest.mark.parametrize("kind", [SelfAttention, TransformerBlock])
def test_layers_take_the_mask_that_keras_hands_on_and_hand_it_on(kind):
    ids = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(50, 16, mask_zero=True)(ids)
    states = make(kind)(make(kind)(embedded))
    tokens, pooled = ClassificationHead(3)(states), keras.layers.GlobalAveragePooling1D()(states)
    model = redraw(keras.Model(ids, [tokens, pooled]))
    short, long = np.array([[3, 4, 5]]), np.array([[3, 4, 5, 0, 0, 0]])
    (tokens, pooled), (more, same) = model(short), model(long)
    assert difference(tokens, more[:, :3]) <= 1e-6 and difference(pooled, same) <= 1e-6
    assert difference(pooled, model(np.array([[3, 4, 5, 6, 6, 6]]))[1]) > 1e-3


def test_fit_and_evaluate_leave_padding_out_of_a_loss_per_token():
    ids = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(50, 16, mask_zero=True)(ids)
    model = redraw(keras.Model(ids, ClassificationHead(3)(make(TransformerBlock)(embedded))))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = IDS % 3
    loss = model.evaluate(IDS, labels, verbose=0)
    assert loss == pytest.approx(model.evaluate(IDS, np.where(IDS, labels, 2), verbose=0), abs=1e-6)
    probabilities = np.asarray(keras.ops.log_softmax(model(IDS)))
    token_losses = -np.take_along_axis(probabilities, labels[..., None], axis=-1)[..., 0][IDS > 0]
    assert loss == pytest.approx(token_losses.mean(), abs=1e-5)
    model.fit(IDS, labels, verbose=0)


def encoder_inputs():
    return {
        key: keras.Input((None,), dtype=dtype, name=key) for key, dtype in features.ENCODER_INPUTS.items()
    }


def test_every_state_of_an_encoder_has_the_mask_of_its_padding():
    inputs = encoder_inputs()
    states = BertEncoder(**TINY)(inputs, return_all=True)[features.HIDDEN_STATES]
    means = [keras.layers.GlobalAveragePooling1D()(state) for state in states]
    model = redraw(keras.Model(inputs, [states, means]))
    states, means = model.predict(BATCH, verbose=0)
    mask = BATCH[features.PADDING_MASK]
    for state, mean in zip(states, means, strict=True):
        wanted = np.stack([row[tokens].mean(axis=0) for row, tokens in zip(state, mask, strict=True)])
        assert difference(mean, wanted) <= 1e-6


def test_rows_of_several_texts_have_no_mask_that_keras_could_take_for_padding():
    inputs = encoder_inputs() | {
        features.SEQUENCE_IDS: keras.Input((None,), dtype="int32", name=features.SEQUENCE_IDS)
    }
    sequence = BertEncoder(**TINY)(inputs)[features.SEQUENCE]
    model = keras.Model(inputs, [sequence, keras.layers.GlobalAveragePooling1D()(sequence)])
    numbers = np.where(IDS, 1 + (np.arange(9) > 2), 0).astype("int32")
    sequence, mean = model(BATCH | {features.SEQUENCE_IDS: numbers})
    assert difference(mean, np.mean(sequence, axis=1)) <= 1e-6


def test_attention_weights_and_states_are_outputs_like_others():
    inputs, encoder = encoder_inputs(), BertEncoder(**TINY)
    outputs = encoder(inputs, return_all=True)
    model = redraw(
        keras.Model(
            inputs,
            {"state": outputs[features.HIDDEN_STATES][1], "seen": outputs[features.ATTENTION_WEIGHTS][1]},
        )
    )
    predicted, direct = model.predict(BATCH, verbose=0), encoder(BATCH, return_all=True)
    assert difference(predicted["state"], direct[features.HIDDEN_STATES][1]) <= 1e-6
    assert difference(predicted["seen"], direct[features.ATTENTION_WEIGHTS][1]) <= 1e-6
    assert predicted["seen"].shape == (3, 4, 9, 9)
    assert difference(predicted["seen"].sum(axis=-1), np.ones((3, 4, 9))) <= 1e-6
    assert predicted["seen"][:2, :, :, 5:].max() == 0


def classifier(encoder):
    inputs = encoder_inputs()
    head = ClassificationHead(2, dropout=0.0)
    model = keras.Model(inputs, head(encoder(inputs)[features.POOLED]))
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, head


def test_fit_trains_an_encoder_and_predict_uses_it():
    ids = np.random.default_rng(5).integers(1, 50, (64, 6)).astype("int32")
    batch = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": ids > 0}
    labels = ids[:, 2] % 2
    model, _ = classifier(BertEncoder(**TINY | {"num_layers": 1}, dropout=0.0))
    before = model.evaluate(batch, labels, verbose=0)
    model.fit(batch, labels, epochs=15, batch_size=16, verbose=0)
    assert model.evaluate(batch, labels, verbose=0) < before / 2
    assert np.mean(model.predict(batch, verbose=0).argmax(axis=-1) == labels) > 0.9


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_frozen_encoder_keeps_every_bit_while_the_head_trains(when):
    encoder = BertEncoder(**TINY)
    if when == "before":
        encoder.trainable = False
    model, head = classifier(encoder)
    if when == "after":
        encoder.trainable = False
        model.compile(model.optimizer, model.loss)
    frozen, kernel = encoder.get_weights(), np.array(head.dense.kernel)
    model.fit(BATCH, np.array([0, 1, 0]), epochs=2, verbose=0)
    assert model.trainable_weights == head.trainable_weights
    assert all(np.array_equal(one, other) for one, other in zip(frozen, encoder.get_weights(), strict=True))
    assert difference(kernel, head.dense.kernel) > 1e-3


def test_two_encoders_live_in_one_model(tmp_path):
    inputs = {
        side: {
            name: keras.Input((None,), dtype=dtype, name=f"{side}_{name}")
            for name, dtype in features.ENCODER_INPUTS.items()
        }
        for side in ("left", "right")
    }
    encoders = [BertEncoder(**TINY), BertEncoder(**TINY)]
    pooled = [encoder(inputs[side])[features.POOLED] for encoder, side in zip(encoders, inputs, strict=True)]
    model = redraw(keras.Model(inputs, keras.layers.Concatenate()(pooled)))
    assert len({weight.path for weight in model.weights}) == len(model.weights)
    one, other = (set(relative_paths(encoder)) for encoder in encoders)
    assert one == other and len(one) == len(encoders[0].weights)
    batch = {"left": BATCH, "right": BATCH | {"token_ids": np.where(IDS, 50 - IDS, 0)}}
    output = model(batch)
    alone = [encoder(batch[side])[features.POOLED] for encoder, side in zip(encoders, batch, strict=True)]
    assert difference(output, np.concatenate(alone, axis=-1)) <= 1e-6
    model.save(tmp_path / "two.keras")
    assert difference(keras.saving.load_model(tmp_path / "two.keras")(batch), output) == 0


@keras.saving.register_keras_serializable(package="tests")
class Tagger(keras.Model):
    """A subclassed model: a label a token."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = BertEncoder(**TINY, pooling="mean")
        self.head = ClassificationHead(3)

    def call(self, inputs, training=None):
        sequence = self.encoder(inputs, training=training)[features.SEQUENCE]
        return self.head(sequence, training=training)


def test_a_subclassed_model_trains_saves_and_loads(tmp_path):
    model = Tagger()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(BATCH, IDS % 3, verbose=0)
    model.save(tmp_path / "tagger.keras")
    loaded = keras.saving.load_model(tmp_path / "tagger.keras")
    assert difference(loaded.predict(BATCH, verbose=0), model.predict(BATCH, verbose=0)) == 0


def test_a_bundle_is_a_keras_layer(tiny_bundle):
    import tensorflow_text  # noqa: F401  # its operations are in the graph

    folder = str(tiny_bundle / "1")
    texts = tf.constant(["the film was good", "a dull plot", "", "nothing known 中!"])
    layer = keras.layers.TFSMLayer(folder, call_endpoint="serving_default")
    inputs = keras.Input((), dtype="string")
    predicted = keras.Model(inputs, layer(inputs)).predict(texts, verbose=0)
    expected = tf.saved_model.load(folder).signatures["serving_default"](text=texts)
    assert predicted.keys() == expected.keys() >= {features.LABEL, features.PROBABILITIES}
    assert predicted[features.LABEL].tolist() == expected[features.LABEL].numpy().tolist()
    for name in (features.PROBABILITIES, features.SCORE):
        assert difference(predicted[name], expected[name]) <= 1e-6


def test_a_signature_of_several_inputs_is_a_layer_of_a_dict(tiny_bundle):
    folder = str(tiny_bundle / "1")
    layer = keras.layers.TFSMLayer(folder, call_endpoint="token_ids")
    batch = {**BATCH, features.TOKEN_IDS: IDS % 20}
    expected = tf.saved_model.load(folder).signatures["token_ids"](
        **{k: tf.constant(v) for k, v in batch.items()}
    )
    assert difference(layer(batch)[features.LOGITS], expected[features.LOGITS]) <= 1e-6
    text = keras.layers.TFSMLayer(folder, call_endpoint="serving_default")
    one, other = text(tf.constant(["the film"])), text({features.TEXT: tf.constant(["the film"])})
    assert difference(one[features.PROBABILITIES], other[features.PROBABILITIES]) == 0
