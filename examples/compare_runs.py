"""Compare finished runs of train_gpt.py: a table, and a plot of loss against step and against time.

python examples/compare_runs.py runs/adamw runs/kradagrad --out runs/comparison
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas
from gpt import report

PLOT = "comparison.png"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="folders written by train_gpt.py"
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {PLOT}")
    chosen = parser.parse_args(arguments)
    try:
        results = [report.read_result(folder) for folder in chosen.runs]
        logs = [report.read_log(folder) for folder in chosen.runs]
        chosen.out.mkdir(parents=True, exist_ok=True)
        report.plot(list(zip(map(report.label, results), logs, strict=True)), chosen.out / PLOT)
    except FileNotFoundError as error:
        parser.error(f"no finished run there: {error.filename} is missing")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(table(pandas.DataFrame(results)))
    print(f"\nPlot: {chosen.out / PLOT}")
    return 0


def table(results: pandas.DataFrame) -> str:
    """Format one line per run, best first; with several seeds of a setting, also their mean and range."""
    columns = ["optimizer", "lr", "seed", "steps", "val_loss", "seconds", "optimizer_seconds"]
    runs = results[columns].sort_values("val_loss")
    runs = runs.assign(ms_per_step=1000 * runs["seconds"] / runs["steps"])
    text = _formatted(runs)
    settings = runs.groupby(["optimizer", "lr", "steps"])["val_loss"].agg(["count", "mean", "min", "max"])
    if (settings["count"] == 1).all():
        return text
    spread = settings.sort_values("mean").reset_index().rename(columns={"count": "seeds", "mean": "val_loss"})
    return f"{text}\n\n{_formatted(spread)}"


def _formatted(frame: pandas.DataFrame) -> str:
    digits = {"lr": "{:g}", "seconds": "{:.1f}", "optimizer_seconds": "{:.1f}", "ms_per_step": "{:.0f}"}
    digits |= dict.fromkeys(("val_loss", "min", "max"), "{:.3f}")
    shown = {name: digits[name].format for name in frame.columns if name in digits}
    headed = frame.rename(columns=lambda name: name.replace("_", " "))
    formatters = {name.replace("_", " "): shown[name] for name in shown}
    return headed.to_string(index=False, formatters=formatters)


if __name__ == "__main__":
    sys.exit(main())
