"""Optimizers and schedules against PyTorch's, the papers' algorithms and plain formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from keras_bert_app.config import TrainConfig
from keras_bert_app.model import BertEncoder
from keras_bert_app.training.optimization import learning_rate, make_optimizer


def _schedule(step, peak, warmup, total):
    """The formula in plain numbers."""
    return peak * min(1, (step + 1) / max(1, warmup), (total - step) / max(1, total - warmup))


def _train(**changes):
    return TrainConfig(**{"learning_rate": 0.8} | changes)


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (9, 10), (0, 1)])
def test_the_linear_schedule_is_the_plain_formula_at_every_step(warmup, total):
    train = _train(warmup_fraction=warmup / total)
    for step in range(total):
        assert learning_rate(train, step, total) == pytest.approx(_schedule(step, 0.8, warmup, total))
        assert learning_rate(train, step, total) > 0


def test_first_peak_last_and_later_rates():
    train = _train(warmup_fraction=1 / 3)
    rates = [learning_rate(train, step, 12) for step in (0, 3, 4, 11, 12, 100)]
    assert rates == pytest.approx([0.2, 0.8, 0.8, 0.1, 0.0, 0.0])


def test_the_cosine_schedule_is_pytorchs_after_the_warm_up():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.8)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)
    train = _train(schedule="cosine", warmup_fraction=0.25)
    assert [learning_rate(train, step, 12) for step in range(3)] == pytest.approx([0.8 / 3, 1.6 / 3, 0.8])
    for step in range(3, 13):
        assert learning_rate(train, step, 12) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()


def test_a_constant_schedule_warms_up_and_stays():
    train = _train(schedule="constant", warmup_fraction=0.5)
    assert [learning_rate(train, step, 4) for step in range(4)] == pytest.approx([0.4, 0.8, 0.8, 0.8])


def test_ten_updates_are_those_of_pytorch():
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(5, dtype="float64")])
    train = TrainConfig(learning_rate=1e-2, warmup_fraction=0.3, weight_decay=0.1)
    optimizer = make_optimizer(train, model)
    kernel, bias = (torch.nn.Parameter(torch.tensor(v.numpy())) for v in model.trainable_variables)
    groups = [{"params": [kernel], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    start = [v.numpy().copy() for v in model.trainable_variables]
    for step in range(10):
        gradients = [random.normal(size=v.shape) for v in model.trainable_variables]
        optimizer.learning_rate.assign(learning_rate(train, step, 10))
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


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-4)])
def test_adamw_makes_the_updates_of_keras_own(dtype, bound):
    random = np.random.default_rng(0)
    models = [
        keras.Sequential([keras.Input((7,)), keras.layers.Dense(5, dtype=dtype, name="dense")], name="model")
        for _ in range(2)
    ]
    models[1].set_weights(models[0].get_weights())
    ours = make_optimizer(_train(learning_rate=1e-2, weight_decay=0.1), models[0])
    # The rate is a float32 variable in both.
    theirs = keras.optimizers.AdamW(1e-2, weight_decay=0.1, epsilon=1e-8, name="optimizer")
    theirs.exclude_from_weight_decay(var_list=[models[1].trainable_variables[1]])
    theirs.build(models[1].trainable_variables)
    assert [v.path for v in ours.variables] == [v.path for v in theirs.variables]
    start = models[0].get_weights()
    for _ in range(20):
        gradients = [tf.constant(random.normal(size=v.shape), dtype) for v in models[0].trainable_variables]
        for optimizer in (ours, theirs):
            optimizer.apply(gradients)
    for before, one, other in zip(start, *(model.get_weights() for model in models), strict=True):
        assert np.abs(one - before).max() > 1e-2
        np.testing.assert_allclose(one, other, rtol=0, atol=bound * np.abs(other - before).max())
    for one, other in zip(ours.variables[2:], theirs.variables[2:], strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=bound, atol=0)


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
    optimizer = make_optimizer(TrainConfig(learning_rate=0.1, weight_decay=0.5), model)
    optimizer.apply([tf.zeros(variable.shape) for variable in model.trainable_variables])
    still = {variable.path for variable in model.trainable_variables if (variable.numpy() == 1).all()}
    paths = {variable.path for variable in model.trainable_variables}
    assert still == {path for path in paths if path.rsplit("/", 1)[1] in ("bias", "gamma", "beta")}
    assert still and paths - still


def _lamb(value, gradients, rate, decay, adapted):
    """Algorithm 2 of You et al. 2020 in plain NumPy; beta 0.9 and 0.999, epsilon 1e-6."""
    mean, square = np.zeros_like(value), np.zeros_like(value)
    for number, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = mean / (1 - 0.9**number) / (np.sqrt(square / (1 - 0.999**number)) + 1e-6)
        if adapted:
            update = update + decay * value
            norms = np.linalg.norm(value), np.linalg.norm(update)
            update = update * (norms[0] / norms[1] if min(norms) > 0 else 1.0)
        value = value - rate * update
    return value


@pytest.mark.parametrize("initial", ["random", "zeros"])
def test_lamb_is_the_papers_algorithm_and_adapts_neither_biases_nor_zeros(initial):
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(5, dtype="float64")])
    kernel, bias = model.trainable_variables
    bias.assign(random.normal(size=5))
    if initial == "zeros":
        kernel.assign(np.zeros((7, 5)))
    train = TrainConfig(optimizer="lamb", learning_rate=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(train, model)
    gradients = [[random.normal(size=v.shape) for v in (kernel, bias)] for _ in range(10)]
    start = [v.numpy() for v in (kernel, bias)]
    for pair in gradients:
        optimizer.apply([tf.constant(gradient) for gradient in pair])
    # Rates and betas are float32 where Keras keeps them.
    rate = float(np.float32(1e-2))
    expected = [
        _lamb(value, [pair[place] for pair in gradients], rate, 0.1, adapted=place == 0)
        for place, value in enumerate(start)
    ]
    for ours, theirs, before in zip((kernel, bias), expected, start, strict=True):
        assert np.abs(theirs - before).max() > 1e-3
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-8)
