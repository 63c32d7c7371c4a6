"""Attention and the block, alone, against PyTorch's."""

import numpy as np
import pytest
import torch

from keras_bert_app.model import SelfAttention, TransformerBlock

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(2, 5, 16)).astype("float32")
MASK = np.array([[True] * 5, [True] * 3 + [False] * 2])


def difference(one, other):
    return np.abs(np.asarray(one, "float64") - np.asarray(other, "float64")).max()


def redraw(layer):
    """Build it, and give every weight a value that no initialiser gives."""
    layer.build(X.shape)
    for weight in layer.weights:
        weight.assign(DRAW.normal(0, 0.3, weight.shape))
    return layer


@pytest.mark.parametrize("mask", [None, MASK, np.broadcast_to(np.tri(5, dtype=bool), (2, 5, 5))])
def test_attention_is_that_of_pytorch(mask):
    ours, theirs = redraw(SelfAttention(4, 16)), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    inward = (ours.query, ours.key, ours.value)
    weights = {
        "in_proj_weight": np.concatenate([np.asarray(layer.kernel).T for layer in inward]),
        "in_proj_bias": np.concatenate([np.asarray(layer.bias) for layer in inward]),
        "out_proj.weight": np.asarray(ours.output_dense.kernel).T,
        "out_proj.bias": np.asarray(ours.output_dense.bias),
    }
    theirs.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    hidden = {}
    if mask is not None and mask.ndim == 2:
        hidden = {"key_padding_mask": torch.tensor(~mask)}
    elif mask is not None:
        hidden = {"attn_mask": torch.tensor(~mask[0])}
    x = torch.tensor(X)
    with torch.no_grad():
        expected, seen = theirs(x, x, x, need_weights=True, average_attn_weights=False, **hidden)
    output, attention_weights = ours(X, mask=mask, return_attention_weights=True)
    assert difference(output, expected) <= 1e-6
    assert difference(attention_weights, seen) <= 1e-6
    assert difference(ours(X, mask=mask), output) == 0


def test_a_mask_of_rows_is_a_mask_of_places_that_all_see_the_same():
    attention = redraw(SelfAttention(4, 16))
    of_places = np.broadcast_to(MASK[:, None, :], (2, 5, 5))
    assert difference(attention(X, mask=MASK), attention(X, mask=of_places)) == 0


def test_a_block_takes_an_explicit_mask_and_gives_its_attention():
    block = redraw(TransformerBlock(4, 16, 24))
    output, attention = block(X, mask=MASK, return_attention_weights=True)
    assert np.max(attention[1, :, :, 3:]) == 0 < np.min(attention[1, :, :, :3])
    assert difference(output[1, :3], block(X[1:, :3])[0]) <= 1e-6
