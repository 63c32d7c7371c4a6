"""A run as a whole, in small."""

import dataclasses
import json

import keras
import killed
import numpy as np
import pytest

from keras_bert_app import config as configuration
from keras_bert_app import features
from keras_bert_app.convert.pretrained import Pretrained
from keras_bert_app.data.readers import Record
from keras_bert_app.errors import UserError
from keras_bert_app.model.networks import Network
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training import assembly, finetuning, initial, workdir

_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "the", "is"]


@pytest.fixture
def config(tmp_path):
    """A tiny run from fresh weights."""
    (tmp_path / "vocab.txt").write_text("\n".join(_PIECES) + "\n")
    rows = [
        f"the film {number} is {'very ' * (number % 5)}{word},{word}"
        for number in range(40)
        for word in ("good", "bad")
    ]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    shape = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_positions": 32}
    return configuration.freeze(
        {
            "seed": 4,
            "text": {"vocabulary": str(tmp_path / "vocab.txt"), "max_length": 16},
            "encoder": shape,
            "data": {"train": str(tmp_path / "train.csv"), "evaluation_fraction": 0.2, "test_fraction": 0.1},
            "train": {
                "batch_size": 8,
                "epochs": 2,
                "learning_rate": 1e-3,
                "evaluate_every": 5,
                "checkpoint_every": 3,
                "deterministic": True,
            },
        }
    )


def _changed(config, section, **changes):
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})


@pytest.mark.parametrize("strategy", [pytest.param("none", marks=pytest.mark.slow), "mirrored"])
def test_a_run_killed_and_resumed_ends_with_the_same_bits(config, tmp_path, strategy):
    config = _changed(config, "train", strategy=strategy, num_devices=2 if strategy == "mirrored" else None)
    killed.assert_same_bits_when_killed("finetune", config, tmp_path, last=8, saved=6)


def test_a_run_ends_with_the_best_checkpoint_as_a_keras_model(config, tmp_path):
    config = _changed(config, "train", deterministic=False, epochs=1)
    state = finetuning.finetune(config, tmp_path / "run")
    description, model = workdir.load_best_model(tmp_path / "run", "float32")
    assert workdir.best_step(tmp_path / "run") == state.best_step
    whole = keras.models.load_model(tmp_path / "run" / "model.keras")
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 0]], "int32")
    inputs = {
        features.TOKEN_IDS: ids,
        features.SEGMENT_IDS: np.zeros_like(ids),
        features.PADDING_MASK: ids > 0,
    }
    np.testing.assert_array_equal(
        whole(inputs)[features.LOGITS].numpy(), model(inputs)[features.LOGITS].numpy()
    )

    # The folder is weights to start another run from: the encoder comes along, the head stays fresh.
    pretrained = initial.load_pretrained(str(tmp_path / "run"))
    fresh = description.task.build_model(description.encoder, "float32")
    head = {weight.path: weight.numpy() for weight in fresh.weights if not weight.path.startswith("encoder/")}
    assembly.initialise(fresh, pretrained, config, description.task)
    for weight, trained in zip(fresh.weights, model.weights, strict=True):
        expected = head.get(weight.path, trained.numpy())
        np.testing.assert_array_equal(weight.numpy(), expected, err_msg=weight.path)
    assert head
    assert (
        finetuning.describe(config, [_record("a", "x"), _record("b", "y")], pretrained).vocabulary
        == description.vocabulary
    )
    assert len(json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]) == 1


def _record(text, label):
    return Record({features.TEXT: text, features.LABEL: label}, "made.csv:1")


def _texts(records):
    return {record.values[features.TEXT] for record in records}


def test_parts_that_are_not_given_are_held_out(config):
    parts = finetuning.load_splits(config)
    texts = [_texts(part) for part in (parts.train, parts.evaluation, parts.test)]
    assert all(texts) and sum(map(len, texts)) == 80 == len(set.union(*texts))


def _file(path, rows):
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return str(path)


def test_parts_that_are_given_share_no_text(config, tmp_path):
    config = _changed(
        config,
        "data",
        train=_file(tmp_path / "a.csv", ["a,x", "b,y", "c,x", "d,y"]),
        evaluation=_file(tmp_path / "b.csv", ["b,x", "e,y"]),
        test=_file(tmp_path / "c.csv", ["c,x", "e,y"]),
    )
    parts = finetuning.load_splits(config)
    assert [_texts(part) for part in (parts.train, parts.evaluation, parts.test)] == [
        {"a", "d"},
        {"b"},
        {"c", "e"},
    ]


def test_no_training_data_is_refused(config):
    with pytest.raises(UserError, match=r"config\.data\.train is not set"):
        finetuning.load_splits(_changed(config, "data", train=None))


