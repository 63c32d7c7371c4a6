"""The pretraining task against transformers' BertForPreTraining, and its life as a Keras model."""

import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert.huggingface_families import FAMILIES
from keras_bert_app.errors import UserError
from keras_bert_app.tasks.pretraining import PAIR_OBJECTIVES, PretrainingTask
from keras_bert_app.text.masking import TokenMasker, masked_positions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *(f"word{number}" for number in range(45))))
TINY = complete_encoder(
    EncoderConfig(),
    {
        "vocabulary_size": 50,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 16,
        "intermediate_dim": 24,
        "max_positions": 32,
    },
)
# Ours below the head, theirs, and whether theirs is transposed.
# Keras' own, on saving and on reading a variable.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def make_batch(lengths=(3, 9, 30, 17), masker=None):
    """Masked rows of random words, the second half of each the second text; every row counts."""
    draw, size = np.random.default_rng(1), max(lengths)
    mask = np.arange(size) < np.array(lengths)[:, None]
    batch = {
        features.TOKEN_IDS: np.where(mask, draw.integers(5, 50, mask.shape), 0).astype("int32"),
        features.SEGMENT_IDS: (mask & (np.arange(size) >= np.array(lengths)[:, None] // 2)).astype("int32"),
        features.PADDING_MASK: mask,
        features.NEXT_SENTENCE_LABEL: draw.integers(0, 2, len(lengths)).astype("int32"),
        features.WEIGHT: np.ones(len(lengths), "float32"),
    }
    batch = {name: tf.constant(value) for name, value in batch.items()}
    return (masker or TokenMasker(VOCABULARY, rate=0.3))(batch, tf.constant([0, 7], tf.int64))


def inputs_of(batch):
    return {name: batch[name] for name in (*features.ENCODER_INPUTS, features.MASKED_POSITIONS)}


def redraw(model):
    """Give every weight other values than its initialiser's, so that none can be forgotten unseen."""
    draw = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(weight + draw.normal(0, 0.3, weight.shape))
    return model


def averages(task, columns, batch):
    """Each column's mean by its weights."""
    weights = {
        name: tf.cast(value, columns[name].dtype)
        for name, value in task.weights(batch).items()
        if name in columns
    }
    return {
        name: tf.reduce_sum(values * weights[name]) / tf.reduce_sum(weights[name])
        for name, values in columns.items()
    }


def reference_model(activation):
    """transformers' model, every tensor at random; its linear layers' and norms' biases too."""
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=50,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_size=16,
            intermediate_size=24,
            max_position_embeddings=32,
            hidden_act=activation,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    return model


def reference_loss(model, batch):
    """Their loss on the same batch; their labels are -100 where nothing was masked."""
    labels = np.full(batch[features.TOKEN_IDS].shape, -100)
    rows, places = np.nonzero(batch[features.MASKED_WEIGHTS].numpy())
    positions = batch[features.MASKED_POSITIONS].numpy()[rows, places]
    labels[rows, positions] = batch[features.MASKED_IDS].numpy()[rows, places]
    return model(
        input_ids=torch.tensor(batch[features.TOKEN_IDS].numpy()).long(),
        token_type_ids=torch.tensor(batch[features.SEGMENT_IDS].numpy()).long(),
        attention_mask=torch.tensor(batch[features.PADDING_MASK].numpy()).long(),
        labels=torch.tensor(labels),
        next_sentence_label=torch.tensor(batch[features.NEXT_SENTENCE_LABEL].numpy()).long(),
    ).loss


def by_our_paths(tensors):
    """Their tensors by name -> ours by path; each must be there and none may be left."""
    tensors = {name.removeprefix("bert."): value.numpy() for name, value in tensors.items()}
    rows = FAMILIES["bert"].theirs(PretrainingTask("nsp").network, TINY).rows
    ours = {row.ours: row.transform.ours(tensors.pop(row.theirs)) for row in rows}
    assert not tensors
    return ours


# Key biases have no gradient but rounding; in float32 it is about 1e-8 of the whole, the other cases' floor.
@pytest.mark.parametrize(
    ("activation", "dtype", "floor"),
    [("gelu", "float64", 1e-4), ("relu", "float64", 1e-4), ("gelu", "float32", 1e-3)],
)
def test_loss_and_every_gradient_are_those_of_transformers(activation, dtype, floor):
    batch, reference = make_batch(), reference_model(activation).to(getattr(torch, dtype))
    their_loss = reference_loss(reference, batch)
    their_loss.backward()
    parameters = dict(reference.named_parameters())
    values = by_our_paths({name: parameter.detach() for name, parameter in parameters.items()})
    expected = by_our_paths({name: parameter.grad for name, parameter in parameters.items()})

    task = PretrainingTask("nsp")
    settings = {name: value for name, value in vars(TINY).items() if name != "activation"}
    model = task.build_model(EncoderConfig(**settings, activation=activation), dtype)
    variables = {weight.path: weight for weight in model.weights}
    assert variables.keys() == values.keys()
    for path, weight in variables.items():
        weight.assign(values[path])
    with tf.GradientTape() as tape:
        losses = averages(task, task.losses(model(inputs_of(batch), training=False), batch), batch)
        loss = tf.add_n(list(losses.values()))
    gradients = tape.gradient(loss, [weight.value for weight in variables.values()])
    gradients = {
        key: tf.convert_to_tensor(value).numpy() for key, value in zip(variables, gradients, strict=True)
    }

    assert set(losses) == {"mlm_loss", "nsp_loss"} and len(variables) == len(model.trainable_variables)
    assert float(loss) == pytest.approx(their_loss.item(), rel=1e-6)
    whole = np.sqrt(sum(np.sum(np.square(tensor)) for tensor in expected.values()))
    for path, gradient in gradients.items():
        allowed = 1e-4 * max(np.linalg.norm(expected[path]), floor * whole)
        assert np.linalg.norm(gradient - expected[path]) <= allowed, path


def test_predictions_that_stand_for_nothing_change_nothing():
    task, batch = PretrainingTask("sop"), make_batch()
    model = redraw(task.build_model(TINY, "float32"))
    wide = dict(batch)
    for name in (features.MASKED_POSITIONS, features.MASKED_IDS, features.MASKED_WEIGHTS):
        wide[name] = tf.pad(batch[name], [[0, 0], [0, 5]])
    fill = {name: tf.concat([value, value[:2]], axis=0) for name, value in wide.items()}
    fill[features.WEIGHT] = tf.constant([1.0] * 4 + [0.0] * 2)
    results = []
    for rows in (batch, wide, fill):
        outputs = model(inputs_of(rows), training=False)
        results.append(averages(task, task.losses(outputs, rows) | task.measures(outputs, rows), rows))
        metrics = task.metrics(
            {name: value.numpy() for name, value in task.predictions(outputs, rows).items()},
            {features.WEIGHT: rows[features.WEIGHT].numpy()},
        )
        assert metrics["num_examples"] == 4
        assert metrics["num_masked"] == np.sum(batch[features.MASKED_WEIGHTS])
        for name, value in results[0].items():
            assert float(results[-1][name]) == pytest.approx(float(value), rel=1e-6)
            assert metrics[name] == pytest.approx(float(value), rel=1e-6)
    assert {"mlm_loss", "sop_loss", "mlm_accuracy", "sop_accuracy"} == set(results[0])
    assert metrics["loss"] == pytest.approx(metrics["mlm_loss"] + metrics["sop_loss"])
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["mlm_loss"]))


