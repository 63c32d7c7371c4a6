"""AdamW and its schedule against PyTorch's and the plain formula."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from keras_bert_app.config import TrainConfig
from keras_bert_app.model import BertEncoder
from keras_bert_app.training.optimization import WarmupLinearDecay, make_optimizer


def _schedule(step, peak, warmup, total):
    """The formula in plain numbers."""
    return peak * min(1, (step + 1) / max(1, warmup), (total - step) / max(1, total - warmup))


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (9, 10), (0, 1), (1, 1)])
def test_the_schedule_is_the_plain_formula_at_every_step(warmup, total):
    schedule = WarmupLinearDecay(1e-3, warmup, total)
    for step in range(total):
        assert float(schedule(step)) == pytest.approx(_schedule(step, 1e-3, warmup, total), rel=1e-6)
        assert float(schedule(step)) > 0


def test_first_peak_last_and_later_rates():
    schedule = WarmupLinearDecay(0.8, 4, 12)
    rates = [float(schedule(step)) for step in (0, 3, 4, 11, 12, 100)]
    assert rates == pytest.approx([0.2, 0.8, 0.8, 0.1, 0.0, 0.0])


def test_ten_updates_are_those_of_pytorch():
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(5, dtype="float64")])
    train = TrainConfig(learning_rate=1e-2, warmup_fraction=0.3, weight_decay=0.1)
    optimizer = make_optimizer(train, 10, model)
    kernel, bias = (torch.nn.Parameter(torch.tensor(v.numpy())) for v in model.trainable_variables)
    groups = [{"params": [kernel], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    start = [v.numpy().copy() for v in model.trainable_variables]
    for step in range(10):
        gradients = [random.normal(size=v.shape) for v in model.trainable_variables]
        optimizer.apply([tf.constant(gradient) for gradient in gradients])
        for group in reference.param_groups:
            group["lr"] = _schedule(step, 1e-2, 3, 10)
        kernel.grad, bias.grad = map(torch.tensor, gradients)
        reference.step()
    for before, ours, theirs in zip(start, model.trainable_variables, (kernel, bias), strict=True):
        moved = np.abs(theirs.detach().numpy() - before).max()
        assert moved > 1e-3
        # Keras adds epsilon before the correction of the second moment, PyTorch after. That is at most
        # 1e-8 / sqrt(1 - 0.999) = 3e-7 of a gradient, here 0.01 or more: 3e-5. Without the decay: 1e-2.
        np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=0, atol=3e-5 * moved)


def test_biases_and_layer_normalisation_alone_are_not_decayed():
    encoder = BertEncoder(
        vocabulary_size=11,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_positions=6,
        num_segments=2,
        activation="gelu",
        epsilon=1e-12,
        dropout=0.0,
        attention_dropout=0.0,
        initializer_range=0.5,
        position_type="learned",
        pooling="first",
        name="encoder",
    )
    inputs = {
        n: keras.Input((None,), dtype=d, name=n)
        for n, d in {"token_ids": "int32", "segment_ids": "int32", "padding_mask": "bool"}.items()
    }
    model = keras.Model(inputs, encoder(inputs)["pooled"])
    for variable in model.trainable_variables:
        variable.assign(tf.ones(variable.shape))
    optimizer = make_optimizer(
        TrainConfig(learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.5), 10, model
    )
    optimizer.apply([tf.zeros(variable.shape) for variable in model.trainable_variables])
    still = {variable.path for variable in model.trainable_variables if (variable.numpy() == 1).all()}
    paths = {variable.path for variable in model.trainable_variables}
    assert still == {path for path in paths if path.rsplit("/", 1)[1] in ("bias", "gamma", "beta")}
    assert still and paths - still
