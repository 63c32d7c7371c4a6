"""Latencies of a load test: their percentiles, in lines of text and as a plot (which needs matplotlib)."""

import numpy as np

# Percentile -> how many answers it takes: one beyond it.
PERCENTILES = {50: 2, 90: 10, 99: 100, 99.9: 1000}


def percentiles(latencies):
    """{"p50": ..., "p99.9": ...} of latencies; None where there are too few to have one beyond it."""
    return {
        f"p{percent}": float(np.percentile(latencies, percent)) if len(latencies) >= least else None
        for percent, least in PERCENTILES.items()
    }


def shown(latencies):
    """Percentiles as a line has them."""
    return "ms " + " ".join(
        f"p{percent} {'-' if (value := latencies[f'p{percent}']) is None else f'{value:.1f}'}"
        for percent in PERCENTILES
    )


def line(step):
    """A step in one line."""
    behind = f"; the generator was behind by {step['late_p99_ms']:.1f} ms" if step["generator_behind"] else ""
    return (
        f"{step['rate']:.1f}/s: {step['throughput']:.1f}/s answered, {shown(step['latency_ms'])}; "
        f"{step['shed']} shed, {step['failed']} failed of {step['sent']}{behind}"
    )


def verdict(results):
    """What was found, and the latencies by length at the rate that was: lines of text."""
    num_behind = sum(step["generator_behind"] for step in results["steps"])
    behind = (
        f"; the generator was behind at {num_behind} of {len(results['steps'])} rates, whose latencies are "
        "partly its own"
    )
    target = f"99 in 100 within {results['target_p99_ms']:g} ms"
    found = f"no rate met the target: {target}"
    if results["rate_at_target"] is not None:
        found = (
            f"{results['throughput_at_target']:.1f} answers/s at {results['rate_at_target']:.1f} requests/s, "
            + target
        )
    best = [step for step in results["steps"] if step["rate"] == results["rate_at_target"]]
    groups = (
        f"  {name} bytes: {group['answered']} answered, {shown(group)}"
        for step in best
        for name, group in step["latency_ms_by_bytes"].items()
    )
    return "\n".join([found + (behind if num_behind else ""), *groups])


def plot(results, path):
    """Percentiles of latency and throughput against the rate, as an image at `path`."""
    from matplotlib.figure import Figure

    steps = results["steps"]
    rates = [step["rate"] for step in steps]
    figure = Figure(figsize=(7, 7), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for name in (f"p{percent}" for percent in PERCENTILES):
        points = [(step["rate"], value) for step in steps if (value := step["latency_ms"][name]) is not None]
        if points:
            upper.plot(*zip(*points, strict=True), "o-", label=name)
    upper.axhline(results["target_p99_ms"], color="black", linestyle="--", linewidth=1, label="target of p99")
    upper.set(yscale="log", ylabel="latency of the answered, ms")
    upper.legend()
    lower.plot(rates, [step["throughput"] for step in steps], "o-", label="answered")
    for name in ("shed", "failed"):
        lower.plot(rates, [step["rate"] * step[name] / max(1, step["sent"]) for step in steps], label=name)
    lower.plot(rates, rates, color="black", linestyle=":", linewidth=1, label="all of them")
    lower.set(xlabel="requests sent a second", ylabel="requests a second")
    lower.legend()
    figure.savefig(path, format="png", dpi=150)
