"""The same requests to two versions, labels, models or servers: how often and where their answers differ.

Needs grpcio, protobuf, NumPy and SciPy, not TensorFlow.
"""

import base64
import contextlib
import dataclasses
import json
import math
import time
from collections import Counter

import numpy as np

from serving.client import PredictClient
from serving.latency import percentiles, shown
from serving.targets import TargetError

# The output that names what is answered, where there is one: a label, or several with "" after them.
LABEL_OUTPUTS = ("label", "labels")
SCORE = "score"


@dataclasses.dataclass(frozen=True)
class Change:
    """A row (tuple of texts, bytes) that the two answer differently, {output: array} each, and how surely."""

    row: tuple
    a: dict
    b: dict
    confidence: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Of `count` rows: the changes, the most confident first, and what else was seen.

    confusion: {(label of a, label of b): rows}; None where the signature gives no labels.
    differences: {output: (largest, mean)} of the absolute differences of numbers.
    not_compared: outputs that only one of the two has, or whose shapes differ.
    latency_ms: {"a": percentiles, "b": percentiles}, of requests of one row, one at a time.
    """

    count: int
    changes: list
    confusion: dict | None
    differences: dict
    not_compared: list
    latency_ms: dict

    @property
    def rate(self):
        """The share of rows that are answered differently."""
        return len(self.changes) / self.count


def interval(num_changed, count):
    """The 95 % interval of a share (Clopper and Pearson 1934): two numbers."""
    from scipy import stats

    found = stats.binomtest(num_changed, count).proportion_ci(0.95)
    return float(found.low), float(found.high)


def difference(a, b):
    """Absolute differences of two arrays of equal shape; two NaNs, or equal infinities, differ by 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    is_same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(is_same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def compare(answers, tolerance=0.0):
    """The Comparison of `answers`, an iterable of (row, outputs of a, outputs of b, seconds of a, of b).

    Outputs are {name: array} of one row. Where both give `label` or `labels`, rows with other ones are
    changed; else those of which a number differs by more than `tolerance`, or a string at all. Raises
    TargetError where there is nothing to compare.
    """
    changes, taken, not_compared = [], {"a": [], "b": []}, set()
    confusion, largest, totals, sizes = Counter(), {}, Counter(), Counter()
    for row, a, b, *seconds in answers:
        for name, value in zip("ab", seconds, strict=True):
            taken[name].append(1000 * value)
        common = {
            name
            for name in a.keys() & b.keys()
            if a[name].shape == b[name].shape and _alike(a[name], b[name])
        }
        not_compared |= (a.keys() | b.keys()) - common
        if not common:
            raise TargetError(
                f"nothing to compare: a gives {', '.join(sorted(a))}, b {', '.join(sorted(b))}; "
                "choose another --signature"
            )
        apart = {name: difference(a[name], b[name]) for name in common if a[name].dtype != object}
        for name, values in apart.items():
            largest[name] = max(largest.get(name, 0.0), float(values.max(initial=0.0)))
            totals[name] += float(values.sum())
            sizes[name] += values.size
        named = [name for name in LABEL_OUTPUTS if name in common]
        if named:
            labels = _label(a[named[0]]), _label(b[named[0]])
            confusion[labels] += 1
            is_changed = labels[0] != labels[1]
        else:
            strings = common - apart.keys()
            is_changed = any((values > tolerance).any() for values in apart.values()) or any(
                a[name].tolist() != b[name].tolist() for name in strings
            )
        if is_changed:
            changes.append(Change(row, a, b, _confidence(a, b, apart)))
    if not taken["a"]:
        raise TargetError("no texts to compare the answers to")
    return Comparison(
        len(taken["a"]),
        sorted(changes, key=lambda change: -change.confidence),
        dict(confusion) or None,
        {name: (largest[name], totals[name] / max(1, sizes[name])) for name in sorted(largest)},
        sorted(not_compared),
        {name: percentiles(values) for name, values in taken.items()},
    )


def _alike(a, b):
    return (a.dtype == object) == (b.dtype == object)


def _label(values):
    """The label of one row as text; several are one, in the order of the alphabet with commas between."""
    labels = [
        v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.ravel().tolist()
    ]
    return ",".join(sorted(filter(None, labels)))


def _confidence(a, b, apart):
    """The score of the less sure one; where there are no scores, the largest difference."""
    if SCORE in apart:
        return float(min(a[SCORE].max(), b[SCORE].max()))
    return max((float(values.max(initial=0.0)) for values in apart.values()), default=0.0)


def ask(a, b, signature_name, names, rows, tls=None):
    """Yield for each row what `compare` takes; Targets a and b are asked in turns, the first of them too."""
    with contextlib.ExitStack() as stack:
        sides = [
            (side, stack.enter_context(PredictClient(side.address, side.model, tls=tls))) for side in (a, b)
        ]

        def answer(place, row):
            target, client = sides[place]
            inputs = {name: [text] for name, text in zip(names, row, strict=True)}
            start = time.perf_counter()
            outputs = client.run(inputs, signature_name, **target.choice)
            return outputs, time.perf_counter() - start

        for number, row in enumerate(rows):
            if number == 0:  # connects, and takes what a first call takes
                answer(0, row), answer(1, row)
            first = number % 2
            found = {first: answer(first, row), 1 - first: answer(1 - first, row)}
            yield row, found[0][0], found[1][0], found[0][1], found[1][1]


def report(comparison, a, b, limit):
    """The comparison as lines of text, with the `limit` most confident changes."""
    low, high = interval(len(comparison.changes), comparison.count)
    lines = [
        f"a = {a}, b = {b}",
        f"{len(comparison.changes):,} of {comparison.count:,} differ: {comparison.rate:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%})",
    ]
    for name, (largest, mean) in comparison.differences.items():
        lines.append(f"{name}: differs by {largest:.3g} at most, {mean:.3g} in the mean")
    if comparison.not_compared:
        lines.append(f"not compared, not of one shape in both: {', '.join(comparison.not_compared)}")
    for (label_a, label_b), count in sorted((comparison.confusion or {}).items(), key=lambda row: -row[1]):
        lines.append(f"{count:>9,}  {label_a}" + (f" -> {label_b}" if label_a != label_b else ""))
    for name, values in comparison.latency_ms.items():
        lines.append(f"latency of {name}: {shown(values)}")
    return "\n".join([*lines, as_lines(comparison.changes[:limit])]).rstrip("\n")


def as_lines(changes):
    """JSONL, an object a change."""
    return "".join(json.dumps(as_json(change), ensure_ascii=False) + "\n" for change in changes)


def as_json(change):
    """A change as an object of JSON; a text that isn't UTF-8 is {"b64": ...}, as run.py predict reads it."""
    texts = dict(zip(("text", "text_pair"), map(_plain, change.row), strict=False))
    sides = {
        side: {name: _plain(array.tolist()) for name, array in outputs.items()}
        for side, outputs in (("a", change.a), ("b", change.b))
    }
    return texts | sides


def _plain(value):
    if isinstance(value, list):
        return _plain(value[0]) if len(value) == 1 else [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no number for it
    return value
