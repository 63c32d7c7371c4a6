"""Which devices a run uses."""

import pytest
import tensorflow as tf

from keras_bert_app.config import TrainConfig
from keras_bert_app.errors import UserError
from keras_bert_app.training.strategy import make_strategy


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """As on a machine without a GPU, so that what is tested doesn't depend on the machine."""
    listed = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: [] if kind == "GPU" else listed(kind)
    )


def test_none_is_one_replica():
    assert make_strategy(TrainConfig()).num_replicas_in_sync == 1
    assert make_strategy(TrainConfig(num_devices=1)).num_replicas_in_sync == 1


def test_mirrored_stands_on_logical_cpus_where_there_is_no_gpu():
    assert make_strategy(TrainConfig(strategy="mirrored", num_devices=2)).num_replicas_in_sync == 2


def test_the_same_devices_give_the_same_mirrored_strategy():
    train = TrainConfig(strategy="mirrored", num_devices=2)
    assert make_strategy(train) is make_strategy(train)


def test_several_devices_without_mirrored_are_refused():
    with pytest.raises(UserError, match=r"num_devices is 2.*config\.train\.strategy=mirrored"):
        make_strategy(TrainConfig(num_devices=2))


def test_mirrored_without_gpus_and_number_is_refused():
    with pytest.raises(UserError, match=r"no GPU; set config\.train\.num_devices"):
        make_strategy(TrainConfig(strategy="mirrored"))


def test_more_gpus_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one"])
    with pytest.raises(UserError, match="num_devices is 3, but there are 1 GPUs"):
        make_strategy(TrainConfig(strategy="mirrored", num_devices=3))


def test_cpu_replicas_after_the_start_of_tensorflow_are_refused():
    tf.constant(0) + 1
    with pytest.raises(UserError, match="7 logical CPU devices were asked for after TensorFlow started"):
        make_strategy(TrainConfig(strategy="mirrored", num_devices=7))
