"""The model garden's variables, by object and of the hub; the reference is transformers with gelu_new."""

import json

import numpy as np
import pytest
import tensorflow as tf
from test_google import (
    SHAPES,
    assert_same_outputs,
    make_reference,
    poolers,
    refusal,
    release_arrays,
    settings_of,
    write_vocabulary,
)

from keras_bert_app.convert import google

# A release's name -> the model garden's.
GARDEN_NAMES = {
    "bert/embeddings/word_embeddings": "word_embeddings/embeddings",
    "bert/embeddings/position_embeddings": "position_embedding/embeddings",
    "bert/embeddings/token_type_embeddings": "type_embeddings/embeddings",
    "bert/embeddings/LayerNorm/": "embeddings/layer_norm/",
    "bert/encoder/": "transformer/",
    "attention/self/": "self_attention/",
    "attention/output/dense": "self_attention/attention_output",
    "attention/output/LayerNorm": "self_attention_layer_norm",
    "intermediate/dense": "intermediate",
    "output/dense": "output",
    "output/LayerNorm": "output_layer_norm",
    "bert/pooler/dense": "pooler_transform",
    "cls/predictions/output_bias": "cls/predictions/output_bias/bias",
    "cls/seq_relationship/output_bias": "predictions/transform/logits/bias",
    "cls/seq_relationship/output_weights": "predictions/transform/logits/kernel",
}
OLD_GARDEN_NAMES = {
    "type_embeddings/embeddings": "embedding_postprocessor/type_embeddings",
    "position_embedding/embeddings": "embedding_postprocessor/position_embeddings",
    "embeddings/layer_norm": "embedding_postprocessor/layer_norm",
    "transformer/layer_": "encoder/layer_",
    "self_attention/attention_output": "self_attention_output",
}


class Variables(tf.Module):
    """What a hub module is to a checkpoint: objects that hold named variables."""

    def __init__(self, arrays):
        super().__init__()
        self.held = [tf.Variable(array, name=name) for name, array in arrays.items()]


