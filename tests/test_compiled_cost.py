"""What XLA compiles of the encoder and of a training step: operations against model/flops.py, and memory.

Compiled on the CPU and never run. XLA counts what the program does, so that what a change makes it do for
nothing, or keep, shows without a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Prints operations and bytes, by XLA's account, of a forward pass and of a training step.
PROGRAM = """
import json, sys
sys.modules["tensorflow"] = None  # nothing of this needs it
import jax, numpy as np
from benchmarks import accelerator, accelerator_jax as step
from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.model.heads import MaskedLanguageModelHead
from keras_bert_app.model.networks import Network

settings, rows, length, change = json.loads(sys.argv[1])
if change == "every position":
    project = MaskedLanguageModelHead.call
    def project_all(self, sequence, positions, token_embeddings):
        every = jax.numpy.broadcast_to(jax.numpy.arange(length), (rows, length))
        return jax.numpy.take_along_axis(
            project(self, sequence, every, token_embeddings), positions[:, :, None], axis=1
        )
    MaskedLanguageModelHead.call = project_all
encoder = complete_encoder(EncoderConfig(**settings), {"vocabulary_size": 30522, "max_positions": 512})
batch = accelerator.make_batch(np.random.default_rng(0), [[length]] * rows, length)
found = {}
for work, kind in (("forward", "encoder"), ("train", "masked_lm")):
    model = Network(kind).build(encoder, "float32")
    arguments = step.values(model.trainable_variables), step.values(model.non_trainable_variables)
    if work == "forward":
        compiled = jax.jit(step.make_forward(model, False)).lower(*arguments, batch).compile()
    else:
        optimizer = step.adamw(model)
        function = jax.jit(step.make_train(model, optimizer, False), donate_argnums=(0, 1, 2))
        compiled = function.lower(*arguments, step.values(optimizer.variables), batch).compile()
    sizes = compiled.memory_analysis()
    found[work] = {
        "flops": compiled.cost_analysis()["flops"] / accelerator.step_flops(encoder, batch, work),
        "temporary": sizes.temp_size_in_bytes,
        "kept": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "weights": 4 * sum(int(np.prod(weight.shape)) for weight in model.trainable_variables),
    }
print(json.dumps(found))
"""
SMALL = {"num_layers": 2, "num_heads": 4, "hidden_dim": 256, "intermediate_dim": 1024}
# BERT-base's layers; two of its twelve, which differ in nothing.
BASE = {"num_layers": 2, "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072}


def cost(settings, rows, length, change=None):
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([settings, rows, length, change])],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout)


@pytest.mark.parametrize(
    ("settings", "rows", "length", "flops", "forward_megabytes", "train_megabytes"),
    [
        (SMALL, 4, 64, 1.07, 3.3, 61),
        pytest.param(BASE, 4, 128, 1.03, 24, 270, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_step_computes_and_holds_what_it_has_to(
    settings, rows, length, flops, forward_megabytes, train_megabytes
):
    found = cost(settings, rows, length)
    forward, train = found["forward"], found["train"]
    # What is more than the products are activations, softmax, normalisation, and AdamW.
    assert 1 <= forward["flops"] <= flops and 1 <= train["flops"] <= flops
    assert forward["temporary"] <= forward_megabytes * 10**6
    # The gradients, and what the backward pass needs of the forward one.
    assert train["weights"] < train["temporary"] <= train_megabytes * 10**6
    # Weights and optimizer are updated in their place; the loss and dropout's states are not.
    assert train["kept"] < 10**4


@pytest.mark.slow
def test_a_step_that_projects_every_position_is_found_out():
    found = cost(SMALL, 4, 64, "every position")["train"]
    assert found["flops"] > 3
    assert found["temporary"] > 90 * 10**6
