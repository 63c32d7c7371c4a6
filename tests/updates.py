"""Twenty pretraining updates of a tiny model, for tests that compare them; run as a program by workers."""

import functools
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.config import ENCODER_DEFAULTS, TrainConfig
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary
from keras_bert_app.training.optimization import learning_rate, make_optimizer
from keras_bert_app.training.step import Controls, make_train_step
from keras_bert_app.training.strategy import make_strategy

STEPS, CLIP, ROWS = 20, 0.05, 9


def tiny_encoder(**changes):
    """Two small layers for sequences of up to 16 tokens; without dropout."""
    wanted = {
        "vocabulary_size": 40,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 32,
        "intermediate_dim": 64,
    }
    wanted |= {"max_positions": 16, "dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.1}
    return type(ENCODER_DEFAULTS)(**vars(ENCODER_DEFAULTS) | wanted | changes)


def masker():
    """Hides three words of ten, so that rows differ in how many."""
    return TokenMasker(Vocabulary((*SPECIAL_TOKENS, *(f"word{number}" for number in range(35)))), "word", 0.3)


def batch(seed):
    """Nine rows, so that one of two parts has one more, of lengths that leave uneven masked counts."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 17, ROWS)
    mask = np.arange(16)[None] < lengths[:, None]
    second = mask & (np.arange(16) >= lengths[:, None] // 2)
    return {
        features.TOKEN_IDS: tf.constant(np.where(mask, random.integers(5, 40, mask.shape), 0), tf.int32),
        features.SEGMENT_IDS: tf.constant(second, tf.int32),
        features.PADDING_MASK: tf.constant(mask),
        features.NEXT_SENTENCE_LABEL: tf.constant(random.integers(0, 2, ROWS), tf.int32),
        features.WEIGHT: tf.ones([ROWS]),
    }


def flat(strategy, variables):
    """All values in a row, float64."""
    local = strategy.experimental_local_results
    return np.concatenate([local(v.value)[0].numpy().astype("float64").ravel() for v in variables])


def controls(train, number, total=STEPS, **values):
    """What the loop tells the step, as tensors."""
    given = Controls(learning_rate(train, number, total), **values)
    return Controls(*(tf.constant(value, tf.float32) for value in given))


def built(train, **encoder):
    """-> (strategy, task, model, optimizer, step), from the same weights every time."""
    strategy, task = make_strategy(train), PretrainingTask("nsp")
    with strategy.scope():
        keras.utils.set_random_seed(3)
        model = task.build_model(tiny_encoder(**encoder), train.precision)
        optimizer = make_optimizer(train, model)
    step = make_train_step(strategy, model, task, optimizer, train, 11, masker())
    return strategy, task, model, optimizer, step


def settings(optimizer="adamw", precision="float32", replicas=1, **changes):
    """A config of these updates; replicas: 2 for two logical devices, "workers" for those of TF_CONFIG."""
    strategy = {1: "none", 2: "mirrored", "workers": "multi_worker"}[replicas]
    values = {
        "learning_rate": 1e-3 if optimizer == "adamw" else 1e-2,
        "clip_norm": CLIP,
        "warmup_fraction": 0.1,
    }
    devices = replicas if replicas == 2 else None
    return TrainConfig(
        **values
        | {"optimizer": optimizer, "precision": precision, "strategy": strategy, "num_devices": devices}
        | changes
    )


@functools.cache
def run(optimizer, precision, replicas=1, accumulation=1, jit=False, recompute=False, dropout=0.0):
    """-> weights before and after, [W] each, and the last scalars."""
    train = settings(optimizer, precision, replicas, accumulation=accumulation, jit=jit, recompute=recompute)
    strategy, _, model, _, step = built(train, dropout=dropout, attention_dropout=dropout)
    start, bitten = flat(strategy, model.weights), 0
    for number in range(STEPS):
        scalars = step(tf.constant(number, tf.int64), batch(number), controls(train, number))
        assert scalars["finite"]
        bitten += float(scalars["gradient_norm"]) > CLIP
    end = flat(strategy, model.weights)
    assert bitten >= 15 and np.linalg.norm(end - start) > 0.01 * np.linalg.norm(start)
    return start, end, {name: float(value) for name, value in scalars.items()}


def main(folder):
    """Write what each combination ends with as FOLDER/OPTIMIZER-PRECISION-INDEX.npy."""
    index = make_strategy(settings(replicas="workers")).cluster_resolver.task_id
    for optimizer in ("adamw", "lamb"):
        for precision in ("float32", "float64"):
            _, end, _ = run(optimizer, precision, "workers")
            np.save(Path(folder) / f"{optimizer}-{precision}-{index}.npy", end)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(sys.argv[1])
