"""A run's folder."""

import dataclasses
import json

import pytest

from keras_bert_app import config as configuration
from keras_bert_app import features
from keras_bert_app.config import Config, TrainConfig
from keras_bert_app.errors import UserError
from keras_bert_app.tasks.classification import ClassificationTask
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training import workdir


@pytest.fixture
def description(tmp_path):
    (tmp_path / "source.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n"
    )
    task = ClassificationTask(["x", "y"], [features.TEXT])
    encoder = configuration.complete_encoder(configuration.EncoderConfig(), {"vocabulary_size": 6})
    return workdir.ModelDescription(
        task, encoder, Vocabulary.load(tmp_path / "source.txt"), TokenizerOptions(), 16, "head_tail"
    )


def test_a_new_folder_keeps_the_config(tmp_path):
    config = Config(seed=7, train=TrainConfig(batch_size=3))
    workdir.open_for_training(tmp_path / "run", config)
    assert workdir.read_config(tmp_path / "run") == config


def test_an_empty_folder_is_taken(tmp_path):
    workdir.open_for_training(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_same_config_goes_on(tmp_path):
    workdir.open_for_training(tmp_path, Config())
    before = (tmp_path / "config.json").read_bytes()
    workdir.open_for_training(tmp_path, Config())
    assert (tmp_path / "config.json").read_bytes() == before


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    workdir.open_for_training(tmp_path, Config())
    with pytest.raises(UserError) as error:
        workdir.open_for_training(tmp_path, Config(seed=1, train=TrainConfig(batch_size=3)))
    assert "config.seed: 0 -> 1; config.train.batch_size: 32 -> 3" in str(error.value)


def test_an_unknown_format_is_refused_with_what_to_do(tmp_path):
    workdir.open_for_training(tmp_path, Config())
    content = json.loads((tmp_path / "config.json").read_text()) | {"format_version": 99}
    (tmp_path / "config.json").write_text(json.dumps(content))
    for call in (workdir.read_config, lambda path: workdir.open_for_training(path, Config())):
        with pytest.raises(UserError, match=r"format 99, this version knows 1; use the version that made it"):
            call(tmp_path)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"exists and is no run's folder; give another --workdir"):
        workdir.open_for_training(tmp_path, Config())
    with pytest.raises(UserError, match="no run's folder"):
        workdir.open_for_training(tmp_path / "thesis.txt", Config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_reading_where_no_run_is_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="`run.py finetune` or `pretrain` makes one"):
        workdir.read_config(tmp_path)
    with pytest.raises(UserError, match="`run.py finetune` or `pretrain` makes one"):
        workdir.ModelDescription.load(tmp_path)
    with pytest.raises(UserError, match="no evaluated checkpoint yet"):
        workdir.best_step(tmp_path)


def test_a_broken_file_is_refused_with_its_path(tmp_path):
    (tmp_path / "config.json").write_text('{"format_version": 1,')
    with pytest.raises(UserError, match=r"config\.json: can't read it"):
        workdir.read_config(tmp_path)


def test_a_description_comes_back(description, tmp_path):
    description.save(tmp_path, "records")
    loaded = workdir.ModelDescription.load(tmp_path)
    assert (loaded.task.labels, loaded.task.text_inputs) == (("x", "y"), (features.TEXT,))
    assert (loaded.encoder, loaded.tokenizer_options, loaded.max_length) == (
        description.encoder,
        TokenizerOptions(),
        16,
    )
    assert loaded.vocabulary.sha256 == description.vocabulary.sha256
    assert (loaded.packer().max_length, loaded.packer().truncation) == (16, "head_tail")


def test_a_model_from_before_there_was_a_choice_cuts_the_longest_text_first(description, tmp_path):
    description = dataclasses.replace(description, truncation="longest_first")
    description.save(tmp_path, "records")
    content = json.loads((tmp_path / "model.json").read_text())
    assert content.pop("truncation") == "longest_first"
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert workdir.ModelDescription.load(tmp_path).truncation == "longest_first"
    with pytest.raises(UserError, match=r"model\.truncation: 'longest_first' -> 'head_tail'"):
        dataclasses.replace(description, truncation="head_tail").save(tmp_path, "records")
    description.save(tmp_path, "records")


@pytest.mark.parametrize(
    "options",
    [
        TokenizerOptions(lower_case=False),
        TokenizerOptions(strip_accents=False),
        TokenizerOptions(split_chinese=False),
        TokenizerOptions(never_split=("[MASK]",)),
    ],
)
def test_a_description_keeps_its_tokenizers_options_and_refuses_others(description, tmp_path, options):
    other = dataclasses.replace(description, tokenizer_options=options)
    other.save(tmp_path, "records")
    assert workdir.ModelDescription.load(tmp_path).tokenizer_options == options
    assert workdir.ModelDescription.load(tmp_path).packer().tokenizer.options == options
    with pytest.raises(UserError, match="begun with other data or weights .model.tokenizer"):
        description.save(tmp_path, "records")


def test_another_vocabulary_is_refused(description, tmp_path):
    description.save(tmp_path, "records")
    (tmp_path / "vocab.txt").write_text((tmp_path / "vocab.txt").read_text() + "b\n")
    with pytest.raises(UserError, match=r"vocab\.txt isn't the vocabulary that the model was made with"):
        workdir.ModelDescription.load(tmp_path)


def test_going_on_with_other_records_is_refused(description, tmp_path):
    description.save(tmp_path, "records")
    description.save(tmp_path, "records")
    with pytest.raises(UserError, match="begun with other data or weights .model.training_records_sha256"):
        description.save(tmp_path, "other records")


@pytest.mark.parametrize(
    ("trained", "answered"), [("float32", "float32"), ("mixed_bfloat16", "float32"), ("float64", "float64")]
)
def test_answers_are_in_float32_unless_trained_in_float64(trained, answered):
    assert workdir.inference_precision(Config(train=TrainConfig(precision=trained))) == answered


def test_provenance_is_ready_for_json_and_names_the_versions():
    content = json.loads(json.dumps(workdir.provenance()))
    assert content["packages"]["tensorflow"].startswith("2.") and content["command"]
