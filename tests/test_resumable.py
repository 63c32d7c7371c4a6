"""Predicting what was interrupted: the same bytes as without, or a line that says why not."""

import bz2
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_bert_app.errors import UserError
from keras_bert_app.files import locked_folder
from keras_bert_app.scoring import models, parts, resumable
from keras_bert_app.training.progress import Progress

ROWS = [f"the {noun} was {word} {'a ' * length}" for length in range(4) for noun in ("film", "plot")
        for word in ("good", "dull", "great", "bad")]  # fmt: skip


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "_TEXTS", 5)


@pytest.fixture(scope="module")
def model(tiny_run):
    return models.open_run(tiny_run, {})


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(ROWS))
    return path


def predict(model, path, name="answers.jsonl"):
    files = [path] if isinstance(path, Path) else path
    count = resumable.predict_files(model, files, files[0].with_name(name))
    return count, files[0].with_name(name).read_bytes()


def interrupt(monkeypatch, model, path, after=3):
    """Predict and stop when so many parts are answered."""
    advance = Progress.advance

    def advance_or_stop(progress, *arguments, **named):
        advance(progress, *arguments, **named)
        if progress.done - progress.first == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "advance", advance_or_stop)
        predict(model, path)
    partial = next(path.parent.glob(".*.partial"))
    assert not path.with_name("answers.jsonl").exists()
    return partial


def test_what_was_interrupted_twice_has_the_bytes_of_what_was_not(monkeypatch, capsys, model, texts):
    _, whole = predict(model, texts, "whole.jsonl")
    interrupt(monkeypatch, model, texts)
    interrupt(monkeypatch, model, texts, after=1)
    capsys.readouterr()
    assert predict(model, texts) == (len(ROWS), whole)
    said = capsys.readouterr().err
    assert "predict: going on after 20 texts, whose answers are in" in said
    assert "predict: step 7, 100 % done" in said and "texts 32" in said
    assert sorted(path.name for path in texts.parent.iterdir()) == [
        "answers.jsonl", "texts.txt", "whole.jsonl"
    ]  # fmt: skip


# Kills itself at the N-th line of what writes, for N = 1, 1 + step, ..., in forks of one process.
KILLED = """
import os, signal, sys
from pathlib import Path
from keras_bert_app import files
from keras_bert_app.scoring import models, parts, resumable
parts._TEXTS = 2
folder = Path(sys.argv[1])
class Echo:
    def lines(self, texts):
        return b"".join(row["text"] + b"\\n" for row in texts)
model = models.Model(Echo(), {"text": "text"}, folder, "")
paths = sorted(folder.glob("*.txt"))
def predict(last):
    lines = 0
    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename not in (files.__file__, resumable.__file__):
            return None
        if event == "line":
            lines += 1
            if lines == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    resumable.predict_files(model, paths, folder / "out")
def child(last):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            predict(last)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
wanted = b"".join(path.read_bytes() for path in paths)
last = 1
while True:
    code = child(last)
    assert code in (0, -signal.SIGKILL), (last, code)
    assert code or (folder / "out").exists()
    if (folder / "out").exists():
        assert (folder / "out").read_bytes() == wanted, last
    if code == 0:
        break
    if last % 5 == 0:
        child(last + 40)
    assert child(0) == 0, last
    assert (folder / "out").read_bytes() == wanted, last
    assert sorted(os.listdir(folder)) == ["a.txt", "b.txt", "out"], last
    (folder / "out").unlink()
    last += int(sys.argv[2])
print(last)
"""


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_line_of_what_writes_it_goes_on_to_the_same_bytes(tmp_path, step):
    (tmp_path / "a.txt").write_text("1\n22\n")
    (tmp_path / "b.txt").write_text("333\n")
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), str(step)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.mark.slow
@pytest.mark.parametrize("source", ["--workdir", "--export_dir"])
def test_the_verb_killed_from_outside_goes_on_to_the_same_bytes(tiny_run, tiny_bundle, tmp_path, source):
    (tmp_path / "texts.txt").write_text("\n".join(ROWS * 1500))
    folder = {"--workdir": tiny_run, "--export_dir": tiny_bundle}[source]
    run = str(Path(__file__).parents[1] / "run.py")
    command = [sys.executable, run, "predict", f"{source}={folder}", f"--input={tmp_path / 'texts.txt'}"]
    subprocess.run([*command, f"--output={tmp_path / 'whole.jsonl'}"], check=True, capture_output=True)
    state = tmp_path / ".out.jsonl.partial" / "state.json"
    command.append(f"--output={tmp_path / 'out.jsonl'}")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        while not state.exists() and running.poll() is None:
            time.sleep(0.01)
        running.kill()
        assert running.wait() == -signal.SIGKILL
    assert 0 < json.loads(state.read_text())["texts"] < len(ROWS) * 1500
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0 and "going on after" in resumed.stderr, resumed.stderr
    assert resumed.stdout == f"48000 answers in {tmp_path / 'out.jsonl'}\n"
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("opener", [gzip.open, bz2.open])
def test_compressed_input_has_the_same_answers_and_goes_on_too(monkeypatch, model, texts, tmp_path, opener):
    _, whole = predict(model, texts, "whole.jsonl")
    path = tmp_path / ("texts.txt.gz" if opener is gzip.open else "texts.txt.bz2")
    with opener(path, "wb") as file:
        file.write(texts.read_bytes())
    interrupt(monkeypatch, model, path)
    assert predict(model, path) == (len(ROWS), whole)


