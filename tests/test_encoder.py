"""The encoder against transformers' on real weights, its invariances, and its life as a Keras layer."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, complete_encoder, to_dict
from keras_bert_app.convert import huggingface, pretrained
from keras_bert_app.model import BertEmbeddings, BertEncoder, SelfAttention, TransformerBlock, portable
from keras_bert_app.model.embeddings import sinusoidal_positions
from keras_bert_app.text.packing import TextPacker
from keras_bert_app.text.tokenizer import BertTokenizer

TINY = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_positions": 32,
}

# Keras' own, on saving and on reading a variable.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def make_batch(lengths, padded_to=None, pair=False, vocabulary_size=30_000):
    """Random rows of these lengths; the same ids whatever the padding."""
    lengths, size = np.array(lengths), padded_to or max(lengths)
    ids = np.random.default_rng(1).integers(1, vocabulary_size, (len(lengths), 512))[:, :size]
    mask = np.arange(size) < lengths[:, None]
    return {
        features.TOKEN_IDS: np.where(mask, ids, 0).astype("int32"),
        features.SEGMENT_IDS: (mask & pair & (np.arange(size) >= lengths[:, None] // 2)).astype("int32"),
        features.PADDING_MASK: mask,
    }


def numpy_outputs(outputs):
    return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


def difference(one, other):
    return np.abs(np.asarray(one, "float64") - np.asarray(other, "float64")).max()


def redraw(layer, scale=0.3):
    """Give every weight other values than its initialiser's, so that none can be forgotten unseen."""
    draw = np.random.default_rng(2)
    for weight in layer.weights:
        weight.assign(weight + draw.normal(0, scale, weight.shape))
    return layer


def tiny_encoder(seed=0, **settings):
    keras.utils.set_random_seed(seed)
    encoder = BertEncoder(**TINY | settings)
    encoder.build(None)
    return redraw(encoder)


@pytest.fixture(scope="module")
def weights(minilm):
    return huggingface.load(minilm)


@pytest.fixture(scope="module")
def encoders(weights):
    """dtype -> an encoder with the real weights."""
    result = {}
    for dtype in ("float32", "float64"):
        result[dtype] = BertEncoder(**weights.encoder, dtype=dtype)
        result[dtype].build(None)
        pretrained.assign(result[dtype], weights)
    return result


@pytest.mark.parametrize(
    ("lengths", "pair"), [([3, 17, 40, 64], False), ([12, 64, 100], True), ([512, 100], True), ([2], False)]
)
def test_real_weights_give_the_outputs_of_transformers(minilm, encoders, lengths, pair):
    batch = make_batch(lengths, pair=pair)
    reference = transformers.BertModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        theirs = reference(
            input_ids=torch.tensor(batch[features.TOKEN_IDS]).long(),
            token_type_ids=torch.tensor(batch[features.SEGMENT_IDS]).long(),
            attention_mask=torch.tensor(batch[features.PADDING_MASK]).long(),
        )
    ours = numpy_outputs(encoders["float32"](batch))
    tokens = batch[features.PADDING_MASK]
    assert ours[features.SEQUENCE].dtype == "float32"
    assert difference(ours[features.SEQUENCE][tokens], theirs.last_hidden_state.numpy()[tokens]) <= 2e-5
    assert difference(ours[features.POOLED], theirs.pooler_output.numpy()) <= 2e-5


@pytest.mark.parametrize("pair", [False, True])
def test_more_padding_changes_nothing(encoders, pair):
    lengths = [3, 17, 40, 64]
    short, long = make_batch(lengths, pair=pair), make_batch(lengths, padded_to=121, pair=pair)
    ours, padded = (numpy_outputs(encoders["float32"](batch)) for batch in (short, long))
    tokens = short[features.PADDING_MASK]
    assert difference(ours[features.SEQUENCE][tokens], padded[features.SEQUENCE][:, :64][tokens]) <= 1e-6
    assert difference(ours[features.POOLED], padded[features.POOLED]) <= 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_a_text_alone_is_the_text_in_a_batch(encoders, dtype, tolerance):
    lengths = [5, 17, 64]
    batch = make_batch(lengths, pair=True)
    together = numpy_outputs(encoders[dtype](batch))
    for row, length in enumerate(lengths):
        alone = numpy_outputs(
            encoders[dtype]({name: value[row : row + 1, :length] for name, value in batch.items()})
        )
        assert alone[features.SEQUENCE].dtype == dtype
        assert difference(alone[features.SEQUENCE][0], together[features.SEQUENCE][row, :length]) <= tolerance
        assert difference(alone[features.POOLED][0], together[features.POOLED][row]) <= tolerance