def test_a_part_without_examples_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"there is nothing to evaluate on"):
        finetuning.load_splits(_changed(config, "data", evaluation_fraction=0.0))
    same = _file(tmp_path / "same.csv", ["a,x", "b,y"])
    with pytest.raises(UserError, match=r"same\.csv has no examples left to train on"):
        finetuning.load_splits(_changed(config, "data", train=same, evaluation=same))


def test_unknown_weights_are_refused_with_the_names_there_are(config):
    with pytest.raises(UserError, match=r"'nothing': no such file or folder, nor a packaged .*minilm-l6"):
        initial.load_pretrained("nothing")


def _pretrained(tmp_path, positions=32):
    (tmp_path / "other.txt").write_text("\n".join([*_PIECES, "more"]) + "\n")
    encoder = {"vocabulary_size": len(_PIECES) + 1, "max_positions": positions}
    vocabulary = Vocabulary.load(tmp_path / "other.txt")
    return Pretrained(Network("encoder"), encoder, vocabulary, TokenizerOptions(), {})


_RECORDS = [_record("a", "x"), _record("b", "y")]


def test_another_vocabulary_than_that_of_the_weights_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"config\.text\.vocabulary isn't the one"):
        finetuning.describe(config, _RECORDS, _pretrained(tmp_path))


@pytest.mark.parametrize(
    ("name", "wish", "trained"),
    [
        ("lower_case", False, True),
        ("strip_accents", False, True),
        ("split_chinese", False, True),
    ],
)
def test_other_tokenizer_options_than_those_of_the_weights_are_refused(config, tmp_path, name, wish, trained):
    pretrained = _pretrained(tmp_path)
    config = _changed(config, "text", vocabulary=None, **{name: wish})
    with pytest.raises(UserError) as caught:
        finetuning.describe(config, _RECORDS, pretrained)
    assert f"config.text.{name} is {wish}, but config.init was trained with {trained}" in str(caught.value)
    options = TokenizerOptions(**{name: wish})
    pretrained = dataclasses.replace(pretrained, tokenizer_options=options)
    assert finetuning.describe(config, _RECORDS, pretrained).tokenizer_options == options


def test_literals_are_the_configs_to_say_whatever_the_weights_had(config, tmp_path):
    config = _changed(config, "text", vocabulary=None, never_split=("[MASK]",))
    described = finetuning.describe(config, _RECORDS, _pretrained(tmp_path))
    assert described.tokenizer_options == TokenizerOptions(never_split=("[MASK]",))


def test_options_that_the_config_leaves_open_are_those_of_the_weights(config, tmp_path):
    options = TokenizerOptions(False, strip_accents=True, split_chinese=False, never_split=("[MASK]",))
    pretrained = dataclasses.replace(_pretrained(tmp_path), tokenizer_options=options)
    config = _changed(config, "text", vocabulary=None)
    assert finetuning.describe(config, _RECORDS, pretrained).tokenizer_options == options


def test_texts_longer_than_the_positions_are_refused(config):
    config = _changed(config, "text", max_length=33)
    with pytest.raises(UserError, match=r"max_length is 33, but the encoder has 32 positions"):
        finetuning.describe(config, _RECORDS, None)


def test_cutting_the_second_text_is_refused_where_there_is_one(config):
    config = _changed(config, "text", truncation="only_second")
    with pytest.raises(UserError, match=r"truncation is only_second, but the examples have one text; "):
        finetuning.describe(config, _RECORDS, None)


def test_neither_weights_nor_vocabulary_is_refused(config):
    with pytest.raises(UserError, match="has to bring a vocabulary"):
        finetuning.describe(_changed(config, "text", vocabulary=None), _RECORDS, None)


def test_a_metric_that_cannot_choose_a_checkpoint_is_refused(config):
    with pytest.raises(UserError, match=r"config\.train\.metric is 'loss'; classification has accuracy, "):
        finetuning.describe(_changed(config, "train", metric="loss"), _RECORDS, None)


def test_an_unknown_task_is_refused_with_those_there_are(config, tmp_path):
    with pytest.raises(UserError, match=r"config\.task\.name is 'clasification'; there is classification$"):
        finetuning.finetune(_changed(config, "task", name="clasification"), tmp_path / "run")


def test_a_vocabulary_larger_than_the_embedding_is_refused(config):
    with pytest.raises(UserError, match=r"vocabulary_size is 9, but .*vocab\.txt has 11 pieces"):
        finetuning.describe(_changed(config, "encoder", vocabulary_size=9), _RECORDS, None)


def test_pretraining_is_refused_with_the_verb_that_does_it(config, tmp_path):
    with pytest.raises(
        UserError, match=r"config\.task\.name is pretraining; that is what `run\.py pretrain`"
    ):
        finetuning.finetune(_changed(config, "task", name="pretraining"), tmp_path / "run")
