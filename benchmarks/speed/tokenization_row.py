"""Tokenization, as benchmarks/tokenization.py measures it: beside Rust, tensorflow_text and KerasHub."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.preparation import ROOT

ROW = "tokenization"
# Of the texts; tensorflow_text's own tokenizers cut more of them otherwise than BERT's.
MOST_WITH_OTHER_IDS = 0.001


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """An entry for each tokenizer and load; `difference` is the share of texts with other ids than Rust's."""
    output = folder / "tokenization.jsonl"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.tokenization", f"--output={output}", f"--runs={rounds}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [entry(json.loads(line)) for line in output.read_text().splitlines() if 'ids": null' not in line]


def entry(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the output, as the other rows have it."""
    share = line["share_with_other_ids"]
    return {
        "library": "ours" if line["name"].startswith("ours") else "tokenizer",
        "setting": "",
        "precision": "",
        "contender": line["name"],
        "row": f"{ROW}, {line['load']}" + (", two at a time" if line["at_a_time"] > 1 else ""),
        "arrangement": "",
        "seconds": line["seconds"],
        "difference": share,
        "equal": share <= MOST_WITH_OTHER_IDS,
    }
