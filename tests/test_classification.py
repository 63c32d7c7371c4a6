import dataclasses

import numpy as np
import pytest
import scipy.special
import sklearn.utils.class_weight
import tensorflow as tf
from conftest import TINY_PIECES

from keras_bert_app import features
from keras_bert_app.config import Config, DataConfig, EncoderConfig, complete_encoder
from keras_bert_app.data.readers import Record
from keras_bert_app.errors import UserError
from keras_bert_app.tasks import TASKS
from keras_bert_app.tasks.classification import ClassificationTask
from keras_bert_app.tasks.signatures import with_pooled
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.text.tokenizer import BertTokenizer
from keras_bert_app.text.vocabulary import Vocabulary

LABELS = ("böse", "gut", "übel")


@pytest.fixture(scope="module")
def packer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(TINY_PIECES.split()) + "\n", encoding="utf-8")
    return TextPacker(BertTokenizer(Vocabulary.load(path)), 16)


@pytest.fixture(scope="module")
def task():
    return ClassificationTask(LABELS, [features.TEXT])


@pytest.fixture(scope="module")
def model(task):
    sizes = EncoderConfig(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_positions=16)
    return task.build_model(complete_encoder(sizes, {"vocabulary_size": len(TINY_PIECES.split())}), "float32")


def records(*labels):
    return [Record({"text": f"text {i}", "label": label}, f"x.csv:{i + 2}") for i, label in enumerate(labels)]


def test_labels_are_those_of_the_training_records_sorted():
    task = ClassificationTask.from_records(Config(), records("b", "a", "b"))
    assert (task.labels, task.text_inputs) == (("a", "b"), (features.TEXT,))


def test_a_pair_column_makes_a_task_of_two_texts():
    config = dataclasses.replace(Config(), data=DataConfig(pair_column="other"))
    task = ClassificationTask.from_records(config, records("a", "b"))
    assert task.text_inputs == (features.TEXT, features.TEXT_PAIR)
    assert task.columns(config.data)[features.TEXT_PAIR] == "other"


def test_one_label_is_no_task():
    with pytest.raises(UserError, match="only the label 'a'; a classifier needs two"):
        ClassificationTask.from_records(Config(), records("a", "a"))


def test_a_task_is_made_again_from_its_config(task):
    again = TASKS[task.name](**task.get_config())
    assert (again.labels, again.text_inputs) == (task.labels, task.text_inputs)


def test_columns_leave_out_what_is_not_set_or_not_labelled():
    data = DataConfig(text_column="body", group_column="film")
    assert ClassificationTask.columns(data) == {"text": "body", "label": "label", "group": "film"}
    assert ClassificationTask.columns(data, labelled=False) == {"text": "body"}


def test_an_unknown_label_is_refused_with_its_file_and_line(task):
    with pytest.raises(UserError, match="x.csv:3: unknown label 'Gut'; the training set has böse, gut, übel"):
        task.targets(records("gut", "Gut"))


def test_balanced_weights_are_scikit_learns(task):
    labels = ["gut"] * 5 + ["böse"] * 2 + ["übel"]
    targets = task.targets(records(*labels), "balanced")
    expected = sklearn.utils.class_weight.compute_sample_weight("balanced", labels)
    np.testing.assert_allclose(targets[features.WEIGHT], expected, rtol=1e-6)
    for name, spec in task.targets_specs.items():
        assert targets[name].dtype == spec.dtype and spec.shape.is_compatible_with(targets[name].shape)
    assert targets[features.LABEL].tolist() == [1] * 5 + [0] * 2 + [2]
    assert set(task.targets(records(*labels))[features.WEIGHT]) == {1.0}


def test_the_loss_is_the_cross_entropy_and_keeps_the_weights(task):
    logits = np.array([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]], "float32")
    batch = {features.LABEL: tf.constant([0, 2]), features.WEIGHT: tf.constant([1.0, 0.5])}
    loss = task.losses({features.LOGITS: tf.constant(logits)}, batch)["loss"]
    np.testing.assert_allclose(loss, -scipy.special.log_softmax(logits, axis=-1)[[0, 1], [0, 2]], rtol=1e-6)
    assert task.weights(batch)["loss"].numpy().tolist() == [1.0, 0.5]


