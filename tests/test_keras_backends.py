"""Whole networks as `.keras` files, between processes and between the TensorFlow and the JAX backend."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert.reference import random_batch
from keras_bert_app.model.networks import KINDS, LABELLED, Network

TINY = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_positions": 32,
}
# Name of a file -> kind of network, its encoder, its policy.
NETWORKS = {kind: (kind, {}, "float32") for kind in KINDS} | {
    "relative": (
        "pretraining",
        {"position_offset": 2, "num_segments": 1, "embedding_dim": 8, "pooler_activation": "gelu"},
        "float32",
    ),
    "no_segments": ("sequence_classification", {"num_segments": 0, "activation": "gelu_new"}, "float32"),
    "mean": ("next_sentence", {"pooling": "mean", "position_type": "sinusoidal"}, "float32"),
    "mixed_bfloat16": ("pretraining", {"pooling": "max"}, "mixed_bfloat16"),
    "mixed_float16": ("pretraining", {"pooling": "max"}, "mixed_float16"),
    "float64": ("pretraining", {"pooling": "max"}, "float64"),
}
# Of logits of up to 4 on JAX. Keras' operations there make float32 of float64 even where JAX has it.
TOLERANCES = {"float32": 1e-5, "float64": 1e-5, "mixed_float16": 0.02, "mixed_bfloat16": 0.2}

LOAD_AND_RUN = """
import sys
import numpy as np
import keras
import keras_bert_app.model
folder, *names = sys.argv[1:]
for name in names:
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    outputs = model.predict_on_batch(dict(np.load(f"{folder}/{name}.in.npz")))
    policies = [layer.dtype_policy.name for layer in model._flatten_layers()]
    np.savez(f"{folder}/{name}.out.npz", policies=policies, **outputs)
print(keras.backend.backend())
print(*sys.modules)
"""

# A head and an encoder in a functional model of JAX's, fitted there.
FIT_AND_SAVE = """
import sys
import numpy as np
import keras
from keras_bert_app.model import BertEncoder, ClassificationHead
folder = sys.argv[1]
batch = dict(np.load(f"{folder}/batch.npz"))
inputs = {name: keras.Input((None,), dtype=value.dtype.name, name=name) for name, value in batch.items()}
sequence = BertEncoder(50, 1, 2, 16, 24, 32, dropout=0.0, pooling="mean")(inputs)["sequence"]
model = keras.Model(inputs, ClassificationHead(3, dropout=0.0)(sequence))
model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
labels = batch["token_ids"] % 3
before = model.evaluate(batch, labels, verbose=0)
model.fit(batch, labels, epochs=12, verbose=0)
after = model.evaluate(batch, labels, verbose=0)
model.save(f"{folder}/fitted.keras")
np.savez(f"{folder}/fitted.npz", before=before, after=after, logits=model.predict(batch, verbose=0))
"""


def run_alone(program, folder, *names, **environment):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program, folder, *names],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.splitlines()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of networks with every weight redrawn, their inputs, outputs and policies."""
    folder = tmp_path_factory.mktemp("networks")
    expected = {}
    for name, (kind, settings, precision) in NETWORKS.items():
        network = Network(kind, ("a", "b", "c") if kind in LABELLED else ())
        encoder = complete_encoder(EncoderConfig(**settings), TINY)
        model, draw = network.build(encoder, precision), np.random.default_rng(1)
        for weight in model.weights:
            weight.assign(weight + draw.normal(0, 0.2, weight.shape))
        batch = random_batch(network, encoder)
        np.savez(folder / f"{name}.in.npz", **batch)
        model.save(folder / f"{name}.keras")
        policies = [layer.dtype_policy.name for layer in model._flatten_layers()]
        expected[name] = model.predict_on_batch(batch) | {"policies": policies}
    return folder, expected


@pytest.mark.parametrize(
    ("backend", "names", "environment"),
    [
        ("tensorflow", list(NETWORKS), {}),
        ("jax", [name for name in NETWORKS if name != "float64"], {}),
        pytest.param("jax", ["float64"], {"JAX_ENABLE_X64": "1"}, marks=pytest.mark.slow),
    ],
)
def test_a_file_is_the_same_network_in_a_process_that_imports_the_model_package_only(
    saved, backend, names, environment
):
    folder, expected = saved
    said, modules = run_alone(LOAD_AND_RUN, folder, *names, KERAS_BACKEND=backend, **environment)
    assert said == backend
    assert ("tensorflow" in modules.split()) == (backend == "tensorflow")
    assert "tensorflow_text" not in modules.split()
    ours = {module.split(".")[1] for module in modules.split() if module.startswith("keras_bert_app.")}
    assert ours <= {"model", "features", "config", "schema", "errors"}
    for name in names:
        answers = dict(np.load(folder / f"{name}.out.npz"))
        assert answers.keys() == expected[name].keys()
        assert answers.pop("policies").tolist() == expected[name]["policies"]
        precision = NETWORKS[name][2]
        assert precision in expected[name]["policies"]
        for output, value in answers.items():
            tolerance = TOLERANCES[precision] if backend == "jax" else 0
            np.testing.assert_allclose(
                value, expected[name][output], rtol=0, atol=tolerance, err_msg=f"{name} {output}"
            )


@pytest.mark.slow
def test_what_is_fitted_on_jax_is_the_same_on_tensorflow(tmp_path):
    encoder = complete_encoder(EncoderConfig(), TINY)
    batch = random_batch(Network("encoder"), encoder)
    np.savez(tmp_path / "batch.npz", **batch)
    run_alone(FIT_AND_SAVE, tmp_path, KERAS_BACKEND="jax")
    fitted = np.load(tmp_path / "fitted.npz")
    model = keras.saving.load_model(tmp_path / "fitted.keras", compile=False)
    logits = model.predict(batch, verbose=0)
    np.testing.assert_allclose(logits, fitted["logits"], rtol=0, atol=1e-5)
    # Padding is left out of the loss there too.
    labels, mask = batch[features.TOKEN_IDS] % 3, batch[features.PADDING_MASK]
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    assert fitted["after"] == pytest.approx(np.asarray(losses)[mask].mean(), abs=1e-5)
    assert fitted["after"] < fitted["before"] / 2
