import numpy as np
import pytest
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, log_loss

from keras_bert_app.export import calibration


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose input is its logits."""

    def fit(self, logits, label_ids):
        self.classes_ = np.unique(label_ids)
        self.n_features_in_ = logits.shape[1]
        return self

    def decision_function(self, logits):
        return logits

    def predict(self, logits):
        return logits.argmax(axis=-1)


@pytest.fixture(scope="module")
def examples():
    """Logits that are three times too sure, and the labels."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2000, 3))
    label_ids = np.array([rng.choice(3, p=row) for row in scipy.special.softmax(logits, axis=-1)])
    return 3 * logits, label_ids


def test_the_temperature_is_scikit_learns(examples):
    logits, label_ids = examples
    reference = CalibratedClassifierCV(FrozenEstimator(Given().fit(*examples)), method="temperature")
    expected = reference.fit(logits, label_ids).predict_proba(logits)
    temperature = calibration.fit_temperature(logits, label_ids)
    np.testing.assert_allclose(scipy.special.softmax(logits / temperature, axis=-1), expected, atol=1e-4)
    assert temperature == pytest.approx(3, rel=0.1)


def test_the_likelihood_is_scikit_learns_and_calibrating_betters_it_and_the_calibration_error(examples):
    before, after = calibration.calibration(*examples), calibration.calibration(*examples, 3.0)
    probabilities = scipy.special.softmax(examples[0] / 3, axis=-1)
    assert after["negative_log_likelihood"] == pytest.approx(log_loss(examples[1], probabilities))
    for name in ("negative_log_likelihood", "expected_calibration_error"):
        assert after[name] < before[name]
    assert after["expected_calibration_error"] < 0.05 < before["expected_calibration_error"]


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (-1.0, 20.0)])
def test_labels_that_are_all_right_or_all_wrong_dont_send_the_temperature_to_0_or_infinity(scale, expected):
    logits = scale * 4 * np.eye(2)
    assert calibration.fit_temperature(logits, np.arange(2)) == pytest.approx(expected, rel=1e-3)


def test_coverage_and_accuracy_are_of_the_answers_that_are_sure_enough(examples):
    logits, label_ids = examples
    found = calibration.abstention(logits, label_ids, 3.0, 0.6)
    sure = scipy.special.softmax(logits / 3, axis=-1).max(axis=-1) >= 0.6
    assert found["coverage"] == pytest.approx(sure.mean())
    expected = accuracy_score(label_ids[sure], logits.argmax(axis=-1)[sure])
    assert found["accuracy"] == pytest.approx(expected)
    assert found["accuracy"] > accuracy_score(label_ids, logits.argmax(axis=-1))
    assert calibration.abstention(logits, label_ids, 1000.0, 0.9)["accuracy"] is None
