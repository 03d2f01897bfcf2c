"""Result files of a run and their plot: log.csv, result.json, loss.png."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .trainer import COLUMNS, Row

LOG, RESULT, PLOT = "log.csv", "result.json", "loss.png"
SMOOTHING_STEPS = 20


class LogFile:
    """The file log.csv with one row per step, flushed after each row."""

    def __init__(self, folder: Path, rows: Iterable[Row]) -> None:
        """Restart the file with `rows`: steps logged after the last checkpoint are run again."""
        self._file = (folder / LOG).open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)
        self._writer.writerows(rows)

    def add(self, row: Row) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def read_log(folder: Path) -> pandas.DataFrame:
    return pandas.read_csv(folder / LOG)


def write_result(folder: Path, result: dict[str, Any]) -> None:
    (folder / RESULT).write_text(json.dumps(result) + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return result


def label(result: dict[str, Any]) -> str:
    """Return a label, shared by runs that differ only in their seed."""
    return f"{result['optimizer']}, lr {result['lr']:g}"


def plot(runs: list[tuple[str, pandas.DataFrame]], path: Path) -> None:
    """Plot validation loss (marks) and smoothed training loss (thin) over steps and over seconds.

    Args:
        runs: pairs of a label and a log; equal labels share a colour and one line of the legend.
        path: path of the PNG.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    colours = {name: f"C{i % 10}" for i, name in enumerate(dict.fromkeys(name for name, _ in runs))}
    panels = figure.subplots(1, 2, sharey=True)
    for panel, column in zip(panels, ("step", "seconds"), strict=True):
        for name, log in runs:
            _draw(panel, log, column, colours[name])
        panel.set_xlabel("step" if column == "step" else "training time [s]")
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    for name, colour in colours.items():
        panels[0].plot([], [], "o-", color=colour, label=name)
    panels[0].set_ylabel("loss [nats per byte]")
    panels[0].set_ylim(*_limits([log for _, log in runs]))
    panels[0].legend(title="validation (marks), training (thin)")
    figure.savefig(path, dpi=120)


def _smoothed(log: pandas.DataFrame) -> pandas.Series:
    return log["train_loss"].rolling(SMOOTHING_STEPS, min_periods=1).mean()


def _draw(panel: Axes, log: pandas.DataFrame, column: str, colour: str) -> None:
    panel.plot(log[column], _smoothed(log), color=colour, alpha=0.45, linewidth=1)
    validated = log.dropna(subset="val_loss")
    panel.plot(validated[column], validated["val_loss"], "o-", color=colour, markersize=4)


def _limits(logs: list[pandas.DataFrame]) -> tuple[float, float]:
    """Return limits from the best loss to the loss after a tenth of the steps: earlier losses are similar."""
    best = min(min(_smoothed(log).min(), log["val_loss"].min()) for log in logs)
    early = max(_smoothed(log).iloc[len(log) // 10] for log in logs)
    return best - 0.05 * (early - best) - 0.01, early + 0.05 * (early - best) + 0.01
