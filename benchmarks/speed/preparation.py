"""What is measured: one fine-tuned classifier, as this project's bundles and as each peer's files.

The folder gets `run` (the fine-tuned model), `float32`, `bfloat16` and `int8` (bundles), `huggingface` (the
same weights for the peers), `inputs.json`, `onnx` and `openvino`.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.speed import inputs
from benchmarks.speed.training import make_pretraining_batch

ROOT = Path(__file__).parents[2]
NUM_CALIBRATION = 300


def prepare(folder: Path, workdir: Path | None, precisions: Iterable[str], peers: Iterable[str]) -> None:
    """Make what isn't there yet; this project's bundles of these `precisions` are always made anew.

    Args:
        workdir: a run of configs/sentiment.py; None: one of one epoch is made in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workdir = workdir or folder / "run"
    if not (workdir / "model.keras").exists():
        run("finetune", "--config=configs/sentiment.py", f"--workdir={workdir}", "--config.train.epochs=1")
    if not (folder / "huggingface").exists():
        run("publish", f"--workdir={workdir}", "--format=huggingface", f"--output={folder / 'huggingface'}")
    if not (folder / "inputs.json").exists():
        call("preparation", f"write_inputs({str(folder)!r}, {str(workdir)!r})")
    if not (folder / "pretraining_model").exists():
        call("training_torch", f"make_pretraining_model(pathlib.Path({str(folder)!r}))")
    if not (folder / "expected.json").exists():
        call("training_torch", f"write_expected(pathlib.Path({str(folder)!r}))")
    for precision in precisions:
        bundle = folder / precision
        shutil.rmtree(bundle, ignore_errors=True)
        run("export", f"--workdir={workdir}", f"--export_dir={bundle}", f"--precision={precision}")
    for library, made in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        if library in peers and not (folder / made / "int8.done").exists():
            call(f"{library}_peer", f"make(pathlib.Path({str(folder)!r}))")
            (folder / made / "int8.done").touch()


def run(*arguments: str) -> None:
    """A verb of this project."""
    print("run.py", *arguments, flush=True)
    subprocess.run([sys.executable, ROOT / "run.py", *arguments], cwd=ROOT, check=True)


def call(module: str, expression: str) -> None:
    """Something of a module here, in a process of its own, as no two libraries share one."""
    print(module, expression, flush=True)
    program = f"import pathlib; from benchmarks.speed import {module}; {module}.{expression}"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def write_inputs(folder: str, workdir: str) -> None:
    """inputs.json, from the reviews as the run has split them."""
    from tokenizers import Tokenizer

    from keras_bert_app import features, quiet_tensorflow  # noqa: F401
    from keras_bert_app.training.finetuning import load_splits
    from keras_bert_app.training.workdir import read_config

    published = Path(folder) / "huggingface"
    tokenizer = Tokenizer.from_file(str(published / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max(inputs.MIXED))
    numbers = json.loads((published / "config.json").read_text())["label2id"]
    splits = load_splits(read_config(Path(workdir)))

    def pairs(records):
        return [(record.values[features.TEXT], numbers[record.values[features.LABEL]]) for record in records]

    rows = inputs.make(tokenizer, pairs(splits.evaluation))
    rows["training"] = inputs.encoded(tokenizer, pairs(splits.train))
    rows["calibration"] = {"ids": rows["training"]["ids"][:NUM_CALIBRATION]}
    batch = make_pretraining_batch(tokenizer.get_vocab_size(), rows["fixed"]["ids"])
    np.savez(Path(folder) / "pretraining.npz", **batch)
    (Path(folder) / "inputs.json").write_text(json.dumps(rows))
