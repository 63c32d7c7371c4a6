"""From documents to a classifier through an encoder of one's own, in small; every step as it is typed."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import killed
import numpy as np
import pytest
from conftest import fresh_flags, tiny_config, tiny_rows

import run
from keras_bert_app import evaluation
from keras_bert_app.config import Config, PhaseConfig, complete_encoder
from keras_bert_app.data.examples_store import MANIFEST
from keras_bert_app.errors import UserError
from keras_bert_app.export import bundle
from keras_bert_app.scoring import models
from keras_bert_app.tasks.pretraining import PretrainingTask
from keras_bert_app.text.tokenizer import TokenizerOptions
from keras_bert_app.text.vocabulary import Vocabulary
from keras_bert_app.training import assembly, checkpoints, finetuning, initial, pretraining
from keras_bert_app.training import workdir as folders

# ml_collections' own, when it loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

REPOSITORY = Path(__file__).parents[1]
WORDS = [
    first + last for first in ("ba", "ke", "li", "mo", "nu") for last in ("ra", "sen", "tig", "do", "pas")
]
CONFIG = """
from keras_bert_app.config import default

def get_config():
    config = default()
    config.task.name = "pretraining"
    config.text.vocabulary = "{folder}/vocab.txt"
    config.text.max_length = 32
    config.data.train = "{folder}/examples"
    config.prepare.held_out = 0.2
    config.masking.unit = "word"
    config.encoder.update({{"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 32}})
    config.encoder.update({{"dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2}})
    config.encoder.max_positions = 32
    config.train.update({{"batch_size": 16, "epochs": 8, "learning_rate": 1e-2, "keep_checkpoints": 9}})
    return config
"""


def document(number):
    """Ten sentences of six words, all of them from a fifth of WORDS."""
    random = np.random.default_rng(number)
    words = WORDS[number % 5 :: 5]
    return " ".join(" ".join(random.choice(words, 6)).capitalize() + "." for _ in range(10))


def verb(*arguments):
    """`run.py ARGUMENTS`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        fresh_flags(patch)
        patch.delitem(run.sys.modules, "config_config", raising=False)  # the config file before
        run.main(list(arguments))


def read_config(path, **changes):
    """The config file's config, with keys of sections changed."""
    names = {}
    exec(path.read_text(), names)
    config = run.configuration.freeze(names["get_config"]())
    for section, keys in changes.items():
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **keys)}
        )
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with corpus/, vocab.txt, examples/, config.py and the finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "corpus").mkdir()
    for part in range(4):
        documents = [document(number) for number in range(part * 20, part * 20 + 20)]
        (folder / "corpus" / f"{part}.txt").write_text("\n\n".join(documents) + "\n")
    (folder / "config.py").write_text(CONFIG.format(folder=folder))
    corpus, config = f"--input={folder}/corpus/*.txt", f"--config={folder}/config.py"
    verb("vocab", corpus, f"--output={folder}/vocab.txt", "--vocab_size=200")
    verb("prepare", config, corpus, f"--output={folder}/examples", "--num_workers=1")
    verb("pretrain", config, f"--workdir={folder}/run")
    return folder


def test_the_three_verbs_end_with_an_encoder_that_has_learned(folder):
    assert set(WORDS) < set(Vocabulary.load(folder / "vocab.txt").pieces)
    manifest = json.loads((folder / "examples" / MANIFEST).read_text())
    assert manifest["documents"]["train"] + manifest["documents"]["held_out"] == 80
    names = {"config.json", "model.json", "vocab.txt", "provenance.json", "metrics.json", "model.keras"}
    assert names | {"report.html", "checkpoints", "summaries"} == {
        path.name for path in (folder / "run").iterdir()
    }
    metrics = json.loads((folder / "run" / "metrics.json").read_text())["metrics"]
    assert metrics["num_examples"] == manifest["splits"]["held_out"]["num_examples"]
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["mlm_loss"]))
    assert {"mlm_accuracy", "nsp_loss", "nsp_accuracy"} < metrics.keys()
    # What one could say without looking: a seventh of the tokens are full stops, the others equally likely.
    unigram_entropy = np.log(7) / 7 + np.log(len(WORDS) * 7 / 6) * 6 / 7
    # The few tokens held out aren't as even as that.
    assert unigram_entropy - 0.15 < metrics["unigram_entropy"] <= unigram_entropy
    assert metrics["mlm_loss"] < unigram_entropy - 0.8
    keras.saving.load_model(folder / "run" / "model.keras")


