"""Apache Beam's local runner makes the folder that our own engine makes, byte for byte."""

import sys

import pytest
from test_pretraining import DOCUMENTS, VOCABULARY, bytes_of

from keras_bert_app import data
from keras_bert_app.config import default, freeze
from keras_bert_app.data import examples, pipeline, pipeline_selection, pretraining
from keras_bert_app.data.examples_store import ExampleStore
from keras_bert_app.data.pipeline import prepare_examples_on_beam
from keras_bert_app.data.pretraining import PrepareOptions, prepare_examples
from keras_bert_app.errors import UserError
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.training import pretraining as training

# What --runner=DirectRunner comes down to where Beam's own local engine can't be downloaded.
LOCAL = "--runner=FnApiRunner"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(pretraining, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(pipeline, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(pipeline_selection, "_BLOCK", 7)
    monkeypatch.setattr(examples, "_SHARD_TOKENS", 1500)


@pytest.fixture
def corpus(tmp_path):
    """Files with exact and near duplicates in one and across two, and with what is skipped."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    long = [text for text in DOCUMENTS if len(text.split()) > 120]
    near = [" ".join(["common", *text.split()[1:]]) for text in long[:3]]
    (folder / "a.txt").write_text("\n\n".join([*DOCUMENTS[:50], DOCUMENTS[3], near[0], near[0], "\u200b"]))
    others = "\n\n".join([*DOCUMENTS[50:], *near, DOCUMENTS[4], DOCUMENTS[3], "\u200b"])
    (folder / "b.txt").write_bytes(others.encode() + b"\n\n\xff\n\n" + DOCUMENTS[60].encode() + b"\n\n\xfe")
    (folder / "c.txt").write_bytes(b"\x7fELF\0\0\0")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "sop", "seed": 3},
        {"objective": "none"},
        {"objective": "none", "pack": True},
        {"near_duplicates": 1, "held_out": 0},
    ],
    ids=["nsp", "sop", "none", "packed", "all in one part"],
)
def test_beam_writes_the_bytes_that_our_own_engine_does(corpus, tmp_path, settings):
    options = PrepareOptions(**{"max_length": 32, "held_out": 0.1} | settings)
    ours = prepare_examples([str(corpus)], tmp_path / "ours", VOCABULARY, TokenizerOptions(), options)
    theirs = prepare_examples_on_beam(
        [str(corpus)], tmp_path / "beam", VOCABULARY, TokenizerOptions(), options, LOCAL
    )
    assert ours["documents"]["exact_duplicates"] == 7 and set(ours["skipped"]) == {"not UTF-8", "binary"}
    assert (ours["documents"]["near_duplicates"] > 2) is (options.near_duplicates < 1)
    assert len(list((tmp_path / "ours").glob("train*.tfrecord"))) > 3
    assert bytes_of(tmp_path / "beam") == bytes_of(tmp_path / "ours") and theirs == ours
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beam", "corpus", "ours"]
    ExampleStore(tmp_path / "beam").verify()


@pytest.mark.slow
def test_workers_in_other_processes_write_the_same(corpus, tmp_path, monkeypatch):
    # They don't see what the fixture changed.
    monkeypatch.undo()
    options = PrepareOptions(max_length=32, held_out=0.1)
    prepare_examples([str(corpus)], tmp_path / "ours", VOCABULARY, TokenizerOptions(), options)
    workers = f"{LOCAL} --direct_num_workers=2 --direct_running_mode=multi_processing"
    prepare_examples_on_beam(
        [str(corpus)], tmp_path / "beam", VOCABULARY, TokenizerOptions(), options, workers
    )
    assert bytes_of(tmp_path / "beam") == bytes_of(tmp_path / "ours")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"nothing to learn from in 1 files: 1 empty \(the first .*corpus\.txt\)"),
        (b"1. 2.\n\n1. 2.\n\n\xff", r"1 of 2 documents are left for train \(left out: 1 not UTF-8"),
        (b"1\n\n2\n\n3", "no examples for train: each document is one sentence"),
    ],
    ids=["empty", "duplicates", "one sentence"],
)
def test_input_without_examples_is_refused_and_nothing_is_written(tmp_path, content, message):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_examples_on_beam(
            [str(path)], tmp_path / "out", VOCABULARY, TokenizerOptions(), PrepareOptions(held_out=0), LOCAL
        )
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"^broken\.txt\.gz: can't be read"):
        prepare_examples_on_beam(["*.gz"], "out", VOCABULARY, TokenizerOptions(), PrepareOptions(), LOCAL)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.txt.gz"]


def test_an_output_that_exists_and_an_unknown_runner_are_refused(tmp_path):
    (tmp_path / "corpus.txt").write_text("1. 2.")
    arguments = ([str(tmp_path)], tmp_path, VOCABULARY, TokenizerOptions(), PrepareOptions())
    with pytest.raises(UserError, match="exists already"):
        prepare_examples_on_beam(*arguments, LOCAL)
    with pytest.raises(UserError, match="--beam=--runner=Wind: .*Wind"):
        prepare_examples_on_beam(arguments[0], tmp_path / "out", *arguments[2:], "--runner=Wind")


def prepare_by_config(corpus, tmp_path, beam):
    VOCABULARY.save(tmp_path / "vocab.txt")
    config = default()
    config.text.vocabulary = str(tmp_path / "vocab.txt")
    config.prepare.held_out = 0.0
    return training.prepare(freeze(config), str(corpus), tmp_path / "out", 1, beam)


def test_the_verb_runs_it_where_options_are_given(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "prepare_examples", None)
    assert "left out: 10 duplicates, 1 without tokens" in prepare_by_config(corpus, tmp_path, LOCAL)


def test_without_beam_installed_the_extra_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "keras_bert_app.data.pipeline")
    monkeypatch.delattr(data, "pipeline")
    with pytest.raises(UserError, match=r"Beam isn't installed; pip install 'keras_bert_app\[beam\]'"):
        prepare_by_config(corpus, tmp_path, LOCAL)
