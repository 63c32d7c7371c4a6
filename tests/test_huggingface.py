"""Folders as transformers writes them: random models of every setting, and every way to be broken."""

import json

import keras
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from keras_bert_app import features
from keras_bert_app.convert import huggingface, pretrained
from keras_bert_app.errors import UserError
from keras_bert_app.model import BertEncoder
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

SIZE = 101  # No multiple of 8.
VOCABULARY = Vocabulary(
    (*SPECIAL_TOKENS, *(f"piece{number}" for number in range(SIZE - len(SPECIAL_TOKENS))))
)


def write_folder(folder, model_class=transformers.BertModel, **settings):
    """A small model with every tensor redrawn, saved as transformers does; returns transformers' model."""
    config = transformers.BertConfig(
        vocab_size=SIZE,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=30,
        **settings,
    )
    model = model_class._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    VOCABULARY.save(folder / "vocab.txt")
    return model


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors = change(tensors) or tensors
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def change_json(folder, name="config.json", **settings):
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | settings))


def loaded_encoder(folder):
    weights = huggingface.load(folder)
    encoder = BertEncoder(**weights.encoder)
    encoder.build(None)
    pretrained.assign(encoder, weights)
    return encoder


def make_batch():
    draw, lengths = np.random.default_rng(0), np.array([4, 30, 11])
    mask = np.arange(30) < lengths[:, None]
    return {
        features.TOKEN_IDS: np.where(mask, draw.integers(5, SIZE, mask.shape), 0).astype("int32"),
        features.SEGMENT_IDS: (mask & (np.arange(30) >= lengths[:, None] // 2)).astype("int32"),
        features.PADDING_MASK: mask,
    }


def ask_reference(model, batch):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(batch[features.TOKEN_IDS]).long(),
            token_type_ids=torch.tensor(batch[features.SEGMENT_IDS]).long(),
            attention_mask=torch.tensor(batch[features.PADDING_MASK]).long(),
            output_hidden_states=True,
            output_attentions=True,
        )


def assert_close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(ours), theirs.float().numpy(), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
def test_a_random_model_gives_all_the_outputs_of_transformers(tmp_path, activation, epsilon):
    # A small LayerNorm input is what makes the epsilon matter.
    reference = write_folder(tmp_path, hidden_act=activation, layer_norm_eps=epsilon)
    batch = make_batch()
    ours, theirs = loaded_encoder(tmp_path)(batch, return_all=True), ask_reference(reference, batch)
    tokens = batch[features.PADDING_MASK]
    assert_close(ours[features.SEQUENCE][tokens], theirs.last_hidden_state[tokens])
    assert_close(ours[features.POOLED], theirs.pooler_output)
    for mine, other in zip(ours[features.HIDDEN_STATES], theirs.hidden_states, strict=True):
        assert_close(mine, other)
    for mine, other in zip(ours[features.ATTENTION_WEIGHTS], theirs.attentions, strict=True):
        assert_close(mine, other)


def test_epsilon_reaches_every_normalisation(tmp_path):
    reference = write_folder(tmp_path, layer_norm_eps=0.5)
    batch = make_batch()
    tokens = batch[features.PADDING_MASK]
    assert_close(
        loaded_encoder(tmp_path)(batch)[features.SEQUENCE][tokens],
        ask_reference(reference, batch).last_hidden_state[tokens],
    )


def test_settings_and_tokenizer_are_read_under_our_names(tmp_path):
    write_folder(
        tmp_path,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        initializer_range=0.04,
        type_vocab_size=3,
    )
    change_json(tmp_path, "tokenizer_config.json", do_lower_case=False)
    weights = huggingface.load(tmp_path)
    assert weights.encoder == {
        "vocabulary_size": SIZE,
        "num_layers": 3,
        "num_heads": 4,
        "hidden_dim": 24,
        "intermediate_dim": 40,
        "max_positions": 30,
        "num_segments": 3,
        "activation": "gelu_new",
        "epsilon": 1e-6,
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "initializer_range": 0.04,
        "position_offset": 0,
        "pooler_activation": "tanh",
    }
    assert weights.tokenizer_options.lower_case is False
    assert weights.vocabulary.pieces == VOCABULARY.pieces
    assert weights.provenance["class"] == "BertModel"
    assert len(weights.provenance["sha256"]) == 64


def test_a_file_is_loaded_as_its_folder_is(folder):
    one, other = huggingface.load(folder), huggingface.load(folder / "model.safetensors")
    assert one.tensors.keys() == other.tensors.keys()
    assert_same(one.arrays(), other.arrays())


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_real_weights_are_lower_case_and_wholly_taken(minilm):
    weights = huggingface.load(minilm)
    assert weights.tokenizer_options.lower_case is True
    assert set(weights.left_out) <= {"embeddings.position_ids"}
    encoder = BertEncoder(**weights.encoder)
    encoder.build(None)
    assert weights.tensors.keys() == {f"encoder/{path}" for path in pretrained.relative_paths(encoder)}


def test_the_old_position_ids_are_left_out_with_the_reason(folder):
    change_tensors(folder, lambda tensors: tensors | {"embeddings.position_ids": torch.arange(30)[None]})
    assert huggingface.load(folder).left_out == {"embeddings.position_ids": "a constant"}


def test_the_oldest_names_of_normalisations_are_understood(folder):
    before = huggingface.load(folder).arrays()

    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    change_tensors(folder, lambda tensors: {f"bert.{old(name)}": tensor for name, tensor in tensors.items()})
    assert_same(before, huggingface.load(folder).arrays())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(folder, dtype):
    before = huggingface.load(folder).arrays()
    change_tensors(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    after = huggingface.load(folder).arrays()
    assert {tensor.dtype.name for tensor in after.values()} == {"float32"}
    assert all(np.allclose(before[name], after[name], rtol=1e-2, atol=1e-2) for name in before)


def test_an_encoder_without_pooler_fits_where_the_pooler_is_optional(tmp_path):
    write_folder(tmp_path)
    change_tensors(
        tmp_path, lambda all_: {name: tensor for name, tensor in all_.items() if "pooler" not in name}
    )
    weights = huggingface.load(tmp_path)
    assert weights.encoder["pooling"] == "mean"
    encoder = BertEncoder(**weights.encoder)
    encoder.build(None)
    pretrained.assign(encoder, weights)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        loaded_encoder(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_unknown_and_missing_tensors_are_all_named(folder):
    def change(tensors):
        tensors["encoder.layer.3.output.dense.bias"] = tensors.pop("encoder.layer.2.output.dense.bias")
        tensors["adapter.weight"] = torch.zeros(2)
        del tensors["embeddings.LayerNorm.weight"]

    change_tensors(folder, change)
    message = refusal(folder)
    assert "unknown: adapter.weight, encoder.layer.3.output.dense.bias" in message
    assert "missing: embeddings.LayerNorm.weight, encoder.layer.2.output.dense.bias" in message


def test_a_tensor_that_stands_there_twice_is_refused(folder):
    change_tensors(folder, lambda all_: all_ | {"bert.pooler.dense.bias": all_["pooler.dense.bias"].clone()})
    assert "pooler.dense.bias" in refusal(folder)


def test_misshapen_tensors_are_named_with_both_shapes(folder):
    def change(tensors):
        name = "encoder.layer.1.intermediate.dense.weight"
        tensors[name] = tensors[name].T

    change_tensors(folder, change)
    assert (
        "encoder.layer.1.intermediate.dense.weight has shape [24, 40], by the configuration [40, 24]"
        in refusal(folder)
    )


def test_a_model_of_other_sizes_than_its_configuration_is_refused(folder):
    change_json(folder, max_position_embeddings=31)
    assert (
        "embeddings.position_embeddings.weight has shape [30, 24], by the configuration [31, 24]"
        in refusal(folder)
    )


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors: can't read the weights" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"version https://git-lfs.github.com/spec/v1\n"])
def test_weights_that_are_no_safetensors_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors: can't read the weights" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json: can't read it"),
        ("vocab.txt", "vocab.txt: can't read the vocabulary"),
        ("model.safetensors", "can't read the weights: no model.safetensors"),
    ],
)
def test_a_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "holds no JSON object"),
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 10**5, "not JSON"),
    ],
)
def test_a_configuration_that_is_no_json_object_is_refused(folder, content, message):
    (folder / "config.json").write_bytes(content)
    assert f"config.json: {message}" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "t5"}, "model_type is 't5'; it takes one of bert, roberta"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "silu"}, "activation is 'silu'; it takes one of gelu"),
        ({"hidden_act": ["gelu"]}, "activation is ['gelu']"),
        ({"num_hidden_layers": "3"}, "num_layers is '3'"),
        ({"num_attention_heads": 5}, "num_heads is 5, which doesn't divide config.encoder.hidden_dim 24"),
        ({"layer_norm_eps": None}, "layer_norm_eps missing"),
    ],
)
def test_a_network_that_is_not_berts_is_refused_by_its_setting(folder, settings, message):
    change_json(folder, **settings)
    assert message in refusal(folder)


def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(folder):
    Vocabulary((*VOCABULARY.pieces, "one_more")).save(folder / "vocab.txt")
    message = refusal(folder)
    assert "vocab.txt has 102 pieces" in message and "vocab_size 101" in message
