"""Metrics -> what a person reads: a summary for the terminal, `metrics.json`, a self-contained `report.html`.

The report shows a section for each key of the metrics that it knows and leaves out the others, so a task with
other metrics needs no other writer.
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
from keras_bert_app.tasks.metrics import shortened

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
MAX_CLASSES_IN_TERMINAL = 20
MAX_CLASSES_WITH_NUMBERS = 12  # a wider confusion matrix is drawn as a picture
MAX_CONFUSIONS = 10

# Metrics of the summary, in this order, and what they are called there.
_SHOWN = {
    "num_examples": "examples",
    "num_masked": "masked tokens",
    "loss": "loss",
    "mlm_loss": "MLM loss",
    "unigram_entropy": "unigram entropy",
    "perplexity": "perplexity",
    "mlm_accuracy": "MLM accuracy",
    "nsp_loss": "NSP loss",
    "nsp_accuracy": "NSP accuracy",
    "sop_loss": "SOP loss",
    "sop_accuracy": "SOP accuracy",
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "mcc": "MCC",
    "expected_calibration_error": "calibration error",
}

_NOT_DRAWN = {"mlm_log_likelihood"}  # the MLM loss upside down
_POINTS_SMOOTHED = 60  # of a curve that gets a moving mean

# Both colours are legible on white and on near-black; INK becomes the colour of the page's text.
RIGHT, WRONG, INK = "#3b82c4", "#e0803a", "#010203"

# Control characters that are no white space, and halves of surrogate pairs: HTML or UTF-8 cannot hold them.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """A task's metrics as text for a terminal: those in _SHOWN, and up to 20 classes."""
    lines = []
    for key, name in _SHOWN.items():
        if key in metrics:
            value = metrics[key]
            lines.append(f"{name:<18} " + (f"{value:,}" if isinstance(value, int) else f"{value:.4f}"))
        if key == "accuracy" and "accuracy_interval" in metrics:
            low, high = metrics["accuracy_interval"]
            lines[-1] += f"  (95 % interval {low:.4f} to {high:.4f})"
    per_class = metrics.get("per_class", ())
    if 0 < len(per_class) <= MAX_CLASSES_IN_TERMINAL:
        names = [shortened(" ".join(_printable(row["label"]).split()), 40) for row in per_class]
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
    environment.filters["exp"] = math.exp
    template = environment.from_string(
        importlib.resources.files("keras_bert_app").joinpath("report.html.jinja").read_text("utf-8")
    )
    bins = [row for row in metrics.get("calibration_bins", ()) if row["count"]]
    confidence = sum(row["count"] * row["confidence"] for row in bins)
    matrix = np.array(metrics.get("confusion_matrix", ()))
    curves = _curves(history)
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
        curves=_curves_plot(curves, metrics) if curves else "",
        smoothed=any(
            len(points) >= _POINTS_SMOOTHED for names in curves.values() for points in names.values()
        ),
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
        upper.plot(confidence, accuracy, "o", color=INK, markersize=4, clip_on=False, label="mean confidence")
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


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Last part of the names -> name -> points (step, value), in the order of _SHOWN, then the alphabet's."""
    plots = defaultdict(lambda: defaultdict(list))
    for row in history:
        for name in sorted(row.keys() - {"step"}):
            short_name = name.rsplit("/", 1)[-1]
            if "step" in row and short_name not in _NOT_DRAWN:
                plots[short_name][name].append((row["step"], row[name]))
    places = {name: place for place, name in enumerate(_SHOWN)}
    return dict(sorted(plots.items(), key=lambda plot: (places.get(plot[0], len(places)), plot[0])))


def _curves_plot(
    plots: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], metrics: Mapping[str, Any]
) -> str:
    """One small plot for each last part of the names, against the step."""

    def draw(figure):
        grid = list(figure.subplots(math.ceil(len(plots) / 2), 2, squeeze=False).flat)
        for axes in grid[len(plots) :]:
            axes.remove()
        for axes, (short_name, curves) in zip(grid, plots.items(), strict=False):
            for name, points in sorted(curves.items(), reverse=True):
                _draw_curve(axes, name, points)
            if short_name == "mlm_loss" and "unigram_entropy" in metrics:
                style = {"color": INK, "linestyle": "--", "linewidth": 1, "label": "by frequency alone"}
                axes.axhline(metrics["unigram_entropy"], **style)
            axes.set_title(_SHOWN.get(short_name, short_name.replace("_", " ")))
            axes.set_xlabel("step")
            if len(curves) > 1:
                axes.legend()

    return _svg("Training curves", (8, 2.8 * math.ceil(len(plots) / 2)), draw)


def _draw_curve(axes: Any, name: str, points: Sequence[tuple[float, float]]) -> None:
    prefix, _, _ = name.rpartition("/")
    color, label = (WRONG, prefix) if prefix else (RIGHT, "training")
    steps, values = zip(*points, strict=True)
    marker = "o" if len(points) < 20 else ""
    if _is_smoothed(name, points):
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        values = _moving_mean(values, len(points) // 20)
    axes.plot(steps, values, color=color, label=label, marker=marker, markersize=4)


def _is_smoothed(name: str, points: Sequence) -> bool:
    return len(points) >= _POINTS_SMOOTHED and name != "learning_rate"


def _moving_mean(values: Sequence[float], reach: int) -> np.ndarray:
    """Of each value and up to `reach` before and after it."""
    sums = np.cumsum([0.0, *values])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


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
