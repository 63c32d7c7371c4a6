"""Predictions -> metrics, plots, report.

Two layers: pure functions from predictions to plain Python values, and one writer that turns such values into
`metrics.json` and `report.html`. The report shows a section for each key of the metrics that it knows and
leaves out the others, so a task with other metrics needs no other writer.
"""

import importlib.resources
import io
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bert_app.files import atomic_file

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
NUM_CALIBRATION_BINS = 15  # Guo et al. 2017

MAX_MISTAKE_CHARACTERS = 500
MAX_CLASSES_IN_TERMINAL = 20
MAX_CLASSES_WITH_NUMBERS = 12  # a wider confusion matrix is drawn as a picture
MAX_CONFUSIONS = 10

# Both colours are legible on white and on near-black; INK becomes the colour of the page's text.
RIGHT, WRONG, INK = "#3b82c4", "#e0803a", "#010203"

# Control characters that are no white space, and halves of surrogate pairs: HTML or UTF-8 cannot hold them.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def classification_metrics(
    label_ids: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]
) -> dict[str, Any]:
    """Everything the report says about a single-label classifier, as values that JSON can hold.

    A ratio with nothing to count is 0: the precision of a class that is never predicted, the recall of one
    without examples, the F1 of one without either, and the MCC when all labels or all predictions are one
    class. The macro F1 is the mean over the classes that have examples or predictions.

    Args:
        label_ids: int [N], the true classes, each in [0, C).
        probabilities: float [N, C], rows that sum to 1.
        labels: the C names of the classes.

    Returns:
        `num_examples`; `loss`, the mean negative log-likelihood in nats, where a probability of 0 counts as
        float32's smallest normal number; `accuracy`, and `accuracy_interval`, its 95 % Wilson score interval
        [low, high]; `macro_f1`, `micro_f1`, `mcc`, `expected_calibration_error`; `per_class`, rows of label,
        precision, recall, f1, support and predicted (number of predictions); `confusion_matrix`, counts
        [C][C], rows true, columns predicted; `calibration_bins`, as the function of that name gives them.

    Raises:
        ValueError: no examples, shapes or ids that don't fit, or rows that are no probabilities.
    """
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef, precision_recall_fscore_support

    label_ids, probabilities = _checked(label_ids, probabilities, labels)
    predicted_ids = probabilities.argmax(axis=1)  # [N]
    class_ids = np.arange(len(labels))
    correct = predicted_ids == label_ids
    precision, recall, f1, support = precision_recall_fscore_support(
        label_ids, predicted_ids, labels=class_ids, zero_division=0.0
    )
    matrix = confusion_matrix(label_ids, predicted_ids, labels=class_ids)
    predicted = matrix.sum(axis=0)
    likelihood = probabilities[np.arange(len(label_ids)), label_ids]  # [N]
    likelihood = np.clip(likelihood, np.finfo(np.float32).tiny, 1.0)
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    # With one class all through, scikit-learn's MCC is 0 too, but it warns.
    several = len(np.union1d(label_ids, predicted_ids)) > 1
    bins = calibration_bins(probabilities.max(axis=1), correct)
    return {
        "num_examples": len(label_ids),
        "loss": float(np.log(1.0 / likelihood).mean()),
        "accuracy": float(correct.mean()),
        "accuracy_interval": [float(interval.low), float(interval.high)],
        "macro_f1": float(f1[(support > 0) | (predicted > 0)].mean()),
        "micro_f1": float(f1_score(label_ids, predicted_ids, average="micro")),
        "mcc": float(matthews_corrcoef(label_ids, predicted_ids)) if several else 0.0,
        "expected_calibration_error": expected_calibration_error(bins),
        "per_class": [
            {
                "label": str(label),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
                "predicted": int(predicted[i]),
            }
            for i, label in enumerate(labels)
        ],
        "confusion_matrix": matrix.tolist(),
        "calibration_bins": bins,
    }


