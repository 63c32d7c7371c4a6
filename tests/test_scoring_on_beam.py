"""Apache Beam's local runner writes the answers that one machine writes, byte for byte."""

import sys

import pytest
from conftest import fresh_flags

import run
from keras_bert_app import scoring
from keras_bert_app.errors import UserError
from keras_bert_app.scoring import models, parts, pipeline, resumable
from keras_bert_app.scoring.pipeline import predict_files_on_beam

# What --runner=DirectRunner comes down to where Beam's own local engine can't be downloaded.
LOCAL = "--runner=FnApiRunner"
WORDS = ("good", "dull", "great", "bad", "film", "")


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return models.open_bundle(tiny_bundle, {})


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.csv", "c.txt")]
    rows = [f"{WORDS[number % 6]} {'the plot was ' * (number % 7)}" for number in range(61)]
    paths[0].write_text("\n".join(rows))
    paths[1].write_text("text\n" + "\n".join(row or "bad" for row in rows[:23]))
    paths[2].touch()
    return paths


def test_beam_writes_the_bytes_that_one_machine_writes(monkeypatch, tmp_path, model, files):
    monkeypatch.setattr(parts, "_TEXTS", 8)
    count = resumable.predict_files(model, files, tmp_path / "ours.jsonl")
    assert predict_files_on_beam(model, files, tmp_path / "theirs.jsonl", LOCAL) == count > 80
    assert (tmp_path / "theirs.jsonl").read_bytes() == (tmp_path / "ours.jsonl").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "a.txt", "b.csv", "c.txt", "ours.jsonl", "theirs.jsonl"
    ]  # fmt: skip


@pytest.mark.slow
def test_workers_in_other_processes_write_the_same(tmp_path, model, files):
    resumable.predict_files(model, files, tmp_path / "ours.jsonl")
    workers = f"{LOCAL} --direct_num_workers=2 --direct_running_mode=multi_processing"
    predict_files_on_beam(model, files, tmp_path / "theirs.jsonl", workers)
    assert (tmp_path / "theirs.jsonl").read_bytes() == (tmp_path / "ours.jsonl").read_bytes()


def test_a_malformed_row_is_named_and_nothing_is_written(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
    files = parts.files_to_read("*.jsonl", model.columns, tmp_path / "out")
    with pytest.raises(UserError, match=r"^texts.jsonl:2: text"):
        predict_files_on_beam(model, files, tmp_path / "out", LOCAL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["texts.jsonl"]


def test_an_unknown_runner_is_refused(tmp_path, model, files):
    with pytest.raises(UserError, match="--beam=--runner=Wind: .*Wind"):
        predict_files_on_beam(model, files, tmp_path / "out", "--runner=Wind")
    assert not (tmp_path / "out").exists()


def verb(monkeypatch, *arguments):
    with monkeypatch.context() as patch:
        fresh_flags(patch)
        run.main(["predict", *arguments])


def test_the_verb_runs_it_on_a_bundle_alone(monkeypatch, tmp_path, tiny_run, tiny_bundle, files, capsys):
    arguments = (f"--input={files[0]}", f"--output={tmp_path / 'out'}")
    verb(monkeypatch, f"--export_dir={tiny_bundle}", f"--beam={LOCAL}", *arguments)
    assert capsys.readouterr().out == f"61 answers in {tmp_path / 'out'}\n"
    theirs = (tmp_path / "out").read_bytes()
    verb(monkeypatch, f"--workdir={tiny_run}", *arguments)
    assert (tmp_path / "out").read_bytes() == theirs
    for flags, message in (
        ((f"--workdir={tiny_run}", f"--beam={LOCAL}"), "--beam takes a bundle"),
        ((f"--workdir={tiny_run}", f"--export_dir={tiny_bundle}"), "either a run's --workdir or a bundle's"),
        ((), "either a run's --workdir or a bundle's"),
    ):
        with pytest.raises(UserError, match=message):
            verb(monkeypatch, *flags, *arguments)


def test_without_beam_installed_the_extra_is_named(monkeypatch, tmp_path, tiny_bundle, files):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, pipeline.__name__)
    monkeypatch.delattr(scoring, "pipeline")
    with pytest.raises(UserError, match=r"Beam isn't installed; pip install 'keras_bert_app\[beam\]'"):
        verb(
            monkeypatch,
            f"--export_dir={tiny_bundle}",
            f"--input={files[0]}",
            f"--output={tmp_path / 'out'}",
            f"--beam={LOCAL}",
        )