def test_evaluating_again_finds_what_training_found(folder):
    best = folders.best_step(folder / "run")
    state = checkpoints.read_state(folder / "run", best)
    found = {
        name.removeprefix("evaluation/"): value
        for row in state["history"]
        if row["step"] == best
        for name, value in row.items()
        if name.startswith("evaluation/")
    }
    summary = evaluation.evaluate_test(folder / "run")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())["metrics"]
    assert found == pytest.approx({name: metrics[name] for name in found}, rel=1e-5)
    assert state["best_value"] == pytest.approx(-metrics["mlm_loss"], rel=1e-5)
    assert f"perplexity         {metrics['perplexity']:.4f}" in summary
    assert f"NSP accuracy       {metrics['nsp_accuracy']:.4f}" in summary


def test_a_run_begun_again_from_its_middle_hides_the_same_tokens_and_ends_with_the_same_bits(
    folder, tmp_path
):
    shutil.copytree(folder / "run", tmp_path / "run")
    steps = checkpoints.steps(folder / "run")
    checkpoints.prune(tmp_path / "run", steps[:1])
    pretraining.pretrain(read_config(folder / "config.py"), tmp_path / "run")
    assert checkpoints.steps(tmp_path / "run") == steps
    for name in (checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.STATE):
        one, other = (checkpoints.folder_of(place / "run", steps[-1]) / name for place in (folder, tmp_path))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_killed_and_resumed_ends_with_the_same_bits_dropout_and_masking_on(folder, tmp_path, replicas):
    config = read_config(
        folder / "config.py",
        encoder={"dropout": 0.1, "attention_dropout": 0.1},
        train={
            "strategy": "none" if replicas == 1 else "mirrored",
            "num_devices": replicas,
            "epochs": 1,
            "checkpoint_every": 4,
            "deterministic": True,
        },
    )
    killed.assert_same_bits_when_killed("pretrain", config, tmp_path, last=6, saved=4)