def test_answers_lost_from_a_partial_file_are_made_anew(monkeypatch, capsys, model, texts):
    _, whole = predict(model, texts, "whole.jsonl")
    partial = interrupt(monkeypatch, model, texts)
    with open(partial / "answers.jsonl", "r+b") as file:
        file.truncate(100)
    assert predict(model, texts) == (len(ROWS), whole)
    assert "has lost answers that were in it; starting anew" in capsys.readouterr().err


def test_answers_that_were_not_recorded_are_cut_off(monkeypatch, model, texts):
    _, whole = predict(model, texts, "whole.jsonl")
    partial = interrupt(monkeypatch, model, texts)
    with open(partial / "answers.jsonl", "ab") as file:
        file.write(b'{"label": "half a li')
    assert predict(model, texts) == (len(ROWS), whole)


@pytest.mark.parametrize("rows", [["other", *ROWS[1:]], ROWS[:12], [*ROWS[:3], *ROWS[4:]]])
def test_input_that_changed_where_it_was_answered_is_refused(monkeypatch, model, texts, rows):
    partial = interrupt(monkeypatch, model, texts)
    before = (partial / "answers.jsonl").read_bytes()
    texts.write_text("\n".join(rows))
    with pytest.raises(
        UserError, match=r"partial was begun with an --input whose first 15 texts were others"
    ):
        predict(model, texts)
    assert (partial / "answers.jsonl").read_bytes() == before
    texts.write_text("\n".join(ROWS))
    assert predict(model, texts)[0] == len(ROWS)


def test_input_that_changed_further_on_is_answered_as_it_is_now(monkeypatch, model, texts):
    interrupt(monkeypatch, model, texts)
    texts.write_text("\n".join([*ROWS[:20], "good", "bad"]))
    assert predict(model, texts) == predict(model, texts, "whole.jsonl")


def test_another_model_or_column_is_refused(monkeypatch, model, tmp_path, tiny_bundle):
    path = tmp_path / "texts.csv"
    path.write_text("text,other\n" + "".join(f"{row},good\n" for row in ROWS))
    interrupt(monkeypatch, model, path)
    with pytest.raises(UserError, match=r"with another model or columns \(predict.model_sha256: .* -> "):
        predict(models.open_bundle(tiny_bundle, {}), path)
    other = models.Model(model.answerer, {"text": "other"}, model.path, model.sha256)
    with pytest.raises(UserError, match=r"\(predict.columns.text: 'text' -> 'other'\); put that back to go"):
        predict(other, path)
    assert predict(model, path)[0] == len(ROWS)


def test_a_malformed_row_is_refused_with_its_line_and_goes_on_when_it_is_mended(model, tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": row}) for row in ROWS]
    path.write_text("\n".join([*lines[:12], '{"text": 3}', *lines[13:]]))
    with pytest.raises(
        UserError, match=r"texts.jsonl:13: text .*; the answers to the first 10 texts are kept, the same comm"
    ):
        predict(model, path)
    path.write_text("\n".join(lines))
    assert json.loads((tmp_path / ".answers.jsonl.partial" / "state.json").read_text())["texts"] == 10
    assert predict(model, path) == predict(model, path, "whole.jsonl")


def test_where_nothing_was_answered_yet_nothing_is_left(model, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "good"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"texts.jsonl:2: text [^;]*; write a string[^;]*$"):
        predict(model, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["texts.jsonl"]


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl", "texts.jsonl.gz"])
def test_an_empty_file_gets_an_empty_output(model, tmp_path, name):
    with gzip.open(tmp_path / name, "wb") if name.endswith("gz") else open(tmp_path / name, "wb"):
        pass
    assert predict(model, tmp_path / name) == (0, b"")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["answers.jsonl", name]


def test_several_files_are_answered_one_after_the_other(monkeypatch, model, tmp_path):
    for number, name in enumerate(("a.txt", "b.txt", "c.txt")):
        (tmp_path / name).write_text("\n".join(ROWS[8 * number : 8 * number + 8]))
    files = parts.files_to_read(str(tmp_path / "*.txt"), {"text": "text"}, tmp_path / "all.jsonl")
    each = b"".join(predict(model, file, f"{file.stem}.jsonl")[1] for file in files)
    assert predict(model, files, "all.jsonl") == (24, each)


def test_large_texts_make_small_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "_BYTES", 100)
    (tmp_path / "texts.txt").write_bytes(b"\n".join([b"a" * 60] * 3 + [b"b" * 300] + [b"c"] * 7))
    read = list(parts.read_parts(tmp_path / "texts.txt", {"text": "text"}))
    assert [len(part.texts) for part in read] == [2, 2, 5, 2]
    assert read[-1].end == (tmp_path / "texts.txt").stat().st_size


def test_two_at_work_on_one_output_are_refused(model, texts):
    with (
        locked_folder(texts.with_name(".answers.jsonl.partial"), "at work"),
        pytest.raises(UserError, match=r"partial: another process is writing .*answers.jsonl; wait for it"),
    ):
        predict(model, texts)
