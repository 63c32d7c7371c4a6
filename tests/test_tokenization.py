"""The benchmark of tokenizers: what it counts, and what its tables say of given times."""

import pytest

from benchmarks import tokenization
from benchmarks.tokenization import BASELINE, MINILM, Contestant, Load


def test_texts_with_other_ids_are_counted():
    same = Contestant(list, lambda texts: [[len(text)] for text in texts], list)
    other = Contestant(list, lambda texts: [(min(len(text), 2),) for text in texts], list)
    counts = tokenization.num_disagreeing({BASELINE: same, "other": other}, ["a", "ab", "abc", "abcd"])
    assert counts == {BASELINE: 0, "other": 2}


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_every_contestant_encodes_every_batch_in_every_round(at_a_time):
    seen = {BASELINE: [], "other": []}
    contestants = {name: Contestant(tuple, seen[name].append, None) for name in seen}
    times = tokenization.measure(Load("pairs", [["a", "b"], ["c"]], at_a_time), contestants, 2)
    assert {name: len(values) for name, values in times.items()} == {BASELINE: 2, "other": 2}
    # Three rounds, of which the first isn't counted.
    assert all(sorted(batches) == [("a", "b")] * 3 + [("c",)] * 3 for batches in seen.values())


def test_a_ratio_is_of_one_round(capsys):
    loads = [Load("batches of 2", [["a", "b"], ["c", "d"]], 2), Load("one short text", [["a"]])]
    times = [
        {BASELINE: [2.0, 8.0, 4.0], "ours": [1.0, 2.0, 1.0]},
        {BASELINE: [1.0] * 3, "ours": [2.0, 2.0, 4.0], MINILM: [20.0] * 3},
    ]
    tokenization.print_tables(loads, times, {BASELINE: 0, "ours": 3}, 1500)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[2] == "| tokenizer | batches of 2, 2 at a time | one short text | texts with other ids |"
    assert lines[5] == "| ours | 4.00 (2.00 to 4.00) | 0.50 (0.25 to 0.50) | 3 of 1,500 |"
    assert lines[6] == f"| {BASELINE}, texts a second | 1 (0 to 2) | 1 (1 to 1) | |"
    spread = "20,000.00 (20,000.00 to 20,000.00) ms, ours 10.0 (10.0 to 20.0) % of that"
    assert lines[8] == f"One short text: {MINILM} takes {spread}"