def test_decoding_gives_the_likeliest_label_its_score_and_all_probabilities(task):
    logits = np.array([[1.0, 2.0, -1.0], [0.0, -5.0, 90.0]], "float32")
    decoded = task.decode({features.LOGITS: tf.constant(logits)})
    assert [label.decode() for label in decoded["label"].numpy()] == ["gut", "übel"]
    expected = scipy.special.softmax(logits.astype("float64"), axis=-1)
    np.testing.assert_allclose(decoded["probabilities"], expected, atol=1e-7)
    np.testing.assert_allclose(decoded["score"], expected.max(axis=-1), atol=1e-7)
    np.testing.assert_allclose(task.probabilities(logits), expected, rtol=1e-12)


def test_the_worst_mistakes_of_pairs_show_both_texts():
    task = ClassificationTask(LABELS, [features.TEXT, features.TEXT_PAIR])
    record = Record({"text": "one", "text_pair": "two", "label": "gut"}, "x.csv:2")
    outputs = {features.LOGITS: np.array([[9.0, 0.0, 0.0]])}
    (mistake,) = task.worst_mistakes([record], outputs, task.targets([record]))
    assert (mistake["text"], mistake["label"], mistake["predicted"]) == ("one ¶ two", "gut", "böse")


def test_the_signatures_have_the_names_dtypes_and_shapes_of_the_contract(task, model, packer):
    signatures = task.signatures(with_pooled(model), packer)
    assert signatures.keys() == {"serving_default", "classify", "token_ids", "embed", "tokenize"}
    outputs = signatures["serving_default"].structured_outputs
    assert {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in outputs.items()} == {
        "label": ("string", [None]),
        "score": ("float32", [None]),
        "probabilities": ("float32", [None, 3]),
        "num_tokens": ("int32", [None]),
        "truncated": ("bool", [None]),
    }
    _, inputs = signatures["token_ids"].structured_input_signature
    assert {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in inputs.items()} == {
        name: (dtype, [None, None]) for name, dtype in features.ENCODER_INPUTS.items()
    }


def test_the_graph_pads_to_the_longest_text_of_the_batch_and_not_to_the_maximum(task, packer):
    shapes = []

    def network(inputs, training):
        tf.py_function(lambda ids: shapes.append(tuple(ids.shape)), [inputs[features.TOKEN_IDS]], [])
        rows = tf.shape(inputs[features.TOKEN_IDS])[0]
        return {features.LOGITS: tf.zeros([rows, 3]), features.POOLED: tf.zeros([rows, 1])}

    serve = task.signatures(network, packer)["serving_default"]
    serve(text=tf.constant(["good", "good film"]))
    serve(text=tf.constant(["good " * 100]))
    assert shapes == [(2, 4), (1, 16)]


def test_a_batch_padded_further_gives_the_same_logits(task, model, packer):
    signature = task.signatures(with_pooled(model), packer)["token_ids"]
    inputs = packer([tf.constant(["good"])])
    assert inputs[features.TOKEN_IDS].shape == (1, 3)
    wider = {name: tf.pad(value, [[0, 0], [0, 9]]) for name, value in inputs.items()}
    np.testing.assert_allclose(
        signature(**inputs)[features.LOGITS], signature(**wider)[features.LOGITS], atol=1e-6
    )


def test_pairs_are_classified_from_examples_of_both_texts_and_tokens_point_into_their_own(model, packer):
    task = ClassificationTask(LABELS, [features.TEXT, features.TEXT_PAIR])
    signatures = task.signatures(with_pooled(model), packer)
    pairs = {"text": [b"good film", b""], "text_pair": ["not 中 bad".encode(), b"the plot was dull . " * 9]}
    texts = {name: tf.constant(values) for name, values in pairs.items()}
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[values[row]]))
                    for name, values in pairs.items()
                }
            )
        ).SerializeToString()
        for row in range(2)
    ]
    answer = signatures["serving_default"](**texts)
    assert answer["truncated"].numpy().tolist() == [False, True]
    assert "regress" not in signatures  # three labels have no one number
    scores = signatures["classify"](inputs=tf.constant(examples))["scores"]
    np.testing.assert_allclose(scores, answer["probabilities"], atol=1e-6)
    found = {name: value.numpy() for name, value in signatures["tokenize"](**texts).items()}
    packed = packer(list(texts.values()))
    for name in (features.TOKEN_IDS, features.SEGMENT_IDS):
        np.testing.assert_array_equal(found[name], packed[name])
    for row, place in np.argwhere(found["ends"] > 0):
        source = list(pairs.values())[found["segment_ids"][row, place]][row]
        assert source[found["starts"][row, place] : found["ends"][row, place]] == found["pieces"][row, place]
    assert (found["ends"] > 0).sum(axis=1).tolist() == [5, 13]
