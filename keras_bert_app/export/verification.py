"""Proof that a bundle stands alone: copied elsewhere, run in fresh processes without this project."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle, c_api
from keras_bert_app.training.workdir import read_json

TOLERANCE = 1e-5
# Each is a file that is run by itself: see their docstrings.
_RUNTIMES = {"Python TensorFlow": "python_api.py", "C API, no Python TensorFlow": "c_api.py"}


def verify(export_dir: Path) -> str:
    """Check the newest version in `export_dir`, or the version folder that it is; return a table of findings.

    The bundle is copied to a temporary folder and asked what the trainer was asked when it was exported, once
    by Python TensorFlow in a process that doesn't import this project, once through the C API.

    Raises:
        UserError: there is no bundle, its format is unknown, or an answer differs from the trainer's by more
            than 1e-5.
    """
    path = newest_version(export_dir)
    content = read_json(
        path / bundle.EXTRA / bundle.BUNDLE_FILE, f"{path} is no bundle that run.py export wrote"
    )
    if content.get("format_version") != bundle.FORMAT_VERSION:
        raise UserError(
            f"{path} has format {content.get('format_version')!r}, this version knows "
            f"{bundle.FORMAT_VERSION}; verify it with the version that made it, or export it again"
        )
    requests = read_json(
        path / bundle.EXTRA / bundle.EXAMPLES_FILE, f"{path} has no example requests; export it again"
    )
    lines = [f"{'runtime':<28} {'signature':<16} {'texts':>5}  largest difference"]
    with tempfile.TemporaryDirectory(prefix="verify-") as elsewhere:
        copy = shutil.copytree(path, Path(elsewhere) / "moved" / path.name)
        for runtime, script in _RUNTIMES.items():
            answers = ask(f"{path}: {runtime}", script, copy, requests)
            for request, answer in zip(requests, answers, strict=True):
                difference = compare(path, runtime, request, answer)
                rows = next(iter(request["inputs"].values()))["shape"][0]
                lines.append(f"{runtime:<28} {request['signature']:<16} {rows:>5}  {difference:.1e}")
    return "\n".join([*lines, f"{path} stands alone"])


def newest_version(export_dir: Path) -> Path:
    """The folder of the newest version, or `export_dir` itself where it is one.

    Raises:
        UserError: there is none.
    """
    if (export_dir / "saved_model.pb").exists():
        return export_dir
    versions = bundle.versions(export_dir)
    if not versions:
        raise UserError(f"{export_dir} has no version folder; `run.py export` writes one")
    return export_dir / str(versions[-1])


def ask(where: str, script: str, path: Path, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers of a fresh, isolated process that runs `script` on the bundle at `path`.

    `where` begins the messages of errors.

    Raises:
        UserError: the process fails, or has imported this project.
    """
    request = {
        "export_dir": str(path),
        "requests": [{"signature": row["signature"], "inputs": row["inputs"]} for row in requests],
    }
    process = subprocess.run(
        [sys.executable, "-I", str(Path(c_api.__file__).with_name(script))],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=path.parent,
        check=False,
    )
    try:
        reply = json.loads(process.stdout)
    except ValueError as error:
        raise UserError(
            f"{where}: {script} ended with code {process.returncode}: {process.stderr[-2000:]}"
        ) from error
    if "error" in reply:
        raise UserError(f"{where}: {' '.join(reply['error'].split())}")
    if reply["modules"]["keras_bert_app"]:
        raise UserError(f"{where}: {script} imported keras_bert_app, so nothing is proved")
    return reply["answers"]


def compare(path: Path, runtime: str, request: Mapping[str, Any], answer: Mapping[str, Any]) -> float:
    """The largest difference of an answer to the trainer's.

    Raises:
        UserError: an error for an answer, other outputs, or a difference over 1e-5.
    """
    where = f"{path}: {runtime}, signature {request['signature']}"
    if "error" in answer:
        raise UserError(f"{where}: {answer['error']}")
    if answer["outputs"].keys() != request["outputs"].keys():
        raise UserError(
            f"{where} gives {sorted(answer['outputs'])}, the trainer {sorted(request['outputs'])}"
        )
    largest = 0.0
    for name, wanted in request["outputs"].items():
        one, other = c_api.decode_tensor(wanted), c_api.decode_tensor(answer["outputs"][name])
        if one.shape != other.shape or one.dtype != other.dtype:
            raise UserError(
                f"{where}: {name} is {other.dtype} {other.shape}, the trainer's {one.dtype} {one.shape}"
            )
        if one.dtype == object:
            if not np.array_equal(one, other):
                raise UserError(f"{where}: {name} differs from the trainer's")
            continue
        difference = float(np.max(np.abs(one.astype(float) - other), initial=0.0))
        if not difference <= TOLERANCE:  # so written, NaN fails too
            raise UserError(
                f"{where} differs from the trainer by {difference:.1e}, more than {TOLERANCE:.0e}"
            )
        largest = max(largest, difference)
    return largest
