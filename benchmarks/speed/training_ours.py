"""This project's runs, as `run.py finetune` and `run.py pretrain` make them, paced where a step is shown."""

import csv
import tempfile
from pathlib import Path

from keras_bert_app import features, quiet_tensorflow  # noqa: F401

import keras  # isort: skip
import numpy as np
import tensorflow as tf

from benchmarks.speed import inputs
from benchmarks.speed.contenders import Contender
from benchmarks.speed.training import (
    BATCH,
    LENGTH,
    PREDICTIONS,
    Pacer,
    classification_batch,
    pretraining_batch,
)
from keras_bert_app import config as configuration
from keras_bert_app.data.batches import Examples
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.training import assembly, finetuning, initial, loop

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
MANY = 1000


def train(folder: Path, row: str, contender: Contender, pacer: Pacer) -> None:
    """Train on a row for ever."""
    show = loop.Trainer._show

    def paced(self, *arguments):
        show(self, *arguments)
        pacer.step_done()

    loop.Trainer._show = paced
    fit = loop.Trainer.fit

    def begun(self, *arguments):
        pacer.begin(loss(self, folder, row))
        return fit(self, *arguments)

    loop.Trainer.fit = begun
    values = configuration.default()
    values.train.precision = PRECISIONS[contender.precision]
    values.train.jit = contender.setting == "jit"
    values.train.batch_size, values.train.epochs, values.train.evaluate_every = BATCH, MANY, 10**9
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(temporary) / "run"
        if row == "pretraining":
            pretrain(values, folder, workdir)
        else:
            values.init, values.init_head = str(folder / "huggingface"), True
            values.data.train = "reviews"
            if row == "finetuning-128":
                values.data.train, values.data.evaluation = write_texts(folder, Path(temporary))
                values.data.test_fraction = 0.0
            finetuning.finetune(configuration.freeze(values), workdir)


def write_texts(folder: Path, target: Path) -> tuple[str, str]:
    """Files of the texts of full length: to train on, and to evaluate on."""
    rows, names = inputs.read(folder)["fixed"], ("fresh", "rotten")
    paths = target / "train.csv", target / "evaluation.csv"
    for path, part in zip(paths, (slice(None, -BATCH), slice(-BATCH, None)), strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(
                (text, names[label])
                for text, label in zip(rows["texts"][part], rows["labels"][part], strict=True)
            )
    return str(paths[0]), str(paths[1])


def pretrain(values, folder: Path, workdir: Path) -> None:
    """As `run.py pretrain`, but on pairs in memory, all of full length."""
    values.init, values.task.name = str(folder / "pretraining_model"), "pretraining"
    values.masking.max_predictions = PREDICTIONS
    config = configuration.freeze(values)
    ids = np.array(inputs.read(folder)["fixed"]["ids"], np.int32)
    ids[:, LENGTH // 2 - 1] = ids[:, -1]
    segments = np.broadcast_to(np.arange(LENGTH) >= LENGTH // 2, ids.shape).astype(np.int32)
    strategy = assembly.start(config)
    pretrained, task = initial.load_pretrained(config.init), PretrainingTask("nsp")
    description = assembly.describe(config, task, pretrained)
    assembly.open_run(workdir, config, strategy, description, "", pretrained)
    targets = {
        features.NEXT_SENTENCE_LABEL: (np.arange(len(ids)) % 2).astype(np.int32),
        features.WEIGHT: np.ones(len(ids), np.float32),
    }
    ragged = [tf.RaggedTensor.from_tensor(tf.constant(part)) for part in (ids, segments)]
    examples = Examples(*ragged, targets, description.packer().pad)
    assembly.fit(workdir, config, strategy, description, pretrained, [examples], examples)


def loss(trainer: loop.Trainer, folder: Path, row: str) -> float:
    """Of the batch that is compared, without dropout."""
    given = pretraining_batch(folder) if row == "pretraining" else classification_batch(folder, row)
    batch = {name: tf.constant(values) for name, values in given.items()}
    batch[features.PADDING_MASK] = tf.cast(batch[features.PADDING_MASK], tf.bool)
    batch.setdefault(features.SEGMENT_IDS, tf.zeros_like(batch[features.TOKEN_IDS]))
    batch |= {features.WEIGHT: tf.ones(BATCH), features.LABEL: batch["labels"]}
    batch[features.NEXT_SENTENCE_LABEL] = batch["labels"]
    if row == "pretraining":
        batch[features.MASKED_WEIGHTS] = tf.ones(batch[features.MASKED_IDS].shape)
    outputs = trainer.model({name: batch[name] for name in trainer.model.input}, training=False)
    losses = trainer.task.losses(outputs, batch)
    return float(sum(keras.ops.mean(keras.ops.cast(values, "float32")) for values in losses.values()))
