"""Train the paper's autoencoders with its optimizers and ours, and report the losses beside the paper's.

    python -m bench.experiments.autoencoders run             # 90 minutes on two cores
    python -m bench.experiments.autoencoders run --quick     # two minutes: few steps, one rate
    python -m bench.experiments.autoencoders report          # tables and plot of the runs so far
    python -m bench.experiments.autoencoders report --record # into docs/paper.md and docs/images

A run is one row of build/bench/autoencoders.csv (autoencoders_quick.csv), or with --record of
bench/results/autoencoders.csv. Runs that the CSV has are not repeated: after Ctrl-C, the same command goes
on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.arena.command import run_all
from bench.arena.protocol import Budget, Study
from bench.arena.store import Store
from bench.common import RECORDED, ROOT, UNRECORDED, add_record_option
from bench.experiments.autoencoders.optimizers import optimizers_of
from bench.experiments.autoencoders.tasks import AUTOENCODERS
from bench.experiments.autoencoders.training import train

FULL = Budget(rates=3, extensions=2, values=False, seeds=3)
QUICK = Budget(rates=1, extensions=0, values=False, seeds=1, share=0.08)
QUICK_TASKS = ("digits", "curves")

NAMES = tuple(optimizers_of(AUTOENCODERS["digits"]))
PAGE, PART = ROOT / "docs/paper.md", "autoencoders"


def studies_of(tasks: Sequence[str], optimizers: Sequence[str], budget: Budget) -> list[Study]:
    return [
        Study(task, max(1, round(budget.share * AUTOENCODERS[task].steps)), chosen, budget)
        for task in tasks
        for name, chosen in optimizers_of(AUTOENCODERS[task]).items()
        if name in optimizers
    ]


def csv_of(options: argparse.Namespace) -> Path:
    if options.csv:
        return options.csv
    name = "autoencoders_quick.csv" if options.quick else "autoencoders.csv"
    return (RECORDED if options.record else UNRECORDED) / name


def print_report(store: Store, record: bool) -> None:
    """Print the tables and write the plot; with `record` both go into docs."""
    from bench.arena.measures import Results
    from bench.arena.report import insert
    from bench.experiments.autoencoders.report import PLOT, report, save_plot

    results = Results(store.records)
    folder = ROOT / "docs/images" if record else UNRECORDED
    if results.runs:
        save_plot(results, folder / PLOT)
    if record:
        insert(report(store.records, f"images/{PLOT}"), PAGE, PART)
    print(report(store.records))


def command_run(options: argparse.Namespace) -> int:
    tasks = options.tasks or (QUICK_TASKS if options.quick else tuple(AUTOENCODERS))
    store = Store(csv_of(options))
    studies = studies_of(tasks, options.optimizers, QUICK if options.quick else FULL)
    if not run_all(studies, store, options.workers, "autoencoders", train):
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    print_report(store, record=False)
    return 1 if any(not record.outcome.curve for record in store.records) else 0


def command_report(options: argparse.Namespace) -> int:
    print_report(Store(csv_of(options)), options.record)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.experiments.autoencoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(required=True)
    run = commands.add_parser("run", help="train what the CSV lacks, then report")
    run.add_argument("--tasks", nargs="+", choices=tuple(AUTOENCODERS), help="default: all")
    run.add_argument("--optimizers", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    run.add_argument("--workers", type=int, default=2, help="processes, one core each; default: 2")
    run.set_defaults(command=command_run)
    report = commands.add_parser("report", help="print tables and write the plot")
    report.set_defaults(command=command_report)
    files = {run: "bench/results/autoencoders.csv", report: "docs/paper.md and docs/images"}
    for command, recorded in files.items():
        command.add_argument("--quick", action="store_true", help="few tasks, rates, seeds and steps")
        command.add_argument("--csv", type=Path, help="use this CSV")
        add_record_option(command, recorded)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.quick and options.record:
        raise SystemExit("autoencoders: --record is for the whole measurement, not for --quick")
    return int(options.command(options))