def test_accuracies_count_the_highest_logits():
    task = PretrainingTask("nsp")
    outputs = {
        features.MASKED_LOGITS: tf.constant([[[0.0, 2, 1], [9, 0, 0]], [[0, 0, 3], [0, 1, 0]]]),
        features.PAIR_LOGITS: tf.constant([[1.0, 0], [2, 0]]),
    }
    batch = {
        features.MASKED_IDS: tf.constant([[1, 0], [2, 2]]),
        features.MASKED_WEIGHTS: tf.constant([[1.0, 0], [1, 1]]),
        features.NEXT_SENTENCE_LABEL: tf.constant([0, 1]),
        features.WEIGHT: tf.ones(2),
    }
    measures = averages(task, task.measures(outputs, batch), batch)
    assert float(measures["mlm_accuracy"]) == pytest.approx(2 / 3)
    assert float(measures["nsp_accuracy"]) == 0.5


def test_a_batch_without_masked_tokens_has_metrics():
    task = PretrainingTask("none")
    metrics = task.metrics(
        {"num_masked": np.zeros(3), "mlm_loss": np.zeros(3), "mlm_accuracy": np.zeros(3)},
        {features.WEIGHT: np.ones(3)},
    )
    assert (metrics["num_masked"], metrics["mlm_loss"], metrics["perplexity"]) == (0, 0.0, 1.0)


