"""What `run.py import` costs in time and memory for a BERT-base of each format.

    python -m benchmarks.import_cost --runs=3

The weights are random; transformers writes them, and `run.py publish` the other formats. Each import runs
--runs times on BERT-base and on a tiny network, in turns; the latter is what starting, importing libraries
and comparing cost whatever the size. Printed are the least, median and largest of: the seconds that import
itself states, from the source to the folder; the seconds of the whole command, less the tiny one's; and
likewise memory at its peak, in megabytes: anonymous pages of all its processes, and RSS of the largest.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import transformers
from absl import app, flags

from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary

RUNS = flags.DEFINE_integer("runs", 3, "imports of each format")
FORMATS = flags.DEFINE_list("formats", ["huggingface", "google", "kerashub"], "formats to import from")
ROOT = Path(__file__).parents[1]
SIZES = {
    "tiny": {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8},
    "base": {},
}
# Each stops the process for some milliseconds.
_SECONDS_BETWEEN_SAMPLES = 0.2


def make_sources(folder: Path) -> dict[tuple[str, str], Path]:
    """(format, size) -> a source; all of them hold the same encoder of that size."""
    sources = {}
    for size, settings in SIZES.items():
        config = transformers.BertConfig(hidden_act="gelu_new", **settings)
        original = folder / f"original-{size}"
        transformers.BertModel(config).save_pretrained(original)
        more = config.vocab_size - len(SPECIAL_TOKENS)
        vocabulary = Vocabulary((*SPECIAL_TOKENS, *(f"piece{number}" for number in range(more))))
        vocabulary.save(original / "vocab.txt")
        run("import", f"--source={original}", f"--output={folder / size}")
        for name in FORMATS.value:
            sources[name, size] = folder / f"{name}-{size}"
            output = f"--output={sources[name, size]}"
            run("publish", f"--workdir={folder / size}", f"--format={name}", output)
    return sources


def run(*arguments: str) -> None:
    """Run a verb to its end."""
    subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, check=True, capture_output=True)


def measure(source: Path) -> dict[str, float]:
    """Import once, watched."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", "import", f"--source={source}", f"--output={folder}/run"]
        started, peaks = time.monotonic(), {"anonymous": 0, "largest_rss": 0}
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                held = [memory(number) for number in descendants(process.pid)]
                peaks["anonymous"] = max(peaks["anonymous"], sum(one[0] for one in held))
                peaks["largest_rss"] = max(peaks["largest_rss"], *(one[1] for one in held), 0)
                time.sleep(_SECONDS_BETWEEN_SAMPLES)
            seconds, said = time.monotonic() - started, process.stdout.read()
    stated = float(re.search(r"\((\d+\.\d) s\)", said)[1])
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 10**6
    return {"stated_seconds": stated, "seconds": seconds, "source_megabytes": size} | peaks


def descendants(number: int) -> list[int]:
    """A process and those that it started, as far as they still run."""
    try:
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    except OSError:
        return []
    return [number, *(one for child in children for one in descendants(int(child)))]


def memory(number: int) -> tuple[float, float]:
    """Megabytes of anonymous pages, and of all pages."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # it has ended
        return 0, 0
    values = {line.split()[0]: int(line.split()[1]) * 1024 / 10**6 for line in lines}
    return values.get("Anonymous:", 0), values.get("Rss:", 0)


def main(_) -> None:
    """Make the sources, import in turns, print."""
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder))
        results = {key: [] for key in sources}
        for _ in range(RUNS.value):
            for key, source in sources.items():
                results[key].append(measure(source))
    for name in FORMATS.value:
        line = {"format": name, "source_megabytes": round(results[name, "base"][0]["source_megabytes"])}
        for key in ("stated_seconds", "seconds", "anonymous", "largest_rss"):
            start = statistics.median(run[key] for run in results[name, "tiny"])
            less = 0 if key == "stated_seconds" else start
            values = sorted(run[key] - less for run in results[name, "base"])
            line[key] = [round(value, 1) for value in (values[0], statistics.median(values), values[-1])]
            line[f"{key}_of_tiny"] = round(start, 1)
        print(json.dumps(line))


if __name__ == "__main__":
    app.run(main)