def _checked(label_ids: Any, probabilities: Any, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The arrays as int64 [N] and float64 [N, C], or a ValueError that says what doesn't fit."""
    label_ids = np.asarray(label_ids)
    probabilities = np.asarray(probabilities, np.float64)
    if label_ids.ndim != 1 or label_ids.size == 0 or not np.issubdtype(label_ids.dtype, np.integer):
        raise ValueError(f"label_ids: {label_ids.dtype} {list(label_ids.shape)}, expected int [N] with N > 0")
    if probabilities.shape != (len(label_ids), len(labels)):
        raise ValueError(
            f"probabilities: {list(probabilities.shape)}, expected [N, C] = [{len(label_ids)}, {len(labels)}]"
        )
    if label_ids.min() < 0 or label_ids.max() >= len(labels):
        found = f"{label_ids.min()} to {label_ids.max()}"
        raise ValueError(f"label_ids: {found}, expected 0 to {len(labels) - 1}")
    # Wide enough for rows that were computed in bfloat16; logits and NaN fail.
    if not (np.all(probabilities >= 0) and np.all(np.abs(probabilities.sum(axis=1) - 1) < 0.05)):
        raise ValueError("probabilities: expected rows of finite values from 0 to 1 that sum to 1")
    return label_ids.astype(np.int64), probabilities


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = NUM_CALIBRATION_BINS
) -> list[dict[str, Any]]:
    """The bars of a reliability diagram.

    As in Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2: bin m of M holds the
    predictions with a confidence in ((m - 1) / M, m / M].

    Args:
        confidence: float [N], the probability given to the predicted class.
        correct: bool [N], whether that class is the true one.
        num_bins: the number of bins of equal width.

    Returns:
        For each bin `lower`, `upper`, `count`, and the means `confidence` and `accuracy`, None where empty.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bin_ids = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, num_bins - 1)  # [N]
    bins = []
    for i in range(num_bins):
        inside = bin_ids == i
        count = int(inside.sum())
        bins.append(
            {
                "lower": float(edges[i]),
                "upper": float(edges[i + 1]),
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(correct[inside].mean()) if count else None,
            }
        )
    return bins


def expected_calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """Mean of |accuracy - confidence| over `calibration_bins` by their counts (Guo et al. 2017, eq. 3)."""
    filled = [row for row in bins if row["count"]]
    gap = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in filled)
    return gap / sum(row["count"] for row in filled)


def worst_mistakes(
    texts: Sequence[str],
    label_ids: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    count: int = 20,
) -> list[dict[str, Any]]:
    """The wrong predictions the model was surest of, surest first; among equals, in the order of the texts.

    Args:
        texts: N strings.
        label_ids: int [N], the true classes.
        probabilities: float [N, C].
        labels: the C names of the classes.
        count: the most rows to return.

    Returns:
        Rows of `index` (position in `texts`), `text` (at most 500 characters, with an ellipsis where cut),
        `label`, `predicted`, and the probabilities given to these, `label_probability` and
        `predicted_probability`.

    Raises:
        ValueError: as `classification_metrics`, or another number of texts than of labels.
    """
    label_ids, probabilities = _checked(label_ids, probabilities, labels)
    if len(texts) != len(label_ids):
        raise ValueError(f"texts: {len(texts)}, expected as many as label_ids, {len(label_ids)}")
    predicted_ids = probabilities.argmax(axis=1)  # [N]
    wrong = np.flatnonzero(predicted_ids != label_ids)
    surest_first = wrong[np.argsort(-probabilities[wrong, predicted_ids[wrong]], kind="stable")]
    return [
        {
            "index": int(i),
            "text": _shortened(texts[i], MAX_MISTAKE_CHARACTERS),
            "label": str(labels[label_ids[i]]),
            "predicted": str(labels[predicted_ids[i]]),
            "label_probability": float(probabilities[i, label_ids[i]]),
            "predicted_probability": float(probabilities[i, predicted_ids[i]]),
        }
        for i in surest_first[:count]
    ]


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """What `classification_metrics` returns as text for a terminal; up to 20 classes are listed."""
    low, high = metrics["accuracy_interval"]
    rows = [
        ("examples", f"{metrics['num_examples']:,}"),
        ("loss", f"{metrics['loss']:.4f}"),
        ("accuracy", f"{metrics['accuracy']:.4f}  (95 % interval {low:.4f} to {high:.4f})"),
        ("macro F1", f"{metrics['macro_f1']:.4f}"),
        ("micro F1", f"{metrics['micro_f1']:.4f}"),
        ("MCC", f"{metrics['mcc']:.4f}"),
        ("calibration error", f"{metrics['expected_calibration_error']:.4f}"),
    ]
    lines = [f"{name:<18} {value}" for name, value in rows]
    per_class = metrics["per_class"]
    if len(per_class) <= MAX_CLASSES_IN_TERMINAL:
        names = [_shortened(" ".join(_printable(row["label"]).split()), 40) for row in per_class]
        width = max(len("class"), *map(len, names))
        lines += ["", f"{'class':<{width}}  precision  recall      F1  examples"]
        lines += [
            f"{name:<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}"
            f"  {row['support']:8,}"
            for name, row in zip(names, per_class, strict=True)
        ]
    return "\n".join(lines)


def write_report(
    directory: str | os.PathLike,
    title: str,
    metrics: Mapping[str, Any],
    mistakes: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
    history: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write `metrics.json` and the self-contained `report.html`, each whole or not at all.

    The same input gives the same bytes.

    Args:
        directory: the folder to write into, made where missing; older files of these names are replaced.
        title: the report's heading.
        metrics: what `classification_metrics` returns, or some of its keys, or others beside them.
        mistakes: what `worst_mistakes` returns.
        facts: where the figures come from (checkpoint, data and hash, configuration).
        history: rows of scalars by name, each with `step`; names may be missing in some rows, and values that
            are not finite are left out. Names of one last part (`loss`, `evaluation/loss`) share a plot.

    Raises:
        ValueError: a value in metrics or mistakes that is not finite.
    """
    history = [{k: float(v) for k, v in row.items() if math.isfinite(v)} for row in history]
    content = {
        "title": title,
        "facts": dict(facts),
        "metrics": metrics,
        "worst_mistakes": list(mistakes),
        "history": history,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    report = _render(title, metrics, mistakes, facts, history)
    directory = Path(directory)
    with atomic_file(directory / METRICS_FILE) as path:
        # Half a surrogate pair becomes \udXXX, which is JSON's own way to write it.
        path.write_bytes(text.encode("utf-8", "backslashreplace"))
    with atomic_file(directory / REPORT_FILE) as path:
        path.write_bytes(report.encode("utf-8"))


def _render(title: str, metrics: Mapping, mistakes: Sequence, facts: Mapping, history: Sequence) -> str:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(
        importlib.resources.files("keras_bert_app").joinpath("report.html.jinja").read_text("utf-8")
    )
    bins = [row for row in metrics.get("calibration_bins", ()) if row["count"]]
    confidence = sum(row["count"] * row["confidence"] for row in bins)
    matrix = np.array(metrics.get("confusion_matrix", ()))
    return template.render(
        title=title,
        facts=facts,
        metrics=metrics,
        mistakes=mistakes,
        mean_confidence=confidence / max(1, sum(row["count"] for row in bins)),
        chance_loss=math.log(max(1, len(matrix))),
        reliability=_reliability_plot(bins) if bins else "",
        matrix_picture=_matrix_plot(matrix) if len(matrix) > MAX_CLASSES_WITH_NUMBERS else "",
        confusions=_confusions(matrix) if len(matrix) > 2 else [],
        curves=_curves_plot(history) if history else "",
    )


def _printable(value: Any) -> Any:
    """Replace what a page or terminal cannot show; leave everything but plain strings alone."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def _confusions(matrix: np.ndarray) -> list[tuple[int, int, int]]:
    """The commonest mistakes as (true id, predicted id, count), commonest first."""
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    commonest_first = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [divmod(int(position), len(matrix)) for position in commonest_first]
    return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _reliability_plot(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy by confidence above, numbers of predictions below; `bins` are those that are not empty."""

    def draw(figure):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        left = [row["lower"] for row in bins]
        width = bins[0]["upper"] - bins[0]["lower"]
        style = {"width": width, "align": "edge", "edgecolor": INK, "linewidth": 0.6}
        upper.bar(left, [row["accuracy"] for row in bins], color=RIGHT, **style)
        upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="perfectly calibrated")
        confidence, accuracy = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
        upper.plot(confidence, accuracy, "o", color=INK, markersize=4, label="mean confidence of the bin")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
        upper.legend(loc="upper left")
        right = [row["count"] * row["accuracy"] for row in bins]
        wrong = [row["count"] * (1 - row["accuracy"]) for row in bins]
        lower.bar(left, right, color=RIGHT, label="right", **style)
        lower.bar(left, wrong, bottom=right, color=WRONG, label="wrong", **style)
        lower.set(xlabel="confidence of the prediction", ylabel="predictions")
        lower.legend(loc="upper left")

    return _svg("Reliability diagram", (6, 5.5), draw)


