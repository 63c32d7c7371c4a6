"""Measured seconds -> medians, ratios to the best peer, bars, a table, a plot."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Entry = dict[str, Any]


class Bar(NamedTuple):
    """How fast is fast enough: the best peer's time over ours, and the peers that it is asked of."""

    name: str
    row: str
    ours: str  # precision
    least: float
    peers: tuple[str, ...]  # precisions
    arrangements: tuple[str, ...] = ("padded",)
    settings: tuple[str, ...] = ()  # of the peers; (): any


ALL = ("float32", "bfloat16", "int8")
SORTED = ("padded", "quarters")
BARS = (
    Bar("mixed", "mixed", "float32", 3.0, ("float32",)),
    Bar("mixed, of all peers", "mixed", "bfloat16", 2.0, ALL),
    Bar("mixed, sorted by hand", "mixed", "float32", 1.3, ("float32",), SORTED),
    Bar("mixed, sorted by hand", "mixed", "bfloat16", 1.2, ("float32", "bfloat16"), SORTED),
    Bar("mixed, sorted by hand, of all peers", "mixed", "int8", 1.0, ALL, SORTED),
    Bar("uniform", "uniform", "float32", 1.0, ("float32",), ("padded", "singly")),
    Bar("uniform", "uniform", "bfloat16", 1.0, ("float32", "bfloat16"), ("padded", "singly")),
    Bar("single", "single", "float32", 1 / 1.1, ("float32",)),
    Bar("single", "single", "bfloat16", 1 / 1.5, ("float32", "bfloat16")),
    Bar("text to label by gRPC", "grpc", "float32", 2.0, ("float32",)),
    Bar("text to label by gRPC, of all peers", "grpc", "bfloat16", 2.0, ALL),
    *(
        bar
        for precision in ("float32", "bfloat16")
        for bar in (
            Bar("fine-tuning", "finetuning", precision, 1.8, (precision,), settings=("random",)),
            Bar("fine-tuning, grouped", "finetuning", precision, 1.1, (precision,), settings=("grouped",)),
            Bar("fine-tuning, 128 tokens", "finetuning-128", precision, 1.0, (precision,)),
            Bar("pretraining", "pretraining", precision, 1.2, (precision,)),
        )
    ),
)


def is_counted(entry: Entry) -> bool:
    """Whether it was measured at equal work."""
    return bool(entry["seconds"]) and entry["equal"]


def best(entries: Iterable[Entry]) -> Entry | None:
    """The one with the least median, of those that count."""
    counted = filter(is_counted, entries)
    return min(counted, key=lambda entry: statistics.median(entry["seconds"]), default=None)


def ratio(peer: Entry, ours: Entry) -> dict[str, float]:
    """How many times as long the peer takes: median, least and most of the rounds."""
    ratios = [
        other / own for other, own in zip(peer["seconds"], ours["seconds"], strict=True)
    ]  # of the same round
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def judge(entries: Sequence[Entry], bars: Iterable[Bar] = BARS) -> list[dict[str, Any]]:
    """Each bar with our ratio to the best peer; bars that weren't measured are left out."""
    verdicts = []
    for bar in bars:
        row = [entry for entry in entries if entry["row"] == bar.row]
        ours = best(entry for entry in row if entry["library"] == "ours" and entry["precision"] == bar.ours)
        peer = best(
            entry
            for entry in row
            if entry["library"] != "ours"
            and entry["precision"] in bar.peers
            and entry["arrangement"] in bar.arrangements
            and (not bar.settings or entry["setting"] in bar.settings)
        )
        if ours and peer:
            found = ratio(peer, ours)
            verdicts.append(
                bar._asdict()
                | {"best_peer": named(peer), "ratio": found}
                | {"reached": found["median"] >= bar.least}
            )
    return verdicts


def named(entry: Entry) -> str:
    """The contender and how it arranges the texts."""
    return ", ".join(filter(None, (entry["contender"], entry["arrangement"])))


def milliseconds(values: Sequence[float]) -> str:
    """Median, least and most."""
    middle, least, most = (1000 * f(values) for f in (statistics.median, min, max))
    digits = 2 if middle < 100 else 0
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def table(entries: Sequence[Entry], accuracies: dict[str, float]) -> str:
    """A Markdown table for each row, fastest first."""
    lines = []
    for row in dict.fromkeys(entry["row"] for entry in entries):
        lines += ["", row, "", "| contender | ms | times ours | difference | accuracy |", "|---" * 5 + "|"]
        of_row = [entry for entry in entries if entry["row"] == row]
        measured = [entry for entry in of_row if entry["seconds"]]
        for entry in sorted(measured, key=lambda entry: statistics.median(entry["seconds"])):
            of_class = {"library": "ours", "precision": entry["precision"]}.items()
            ours = next((other for other in measured if of_class <= other.items()), None)
            cells = [named(entry), milliseconds(entry["seconds"])]
            cells.append(f"{ratio(entry, ours)['median']:.2f}" if ours else "")
            cells.append(f"{entry['difference']:.1e}" + ("" if entry["equal"] else ", not counted"))
            cells.append(f"{accuracies.get(entry['contender'], float('nan')):.4f}")
            lines.append(f"| {' | '.join(cells)} |")
        failed = [entry for entry in of_row if not entry["seconds"]]
        lines += [f"| {named(entry)} | failed | | | |" for entry in failed]
    return "\n".join(lines)


def bars_table(verdicts: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of the bars."""
    lines = ["| bar | precision | asked | ratio | best peer |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        found = verdict["ratio"]
        lines.append(
            f"| {verdict['name']} | {verdict['ours']} | {verdict['least']:.2f} | {found['median']:.2f} "
            f"({found['least']:.2f} to {found['most']:.2f}){'' if verdict['reached'] else ', not reached'} | "
            f"{verdict['best_peer']} |"
        )
    return "\n".join(lines)


def plot(entries: Sequence[Entry], path: Path) -> None:
    """Bars of milliseconds with their spread, a panel for each row."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = list(dict.fromkeys(entry["row"] for entry in entries if entry["seconds"]))
    heights = [sum(entry["row"] == row for entry in entries) for row in rows]
    figure, panels = pyplot.subplots(
        len(rows),
        squeeze=False,
        figsize=(9, 1 + 0.22 * sum(heights) + 0.6 * len(rows)),
        height_ratios=heights,
        layout="constrained",
    )
    for row, panel in zip(rows, panels[:, 0], strict=True):
        measured = [entry for entry in entries if entry["row"] == row and entry["seconds"]]
        measured.sort(key=lambda entry: -statistics.median(entry["seconds"]))
        middles = [1000 * statistics.median(entry["seconds"]) for entry in measured]
        below = [m - 1000 * min(entry["seconds"]) for m, entry in zip(middles, measured, strict=True)]
        above = [1000 * max(entry["seconds"]) - m for m, entry in zip(middles, measured, strict=True)]
        colors = ["tab:orange" if entry["library"] == "ours" else "tab:blue" for entry in measured]
        names = [named(entry) for entry in measured]
        panel.barh(names, middles, xerr=[below, above], color=colors)
        panel.set_title(row)
        panel.set_xlabel("ms")
        panel.tick_params(labelsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
