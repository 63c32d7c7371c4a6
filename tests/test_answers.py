import numpy as np
import scipy.special
import tensorflow as tf

from keras_bert_app.tasks.answers import BEST_LABEL, AnswerOptions, answer

LABELS = ("böse", "gut", "übel")
LOGITS = np.array([[1.0, 2.0, -1.0], [0.5, 0.4, 0.3], [-9.0, -9.0, 9.0]], "float32")


def given(options):
    return {name: value.numpy() for name, value in answer(tf.constant(LOGITS), LABELS, options).items()}


def decoded(array):
    return np.vectorize(bytes.decode)(array).tolist()


def test_the_temperature_divides_the_logits():
    found = given(AnswerOptions(temperature=2.5))
    expected = scipy.special.softmax(LOGITS / 2.5, axis=-1)
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["score"], expected.max(axis=-1), rtol=1e-6)
    assert decoded(found["label"]) == decoded(given(BEST_LABEL)["label"]) == ["gut", "böse", "übel"]


def test_the_likeliest_labels_come_with_their_scores_best_first():
    found = given(AnswerOptions(top_k=2))
    assert decoded(found["top_labels"])[:2] == [["gut", "böse"], ["böse", "gut"]]
    expected = np.sort(found["probabilities"], axis=-1)[:, :0:-1]
    np.testing.assert_array_equal(found["top_scores"], expected)


def test_an_answer_below_the_threshold_has_no_label_but_its_scores():
    found = given(AnswerOptions(abstain=0.5))
    assert decoded(found["label"]) == ["gut", "", "übel"]
    assert found["abstained"].tolist() == [False, True, False]
    np.testing.assert_array_equal(found["score"], given(BEST_LABEL)["score"])


def test_no_texts_get_no_answers():
    options = AnswerOptions(top_k=2, abstain=0.5)
    found = answer(tf.zeros([0, 3]), LABELS, options)
    assert {name: value.shape.as_list() for name, value in found.items()} == {
        "label": [0],
        "score": [0],
        "probabilities": [0, 3],
        "top_labels": [0, 2],
        "top_scores": [0, 2],
        "abstained": [0],
    }
