"""Work in other processes: all of it done, and a killed process told from a mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_bert_app.data.workers import Workers
from keras_bert_app.errors import UserError


def write(tool, path):
    path.write_text(f"{tool['name']} {os.getpid()}")
    return path.name


def fail(tool):
    raise ValueError(tool["name"])


def die(tool):
    os._exit(9)


def test_calls_are_made_here_with_one_tool(tmp_path):
    made, done = [], []

    def make(name):
        made.append(name)
        return {"name": name}

    with Workers(1, make, "tool") as workers:
        names = workers.run(write, [(tmp_path / str(number),) for number in range(3)], done.append)
        assert names == ["0", "1", "2"]
        workers.run(write, [(tmp_path / "3",)])
    assert made == ["tool"] and done == [1, 2, 3]
    assert {path.read_text() for path in tmp_path.iterdir()} == {f"tool {os.getpid()}"}


def test_workers_are_forked_from_a_process_that_has_imported_what_they_need(tmp_path):
    code = """
import json, sys
from keras_bert_app.data.workers import Workers, start_importing

def imported(tool):
    return "tensorflow" in sys.modules

if __name__ == "__main__":
    start_importing("keras_bert_app.quiet_tensorflow")
    with Workers(2, dict) as workers:
        print(json.dumps([*workers.run(imported, [()] * 2), imported(None)]))
"""
    (tmp_path / "program.py").write_text(code)
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == [True, True, False] and done.stderr == b""


def test_a_tool_that_is_not_needed_is_not_made():
    with Workers(1, fail) as workers:
        workers.run(write, [])


def test_other_processes_make_all_calls_and_their_failures_are_told(tmp_path):
    done = []
    with Workers(2, dict, [("name", "tool")]) as workers:
        names = workers.run(write, ((tmp_path / str(number),) for number in range(20)), done.append)
        assert names == [str(number) for number in range(20)]
        with pytest.raises(ValueError, match="tool"):
            workers.run(fail, [()])
        with pytest.raises(UserError, match="a worker process was killed, .* run the same again to go on"):
            workers.run(die, [()] * 10)
    texts = [path.read_text().split() for path in tmp_path.iterdir()]
    assert len(texts) == 20 and done == list(range(1, 21))
    assert {name for name, _ in texts} == {"tool"} and str(os.getpid()) not in {number for _, number in texts}