def _matrix_plot(matrix: np.ndarray) -> str:
    """Each row's shares as opacity: the diagonal in one colour, mistakes in the other."""
    from matplotlib.colors import to_rgb

    pixels = np.empty((*matrix.shape, 4))
    pixels[..., :3] = to_rgb(WRONG)
    pixels[np.diag_indices(len(matrix))] = (*to_rgb(RIGHT), 0)
    # The root lets a share of some per cent be seen.
    pixels[..., 3] = np.sqrt(matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True)))

    def draw(figure):
        axes = figure.subplots()
        axes.imshow(pixels, interpolation="nearest", extent=(0.5, len(matrix) + 0.5, len(matrix) + 0.5, 0.5))
        axes.set(xlabel="predicted class, by number", ylabel="true class, by number")
        axes.grid(False)

    return _svg("Confusion matrix", (6, 6), draw)


def _curves_plot(history: Sequence[Mapping[str, float]]) -> str:
    """One small plot for each last part of the names, against the step."""
    plots = defaultdict(lambda: defaultdict(list))
    for row in history:
        for name in sorted(row.keys() - {"step"}):
            if "step" in row:
                plots[name.rsplit("/", 1)[-1]][name].append((row["step"], row[name]))
    if not plots:
        return ""

    def draw(figure):
        grid = list(figure.subplots(math.ceil(len(plots) / 2), 2, squeeze=False).flat)
        for axes in grid[len(plots) :]:
            axes.remove()
        for axes, (short_name, curves) in zip(grid, sorted(plots.items()), strict=False):
            for name, points in sorted(curves.items()):
                color = WRONG if "/" in name and len(curves) > 1 else RIGHT
                marker = "o" if len(points) < 20 else ""
                axes.plot(*zip(*points, strict=True), color=color, label=name, marker=marker, markersize=4)
            axes.set_title(short_name.replace("_", " "))
            axes.set_xlabel("step")
            if len(curves) > 1:
                axes.legend()

    return _svg("Training curves", (8, 2.8 * math.ceil(len(plots) / 2)), draw)


def _svg(name: str, size: tuple[float, float], draw: Any) -> str:
    """What `draw` draws on a figure of `size` in inches, as an element to put into a page."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    style = dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= {"axes.edgecolor": INK, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15}
    style |= {"axes.axisbelow": True, "axes.titlesize": 11, "text.parse_math": False}
    style |= {"svg.fonttype": "none", "svg.hashsalt": name}
    buffer = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Groups are numbered from 1 in each figure, and several figures share the page.
    svg = re.sub(r'<g id="[^"]*_\d+">', "<g>", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1))
