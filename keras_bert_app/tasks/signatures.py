"""Signatures that every task over texts has, and how they are made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_bert_app import features
from keras_bert_app.text.packing import TextPacker, check_rank

SERVING_DEFAULT, CLASSIFY, REGRESS = "serving_default", "classify", "regress"
# Without these TensorFlow Serving's Classify, Regress and MultiInference refuse a signature.
METHOD_NAMES = {CLASSIFY: "tensorflow/serving/classify", REGRESS: "tensorflow/serving/regress"}

Answer = Callable[[Sequence[tf.Tensor]], Mapping[str, tf.Tensor]]


def with_pooled(model: keras.Model) -> keras.Model:
    """The model, whose encoder is its layer `encoder`, with `pooled` [B, H] among its outputs.

    That is how signatures ask a model, or what stands for one: network(inputs, training=False).
    """
    encoder = model.get_layer("encoder")
    shapes = encoder.compute_output_shape({features.TOKEN_IDS: (None, None)})
    outputs = keras.tree.pack_sequence_as(dict.fromkeys(shapes, 0), encoder.output)
    return keras.Model(model.input, model.output | {features.POOLED: outputs[features.POOLED]})


def text_signatures(
    network: Callable, packer: TextPacker, read: Callable, text_inputs: Sequence[str]
) -> dict[str, Any]:
    """Signature name -> concrete function, of what doesn't depend on the model's heads.

    `network` is as `with_pooled` gives it. `read` is the packer's as a tf.function, so that the signatures
    share its graph, which holds the vocabulary twice.

    token_ids: the encoder's inputs [B, S] -> what the model gives.
    embed: texts, string [B] each -> embedding float32 [B, H], the pooled vector that a head sees.
    tokenize: texts -> pieces string, token_ids, segment_ids, starts, ends int32, [B, S] each, and num_tokens
    int32 [B]; see `TextPacker.locate`.
    """

    def token_ids(**inputs):
        checked = {name: check_rank(name, value, 2) for name, value in inputs.items()}
        outputs = network(checked, training=False)
        return {name: value for name, value in outputs.items() if name != features.POOLED}

    def embed(texts):
        inputs, _ = read(texts)
        pooled = network(inputs, training=False)[features.POOLED]
        return {features.EMBEDDING: tf.cast(pooled, tf.float32)}

    def tokenize(texts):
        located = packer.locate(texts)
        pieces = tf.gather(tf.constant(packer.tokenizer.vocabulary.pieces), located[features.TOKEN_IDS])
        padding = located.pop(features.PADDING_MASK)
        num_tokens = tf.math.count_nonzero(padding, axis=1, dtype=tf.int32)
        return located | {features.PIECES: pieces, features.NUM_TOKENS: num_tokens}

    ids = {
        name: tf.TensorSpec([None, None], dtype, name=name) for name, dtype in features.ENCODER_INPUTS.items()
    }
    return {
        "token_ids": tf.function(token_ids).get_concrete_function(**ids),
        "embed": of_texts(embed, text_inputs),
        "tokenize": of_texts(tokenize, text_inputs),
    }


def of_texts(answer: Answer, text_inputs: Sequence[str]):
    """A concrete function that gives the answer to texts, string [B] each, an input a text."""
    specs = {name: tf.TensorSpec([None], tf.string, name=name) for name in text_inputs}

    def in_order(**texts):
        return answer([texts[name] for name in text_inputs])

    return tf.function(in_order).get_concrete_function(**specs)


def of_examples(answer: Answer, text_inputs: Sequence[str]):
    """A concrete function that gives the answer to serialized tf.Example, string [B], its input `inputs`.

    Each example has a feature for each text, a bytes_list of one value.
    """
    feature_specs = {name: tf.io.FixedLenFeature([], tf.string) for name in text_inputs}

    def parse_and_answer(**serialized):
        examples = check_rank(features.INPUTS, serialized[features.INPUTS], 1)
        texts = tf.io.parse_example(examples, feature_specs)
        return answer([texts[name] for name in text_inputs])

    spec = tf.TensorSpec([None], tf.string, name=features.INPUTS)
    return tf.function(parse_and_answer).get_concrete_function(**{features.INPUTS: spec})
