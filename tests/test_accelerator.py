"""The benchmark of accelerators, on the CPU and small: that it measures equal work, without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = (
    "import runpy, sys; sys.modules['tensorflow'] = None; "
    "runpy.run_module('benchmarks.accelerator', run_name='__main__')"
)


@pytest.mark.slow  # PyTorch compiles C++
def test_both_sides_give_the_same_on_padded_and_packed_rows(tmp_path):
    arguments = ["--sizes=tiny", "--lengths=16", "--slots=64", "--steps=1", "--rounds=1", "--dropout=0"]
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, f"--output={tmp_path / 'results.json'}"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 3
    # bfloat16 has steps of 1/64 at 4, the largest that normalised vectors have here.
    assert max(row["difference"] for row in rows) < 0.1
