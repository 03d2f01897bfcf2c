"""Grid search of optimizer options on training tasks, one run at a time, resumable.

    python -m bench.tuning.tune_defaults --optimizer adamw --vary lr 1e-3 3e-3 6e-3 --seeds 0 1 2
    python -m bench.tuning.tune_defaults --task curves --vary betas "(0.9, 0.99)" "(0.95, 0.99)"
    python -m bench.tuning.tune_defaults --one-at-a-time --vary refine 1 2 4 --vary embeddings True False

Every combination of the varied options (with --one-at-a-time: each alone, the rest at their defaults) is
trained for every seed and appended to build/bench/tuning.csv; runs that this CSV or bench/results/tuning.csv
has are skipped. With --record, the latter alone is read and appended to. Options are those of `KrADagrad`
(`bfloat16` names the dtype), `lr`, and `embeddings`: True to precondition embeddings and head. The command
prints the median validation loss over the seeds and its spread, best first. tasks.py describes the tasks.
"""

from __future__ import annotations

import argparse
import ast
import csv
import itertools
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from datetime import datetime, timezone
from pathlib import Path

import torch
from gpt.optimizers import BETAS, DEFAULT_LR, MAX_GRADIENT_NORM, build_rivals
from gpt.trainer import learning_rate_factor
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bench.common import RECORDED, UNRECORDED, add_record_option, git_sha, machine, versions
from bench.tuning.tasks import TASKS, TrainingTask
from kradagrad_ext import KrADagrad

RATES = {**DEFAULT_LR, "soap": 3e-3}
"""Default learning rate of each optimizer."""

KEY = ("task", "optimizer", "settings", "steps", "seed")
RESULT = ("val_loss", "seconds", "optimizer_seconds")
CIRCUMSTANCES = ("git_sha", "machine", "versions", "date")
Settings = dict[str, object]


def parsed(text: str) -> object:
    """Return the value of a Python literal, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def grid(varied: dict[str, list[object]], one_at_a_time: bool) -> Iterator[Settings]:
    if one_at_a_time:
        yield {}
        for name, values in varied.items():
            yield from ({name: value} for value in values)
        return
    for combination in itertools.product(*varied.values()):
        yield dict(zip(varied, combination, strict=True))


def make_optimizers(name: str, task: TrainingTask, settings: Settings) -> list[Optimizer]:
    """Return optimizers that together have every parameter of a task's model."""
    options = {key: torch.bfloat16 if v == "bfloat16" else v for key, v in settings.items() if key != "lr"}
    lr = float(str(settings.get("lr", RATES[name])))
    matrices, ends, vectors = task.parameters()
    if name == "kradagrad":
        embeddings = options.pop("embeddings", task.precondition_ends)
        groups = [{"params": matrices}, {"params": ends, "precondition": embeddings}, {"params": vectors}]
        return [KrADagrad(groups, lr=lr, **options)]
    if options:
        raise SystemExit(f"tune_defaults: only lr can be varied for {name}, got {sorted(options)}")
    return (
        build_soap(matrices, ends + vectors, lr)
        if name == "soap"
        else build_rivals(name, matrices, ends + vectors, lr)
    )


def build_soap(matrices: list[nn.Parameter], rest: list[nn.Parameter], lr: float) -> list[Optimizer]:
    """Return SOAP, with its package's defaults, on the matrices, and AdamW on the rest, as beside Muon."""
    from pytorch_optimizer import SOAP

    soap = SOAP(matrices, lr=lr, weight_decay=0.0, precondition_frequency=10)
    return [soap, AdamW(rest, lr=lr, betas=BETAS, weight_decay=0.0)]


def run(task_name: str, optimizer: str, settings: Settings, steps: int, seed: int) -> dict[str, float]:
    """Train once; the validation loss is NaN if the training loss stops being finite."""
    task = TASKS[task_name](seed)
    optimizers = make_optimizers(optimizer, task, settings)
    schedulers = [LambdaLR(one, learning_rate_factor(steps)) for one in optimizers]
    start, by_optimizer = time.perf_counter(), 0.0
    for _ in range(steps):
        loss = task.loss()
        loss.backward()
        if not math.isfinite(loss.item()):
            break
        if optimizer in MAX_GRADIENT_NORM:
            clip_grad_norm_(task.model.parameters(), MAX_GRADIENT_NORM[optimizer])
        before = time.perf_counter()
        for one, scheduler in zip(optimizers, schedulers, strict=True):
            one.step()
            one.zero_grad()
            scheduler.step()
        by_optimizer += time.perf_counter() - before
    seconds = time.perf_counter() - start
    val_loss = task.validate() if math.isfinite(loss.item()) else math.nan
    return {"val_loss": val_loss, "seconds": seconds, "optimizer_seconds": by_optimizer}


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def stored(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, KEY + RESULT + CIRCUMSTANCES, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def run_missing(
    path: Path,
    done: Collection[tuple[str, ...]],
    task: str,
    optimizer: str,
    settings: Settings,
    steps: int,
    seed: int,
) -> None:
    """Train once and append the result to the CSV, unless `done` has a run of the same key."""
    key = (task, optimizer, json.dumps(settings, sort_keys=True), str(steps), str(seed))
    if key in done:
        return
    result = run(task, optimizer, settings, steps, seed)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    circumstances = dict(zip(CIRCUMSTANCES, (git_sha(), machine(), versions(), date), strict=True))
    append(path, {**dict(zip(KEY, key, strict=True)), **result, **circumstances})
    print(f"{' '.join(key)}: {result['val_loss']:.4f}", file=sys.stderr)


def print_summary(rows: list[dict[str, str]]) -> None:
    """Print a Markdown table, best median first."""
    by_settings: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_settings[row["task"], row["optimizer"], row["settings"], row["steps"]].append(row)
    lines = []
    for names, runs in by_settings.items():
        losses = [float(row["val_loss"]) for row in runs]
        share = statistics.median(float(r["optimizer_seconds"]) / float(r["seconds"]) for r in runs)
        spread = f"{min(losses):.3f} to {max(losses):.3f}"
        cells = (*names, len(runs), f"{statistics.median(losses):.3f}", spread)
        lines.append(
            (
                names[0],
                statistics.median(losses),
                "| " + " | ".join(map(str, cells)) + f" | {100 * share:.0f}% |",
            )
        )
    print(
        "| task | optimizer | settings | steps | seeds | median loss | spread | optimizer's share of time |"
    )
    print("|---" * 8 + "|")
    # A diverged run has no loss and comes last.
    for *_, line in sorted(lines, key=lambda item: (item[0], item[1] != item[1], item[1])):
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=tuple(TASKS), default="text")
    parser.add_argument("--optimizer", choices=tuple(RATES), default="kradagrad")
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar=("OPTION", "VALUE"))
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="default: the task's")
    parser.add_argument("--csv", type=Path, help="use this CSV alone")
    add_record_option(parser, "bench/results/tuning.csv")
    arguments = parser.parse_args()
    path = arguments.csv or (RECORDED if arguments.record else UNRECORDED) / "tuning.csv"
    files = [path] if arguments.csv or arguments.record else [RECORDED / "tuning.csv", path]
    varied = {name: [parsed(value) for value in values] for name, *values in arguments.vary}
    steps = arguments.steps or TASKS[arguments.task].steps
    done = {key_of(row) for file in files for row in stored(file)}
    for settings in grid(varied, arguments.one_at_a_time):
        for seed in arguments.seeds:
            run_missing(path, done, arguments.task, arguments.optimizer, settings, steps, seed)
    print_summary([row for file in files for row in stored(file)])


if __name__ == "__main__":
    main()
