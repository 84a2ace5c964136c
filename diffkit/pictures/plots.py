"""Plots as PNG files: loss curves and noise schedules.

Figures are made without pyplot, so that there is no global state, no display and no backend to choose. What is plotted
is computed elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_SMOOTH = 0.02  # share of the rows that the thick line of a loss curve averages over


def loss_curve(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Plot a run's loss, validation loss and learning rate over its updates; below them KID and FID, where measured.

    Args:
        rows: Of `metrics.jsonl`: `step`, and any of `loss`, `validation_loss`, `lr`, `kid`, `kid_std`, `fid`; missing
            or null values are gaps.
        path: The PNG to write; a half-written file never takes its place.
    """
    evaluated = [row for row in rows if row.get("kid") is not None and "step" in row]
    figure, axes, below = _figures(2 if evaluated else 1)
    steps, losses = _column(rows, "loss")
    if steps:
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
        axes.plot(steps, smooth(losses, max(1, round(len(losses) * _SMOOTH))), color="tab:blue", label="loss")
    validation_steps, validation = _column(rows, "validation_loss")
    if validation_steps:
        axes.plot(validation_steps, validation, color="tab:orange", marker=".", label="validation loss")
    positive = [value for value in losses + validation if value > 0]
    if positive and len(positive) == len(losses) + len(validation):
        axes.set_yscale("log")
    axes.set_xlabel("update")
    axes.set_ylabel("loss")
    axes.grid(True, which="both", alpha=0.2)
    lr_steps, rates = _column(rows, "lr")
    if lr_steps:
        right = axes.twinx()
        right.plot(lr_steps, rates, color="tab:grey", linewidth=0.8, linestyle="--", label="learning rate")
        right.set_ylim(bottom=0)
        right.set_ylabel("learning rate")
    handles = [
        line
        for part in figure.axes
        if part is not below
        for line in part.get_lines()
        if not str(line.get_label()).startswith("_")
    ]
    if handles:
        axes.legend(handles=handles, loc="upper right")
    if evaluated:
        _plot_evaluations(evaluated, below)
    return _save(figure, path)


def _plot_evaluations(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """KID with its deviation, the best of them marked, and FID on an axis of its own."""
    steps, kids = _column(rows, "kid")
    spread = [float(row.get("kid_std") or 0.0) for row in rows]
    axes.errorbar(steps, kids, yerr=spread, color="tab:green", marker=".", capsize=2, label="KID")
    best = min(range(len(kids)), key=kids.__getitem__)
    axes.plot(steps[best], kids[best], color="tab:red", marker="o", linestyle="none", label="best by KID")
    axes.set_xlabel("update")
    axes.set_ylabel("KID")
    axes.grid(True, alpha=0.2)
    handles, names = axes.get_legend_handles_labels()
    fid_steps, fids = _column(rows, "fid")
    if fid_steps:
        right = axes.twinx()
        handles += right.plot(fid_steps, fids, color="tab:purple", marker=".", linestyle="--")
        names.append("FID")
        right.set_ylabel("FID")
    axes.legend(handles, names, loc="upper right")


class Levels(Protocol):
    """What is plotted of a noise schedule, one number per level: see `diffkit.engine.curves.Curve`."""

    @property
    def name(self) -> str: ...
    @property
    def signal(self) -> Sequence[float]: ...
    @property
    def noise(self) -> Sequence[float]: ...
    @property
    def log_snr(self) -> Sequence[float]: ...
    @property
    def beta(self) -> Sequence[float]: ...


def noise_schedules(curves: Sequence[Levels], path: str | os.PathLike[str]) -> Path:
    """Plot noise schedules side by side: signal, noise, log signal-to-noise ratio and beta.

    Args:
        curves: The schedules, over t / T, since T may differ; numbers that are not finite are left out, and a schedule
            without betas has no line there.
        path: The PNG to write.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for number, curve in enumerate(curves):
        style = {"label": curve.name, "color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
        for axes, values in zip(panels, (curve.signal, curve.noise, curve.log_snr, curve.beta), strict=True):
            last = max(1, len(values) - 1)
            inside = [(k / last, value) for k, value in enumerate(values) if isfinite(value)]
            axes.plot([place for place, _ in inside], [value for _, value in inside], **style)
    labels = ("signal, sqrt(abar)", "noise, sqrt(1 - abar)", "log SNR = log abar / (1 - abar)", "beta")
    for axes, label in zip(panels, labels, strict=True):
        axes.set_xlabel("t / T")
        axes.set_ylabel(label)
        axes.grid(True, alpha=0.2)
    if any(value > 0 for curve in curves for value in curve.beta):
        panels[3].set_yscale("log")
    if curves:
        panels[0].legend()
    return _save(figure, path)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the running mean over the last `window` values; the first ones average over as many as there are."""
    total, result = 0.0, []
    for i, value in enumerate(values):
        total += value
        if i >= window:
            total -= values[i - window]
        result.append(total / min(i + 1, window))
    return result


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None and "step" in row]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _figures(count: int) -> tuple[Figure, Any, Any]:
    """A figure of one or two plots, one below the other."""
    figure = Figure(figsize=(8, 4.5 * count), layout="constrained")
    if count == 1:
        return figure, figure.subplots(), None
    upper, lower = figure.subplots(count, 1, sharex=True)
    return figure, upper, lower


def _save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})
    temporary.replace(target)
    return target
