"""Loss and seconds of each optimizer on every task, as a table.

    python -m bench.tuning.results --record    # nothing else running; half an hour, resumable

For each task and seed, the optimizers train one after another, so that all meet the same changes of the
machine's speed. Losses and seconds are medians over the seeds; a run's seconds are those of its whole loop.
`RATES` are the best of the grids in docs/tuning.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.common import RECORDED, UNRECORDED, add_record_option
from bench.tuning.tasks import TASKS
from bench.tuning.tune_defaults import key_of, run_missing, stored

RATES = {
    "text": {"adamw": 2e-3, "muon": 1e-2, "soap": 1e-2, "kradagrad": 1e-2},
    "images": {"adamw": 1e-3, "muon": 2e-2, "soap": 1e-2, "kradagrad": 1e-2},
    "curves": {"adamw": 2e-3, "muon": 1e-2, "soap": 1e-2, "kradagrad": 3e-2},
}

NAMES = {"adamw": "AdamW", "muon": "Muon", "soap": "SOAP", "kradagrad": "KrADagrad"}


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return a Markdown table, line by line: an optimizer a row, loss and seconds of each task."""
    tasks = [task for task in RATES if any(row["task"] == task for row in rows)]
    columns = [_column([row for row in rows if row["task"] == task]) for task in tasks]
    cells = [f"{task}, {TASKS[task].steps} steps" for task in tasks]
    lines = ["| | " + " | ".join(cells) + " |", "|---" * (len(tasks) + 1) + "|"]
    for optimizer, name in NAMES.items():
        lines.append(f"| {name} | " + " | ".join(column[optimizer] for column in columns) + " |")
    return lines


def _column(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the cell of each optimizer from the rows of one task."""
    medians = {
        optimizer: [
            statistics.median(float(row[key]) for row in rows if row["optimizer"] == optimizer)
            for key in ("val_loss", "seconds")
        ]
        for optimizer in NAMES
    }
    least = min(loss for loss, _ in medians.values())
    cells = {}
    for optimizer, (loss, seconds) in medians.items():
        bold = "**" if loss == least else ""
        cells[optimizer] = f"{bold}{loss:#.4g}{bold} in {seconds:.0f} s"
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: the task's")
    parser.add_argument("--csv", type=Path, help="use this CSV")
    add_record_option(parser, "bench/results/results.csv")
    given = parser.parse_args(arguments)
    path = given.csv or (RECORDED if given.record else UNRECORDED) / "results.csv"
    done = {key_of(row) for row in stored(path)}
    for seed in given.seeds:
        for task, rates in RATES.items():
            for optimizer, lr in rates.items():
                run_missing(path, done, task, optimizer, {"lr": lr}, given.steps or TASKS[task].steps, seed)
    print("\n".join(table(stored(path))))


if __name__ == "__main__":
    main()