def test_real_weights_find_two_sentences_as_near_as_their_model_card_does(weights):
    encoder = BertEncoder(**weights.encoder, pooling="mean")
    encoder.build(None)
    pretrained.assign(encoder, weights)
    packer = TextPacker(BertTokenizer(weights.vocabulary, weights.tokenizer_options), 128)
    texts = ["A man is eating food.", "A man is eating a piece of bread."]
    one, other = numpy_outputs(encoder(packer([tf.constant(texts)])))[features.POOLED]
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(0.7553, abs=1e-4)


# Parts of names in transformers' models -> in ours; replaced in this order.
NAME_PARTS = {
    "electra.": "",
    "distilbert.": "",
    "encoder.layer.": "block_",
    "transformer.layer.": "block_",
    "attention.output.LayerNorm": "attention_norm",
    "attention.output.dense": "attention.output",
    "attention.self": "attention",
    "output.LayerNorm": "output_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "q_lin": "query",
    "k_lin": "key",
    "v_lin": "value",
    "out_lin": "output",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "intermediate",
    "ffn.lin2": "output",
    "output_layer_norm": "output_norm",
    "word_embeddings": "token",
    "position_embeddings": "position",
    "token_type_embeddings": "segment",
    "LayerNorm": "norm",
    "embeddings_project": "embeddings.projection",
    "pooler.dense": "pooler",
    "pre_classifier": "pooler",
    "classifier.dense": "pooler",
}
SIZES = {
    "vocab_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-5,
}


def roberta():
    config = transformers.RobertaConfig(**SIZES, type_vocab_size=1, max_position_embeddings=34)
    settings = {"num_segments": 1, "position_offset": 2, "epsilon": 1e-5}
    return transformers.RobertaModel(config), settings


def distilbert():
    sizes = {"vocab_size": 50, "n_layers": 2, "n_heads": 4, "dim": 16, "hidden_dim": 24}
    config = transformers.DistilBertConfig(**sizes, max_position_embeddings=32)
    theirs = transformers.DistilBertForSequenceClassification(config)
    theirs.classifier = torch.nn.Identity()  # the logits are the pooled vector then
    return theirs, {"num_segments": 0, "pooler_activation": "relu"}


def electra():
    config = transformers.ElectraConfig(**SIZES, embedding_size=8, max_position_embeddings=32)
    theirs = transformers.ElectraForSequenceClassification(config)
    theirs.classifier.out_proj = torch.nn.Identity()
    return theirs, {"embedding_dim": 8, "pooler_activation": "gelu", "epsilon": 1e-5}


def assign_redrawn(encoder, theirs):
    """Redraw every tensor of a model of transformers, and set our weights, all of them, to the same."""
    ours = pretrained.relative_paths(encoder)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in theirs.state_dict().items():
        tensor.normal_(0, 0.3, generator=generator)
        for one, other in NAME_PARTS.items():
            name = name.replace(one, other)
        layer, kind = name.replace(".", "/").rsplit("/", 1)
        ends = ("", "/embeddings", "/kernel", "/gamma") if kind == "weight" else ("/bias", "/beta")
        (path,) = (layer + end for end in ends if layer + end in ours)
        ours.pop(path).assign(tensor.numpy().T if path.endswith("kernel") else tensor.numpy())
    assert not ours


@pytest.mark.parametrize("make", [roberta, distilbert, electra])
def test_a_relative_of_bert_gives_the_outputs_of_transformers(make):
    theirs, settings = make()
    encoder = tiny_encoder(**settings)
    assign_redrawn(encoder, theirs)
    batch = make_batch([3, 32, 17], pair=True, vocabulary_size=50)
    tokens = batch[features.PADDING_MASK]
    pad = theirs.config.pad_token_id
    ids = np.where(tokens, np.maximum(batch[features.TOKEN_IDS], 2), pad)
    given = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(tokens).long()}
    if make is electra:
        given["token_type_ids"] = torch.tensor(batch[features.SEGMENT_IDS]).long()
    with torch.no_grad():
        expected = theirs.eval()(**given, output_hidden_states=True)
    # RoBERTa's and DistilBERT's segments are ignored.
    outputs = numpy_outputs(encoder(batch | {features.TOKEN_IDS: ids}))
    states = expected.hidden_states[-1].numpy()
    pooled = expected.pooler_output if make is roberta else expected.logits
    assert difference(outputs[features.SEQUENCE][tokens], states[tokens]) <= 2e-5
    assert difference(outputs[features.POOLED], pooled) <= 2e-5


