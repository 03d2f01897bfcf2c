"""Tables of the autoencoders' records beside the paper's figures, in Markdown, and their plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.arena.measures import STEPS, Results
from bench.arena.plots import median_curve
from bench.arena.protocol import SEARCH_SEED
from bench.arena.report import number
from bench.arena.run import OK
from bench.arena.store import RunRecord
from bench.common import markdown_table
from bench.experiments.autoencoders.optimizers import PaperOptimizer, optimizers_of
from bench.experiments.autoencoders.tasks import AUTOENCODERS
from bench.plot import OURS, SERIES, STYLE

NOTHING = "The autoencoders have not been measured yet.\n"
PLOT = "autoencoders.png"

PAPER_DATA = {"digits": "MNIST", "curves": "CURVES", "faces": "FACES"}

PAPER: dict[str, tuple[str, str, str]] = {
    "sgd": ("519.07", "170.52", ".04110"),
    "adam": ("517.35", "169.45", ".03785"),
    "shampoo64": ("516.17", "168.98", ".03545"),
    "shampoo32": ("516.19", "169.05", ".03542"),
    "star": ("516.79", "169.18", ".03682"),
    "plain": ("517.64", "169.44", ".04158"),
}
"""The paper's best validation losses on MNIST, CURVES and FACES."""

LOOKS: dict[str, dict[str, object]] = {
    "sgd": {"color": "#9aa3ad"},
    "adam": {"color": "#4b545e"},
    "shampoo64": {"color": SERIES[1]},
    "shampoo32": {"color": SERIES[1], "linestyle": "--"},
    "star": {"color": SERIES[2]},
    "plain": {"color": SERIES[3]},
    "papers_options": {"color": OURS, "linestyle": "--"},
    "defaults": {"color": OURS, "linewidth": 2.4, "zorder": 5},
}
"""The lines of the plot: ours are blue, and the two Shampoos have one colour."""


def optimizer(task: str, name: str) -> PaperOptimizer:
    return optimizers_of(AUTOENCODERS[task])[name]


def tasks(results: Results) -> list[str]:
    """Return the tasks with runs, in the order of the tables."""
    return [task for task in AUTOENCODERS if task in results.tasks]


def losses_table(results: Results) -> str:
    """Return the means of the best validation losses, with ranges over seeds, beside the paper's figures."""

    def measured(task: str, name: str) -> str:
        losses = list(results.losses(task, name).values())
        if not losses:
            return ""
        mean = statistics.fmean(losses)
        if math.isinf(mean):
            return "not finite"
        text = number(mean, 5)
        text = f"**{text}**" if mean == least[task] else text
        return f"{text} ({number(min(losses), 5)} to {number(max(losses), 5)})"

    means = {
        task: [statistics.fmean(values) for name in LOOKS if (values := results.losses(task, name).values())]
        for task in AUTOENCODERS
    }
    least = {task: min(values, default=math.inf) for task, values in means.items()}
    header = [""]
    for task, data in PAPER_DATA.items():
        header += [f"the paper, {data}", f"measured, `{task}`"]
    rows = []
    for name in LOOKS:
        row = [optimizer("digits", name).label]
        for task, figure in zip(PAPER_DATA, PAPER.get(name, ("",) * len(PAPER_DATA)), strict=True):
            row += [figure, measured(task, name)]
        rows.append(row)
    return markdown_table(header, rows)


def choices_table(results: Results, records: Sequence[RunRecord]) -> str:
    """Return the best rates, the rates that were tried, CPU milliseconds of a step and bytes of state."""
    rows = []
    for task in tasks(results):
        for name in LOOKS:
            runs = results.runs.get((task, name))
            if not runs:
                continue
            record = next(iter(runs.values()))
            tried = sorted(
                one.run.lr
                for one in records
                if (one.run.task, one.run.optimizer, one.run.seed) == (task, name, SEARCH_SEED)
            )
            milliseconds = statistics.median(
                1e3 * one.outcome.seconds / max(1, one.outcome.curve[-1][0])
                for one in runs.values()
                if one.outcome.curve
            )
            chosen = optimizer(task, name)
            rows.append(
                [
                    task,
                    chosen.label,
                    f"{record.run.lr:g}",
                    ", ".join(f"{rate:g}" for rate in tried),
                    f"{chosen.second} {record.run.value:g}",
                    number(milliseconds),
                    f"{record.outcome.state_bytes / 2**20:.1f}",
                ]
            )
    header = ["", "optimizer", "best rate", "rates tried", "fixed", "CPU ms a step", "MiB of state"]
    return markdown_table(header, rows)


def failures_table(records: Sequence[RunRecord]) -> str:
    rows = [
        [
            one.run.task,
            optimizer(one.run.task, one.run.optimizer).label,
            f"{one.run.lr:g}",
            one.run.seed,
            one.outcome.status,
        ]
        for one in records
        if one.outcome.status != OK
    ]
    header = ["", "optimizer", "rate", "seed", "what happened"]
    return markdown_table(header, rows) if rows else "All runs were finite.\n"


def report(records: Sequence[RunRecord], picture: str | None = None) -> str:
    """Return all tables; without a run of the best rates, the paper's figures and a sentence.

    Args:
        picture: address of the plot in the text; None for a text without it.
    """
    results = Results(records)
    if not results.runs:
        return f"{NOTHING}\n{losses_table(results)}"
    machines = sorted({", ".join(record.circumstances[1:3]) for record in records})
    steps = {task: next(iter(runs.values())).run.steps for (task, _), runs in results.runs.items()}
    seeds = ", ".join(str(seed) for seed in sorted({record.run.seed for record in records} - {SEARCH_SEED}))
    lengths = ", ".join(f"{steps[task]} on `{task}`" for task in tasks(results) if task in steps)
    parts = [
        f"{len(records)} runs; seeds {seeds} of the best rates; steps: {lengths}. {'; '.join(machines)}.\n",
        "Measured is the best validation loss of a run, mean and range over seeds; the lowest is bold:\n",
        losses_table(results),
        *([f"![validation loss over steps]({picture})\n"] if picture else []),
        choices_table(results, records),
        failures_table(records),
    ]
    return "\n".join(parts)


def plot_task(axes: Axes, results: Results, task: str) -> None:
    """Plot the median validation loss over steps of every optimizer."""
    highest = math.inf
    for name in LOOKS:
        curves = [curve for curve in results.curves(task, name) if curve]
        if not curves:
            continue
        positions, losses = median_curve(curves, STEPS)
        label = optimizer(task, name).label
        axes.plot(positions, losses, label=label, **{"linewidth": 1.3, **LOOKS[name]})
        highest = min(highest, losses[0])
    if math.isfinite(highest):
        axes.set_ylim(top=1.02 * highest)
    axes.set_title(f"{task} (for {PAPER_DATA[task]})", loc="left", fontsize=11)
    axes.set_xlabel("steps")


def save_plot(results: Results, path: Path) -> None:
    """Write the plot: a panel a task."""
    mpl.use("Agg")
    shown = tasks(results)
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(shown), figsize=(4.2 * len(shown), 3.8), squeeze=False, layout="constrained"
        )
        for axes, task in zip(panels[0], shown, strict=True):
            plot_task(axes, results, task)
        panels[0][0].set_ylabel("validation loss")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    plt.close(figure)
