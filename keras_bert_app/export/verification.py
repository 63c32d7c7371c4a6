"""Proof that a bundle stands alone: copied elsewhere, run in fresh processes without this project."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert_app.errors import UserError
from keras_bert_app.export import batching, bundle, c_api, contents, operations, saved_model, warmup
from keras_bert_app.export.options import TOLERANCES
from keras_bert_app.export.versions import newest_version
from keras_bert_app.training.progress import say
from keras_bert_app.training.workdir import read_json

# What was checked, of which signature, how many files, operations or requests, and what was found.
Row = tuple[str, str, int | str, str]
# Each is a file that is run by itself: see their docstrings.
_RUNTIMES = {"Python TensorFlow": "python_api.py", "C API, no Python TensorFlow": "c_api.py"}


def verify(export_dir: Path, server_version: str | None = None) -> str:
    """Check the newest version in `export_dir`, or the version folder that it is; return a table of findings.

    Its files and signatures are compared with what it states, its operations with `server_version` where
    that is given. The graph is then copied alone to a temporary folder and asked what the trainer was asked
    when it was exported, once by Python TensorFlow in a process that doesn't import this project, once
    through the C API; through the latter it has to answer every warm-up request as well.

    Raises:
        UserError: what is wrong, where, and what to do: there is no bundle, its format is unknown, it isn't
            as it states, the server lacks operations, a request has no answer, or one that differs from the
            trainer's by more than the bundle allows, 1e-5 in float32.
    """
    path = newest_version(export_dir)
    rows = [("check", "of", "count", "found"), *inspect(path, server_version), *replay(path)]
    lines = [f"{check:<28} {subject:<16} {count:>8}  {found}" for check, subject, count, found in rows]
    return "\n".join([*lines, f"{path} stands alone"])


def inspect(path: Path, server_version: str | None) -> list[Row]:
    """What can be told of a version folder without running it.

    Raises:
        UserError: as `verify`.
    """
    content = statement(path)
    num_files = contents.check_files(path, content["files"], f"{bundle.EXTRA}/{bundle.BUNDLE_FILE}")
    graph = saved_model.read(path)
    signatures = saved_model.signatures(graph)
    contents.check_signatures(path, signatures, content["signatures"])
    if server_version is not None:
        operations.check(str(path / saved_model.FILE), graph, server_version)
    used = operations.used(graph)
    of_text = ", ".join(operations.of_text(used)) or "none"
    least = f"has them from {operations.minimum_server_version(graph)} on"
    return [
        ("files", "", num_files, "as exported, no links"),
        *(("signature", name, "", found["method_name"]) for name, found in signatures.items()),
        ("operations", "", len(used), f"tensorflow_text's: {of_text}"),
        ("stock model server", "", "", least + (f", {server_version} too" if server_version else "")),
        ("batching parameters", "", "", batching.check(path)),
    ]


def replay(path: Path) -> list[Row]:
    """What a version folder answers.

    Raises:
        UserError: as `verify`.
    """
    signatures = saved_model.signatures(saved_model.read(path))
    requests = example_requests(path, signatures)
    warm_up = warmup_requests(path / warmup.FILE, signatures)
    tolerance = statement(path).get("tolerance", TOLERANCES["float32"])
    rows = []
    with tempfile.TemporaryDirectory(prefix="verify-") as elsewhere:
        # Without what is there for servers and people, which the graph mustn't need.
        copy = Path(elsewhere) / "moved" / path.name
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(bundle.EXTRA))
        for runtime, script in _RUNTIMES.items():
            say(f"verify: asking the copy through {runtime}")
            # What the stock server runs is the C API's session.
            warming = warm_up if script == "c_api.py" else []
            answers = ask(f"{path}: {runtime}", script, copy, [*requests, *warming])
            differences = [
                compare(path, runtime, request, answer, tolerance)
                for request, answer in zip(requests, answers, strict=False)
            ]
            rows += [_compared(runtime, name, requests, differences) for name in signatures]
            for place, (request, answer) in enumerate(zip(warming, answers[len(requests) :], strict=True)):
                check_answer(f"{path / warmup.FILE}: record {place}", request, answer)
    asked = Counter(request["signature"] for request in warm_up)
    return rows + [("warm-up, through the C API", name, asked[name], "all answered") for name in signatures]


def _compared(
    runtime: str, signature: str, requests: Sequence[Mapping[str, Any]], differences: Sequence[float]
) -> Row:
    """One signature's requests of all: how many, their numbers of texts, lengths, and largest difference."""
    places = [place for place, request in enumerate(requests) if request["signature"] == signature]
    texts = sorted({_num_rows(requests[place]) for place in places})
    lengths = sorted({requests[place].get("length", 0) for place in places} - {0})
    found = (
        f"at most {max(differences[place] for place in places):.1e} from the trainer's; "
        f"texts {_listed(texts)}; tokens {_listed(lengths)}"
    )
    return runtime, signature, len(places), found


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "any"