@pytest.mark.slow
def test_workers_of_which_one_is_killed_start_again_and_end_with_the_bits_of_those_left_alone(
    folder, tmp_path
):
    def launched(name):
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run.py"), "launch", "pretrain", f"--config={folder}/config.py"]
            + [f"--workdir={tmp_path / name}", "--config.train.checkpoint_every=3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    left_alone, hit = launched("alone"), launched("hit")
    wait_for = checkpoints.folder_of(tmp_path / "hit", 12)
    while not wait_for.exists() and hit.poll() is None:
        time.sleep(0.1)
    workers = subprocess.run(
        ["pgrep", "-f", f"{tmp_path / 'hit'}.*multi_worker"], capture_output=True, text=True, check=True
    )
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    said, _ = hit.communicate()
    left_alone.communicate()
    assert (hit.returncode, left_alone.returncode) == (0, 0), said
    assert "was ended by signal 9 (Killed)" in said and "restart 1 of 3" in said
    assert "going on from the checkpoint of step" in said and "Traceback" not in said
    last = checkpoints.steps(tmp_path / "alone")[-1]
    for name in (checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.STATE):
        one, other = (
            checkpoints.folder_of(tmp_path / run_name, last) / name for run_name in ("alone", "hit")
        )
        assert one.read_bytes() == other.read_bytes(), name
    assert (tmp_path / "hit" / "report.html").exists()


@pytest.mark.parametrize(
    "changes", [{"precision": "mixed_float16"}, {"optimizer": "lamb", "schedule": "cosine", "jit": True}]
)
def test_other_recipes_learn_too(folder, tmp_path, changes):
    config = read_config(
        folder / "config.py",
        train={"epochs": 4, "group_by_length": False} | changes,
        masking={"max_predictions": 6},
    )
    state = pretraining.pretrain(config, tmp_path / "run")
    losses = [row["evaluation/mlm_loss"] for row in state.history if "evaluation/mlm_loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.1


def test_phases_take_short_sequences_first_and_small_batches(folder, tmp_path):
    config = read_config(folder / "config.py", text={"max_length": 16}, prepare={"held_out": 0.1})
    pretraining.prepare(config, str(folder / "corpus"), tmp_path / "short", 1)
    config = read_config(folder / "config.py", train={"epochs": 2})
    phases = (
        PhaseConfig(share=0.25, train=str(tmp_path / "short"), batch_size=8),
        PhaseConfig(share=0.5, train=str(tmp_path / "short")),
        PhaseConfig(share=0.25),
    )
    state = pretraining.pretrain(dataclasses.replace(config, phases=phases), tmp_path / "run")
    sizes = [
        json.loads((place / MANIFEST).read_text())["splits"]["train"]["num_examples"]
        for place in (tmp_path / "short", folder / "examples")
    ]
    short, small, long = -(-sizes[0] // 16), -(-sizes[0] // 8), -(-sizes[1] // 16)
    assert state.step == round(0.5 * small) + short + round(0.5 * long) and state.phase == 2
    evaluation.evaluate_test(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    held_out = json.loads((folder / "examples" / MANIFEST).read_text())["splits"]["held_out"]
    assert report["metrics"]["num_examples"] == held_out["num_examples"]


def test_a_classifier_starts_from_the_encoder(folder, tmp_path, capsys):
    changes = {"init": str(folder / "run"), "text.vocabulary": None, "train.epochs": 1}
    config = tiny_config(tmp_path / "data", tiny_rows(), **changes)
    config = dataclasses.replace(config, encoder=Config().encoder)
    finetuning.finetune(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert f"weights from {folder}/run; freshly initialised: head/logits/kernel, head/logits/bias\n" in said
    assert "left out: masked_head/" in said
    description = folders.ModelDescription.load(tmp_path / "run")
    assert description.vocabulary.sha256 == Vocabulary.load(folder / "vocab.txt").sha256
    model = description.task.build_model(description.encoder, "float32")
    assembly.initialise(model, initial.load_pretrained(config.init), config, description.task)
    step = folders.best_step(folder / "run")
    saved = checkpoints.read_tensors(checkpoints.folder_of(folder / "run", step) / checkpoints.MODEL)
    for weight in model.get_layer("encoder").weights:
        np.testing.assert_array_equal(weight.numpy(), saved[weight.path], err_msg=weight.path)


@pytest.mark.parametrize("pack", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_pooler_that_was_not_pretrained_is_fresh_and_named(folder, tmp_path, capsys, pack):
    config = read_config(
        folder / "config.py",
        prepare={"objective": "none", "pack": pack},
        data={"train": str(tmp_path / "examples")},
        train={"epochs": 1},
    )
    pretraining.prepare(config, str(folder / "corpus"), tmp_path / "examples", 1)
    pretraining.pretrain(config, tmp_path / "run")
    assert "pair" not in evaluation.evaluate_test(tmp_path / "run").lower().replace("nsp", "pair")
    task = finetuning.TASKS["classification"](["a", "b"], ["text"])
    pretrained = initial.load_pretrained(str(tmp_path / "run"))
    model = task.build_model(complete_encoder(Config().encoder, pretrained.encoder), "float32")
    with pytest.raises(UserError, match=r"for fresh ones: --config.fresh=\"\('head', 'pooler'\)\""):
        assembly.initialise(model, pretrained, Config(), task)
    capsys.readouterr()
    assembly.initialise(model, pretrained, Config(fresh=("pooler",)), task)
    assert "freshly initialised: encoder/pooler/kernel, encoder/pooler/bias, head/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"train": None}},
            "config.data.train is not set; give the folder that `run.py prepare` wrote",
        ),
        ({"data": {"train": "no/such"}}, "no/such: no manifest.json there"),
        ({"text": {"max_length": 33}}, "config.text.max_length is 33, but the encoder has 32 positions"),
        ({"text": {"max_length": 16}}, "examples: made with max_length 32, but config.text.max_length is 16"),
        ({"text": {"lower_case": False}}, "made with lower_case True, but config.text.lower_case is False"),
        (
            {"text": {"strip_accents": False}},
            "made with strip_accents True, but config.text.strip_accents is",
        ),
        (
            {"text": {"split_chinese": False}},
            "made with split_chinese True, but config.text.split_chinese is",
        ),
        (
            {"text": {"never_split": ("[MASK]",)}},
            "made with never_split [], but config.text.never_split is ['",
        ),
        ({"prepare": {"objective": "sop"}}, "made with objective nsp, but config.prepare.objective is sop"),
        ({"task": {"name": "classification"}}, "config.task.name is classification; `run.py pretrain` takes"),
        ({"train": {"jit": True}}, "config.train.jit compiles anew for each number of hidden tokens; set "),
        ({"prepare": {"pack": True}}, "packed into a row only where the pair objective is none; it is nsp"),
        ({"train": {"metric": "perplexity"}}, "config.train.metric is 'perplexity'; pretraining has mlm_log"),
        ({"text": {"vocabulary": "OTHER"}}, "examples: made with another vocabulary than"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_a_folder_is_made(folder, tmp_path, changes, message):
    if changes.get("text", {}).get("vocabulary"):
        other = Vocabulary((*Vocabulary.load(folder / "vocab.txt").pieces, "more"))
        other.save(tmp_path / "other.txt")
        changes = {"text": {"vocabulary": str(tmp_path / "other.txt")}}
    with pytest.raises(UserError) as error:
        pretraining.pretrain(read_config(folder / "config.py", **changes), tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_pretraining_run_answers_no_texts(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("bara\n")
    calls = (
        lambda: bundle.export(folder / "run", tmp_path / "exported"),
        lambda: models.open_run(folder / "run", {}),
        lambda: evaluation.evaluate_file(folder / "run", str(tmp_path / "texts.txt")),
    )
    for call in calls:
        with pytest.raises(
            UserError, match=r"holds a pretraining network, which answers no texts; fine-tune it first: "
        ):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_documents_without_words_are_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01" * 100)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="nothing to learn a vocabulary from"):
        pretraining.learn(str(tmp_path / "*.txt"), tmp_path / "vocab.txt", 100, TokenizerOptions())
    with pytest.raises(UserError, match=r"no such file"):
        pretraining.learn(str(tmp_path / "*.jsonl"), tmp_path / "vocab.txt", 100, TokenizerOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.txt", "empty.txt"]


def test_what_of_the_documents_is_left_out_is_said(tmp_path):
    (tmp_path / "good.txt").write_text(document(1))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe not UTF-8")
    said = pretraining.learn(str(tmp_path / "*.txt"), tmp_path / "new" / "vocab.txt", 100, TokenizerOptions())
    assert said.endswith(f"left out: 1 not UTF-8 (the first {tmp_path}/bad.txt:1)")
    assert len(Vocabulary.load(tmp_path / "new" / "vocab.txt")) <= 100


def test_the_default_metric_is_the_tasks_first():
    assert Config().train.metric is None
    assert PretrainingTask.selection_metrics[0] == "mlm_log_likelihood"