@pytest.mark.parametrize("objective", PAIR_OBJECTIVES)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "float64"])
def test_every_weight_has_a_gradient_whatever_the_objective(objective, precision):
    task, batch = PretrainingTask(objective), make_batch()
    model = redraw(task.build_model(TINY, precision))
    fields = {"packed": False, "masked_activation": None, "masked_epsilon": None}
    assert task.get_config() == {"pair_objective": objective} | fields
    with tf.GradientTape() as tape:
        losses = averages(task, task.losses(model(inputs_of(batch), training=True), batch), batch)
        loss = tf.add_n(list(losses.values()))
    assert loss.dtype == ("float64" if precision == "float64" else "float32")
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    assert list(losses) == ["mlm_loss"] + [f"{objective}_loss"] * (objective != "none")
    assert (features.NEXT_SENTENCE_LABEL in task.targets_specs) == (objective != "none")


def test_an_unknown_objective_is_refused():
    with pytest.raises(UserError, match="'both'; it takes one of nsp, sop, none"):
        PretrainingTask("both")


def test_pairs_are_not_packed():
    with pytest.raises(UserError, match="only where the pair objective is none; it is sop"):
        PretrainingTask("sop", packed=True)


PACKED_LENGTHS = ([3, 9, 12], [30], [1, 17, 2])


def rows_batch(rows):
    """(token ids, whether it is masked, the number of its text), a list each of a row -> a padded batch."""
    size = max(len(row[0]) for row in rows) + 2
    token_ids, chosen, numbers = (
        np.array([list(row[column]) + [0] * (size - len(row[column])) for row in rows]) for column in range(3)
    )
    positions, weights = masked_positions(tf.constant(chosen.astype(bool)))
    return {
        features.TOKEN_IDS: tf.constant(token_ids, tf.int32),
        features.SEGMENT_IDS: tf.zeros_like(token_ids, tf.int32),
        features.PADDING_MASK: tf.constant(numbers > 0),
        features.SEQUENCE_IDS: tf.constant(numbers, tf.int32),
        features.MASKED_POSITIONS: positions,
        features.MASKED_IDS: tf.gather(tf.constant(token_ids, tf.int32), positions, batch_dims=1),
        features.MASKED_WEIGHTS: weights,
    }


def packed_and_apart():
    """The same texts in rows of several and in rows of their own."""
    draw, packed, apart = np.random.default_rng(3), [], []
    for lengths in PACKED_LENGTHS:
        texts = [
            (draw.integers(5, 50, length), draw.random(length) < 0.3, [number] * length)
            for number, length in enumerate(lengths, 1)
        ]
        packed.append([np.concatenate(columns) for columns in zip(*texts, strict=True)])
        apart += [(ids, chosen, np.ones_like(numbers)) for ids, chosen, numbers in texts]
    return rows_batch(packed), rows_batch(apart)