def test_the_table_has_rows_for_the_offset_beside_the_positions():
    encoder = tiny_encoder(position_offset=2)
    assert encoder.embeddings.position.shape == (34, 16)
    encoder(make_batch([32], vocabulary_size=50))


def test_weights_are_there_only_where_they_are_needed():
    paths = set(pretrained.relative_paths(tiny_encoder()))
    narrow = set(pretrained.relative_paths(tiny_encoder(embedding_dim=8)))
    assert narrow - paths == {"embeddings/projection/kernel", "embeddings/projection/bias"}
    assert set(pretrained.relative_paths(tiny_encoder(embedding_dim=16))) == paths
    without = set(pretrained.relative_paths(tiny_encoder(num_segments=0)))
    assert paths - without == {"embeddings/segment/embeddings"}


def test_settings_saved_before_there_were_relatives_mean_what_they_meant():
    encoder = complete_encoder(EncoderConfig(), TINY)
    assert (encoder.position_offset, encoder.embedding_dim, encoder.pooler_activation) == (0, None, "tanh")
    again = BertEncoder(**to_dict(encoder), name="same").get_config()
    assert again == BertEncoder(**TINY, name="same").get_config()


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
def test_pooling_is_what_its_name_says(pooling):
    encoder = tiny_encoder(pooling=pooling)
    batch = make_batch([1, 5, 9], vocabulary_size=50)
    outputs = numpy_outputs(encoder(batch))
    rows = [
        states[: mask.sum()] for states, mask in zip(outputs["sequence"], batch["padding_mask"], strict=True)
    ]
    if pooling == "first":
        kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in encoder.pooler.weights)
        wanted = [np.tanh(row[0] @ kernel + bias) for row in rows]
    else:
        wanted = [getattr(row, pooling)(axis=0) for row in rows]
    assert difference(outputs[features.POOLED], wanted) <= 1e-6


def test_sinusoidal_positions_are_those_of_the_paper():
    table = sinusoidal_positions(40, 6)
    for position in (0, 1, 39):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[position, 2 * pair] == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1] == pytest.approx(np.cos(angle), abs=1e-6)


def test_sinusoidal_embeddings_are_token_plus_position_plus_segment_normalised():
    embeddings = BertEmbeddings(50, 16, max_positions=32, position_type="sinusoidal", epsilon=1e-5)
    embeddings.build((None, None), (None, None))
    redraw(embeddings)
    paths = {
        weight.path.split("/", 1)[1]: keras.ops.convert_to_numpy(weight) for weight in embeddings.weights
    }
    assert sorted(paths) == ["norm/beta", "norm/gamma", "segment/embeddings", "token/embeddings"]
    batch = make_batch([9, 9], pair=True, vocabulary_size=50)
    ids, segments = batch[features.TOKEN_IDS], batch[features.SEGMENT_IDS]
    x = paths["token/embeddings"][ids] + paths["segment/embeddings"][segments] + sinusoidal_positions(9, 16)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert difference(embeddings(ids, segments), x * paths["norm/gamma"] + paths["norm/beta"]) <= 1e-5


def test_all_states_come_only_when_asked_for_and_begin_and_end_as_they_should():
    encoder, batch = tiny_encoder(), make_batch([4, 7], vocabulary_size=50)
    outputs = encoder(batch, return_all=True)
    assert set(encoder(batch)) == {features.SEQUENCE, features.POOLED}
    states, attention = outputs[features.HIDDEN_STATES], outputs[features.ATTENTION_WEIGHTS]
    assert [tuple(state.shape) for state in states] == [(2, 7, 16)] * 3
    assert [tuple(one.shape) for one in attention] == [(2, 4, 7, 7)] * 2
    assert difference(states[0], encoder.embeddings(batch["token_ids"], batch["segment_ids"])) == 0
    tokens = batch[features.PADDING_MASK]
    assert difference(states[-1][tokens], outputs[features.SEQUENCE][tokens]) == 0
    assert difference(np.sum(attention[0], axis=-1), 1) <= 1e-6
    assert np.max(attention[0][0, :, :, 4:]) == 0