def _num_rows(request: Mapping[str, Any]) -> int:
    return next(iter(request["inputs"].values()))["shape"][0]


def statement(path: Path) -> dict[str, Any]:
    """What a version folder states of itself.

    Raises:
        UserError: it doesn't, in another format, or not enough.
    """
    file = path / bundle.EXTRA / bundle.BUNDLE_FILE
    content = read_json(file, f"{path} is no bundle of run.py export, or an older one; export it again")
    if content.get("format_version") != bundle.FORMAT_VERSION:
        raise UserError(
            f"{path} has format {content.get('format_version')!r}, this version knows "
            f"{bundle.FORMAT_VERSION}; verify it with the version that made it, or export it again"
        )
    for key in ("files", "signatures"):
        if not isinstance(content.get(key), dict):
            raise UserError(f"{file}: states no {key}; export it again")
    return content


def example_requests(path: Path, signatures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The requests that a bundle comes with, and the trainer's answers.

    Raises:
        UserError: it has none, or none for one of the signatures.
    """
    file = path / bundle.EXTRA / bundle.EXAMPLES_FILE
    requests = read_json(file, f"{path} has no example requests; export it again")
    for name in signatures.keys() - {request["signature"] for request in requests}:
        raise UserError(f"{file}: has no request for signature {name}; export it again")
    return requests


def warmup_requests(file: Path, signatures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The requests of a warm-up file, as c_api.py takes them.

    Raises:
        UserError: the file can't be read, a record isn't one that its signature's method takes, or a
            signature has none.
    """
    requests = []
    for place, log in enumerate(warmup.read(file)):
        method, name, tensors = warmup.arrays(log)
        where = f"{file}: record {place}: signature {name}"
        if not method:
            raise UserError(f"{file}: record {place} is none that a server replays; export it again")
        if name not in signatures:
            raise UserError(f"{where} isn't there; export it again")
        if method != signatures[name]["method_name"]:
            raise UserError(
                f"{where} has the method {signatures[name]['method_name']!r}, the request {method!r}; "
                "export it again"
            )
        inputs = {key: c_api.encode_tensor(value) for key, value in tensors.items()}
        requests.append({"signature": name, "inputs": inputs})
    for name in signatures.keys() - {request["signature"] for request in requests}:
        raise UserError(f"{file}: has no request for signature {name}; export it again")
    return requests


def check_answer(where: str, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """See that an answer has a row for each of the request's.

    Raises:
        UserError: it is an error, or has not.
    """
    where = f"{where}: signature {request['signature']}"
    if "error" in answer:
        raise UserError(f"{where}: {' '.join(answer['error'].split())}; export it again")
    for name, tensor in answer["outputs"].items():
        if tensor["shape"][:1] != [_num_rows(request)]:
            raise UserError(
                f"{where}: {name} has shape {tensor['shape']} for {_num_rows(request)} rows; export it again"
            )


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


def compare(
    path: Path,
    runtime: str,
    request: Mapping[str, Any],
    answer: Mapping[str, Any],
    tolerance: float = TOLERANCES["float32"],
) -> float:
    """The largest difference of an answer to the trainer's.

    Raises:
        UserError: an error for an answer, other outputs, or a difference over `tolerance`.
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
        if not difference <= tolerance:  # so written, NaN fails too
            raise UserError(
                f"{where} differs from the trainer by {difference:.1e}, more than {tolerance:.0e}"
            )
        largest = max(largest, difference)
    return largest
