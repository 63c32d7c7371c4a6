"""The speed benchmark's own reckoning: what is measured, whether work is equal, what the figures say."""

import io
import itertools
import json

import numpy as np
import pytest

from benchmarks.speed import inputs, report, team, training, worker
from benchmarks.speed.contenders import CONTENDERS, Contender


def test_the_mixed_batch_is_short_texts_with_a_long_tail():
    assert len(inputs.MIXED) == 64
    assert (min(inputs.MIXED), max(inputs.MIXED), sum(inputs.MIXED)) == (4, 128, 1985)


@pytest.mark.parametrize("arrangement", ["padded", "quarters", "cuts", "singly"])
def test_every_text_is_in_one_group(arrangement):
    groups = inputs.groups(inputs.MIXED, arrangement)
    assert sorted(np.concatenate(groups).tolist()) == list(range(64))


def test_the_best_cuts_are_those_of_a_search_of_all():
    lengths = sorted([4, 4, 5, 9, 10, 11, 30, 31, 60, 128])

    def slots(cuts):
        parts = np.split(np.array(lengths), cuts)
        return sum(len(part) * part[-1] for part in parts)

    least = min(slots(cuts) for cuts in itertools.combinations(range(1, 10), 3))
    assert slots(inputs.best_cuts(lengths, 4)) == least < slots([3, 5, 8])


def test_padding_is_masked():
    batch = inputs.pad([[5, 6, 7], [8]])
    assert batch["token_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["padding_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    "results", [[[0.2, 0.8], [0.5, 0.5]], [[0.2, 0.8]], [[0.2, 0.8], [float("nan"), 0.6]]]
)
def test_wrong_results_are_not_equal(results):
    expected = [[0.2, 0.8], [0.4, 0.6]]
    assert team.is_equal(team.difference(expected, expected), "float32")
    assert not team.is_equal(team.difference(results, expected), "float32")


def test_wrong_labels_are_not_equal():
    assert team.difference(["a", "b"], ["a", "b"]) == 0.0
    assert not team.is_equal(team.difference(["a", "a"], ["a", "b"]), "float32")


class Imagined:
    """A contender that gives fixed results in so many seconds a round."""

    def __init__(self, name, results, seconds):
        self.contender = Contender.parse(name)
        self._results, self._seconds = results, iter(seconds)

    def ask(self, do, **_):
        if self._results is None:
            raise team.ContenderError("it broke")
        return {"results": self._results, "seconds": 1.0 if do == "prepare" else next(self._seconds)}


def measured(*processes, row="uniform"):
    return team.measure(processes, row, [[0.5, 0.5]], rounds=3)


@pytest.fixture(autouse=True)
def without_sleep(monkeypatch):
    monkeypatch.setattr(team, "SECONDS_TO_SLEEP", 0)


def test_the_ratio_is_the_median_of_the_rounds_own_ratios():
    entries = measured(
        Imagined("ours-float32", [[0.5, 0.5]], [1.0, 2.0, 4.0]),
        Imagined("openvino-float32", [[0.5, 0.5]], [3.0, 4.0, 2.0]),
    )
    (verdict,) = report.judge(entries)
    assert verdict["ratio"] == {"median": 2.0, "least": 0.5, "most": 3.0}
    assert verdict["best_peer"] == "openvino-float32, padded" and verdict["reached"]


def test_peers_of_other_results_and_those_that_fail_are_no_measure():
    entries = measured(
        Imagined("ours-float32", [[0.5, 0.5]], [1.0] * 3),
        Imagined("openvino-float32", [[0.9, 0.1]], [0.1] * 3),
        Imagined("onnxruntime-float32", None, []),
        Imagined("pytorch-eager-float32", [[0.5, 0.5]], [0.5] * 3),
    )
    (verdict,) = report.judge(entries)
    assert verdict["best_peer"] == "pytorch-eager-float32, padded"
    assert verdict["ratio"]["median"] == 0.5 and not verdict["reached"]
    table = report.table(entries, {})
    assert "onnxruntime-float32, padded | failed" in table and "4.0e-01, not counted" in table


def test_peers_sorted_by_hand_are_asked_of_in_bars_of_their_own():
    entries = [
        entry
        for name, seconds in (("ours-float32", [1.0, 1.0, 1.0]), ("openvino-float32", [4.0] * 3))
        for entry in measured(Imagined(name, [[0.5, 0.5]], seconds), row="uniform")
    ]
    padded, quarters = dict(entries[1], row="mixed"), dict(entries[1], row="mixed", seconds=[2.0] * 3)
    entries = [dict(entries[0], row="mixed"), padded, quarters | {"arrangement": "quarters"}]
    found = {verdict["name"]: verdict["ratio"]["median"] for verdict in report.judge(entries)}
    assert found == {"mixed": 4.0, "mixed, sorted by hand": 2.0}


def test_every_bar_has_contenders():
    peers = {(one.precision, one.setting) for one in CONTENDERS.values() if not one.is_ours}
    for bar in report.BARS:
        assert any(precision in bar.peers for precision, _ in peers)


def test_a_paced_loop_takes_the_steps_asked_for_and_no_more():
    answers = io.StringIO()
    requests = [json.dumps({"do": "prepare"}), json.dumps({"do": "time", "repeats": 2})]
    pacer, steps = training.Pacer(iter(requests), answers), 0
    pacer.begin(0.25)
    with pytest.raises(SystemExit):
        while True:
            steps += 1
            pacer.step_done()
    started, warm, timed = map(json.loads, answers.getvalue().splitlines())
    assert steps == training.WARM_STEPS + 2
    assert started == {} and warm["results"] == [0.25] and "results" not in timed


def test_the_pretraining_batch_hides_what_it_says():
    ids = np.random.default_rng(0).integers(2000, 3000, (32, 128))
    ids[:, [0, -1]] = 101, 102
    batch = training.make_pretraining_batch(30522, ids.tolist())
    ids[:, 63] = 102
    there = np.take_along_axis(ids, batch["masked_positions"], 1)
    assert (there == batch["masked_ids"]).all() and (there >= 2000).all()
    assert ((batch["token_ids"] != ids).sum(1) <= 20).all()
    assert 0.7 < (np.take_along_axis(batch["token_ids"], batch["masked_positions"], 1) == 103).mean() < 0.9


def test_our_own_contender_computes_a_row(tiny_bundle, tmp_path):
    (tmp_path / "float32").symlink_to(tiny_bundle)
    rows = {"ids": [[1, 5, 6, 2], [1, 5, 2]], "texts": ["gut", "übel gut"], "labels": [0, 1]}
    (tmp_path / "inputs.json").write_text(json.dumps({"mixed": rows}))
    ours = worker.Worker("ours-float32", tmp_path)
    results = np.array(ours.prepare("mixed", "padded")["results"])
    singly = np.array(ours.prepare("mixed", "singly")["results"])
    np.testing.assert_allclose(results, singly, atol=1e-6)
    np.testing.assert_allclose(results.sum(-1), 1)
    assert set(ours.first("mixed")["results"]) <= {"gut", "übel"}
    assert ours.time("mixed", "padded", 2)["seconds"] > 0