def test_bfloat16_stays_close_to_float32_and_computes_in_bfloat16():
    reference = tiny_encoder()
    half = BertEncoder(**TINY, dtype="mixed_bfloat16")
    half.build(None)
    half.set_weights(reference.get_weights())
    assert {weight.dtype for weight in half.weights} == {"float32"}
    batch = make_batch([3, 30], vocabulary_size=50)
    wide, narrow = reference(batch), half(batch)
    for name in (features.SEQUENCE, features.POOLED):
        assert narrow[name].dtype == "bfloat16"
        assert 0 < difference(wide[name], keras.ops.cast(narrow[name], "float32")) <= 0.1


def test_the_mean_of_many_tokens_survives_bfloat16():
    settings = TINY | {"max_positions": 512, "pooling": "mean"}
    half = BertEncoder(**settings, dtype="mixed_bfloat16")
    batch = make_batch([512, 301], vocabulary_size=50)
    outputs = half(batch)
    states = np.asarray(keras.ops.cast(outputs[features.SEQUENCE], "float64"))
    wanted = [states[0].mean(axis=0), states[1, :301].mean(axis=0)]
    assert (
        difference(keras.ops.cast(outputs[features.POOLED], "float32"), wanted)
        <= 2**-8 * np.abs(wanted).max()
    )


def test_dropout_works_in_training_only():
    encoder, batch = tiny_encoder(dropout=0.5, attention_dropout=0.5), make_batch([4, 7], vocabulary_size=50)
    still = encoder(batch, training=False)[features.SEQUENCE]
    assert difference(still, encoder(batch)[features.SEQUENCE]) == 0
    assert difference(still, encoder(batch, training=True)[features.SEQUENCE]) > 0.1


LAYERS = [
    BertEmbeddings(50, 16, 32, 3, "sinusoidal", 1e-5, 0.2, 0.03, 2, 8, name="mine", dtype="float64"),
    SelfAttention(4, 16, 0.2, 0.03, name="mine", dtype="mixed_bfloat16"),
    TransformerBlock(4, 16, 24, "relu", 1e-5, 0.2, 0.3, 0.03, name="mine"),
    BertEncoder(
        50, 2, 4, 16, 24, 32, 3, "relu", 1e-5, 0.2, 0.3, 0.03, "sinusoidal", "max", 2, 8, "relu", name="mine"
    ),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_layer_comes_back_from_its_configuration(layer):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    assert again.dtype_policy == layer.dtype_policy


def test_every_argument_of_a_layer_is_in_its_configuration():
    for layer in LAYERS:
        names = type(layer).__init__.__code__.co_varnames[1 : type(layer).__init__.__code__.co_argcount]
        assert set(names) <= set(layer.get_config())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BertEmbeddings(50, 16, position_type="rotary"), "position_type is 'rotary'"),
        (lambda: SelfAttention(5, 16), "num_heads 5 doesn't divide hidden_dim 16"),
        (lambda: TransformerBlock(4, 16, 24, activation="swish"), "activation is 'swish'"),
        (lambda: BertEncoder(**TINY, pooling="last"), "pooling is 'last'"),
        (lambda: BertEncoder(**TINY, pooler_activation="swish"), "pooler_activation is 'swish'"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_positions_start_anew_at_each_text():
    numbers = np.array([[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2]], "int32")
    positions = portable.lay_out(1, numbers > 0, numbers).positions
    assert positions.numpy().tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("settings", [{}, {"position_offset": 2}, {"position_type": "sinusoidal"}])
def test_given_positions_are_taken_from_the_table(settings):
    embeddings = BertEmbeddings(50, 16, max_positions=32, **settings)
    batch = make_batch([9, 9], vocabulary_size=50)
    ids, segments = batch[features.TOKEN_IDS], batch[features.SEGMENT_IDS]
    places = np.arange(9)[None].repeat(2, axis=0)
    assert difference(embeddings(ids, segments, places), embeddings(ids, segments)) == 0
    back = embeddings(ids[:, ::-1], segments, places[:, ::-1])
    assert difference(back[:, ::-1], embeddings(ids, segments)) <= 1e-6
