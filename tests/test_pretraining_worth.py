"""The benchmark's arithmetic and its bookkeeping; it was run whole for docs/measurements.md."""

import dataclasses
import json

import pytest

from benchmarks import corpora, pretraining_worth
from benchmarks.pretraining_worth import DATA, LEARNING_RATES, SIZES, TRIAL_SEED
from configs import pretrain_cpu
from keras_bert_app import config as configuration
from keras_bert_app.data.readers import read_records
from keras_bert_app.training import finetuning


def runs_of(data, start, accuracies, **changes):
    return [
        {"data": data, "size": "all", "start": start, "seed": seed, "learning_rate": 3e-4}
        | {"test_accuracy": accuracy}
        | changes
        for seed, accuracy in enumerate(accuracies)
    ]


def trial(data, rate=3e-4, evaluation_accuracy=0.5, test_accuracy=0.0):
    names = {"data": data, "size": "all", "start": "random", "seed": TRIAL_SEED, "learning_rate": rate}
    return names | {"evaluation_accuracy": evaluation_accuracy, "test_accuracy": test_accuracy}


@pytest.mark.parametrize("data", DATA)
def test_the_two_starts_differ_in_nothing_but_their_weights(tmp_path, data):
    random, pretrained = (
        pretraining_worth.fine_tuning_config(tmp_path, data, "all", start, 3, 1e-3)
        for start in ("random", "pretrained")
    )
    changed = configuration.differences(configuration.to_dict(random), configuration.to_dict(pretrained))
    assert {line.split(":")[0].removeprefix("config.").split(".")[0] for line in changed} == {
        "init",
        "text",
        "encoder",
    }
    assert (random.text.vocabulary, pretrained.init) == (
        str(tmp_path / "vocab.txt"),
        str(tmp_path / "pretrained"),
    )
    # What an encoder becomes whose weights are those of the pretraining run.
    size = {"vocabulary_size": 8192}
    wanted = configuration.freeze(pretrain_cpu.get_config()).encoder
    given = dataclasses.asdict(configuration.complete_encoder(wanted, size))
    encoders = [
        configuration.complete_encoder(random.encoder, size),
        configuration.complete_encoder(pretrained.encoder, given),
    ]
    assert encoders[0] == encoders[1]
    assert encoders[0].dropout == 0.1


def test_of_a_set_few_texts_are_trained_on_and_all_others_kept_apart(tmp_path, monkeypatch):
    rows = [(f"label{number % 2}", f"text {number}") for number in range(200)]
    corpora.write_table(tmp_path / "mails.csv", rows)
    monkeypatch.setitem(DATA, "mails", {"train": "mails.csv", "test_fraction": 0.5})
    monkeypatch.setattr(pretraining_worth, "SIZES", {"20": (20, 2), "all": (None, 1)})
    pretraining_worth.write_splits(tmp_path, "mails")
    config = pretraining_worth.fine_tuning_config(tmp_path, "mails", "20", "random", 0, 1e-3)
    folder, columns = tmp_path / "labelled" / "mails", {"text": "text", "label": "label"}
    texts = {
        split: [record.values["text"] for record in read_records(path, columns)[0]]
        for split, path in (
            ("train", config.data.train),
            ("evaluation", config.data.evaluation),
            ("test", config.data.test),
        )
    }
    assert len(texts["train"]) == 20
    assert 70 < len(texts["test"]) < 130
    together = sum(texts.values(), [])
    assert len(together) == len(set(together)) < 200
    assert set(texts["train"]) < {
        record.values["text"] for record in read_records(folder / "train-all.csv", columns)[0]
    }
    loaded = finetuning.load_splits(config)
    assert [len(part) for part in (loaded.train, loaded.evaluation, loaded.test)] == [
        len(part) for part in texts.values()
    ]


def test_means_and_how_far_they_are_apart():
    data = next(iter(DATA))
    runs = [
        *(trial(name) for name in DATA),
        *runs_of(data, "pretrained", [0.7, 0.8, 0.9]),
        *runs_of(data, "random", [0.5, 0.6, 0.4])[::-1],
    ]
    (result,) = pretraining_worth.summarise(runs)
    assert (result["data"], result["size"], result["learning_rate"]) == (data, "all", 3e-4)
    assert result["random"]["accuracies"] == [0.5, 0.6, 0.4]
    assert result["random"]["mean"] == pytest.approx(0.5)
    assert result["random"]["error"] == pytest.approx(0.1 / 3**0.5)
    assert result["difference"] == pytest.approx(0.3)
    assert result["difference_error"] == pytest.approx(0.1 * (2 / 3) ** 0.5)


def test_a_set_is_summed_up_once_both_starts_have_two_runs():
    data = next(iter(DATA))
    runs = [*(trial(name) for name in DATA), *runs_of(data, "pretrained", [0.7, 0.8])]
    assert pretraining_worth.summarise([*runs, *runs_of(data, "random", [0.5])]) == []


def test_the_rate_is_chosen_on_the_evaluation_split_and_among_trials():
    data = next(iter(DATA))
    trials = [trial(data, 1e-3, 0.6, test_accuracy=0.1), trial(data, 3e-4, 0.5, test_accuracy=0.9)]
    other = runs_of(data, "random", [0.9], learning_rate=1.0, evaluation_accuracy=0.9)
    assert pretraining_worth.chosen_rate([*trials, *other], data, "all") == 1e-3


def test_what_is_done_is_not_repeated(tmp_path, monkeypatch):
    done = []

    def fine_tune(config):
        done.append((config.data.train, config.init, config.seed, config.train.learning_rate))
        better = config.train.learning_rate == LEARNING_RATES[-1]
        return {"evaluation_accuracy": 0.5 + better / 4, "test_accuracy": 0.5}

    monkeypatch.setattr(pretraining_worth, "fine_tune", fine_tune)
    monkeypatch.setattr(pretraining_worth, "write_splits", lambda folder, data: None)
    path = tmp_path / "runs.jsonl"
    pretraining_worth.add_runs(path, tmp_path, ["random"], [0])
    assert len(done) == len(set(done)) == len(DATA) * len(SIZES) * (len(LEARNING_RATES) + 1)
    pretraining_worth.add_runs(path, tmp_path, ["random", "pretrained"], [0, 1])
    assert len(done) == len(set(done)) == len(DATA) * len(SIZES) * (len(LEARNING_RATES) + 4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["learning_rate"] for row in rows if row["seed"] != TRIAL_SEED} == {LEARNING_RATES[-1]}


def test_the_report_has_every_figure():
    data = next(iter(DATA))
    runs = [*runs_of(data, "random", [0.5, 0.6]), *runs_of(data, "pretrained", [0.7, 0.8])]
    summary = pretraining_worth.summarise([*(trial(name) for name in DATA), *runs])
    figures = {"cpu_seconds": 1680.0, "wall_seconds": 1200.0, "num_hidden": 20_000, "mlm_loss": 5.0}
    entropies = {"unigram_entropy": 6.5, "training_unigram_cross_entropy": 6.75}
    report = pretraining_worth.report(figures | entropies, summary)
    assert "28.0 CPU minutes, 20.0 by the clock" in report
    assert "20,000 tokens held out: 5.000, 1.500 nats below their entropy 6.500" in report
    assert f"| {data} | all | random | 0.5000 0.6000 | 0.5500 | 0.0500 |" in report
    assert "| | | difference | +2.8 standard errors | +0.2000 | 0.0707 |" in report