def vectors_loss_and_gradients(task, batch, dtype):
    """The encoder's vectors of all tokens in order [T, H], the MLM loss, and every gradient by path."""
    keras.utils.set_random_seed(0)
    model = redraw(task.build_model(replace(TINY, dropout=0.0, attention_dropout=0.0), dtype))
    encoder = model.get_layer("encoder")
    vectors = encoder({name: batch[name] for name in task.inputs_dtypes})[features.SEQUENCE]
    with tf.GradientTape() as tape:
        logits = model({name: batch[name] for name in model.input}, training=True)[features.MASKED_LOGITS]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch[features.MASKED_IDS], logits)
        weights = tf.cast(batch[features.MASKED_WEIGHTS], losses.dtype)
        loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    by_path = {
        weight.path: tf.convert_to_tensor(gradient).numpy()
        for weight, gradient in zip(model.trainable_variables, gradients, strict=True)
    }
    return vectors[batch[features.PADDING_MASK]].numpy(), float(loss), by_path


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_texts_packed_into_rows_are_the_texts_in_rows_of_their_own(dtype, tolerance):
    batch, apart = packed_and_apart()
    vectors, loss, gradients = vectors_loss_and_gradients(PretrainingTask("none", packed=True), batch, dtype)
    for task in (PretrainingTask("none"), PretrainingTask("none", packed=True)):
        theirs, their_loss, their_gradients = vectors_loss_and_gradients(task, apart, dtype)
        assert vectors.dtype == dtype and len(vectors) == sum(map(sum, PACKED_LENGTHS))
        np.testing.assert_allclose(vectors, theirs, rtol=0, atol=tolerance)
        assert loss == pytest.approx(their_loss, rel=tolerance)
        whole = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in their_gradients.values()))
        for path, gradient in gradients.items():
            assert np.linalg.norm(gradient - their_gradients[path]) <= tolerance * whole, path
    # Without the texts' numbers the same rows are something else.
    mixed, _, _ = vectors_loss_and_gradients(PretrainingTask("none"), batch, dtype)
    assert np.abs(mixed - vectors).max() > 0.1


def test_a_saved_model_of_packed_rows_is_the_same_when_it_is_loaded(tmp_path):
    model = redraw(PretrainingTask("none", packed=True).build_model(TINY, "float32"))
    batch = {name: packed_and_apart()[0][name] for name in model.input}
    assert features.SEQUENCE_IDS in batch
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(batch)[features.MASKED_LOGITS], model(batch)[features.MASKED_LOGITS])


LOAD_AND_RUN = """
import sys
import numpy as np
import keras
import keras_bert_app.model
folder = sys.argv[1]
model = keras.saving.load_model(f"{folder}/model.keras")
np.savez(f"{folder}/outputs.npz", **model.predict_on_batch(dict(np.load(f"{folder}/batch.npz"))))
token = model.get_layer("encoder").embeddings.token.embeddings
token.assign(token * 2)
np.savez(f"{folder}/doubled.npz", **model.predict_on_batch(dict(np.load(f"{folder}/batch.npz"))))
print(*(name for name in sys.modules if name.startswith("keras_bert_app.")), "tensorflow_text" in sys.modules)
"""


def test_a_saved_model_is_the_same_in_a_process_that_imports_the_model_package_only(tmp_path):
    model = redraw(PretrainingTask("nsp").build_model(TINY, "float32"))
    inputs = {name: value.numpy() for name, value in inputs_of(make_batch()).items()}
    np.savez(tmp_path / "batch.npz", **inputs)
    model.save(tmp_path / "model.keras")
    wanted = model.predict_on_batch(inputs)
    process = subprocess.run(
        [sys.executable, "-c", LOAD_AND_RUN, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    *modules, has_tensorflow_text = process.stdout.split()
    assert not [name for name in modules if name.split(".")[1] not in ("model", "features")]
    assert has_tensorflow_text == "False"
    outputs, doubled = np.load(tmp_path / "outputs.npz"), np.load(tmp_path / "doubled.npz")
    assert set(outputs) == {features.MASKED_LOGITS, features.PAIR_LOGITS}
    for name in outputs:
        np.testing.assert_array_equal(outputs[name], wanted[name])
    # The decoder is still tied: it follows the encoder's weights.
    token = model.get_layer("encoder").embeddings.token.embeddings
    token.assign(token * 2)
    np.testing.assert_array_equal(
        doubled[features.MASKED_LOGITS], model.predict_on_batch(inputs)[features.MASKED_LOGITS]
    )
    assert sum(tuple(weight.shape) == (50, 16) for weight in model.weights) == 1
