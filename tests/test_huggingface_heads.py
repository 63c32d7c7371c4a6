"""Every head of transformers' BERT and its relatives, both ways: the same outputs, the same bits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from keras_bert_app import features
from keras_bert_app.config import EncoderConfig, complete_encoder
from keras_bert_app.convert import huggingface
from keras_bert_app.convert.huggingface_families import FAMILIES
from keras_bert_app.convert.library import huggingface_outputs
from keras_bert_app.convert.pretrained import assign
from keras_bert_app.convert.reference import largest_differences, random_batch
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import BertTokenizer, TokenizerOptions
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

# Layers, width, heads, intermediate width, vocabulary, activation, epsilon.
SHAPES = [
    (2, 24, 4, 40, 101, "gelu", 1e-12),
    (3, 32, 2, 24, 67, "gelu_new", 1e-5),
    (24, 16, 2, 32, 53, "relu", 1e-12),
]
LABELS = {0: "so-so", 1: "gut", 2: "übel"}


def settings_of(family, shape):
    layers, width, heads, inner, vocabulary, activation, epsilon = shape
    if family == "distilbert":
        return {
            "vocab_size": vocabulary,
            "dim": width,
            "n_layers": layers,
            "n_heads": heads,
            "hidden_dim": inner,
            "max_position_embeddings": 30,
            "activation": activation,
        }
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": 30,
        "hidden_act": activation,
        "layer_norm_eps": epsilon,
    }
    if family == "electra":
        settings["embedding_size"] = width // 2
    if family == "roberta":
        settings |= {"type_vocab_size": 1, "pad_token_id": 1}
    return settings


def make(folder, family, kind, shape, labels=LABELS, **more):
    """A model with every tensor redrawn, saved by transformers with a vocabulary beside it."""
    settings = settings_of(family, shape) | more
    if kind in ("sequence_classification", "token_classification"):
        settings["id2label"] = labels
        settings["label2id"] = {label: number for number, label in labels.items()}
    model_class = getattr(transformers, FAMILIES[family].classes[kind])
    if kind == "multiple_choice":
        settings["num_labels"] = 1
    model = model_class._from_config(model_class.config_class(**settings), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    pieces = [*SPECIAL_TOKENS, *(f"piece{number}" for number in range(shape[4] - len(SPECIAL_TOKENS)))]
    padding = model.config.pad_token_id
    pieces[0], pieces[padding] = pieces[padding], pieces[0]
    Vocabulary(pieces).save(folder / "vocab.txt")
    return model


def their_outputs(model, batch):
    inputs = {
        "input_ids": torch.tensor(batch[features.TOKEN_IDS]).long(),
        "attention_mask": torch.tensor(batch[features.PADDING_MASK]).long(),
    }
    if model.config.model_type != "distilbert":
        inputs["token_type_ids"] = torch.tensor(batch[features.SEGMENT_IDS]).long()
    with torch.no_grad():
        return huggingface_outputs(model(**inputs))


def our_model(pretrained):
    encoder = complete_encoder(EncoderConfig(), pretrained.encoder)
    model = pretrained.network.build(encoder, "float32")
    assign(model, pretrained)
    return encoder, model


CASES = [("bert", kind, shape) for kind in FAMILIES["bert"].classes for shape in SHAPES]
CASES += [
    (family, kind, SHAPES[0])
    for family in ("roberta", "distilbert", "electra")
    for kind in FAMILIES[family].classes
]


@pytest.mark.parametrize(("family", "kind", "shape"), CASES)
def test_outputs_are_theirs_and_a_round_trip_keeps_every_bit(tmp_path, family, kind, shape):
    theirs = make(tmp_path / "theirs", family, kind, shape)
    pretrained = huggingface.load(tmp_path / "theirs")
    assert pretrained.network.kind == kind and not pretrained.missing and not pretrained.left_out
    encoder, model = our_model(pretrained)
    batch = random_batch(pretrained.network, encoder)
    expected = their_outputs(theirs, batch)
    outputs = {name: np.asarray(value) for name, value in model(batch).items()}
    assert expected.keys() <= outputs.keys()
    differences = largest_differences(outputs, expected, batch[features.PADDING_MASK])
    assert max(differences.values()) <= 2e-5 * max(1, *(np.abs(value).max() for value in expected.values()))

    (tmp_path / "ours").mkdir()
    huggingface.save(pretrained, tmp_path / "ours", 30)
    before, after = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, info = type(theirs).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in their_outputs(again.eval(), batch).items():
        np.testing.assert_array_equal(value, expected[name])
    if pretrained.network.labels:
        assert again.config.id2label == LABELS
    assert huggingface.load(tmp_path / "ours").network == pretrained.network


def test_auto_classes_make_the_same_model_and_tokenizer_of_what_is_saved(tmp_path):
    make(tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0])
    pretrained = huggingface.load(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    huggingface.save(pretrained, tmp_path / "ours", 30)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert type(model) is transformers.BertForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.model_max_length == 30
    encoded = tokenizer("Piece1 piece2", "piece3 nothing")
    unknown = pretrained.vocabulary.ids["[UNK]"]
    assert encoded["input_ids"] == [2, 6, 7, 3, 8, unknown, 3]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("lower_case", [True, False])
def test_real_texts_are_cut_alike_by_the_saved_tokenizer(minilm, tmp_path, reviews, lower_case):
    pretrained = huggingface.load(minilm)
    options = TokenizerOptions(lower_case=lower_case, never_split=("[MASK]",))
    (tmp_path / "ours").mkdir()
    huggingface.save(replace(pretrained, tokenizer_options=options), tmp_path / "ours", 128)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    texts = [*reviews[:500], "Ünïcode [MASK] 中文 ﬁ ½", ""]
    ours = BertTokenizer(pretrained.vocabulary, options)(texts).to_list()
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ours
    # That literal special tokens are found is so of every folder, and stated nowhere.
    again = huggingface.load(tmp_path / "ours").tokenizer_options
    assert again == replace(options, never_split=())


def test_the_kind_is_told_by_the_tensors_where_architectures_says_less(tmp_path):
    """As google-bert/bert-base-uncased: architectures says BertForMaskedLM, the file has both heads."""
    make(tmp_path, "bert", "pretraining", SHAPES[0])
    change_config(tmp_path, architectures=["BertForMaskedLM"])
    assert huggingface.load(tmp_path).network.kind == "pretraining"


@pytest.mark.parametrize("architectures", [None, ["BertModel"], ["Unheard"], "BertForTokenClassification"])
def test_a_classifier_of_unknown_kind_is_refused_with_what_to_write(tmp_path, architectures):
    make(tmp_path, "bert", "token_classification", SHAPES[0])
    change_config(tmp_path, architectures=architectures)
    with pytest.raises(UserError, match="config.json: architectures is .* a head of one of .*Classification"):
        huggingface.load(tmp_path)


def test_labels_and_problem_type_come_along(tmp_path):
    for problem in ("single_label_classification", "multi_label_classification", "regression"):
        folder = tmp_path / problem
        make(folder, "bert", "sequence_classification", SHAPES[0], problem_type=problem)
        network = huggingface.load(folder).network
        assert network.labels == tuple(LABELS.values())
        assert network.problem_type == problem
        (folder / "again").mkdir()
        huggingface.save(huggingface.load(folder), folder / "again", 30)
        again = json.loads((folder / "again" / "config.json").read_text())
        assert again["problem_type"] == problem
        assert again["id2label"] == {str(number): label for number, label in LABELS.items()}


def test_more_than_ten_labels_are_in_the_order_of_their_numbers(tmp_path):
    labels = {number: f"label {number}" for number in range(12)}
    make(tmp_path, "bert", "sequence_classification", SHAPES[0], labels)
    assert huggingface.load(tmp_path).network.labels == tuple(labels.values())


@pytest.mark.parametrize(
    "id2label", [{"0": "a", "2": "b", "1": 7}, {"0": "a", "1": "a", "2": "b"}, {"1": "a"}, ["a"], {"x": "a"}]
)
def test_labels_that_can_not_be_are_refused(tmp_path, id2label):
    make(tmp_path, "bert", "sequence_classification", SHAPES[0])
    change_config(tmp_path, id2label=id2label)
    with pytest.raises(UserError, match="id2label doesn't give each id from 0 on a label of its own"):
        huggingface.load(tmp_path)


def test_labels_of_another_number_than_the_head_has_are_refused(tmp_path):
    make(tmp_path, "bert", "sequence_classification", SHAPES[0])
    change_config(tmp_path, id2label={"0": "a", "1": "b"})
    with pytest.raises(UserError, match=r"classifier.bias has shape \[3\], by the configuration \[2\]"):
        huggingface.load(tmp_path)


def test_settings_come_along_that_change_no_output(tmp_path):
    more = {
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
        "classifier_dropout": 0.4,
        "initializer_range": 0.05,
    }
    make(tmp_path / "theirs", "bert", "sequence_classification", SHAPES[0], **more)
    (tmp_path / "ours").mkdir()
    huggingface.save(huggingface.load(tmp_path / "theirs"), tmp_path / "ours", 30)
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    assert before.items() >= {key: value for key, value in after.items() if key != "problem_type"}.items()


def test_decoders_that_are_not_the_embeddings_again_are_refused(tmp_path):
    make(tmp_path, "bert", "masked_lm", SHAPES[0])
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    words = tensors["bert.embeddings.word_embeddings.weight"]
    decoder = {"cls.predictions.decoder.weight": words.clone()}
    decoder["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    safetensors.torch.save_file(tensors | decoder, path)
    assert not huggingface.load(tmp_path).left_out
    decoder["cls.predictions.decoder.weight"][3, 3] += 1e-6
    safetensors.torch.save_file(tensors | decoder, path)
    with pytest.raises(UserError, match="not tied: cls.predictions.decoder.weight isn't bert.embeddings."):
        huggingface.load(tmp_path)


def test_padding_that_counts_as_a_position_is_refused(tmp_path):
    make(tmp_path, "roberta", "encoder", SHAPES[0])
    change_config(tmp_path, pad_token_id=2, max_position_embeddings=30)
    with pytest.raises(UserError, match=r"pad_token_id is 2, .* but \[PAD\] has the id 1 in .*vocab.txt"):
        huggingface.load(tmp_path)
    assert huggingface.load(tmp_path, None).encoder["position_offset"] == 3


@pytest.mark.parametrize(
    "value", [-1, 1.5, "x", [], {}, [[1]], True, 10**30, float("nan"), float("inf")], ids=str
)
@pytest.mark.parametrize(("family", "kind"), [("bert", "sequence_classification"), ("roberta", "encoder")])
def test_settings_of_any_type_are_taken_or_refused_in_one_line(tmp_path, family, kind, value):
    make(tmp_path, family, kind, SHAPES[0])
    settings = json.loads((tmp_path / "config.json").read_text())
    refused = set()
    for key in {*settings, "id2label", "problem_type", "classifier_dropout", "pruned_heads"}:
        (tmp_path / "config.json").write_text(json.dumps(settings | {key: value}))
        try:
            our_model(huggingface.load(tmp_path, None))
        except UserError as error:
            assert "\n" not in str(error)
            refused.add(key)
    assert {"model_type", "num_hidden_layers", "vocab_size", "hidden_act", "is_decoder"} <= refused


def test_a_missing_head_is_told_by_its_names(tmp_path):
    make(tmp_path, "bert", "encoder", SHAPES[0])
    change_config(tmp_path, architectures=["BertForQuestionAnswering"])
    pretrained = huggingface.load(tmp_path)
    assert pretrained.network.kind == "question_answering"
    assert set(pretrained.missing.values()) == {"qa_outputs.weight", "qa_outputs.bias"}
    assert set(pretrained.left_out) == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_type": "sinusoidal"}, "bert has learned positions, not sinusoidal ones"),
        ({"position_offset": 2, "num_segments": 0}, "bert has position_offset 0, not 2, segments"),
    ],
)
def test_a_network_that_no_family_can_hold_is_refused(tmp_path, changes, message):
    make(tmp_path, "bert", "encoder", SHAPES[0])
    pretrained = huggingface.load(tmp_path)
    with pytest.raises(UserError, match=f"transformers can't hold this network: .*{message}"):
        huggingface.save(replace(pretrained, encoder=pretrained.encoder | changes), tmp_path / "x", 30)


def change_config(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
