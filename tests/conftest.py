"""What holds for every test: quiet TensorFlow, repeatable kernels, no network for Hugging Face."""

import contextlib
import csv
import os
from pathlib import Path

import pytest

# PyTorch's GPU builds bring triton, which crashes if TensorFlow's LLVM is loaded before it.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
os.environ["TF_DETERMINISTIC_OPS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


def pytest_sessionstart(session):
    """Two logical CPU devices for mirrored strategies; made before TensorFlow's first operation."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of real pretrained weights, downloaded the first time."""
    from keras_bert_app.data import sources

    return sources.fetch("minilm-l6")


@pytest.fixture(scope="session")
def reviews() -> list[str]:
    """All texts of the packaged reviews."""
    from keras_bert_app import features
    from keras_bert_app.data import sources

    records, _ = sources.load("reviews", {})
    return [record.values[features.TEXT] for record in records]


TINY_PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] good great fine bad dull poor film plot a the was not . ! 中"


def tiny_rows(count: int = 60) -> list[dict[str, str]]:
    """Texts of which one word tells the label."""
    good, bad = ("good", "great", "fine"), ("bad", "dull", "poor")
    nouns = ("film", "film", "plot", "plot")
    return [
        {
            "text": f"the {nouns[row % 4]} was {(good, bad)[row % 2][row % 3]} {'a ' * (row // 6)}",
            "label": ("gut", "übel")[row % 2],
        }
        for row in range(count)
    ]


def tiny_config(folder: Path, rows: list[dict[str, str]], **changes):
    """A config that trains a two-layer encoder on `rows` in seconds; writes its files into `folder`.

    `changes` are further keys, such as {"train.epochs": 1}.
    """
    from keras_bert_app import config

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(TINY_PIECES.split()) + "\n", encoding="utf-8")
    with open(folder / "train.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    values = config.default()
    values.data.train = str(folder / "train.csv")
    values.text.vocabulary = str(folder / "vocab.txt")
    values.text.max_length = 32
    values.encoder.update({"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64})
    values.encoder.max_positions = 32
    values.data.evaluation_fraction = values.data.test_fraction = 0.2
    values.train.update({"batch_size": 8, "epochs": 8, "learning_rate": 3e-3})
    values.update_from_flattened_dict(changes)
    return config.freeze(values)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The workdir of a tiny trained classifier with the labels gut and übel; not to be changed."""
    from keras_bert_app.training import finetuning

    folder = tmp_path_factory.mktemp("tiny")
    finetuning.finetune(tiny_config(folder / "data", tiny_rows()), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run, tmp_path_factory) -> Path:
    """The export folder of `tiny_run`, with version 1 in it; not to be changed."""
    from keras_bert_app.export import bundle

    folder = tmp_path_factory.mktemp("exported") / "tiny"
    bundle.export(tiny_run, folder)
    return folder


def fresh_flags(patch):
    """Flags as a new process has them, for run.main to be called once more."""
    from absl import flags

    import run
    from keras_bert_app import command_line

    values = flags.FlagValues()
    for module in (run, command_line):
        patch.setattr(module, "FLAGS", values)
