"""Plots of the arena's records: loss over steps and over seconds for every task, and performance profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from bench.arena.measures import SECONDS, STEPS, Results, profile, ratio_to_baseline
from bench.arena.report import label
from bench.arena.rivals import BASELINE, OURS
from bench.arena.run import Curve
from bench.plot import OURS as OUR_COLOR
from bench.plot import SERIES, STYLE

COLUMNS = 3
FURTHEST = 4.0
"""Largest ratio of a performance profile."""

GREYS = ("#4b545e", "#9aa3ad")


def look(results: Results) -> dict[str, dict[str, object]]:
    """Return the line of each optimizer: ours is wide and blue; the others differ in colour and dash."""
    colors = [color for color in (*SERIES, *GREYS) if color != OUR_COLOR]
    others = [name for name in results.optimizers if name != OURS]
    styles: dict[str, dict[str, object]] = {
        name: {
            "color": colors[i % len(colors)],
            "linestyle": ("-", "--", ":")[i // len(colors)],
            "linewidth": 1.3,
        }
        for i, name in enumerate(others)
    }
    return {**styles, OURS: {"color": OUR_COLOR, "linestyle": "-", "linewidth": 2.4, "zorder": 5}}


def median_curve(curves: Sequence[Curve], column: int) -> tuple[list[float], list[float]]:
    """Return positions and median losses of the points that all curves have."""
    length = min(map(len, curves))
    positions = [float(numpy.median([curve[i][column] for curve in curves])) for i in range(length)]
    return positions, [float(numpy.median([curve[i][2] for curve in curves])) for i in range(length)]


def plot_task(axes: Axes, results: Results, task: str, column: int) -> None:
    styles, finals, first = look(results), [], -math.inf
    for optimizer in results.optimizers:
        curves = [curve for curve in results.curves(task, optimizer) if curve]
        if not curves:
            continue
        positions, losses = median_curve(curves, column)
        axes.plot(positions, losses, label=label(optimizer), **styles[optimizer])
        finals.append(losses[-1])
        first = max(first, losses[0])
    finite = [loss for loss in finals if math.isfinite(loss) and loss > 0]
    if finite and math.isfinite(first):
        axes.set_yscale("log")
        low, high = 0.95 * min(finite), 1.05 * max(first, min(finite))
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(LogLocator() if high > 20 * low else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.set_title(task, loc="left", fontsize=11)


def plot_losses(results: Results, column: int) -> Figure:
    """Plot the median validation loss over steps or seconds, a panel a task."""
    rows = math.ceil(len(results.tasks) / COLUMNS)
    size = (4.2 * COLUMNS, 3.0 * rows + 0.6)
    figure, panels = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axes, task in zip(panels.flat, results.tasks, strict=False):
        plot_task(axes, results, task, column)
        axes.set_xlabel(("steps", "seconds")[column], fontsize=9)
        axes.tick_params(labelsize=8)
        axes.minorticks_off()
    for axes in panels.flat[len(results.tasks) :]:
        axes.axis("off")
    for row in panels:
        row[0].set_ylabel("validation loss (log scale)", fontsize=9)
    by_label = {
        text: handle
        for axes in panels.flat
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        by_label.values(), by_label.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return figure


def plot_profiles(results: Results) -> Figure | None:
    """Plot performance profiles of steps and seconds to the baseline's final loss; None without it."""
    tasks = [task for task in results.tasks if results.losses(task, BASELINE)]
    names = [name for name in results.optimizers if any(results.losses(task, name) for task in tasks)]
    if not tasks:
        return None
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    positions, styles = numpy.geomspace(1, FURTHEST, 200), look(results)
    for axes, column in zip(panels, (STEPS, SECONDS), strict=True):
        ratios = {name: [_ratio(results, task, name, column) for task in tasks] for name in names}
        shares = [profile(ratios, at) for at in positions]
        for name in names:
            axes.plot(positions, [100 * share[name] for share in shares], label=label(name), **styles[name])
        axes.set_xscale("log")
        axes.set_xticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
        axes.minorticks_off()
        axes.set_xlabel(f"{('steps', 'seconds')[column]}, over those of the task's best optimizer")
    panels[0].set_ylabel(f"% of tasks that reach {label(BASELINE)}'s loss")
    panels[0].set_ylim(-2, 102)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False, fontsize=9)
    return figure


def _ratio(results: Results, task: str, name: str, column: int) -> float:
    ratio = ratio_to_baseline(results, task, name, BASELINE, column)
    return math.inf if ratio is None else ratio.value


def save_plots(results: Results, folder: Path) -> list[Path]:
    """Write the plots of results with runs and return their files."""
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        figures = {
            "arena_steps": plot_losses(results, STEPS),
            "arena_seconds": plot_losses(results, SECONDS),
            "arena_profiles": plot_profiles(results),
        }
        for name, figure in figures.items():
            if figure is not None:
                paths.append(folder / f"{name}.png")
                figure.savefig(paths[-1])
                plt.close(figure)
    return paths