def garden_arrays(model, names=GARDEN_NAMES):
    """transformers' tensors as the model garden has them: heads are an axis, logits' kernels [in, out]."""
    width, heads, arrays = model.config.hidden_size, model.config.num_attention_heads, {}
    split = (heads, width // heads)
    for name, array in release_arrays(model).items():
        if name.endswith(("attention/output/dense/kernel",)):
            array = array.reshape(*split, width)
        elif "/self/" in name:
            array = array.reshape(width, *split) if name.endswith("kernel") else array.reshape(split)
        elif name.endswith("output_weights"):
            array = array.T
        for one, other in names.items():
            name = name.replace(one, other)
        arrays[name] = array
    return arrays


@pytest.mark.parametrize("prefix", ["", "bert_encoder/"])
@pytest.mark.parametrize("how", ["saved model", "checkpoint", "old names"])
def test_variables_of_the_model_garden_are_read_without_running_anything(tmp_path, prefix, how):
    reference = make_reference("encoder", SHAPES[0])
    names = GARDEN_NAMES | (OLD_GARDEN_NAMES if how == "old names" else {})
    module = Variables({prefix + name: array for name, array in garden_arrays(reference, names).items()})
    if how == "checkpoint":
        tf.train.Checkpoint(model=module).save(str(tmp_path / "ckpt"))
        write_vocabulary(tmp_path / "vocab.txt", SHAPES[0])
    else:
        # It has no name, as in official/nlp/tools/export_tfhub_lib.py.
        module.do_lower_case = tf.Variable(False, trainable=False)
        tf.saved_model.save(module, str(tmp_path))
        write_vocabulary(tmp_path / "assets" / "vocab.txt", SHAPES[0])
        # Of the program nothing is needed.
        (tmp_path / "saved_model.pb").write_bytes(b"")
    pretrained = google.load(tmp_path)
    assert not pretrained.missing and pretrained.provenance["format"] == "model_garden"
    assert pretrained.encoder["num_heads"] == 4 and pretrained.encoder["activation"] == "gelu_new"
    assert_same_outputs(pretrained, reference)
    assert pretrained.tokenizer_options.lower_case is (how == "checkpoint")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_gardens_pretraining_is_read_with_its_heads_and_without_its_optimizer(tmp_path, shape):
    """Activations that shapes don't tell are told by bert_config.json."""
    reference = make_reference("pretraining", shape)
    module = Variables(garden_arrays(reference))
    optimizer = tf.compat.v1.train.AdamOptimizer(1e-9)
    optimizer.apply_gradients([(tf.zeros_like(variable), variable) for variable in module.held])
    step = tf.Variable(3, dtype=tf.int64, name="global_step")
    tf.train.Checkpoint(model=module, optimizer=optimizer, global_step=step).save(str(tmp_path / "ckpt"))
    write_vocabulary(tmp_path / "vocab.txt", shape)
    (tmp_path / "bert_config.json").write_text(json.dumps(settings_of(shape)))
    pretrained = google.load(tmp_path)
    assert not pretrained.missing
    assert len(pretrained.left_out) == 2 * len(module.held) + 4
    assert_same_outputs(pretrained, reference)


@pytest.mark.parametrize("kind", ["next_sentence", "sequence_classification"])
def test_the_pooler_that_a_later_head_has_of_its_own_is_the_one_that_is_used(tmp_path, kind):
    head = {"next_sentence": "next_sentence", "sequence_classification": "sentence_prediction"}[kind]
    names = GARDEN_NAMES | {
        "bert/pooler/dense": f"{head}/pooler_dense",
        "cls/seq_relationship/output_weights": f"{head}/logits/kernel",
        "cls/seq_relationship/output_bias": f"{head}/logits/bias",
    }
    reference = make_reference(kind, SHAPES[0])
    arrays = garden_arrays(reference, names)
    for part, name in (("kernel", "output_weights"), ("bias", "output_bias")):
        if name in arrays:
            arrays[f"{head}/logits/{part}"] = arrays.pop(name)
    untrained = poolers(SHAPES[0], ["pooler_transform"])
    tf.train.Checkpoint(model=Variables(arrays | untrained)).save(str(tmp_path / "ckpt"))
    pretrained = google.load(tmp_path, None)
    assert pretrained.network.kind == kind and not pretrained.missing
    assert set(pretrained.left_out) == {*untrained, "save_counter"}
    assert_same_outputs(pretrained, reference)


def garden_refusal(folder, arrays):
    tf.train.Checkpoint(model=Variables(arrays)).save(str(folder / "ckpt"))
    write_vocabulary(folder / "vocab.txt", SHAPES[0])
    return refusal(folder)


def test_a_name_that_four_networks_of_the_model_garden_have_is_refused(tmp_path):
    arrays = garden_arrays(make_reference("next_sentence", SHAPES[0]))
    assert "the files don't tell which" in garden_refusal(tmp_path, arrays)


def test_two_variables_of_one_name_are_not_mistaken_for_each_other(tmp_path):
    module = Variables(garden_arrays(make_reference("encoder", SHAPES[0])))
    module.held.append(tf.Variable(module.held[5] + 1, name="transformer/layer_0/self_attention/query/bias"))
    tf.train.Checkpoint(model=module).save(str(tmp_path / "ckpt"))
    message = refusal(tmp_path)
    assert "unknown: model/held/" in message
    assert "missing: transformer/layer_0/self_attention/query/bias" in message


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("type_embeddings/embeddings", None, "off the tensors' shapes: type_embeddings/embeddings missing"),
        ("transformer/layer_0/self_attention/query/kernel", (24, 24), "self_attention/query/kernel [24, 24]"),
        (
            "transformer/layer_1/self_attention/query/kernel",
            (24, 24),
            "misshapen: transformer/layer_1/self",
        ),
        ("transformer/layer_999999999/output/bias", (24,), "1000000000 layers, but there are"),
        ("embedding_projection/kernel", (24, 24), "unknown: embedding_projection/kernel"),
        ("word_embeddings/embeddings", None, "no BERT of google-research/bert or the model garden"),
    ],
)
def test_variables_that_are_not_those_of_the_model_garden_are_refused(tmp_path, name, change, message):
    arrays = garden_arrays(make_reference("encoder", SHAPES[0]))
    arrays.pop(name, None)
    if change is not None:
        arrays[name] = np.ones(change, "float32")
    assert message in garden_refusal(tmp_path, arrays)
