"""Run the arena and report what it measured.

    python -m bench.arena run                              # all tasks: about 10 hours on two cores
    python -m bench.arena run --quick                      # eleven minutes on two cores, the same tables
    python -m bench.arena run --tasks curves --optimizers adamw kradagrad
    python -m bench.arena widths                           # the best learning rate by width: an hour
    python -m bench.arena report                           # tables and plots of the runs so far
    python -m bench.arena report --record                  # into docs/arena.md and docs/images

A run is one row of build/bench/arena.csv (arena_quick.csv, arena_widths.csv), or with --record of a file of
that name in bench/results. Runs that the CSV has are not repeated: after Ctrl-C, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bench.arena.protocol import FULL, QUICK, RATES_ALONE, Budget, Study, next_runs
from bench.arena.rivals import RIVALS, missing
from bench.arena.run import OK, train
from bench.arena.store import Store
from bench.arena.tasks.registry import TASKS
from bench.arena.tasks.widths import WIDTHS
from bench.arena.workers import Trainer, train_all
from bench.common import RECORDED, ROOT, UNRECORDED, add_record_option

QUICK_TASKS = ("curves", "digits", "regression")
"""Tasks of --quick, the ones with the shortest runs."""

WIDTH_OPTIMIZERS = ("adamw", "muon", "kradagrad")

PAGE = ROOT / "docs/arena.md"


def studies_of(tasks: Sequence[str], optimizers: Sequence[str], budget: Budget) -> list[Study]:
    return [
        Study(task, max(1, round(budget.share * (TASKS | WIDTHS)[task].steps)), RIVALS[name], budget)
        for task in tasks
        for name in optimizers
    ]


def run_all(
    studies: Sequence[Study], store: Store, workers: int, name: str = "arena", trainer: Trainer = train
) -> bool:
    """Train all that the CSV lacks, with a progress bar of this name. Return False after Ctrl-C."""
    second = {study.rival.name: study.rival.second for study in studies}
    total = sum(study.total(store.done) for study in studies)
    done = sum(study.finished(store.done) for study in studies)
    records = train_all(lambda: next_runs(studies, store.done), workers, trainer)
    with tqdm(desc=name, total=total, initial=done, unit="run", smoothing=0.05, dynamic_ncols=True) as bar:
        try:
            for record in records:
                store.add(record)
                run, outcome = record.run, record.outcome
                choice = f"lr {run.lr:g}, {second[run.optimizer]} {run.value:g}, seed {run.seed}"
                result = f"{outcome.val_loss:.5g} in {outcome.seconds:.0f} s"
                result = result if outcome.status == OK else outcome.status
                tqdm.write(f"{run.task} {run.optimizer}, {choice}: {result}", file=sys.stderr)
                bar.total = sum(study.total(store.done) for study in studies)
                bar.update()
        except KeyboardInterrupt:
            return False
        finally:
            records.close()
    return True


def csv_of(options: argparse.Namespace) -> Path:
    if options.csv:
        return options.csv
    name = "arena_quick.csv" if options.quick else "arena.csv"
    return (RECORDED if options.record else UNRECORDED) / name


def print_report(store: Store, record: bool) -> None:
    """Print the tables and write the plots; with `record` the tables go into docs/arena.md."""
    from bench.arena.measures import Results
    from bench.arena.plots import save_plots
    from bench.arena.report import RESULTS, insert, report

    text = report(store.records)
    if record:
        insert(text, PAGE, RESULTS)
    print(text)
    results = Results(store.records)
    beside = UNRECORDED if store.path.parent == RECORDED else store.path.parent
    if results.runs:
        for path in save_plots(results, ROOT / "docs/images" if record else beside):
            print(path)


def check_installed(optimizers: Sequence[str]) -> None:
    lacking = {name: reason for name, reason in missing().items() if name in optimizers}
    if lacking:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in lacking.items())
        raise SystemExit(f"arena: these optimizers cannot be made; --optimizers chooses others{lines}")


def command_run(options: argparse.Namespace) -> int:
    check_installed(options.optimizers)
    tasks = options.tasks or (QUICK_TASKS if options.quick else tuple(TASKS))
    store = Store(csv_of(options))
    for task in tqdm(tasks, "preparing", leave=False):
        TASKS[task].prepare(UNRECORDED / "arena")
    studies = studies_of(tasks, options.optimizers, QUICK if options.quick else FULL)
    if not run_all(studies, store, options.workers):
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    print_report(store, record=False)
    failed = [record for record in store.records if not record.outcome.curve]
    return 1 if failed else 0


def command_widths(options: argparse.Namespace) -> int:
    from bench.arena.report import WIDTHS as PART
    from bench.arena.report import insert, widths_report

    check_installed(options.optimizers)
    store = Store(options.csv or (RECORDED if options.record else UNRECORDED) / "arena_widths.csv")
    if not run_all(studies_of(tuple(WIDTHS), options.optimizers, RATES_ALONE), store, options.workers):
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    text = widths_report(store.records)
    if options.record:
        insert(text, PAGE, PART)
    print(text)
    return 0


def command_report(options: argparse.Namespace) -> int:
    print_report(Store(csv_of(options)), options.record)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.arena",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(required=True)
    run = commands.add_parser("run", help="train what the CSV lacks, then report")
    run.add_argument("--tasks", nargs="+", choices=tuple(TASKS), help="default: all")
    run.set_defaults(command=command_run)
    widths = commands.add_parser("widths", help="search the learning rate of a model in four widths")
    widths.set_defaults(command=command_widths)
    for command, optimizers in {run: tuple(RIVALS), widths: WIDTH_OPTIMIZERS}.items():
        command.add_argument(
            "--optimizers",
            nargs="+",
            choices=tuple(RIVALS),
            default=optimizers,
            help=f"default: {' '.join(optimizers)}",
        )
        command.add_argument("--workers", type=int, default=2, help="processes, one core each; default: 2")
    report = commands.add_parser("report", help="print tables and write plots")
    report.set_defaults(command=command_report)
    for command in (run, report):
        command.add_argument("--quick", action="store_true", help="few tasks, rates, seeds and steps")
    files = {
        run: "bench/results/arena.csv",
        widths: "bench/results/arena_widths.csv and docs/arena.md",
        report: "docs/arena.md and docs/images",
    }
    for command, recorded in files.items():
        command.add_argument("--csv", type=Path, help="use this CSV")
        add_record_option(command, recorded)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if getattr(options, "quick", False) and options.record:
        raise SystemExit("arena: --record is for the whole protocol, not for --quick")
    return int(options.command(options))
