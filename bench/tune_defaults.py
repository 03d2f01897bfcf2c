"""Grid search of optimizer options on the example's training run, one run at a time, resumable.

    python bench/tune_defaults.py --optimizer adamw --vary lr 1e-3 3e-3 6e-3 --seeds 0 1 2
    python bench/tune_defaults.py --vary lr 1e-2 2e-2 --vary "betas" "(0.9, 0.99)" "(0.95, 0.99)"
    python bench/tune_defaults.py --one-at-a-time --vary refine 1 2 4 --vary embeddings True False

Every combination of the varied options (with --one-at-a-time: each alone, the rest at their defaults) is
trained for every seed and appended to the CSV; runs that it holds already are skipped. Options are
`KrADagrad`'s own, `lr`, and `embeddings`: whether embeddings and head are preconditioned. Prints the median
validation loss over the seeds and its spread, best first.
"""

from __future__ import annotations

import argparse
import ast
import csv
import itertools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from common import HERE, git_sha, machine, versions

sys.path.insert(0, str(HERE.parent / "examples"))

from gpt.data import load_text
from gpt.optimizers import NAMES, split_parameters
from gpt.options import Options
from gpt.ranks import Ranks
from gpt.trainer import Trainer, learning_rate_factor
from torch.optim.lr_scheduler import LambdaLR

from kradagrad_ext import KrADagrad

KEY = ("optimizer", "settings", "steps", "seed")
RESULT = ("val_loss", "seconds", "optimizer_seconds")
CIRCUMSTANCES = ("git_sha", "machine", "versions", "date")
Settings = dict[str, object]


def parsed(text: str) -> object:
    """A Python literal, or else the text itself."""
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


def make_trainer(options: Options, settings: Settings) -> Trainer:
    """The example's trainer, with an optimizer of these settings where the example has no option for them."""
    trainer = Trainer(options, load_text(options.data, options.context), Ranks())
    settings = {name: value for name, value in settings.items() if name != "lr"}
    if not settings:
        return trainer
    if options.optimizer != "kradagrad":
        raise SystemExit(
            f"tune_defaults: only lr can be varied for {options.optimizer}, got {sorted(settings)}"
        )
    embeddings = settings.pop("embeddings", True)
    matrices, ends, vectors = split_parameters(trainer.model)
    groups = [{"params": matrices}, {"params": ends, "precondition": embeddings}, {"params": vectors}]
    optimizer = KrADagrad(groups, lr=options.learning_rate, **settings)
    trainer.optimizers = [optimizer]
    trainer.schedulers = [LambdaLR(optimizer, learning_rate_factor(options.steps))]
    return trainer


def run(optimizer: str, settings: Settings, steps: int, seed: int) -> dict[str, float]:
    """Trains once; NaN as the loss of a run whose training loss stops being finite."""
    lr = settings.get("lr")
    options = Options(out="", optimizer=optimizer, steps=steps, seed=seed, lr=lr, eval_every=steps)
    trainer = make_trainer(options, settings)
    (row,) = trainer.train_step()
    while trainer.step < steps and row[2] == row[2]:
        (row,) = trainer.train_step()
    val_loss = float("nan") if row[3] is None else row[3]
    return {"val_loss": val_loss, "seconds": row[1], "optimizer_seconds": row[5]}


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


def print_summary(rows: list[dict[str, str]]) -> None:
    """Markdown, best median first."""
    by_settings: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_settings[row["optimizer"], row["settings"], row["steps"]].append(row)
    lines = []
    for (optimizer, settings, steps), runs in by_settings.items():
        losses = [float(row["val_loss"]) for row in runs]
        share = statistics.median(float(r["optimizer_seconds"]) / float(r["seconds"]) for r in runs)
        spread = f"{min(losses):.3f} to {max(losses):.3f}"
        cells = (optimizer, settings, steps, len(runs), f"{statistics.median(losses):.3f}", spread)
        lines.append(
            (statistics.median(losses), "| " + " | ".join(map(str, cells)) + f" | {100 * share:.0f}% |")
        )
    print("| optimizer | settings | steps | seeds | median loss | spread | optimizer's share of time |")
    print("|---" * 7 + "|")
    # A diverged run has no loss: last.
    for _, line in sorted(lines, key=lambda item: (item[0] != item[0], item[0])):
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", choices=NAMES, default="kradagrad")
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar=("OPTION", "VALUE"))
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--csv", type=Path, default=HERE / "results" / "tuning.csv")
    arguments = parser.parse_args()
    varied = {name: [parsed(value) for value in values] for name, *values in arguments.vary}
    done = {key_of(row) for row in stored(arguments.csv)}
    for settings in grid(varied, arguments.one_at_a_time):
        for seed in arguments.seeds:
            text = json.dumps(settings, sort_keys=True)
            key = (arguments.optimizer, text, str(arguments.steps), str(seed))
            if key in done:
                continue
            result = run(arguments.optimizer, settings, arguments.steps, seed)
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            circumstances = dict(zip(CIRCUMSTANCES, (git_sha(), machine(), versions(), date), strict=True))
            append(arguments.csv, {**dict(zip(KEY, key, strict=True)), **result, **circumstances})
            print(f"{' '.join(key)}: {result['val_loss']:.4f}", file=sys.stderr)
    print_summary(stored(arguments.csv))


if __name__ == "__main__":
    main()
