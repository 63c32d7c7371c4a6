"""What holds for every test: quiet TensorFlow, repeatable kernels, no network for Hugging Face."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
os.environ["TF_DETERMINISTIC_OPS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


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
