"""Parts held out by hash."""

import random

import pytest

from keras_bert_app import features
from keras_bert_app.data.readers import Record
from keras_bert_app.data.splits import connected_keys, drop_shared_texts, hold_out


def _record(text, group=None, pair=None):
    values = {features.TEXT: text, features.LABEL: "x"}
    values |= {features.GROUP: group} if group is not None else {}
    values |= {features.TEXT_PAIR: pair} if pair is not None else {}
    return Record(values, "made.csv:1")


def _texts(records):
    return {record.values[features.TEXT] for record in records}


def test_the_same_rows_are_held_out_whatever_their_order():
    records = [_record(f"text {number}") for number in range(300)]
    shuffled = random.Random(1).sample(records, len(records))
    kept, held = hold_out(records, 0.2, "test")
    assert (_texts(kept), _texts(held)) == tuple(map(_texts, hold_out(shuffled, 0.2, "test")))
    assert kept == [record for record in records if record in kept]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_about_the_fraction_is_held_out_and_every_record_once(fraction):
    records = [_record(f"text {number}") for number in range(20_000)]
    kept, held = hold_out(records, fraction, "test")
    # Five standard deviations of a binomial.
    assert abs(len(held) / 20_000 - fraction) <= 5 * (fraction * (1 - fraction) / 20_000) ** 0.5
    assert _texts(kept) | _texts(held) == _texts(records) and not _texts(kept) & _texts(held)


def test_salts_make_independent_splits():
    records = [_record(f"text {number}") for number in range(20_000)]
    test = _texts(hold_out(records, 0.5, "test")[1])
    evaluation = _texts(hold_out(records, 0.5, "evaluation")[1])
    assert 0.22 < len(test & evaluation) / 20_000 < 0.28


def test_equal_texts_and_groups_never_straddle():
    records = [_record(f"text {number % 200}", f"group {number % 77}") for number in range(1000)]
    records += [_record(f"own {number}", f"pair {number // 2}") for number in range(200)]
    kept, held = hold_out(records, 0.4, "test")
    assert kept and held
    for name in (features.TEXT, features.GROUP):
        assert not {r.values[name] for r in kept} & {r.values[name] for r in held}


def test_a_chain_of_texts_and_groups_is_one_set():
    chain = [_record("a", "1"), _record("b", "1"), _record("b", "2"), _record("c", "2"), _record("d", "3")]
    keys = connected_keys(chain)
    assert len(set(keys[:4])) == 1 and keys[4] != keys[0]
    assert connected_keys(chain[::-1]) == keys[::-1]


def test_a_text_and_a_group_of_the_same_name_are_not_linked():
    keys = connected_keys([_record("a", "b"), _record("b", "c")])
    assert keys[0] != keys[1]


def test_a_pair_is_its_two_texts():
    keys = connected_keys([_record("a", pair="b"), _record("a", pair="c"), _record("a", pair="b")])
    assert keys[0] == keys[2] != keys[1]


def test_texts_of_the_other_parts_are_dropped():
    records = [_record("a"), _record("b"), _record("c"), _record("a")]
    assert drop_shared_texts(records, [_record("a")], [_record("c")]) == [records[1]]
    assert drop_shared_texts(records) == records
