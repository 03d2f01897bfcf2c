"""Changes of the default that other optimizers profit from, on four of the arena's tasks.

    python -m bench.tuning.variants                       # an hour on two cores; Ctrl-C, and it goes on
    python -m bench.tuning.variants --variants "cautious steps" --tasks images --seeds 0 1 2

A variant is KrADagrad with other options, or with a change of every step that it took: see `VARIANTS`. All
train with the arena's loop and the default learning rate. The runs are rows of build/bench/variants.csv, or
with `--record` of bench/results/variants.csv; the command prints median final losses.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from bench.arena.parameters import ModelParameters, is_matrix
from bench.arena.rivals import Rival
from bench.arena.run import ArenaRun, Outcome, train_on
from bench.arena.store import RunRecord, Store
from bench.arena.tasks.registry import TASKS, task_of
from bench.arena.workers import train_all
from bench.common import RECORDED, UNRECORDED, add_record_option, markdown_table
from kradagrad_ext import KrADagrad, param_groups

TASK_NAMES = ("text", "images", "curves", "poisson")
RATE = 1e-2


class OnModel(KrADagrad):
    """The default with the groups that `param_groups` makes."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(param_groups(model, show=None), lr=lr)


class ChangedSteps(OnModel):
    """A step that is changed after it was taken: `change_`, for the matrices that are preconditioned."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model, lr)
        chosen = [group for group in self.param_groups if group["precondition"]]
        self.matrices = [(p, group) for group in chosen for p in group["params"] if is_matrix(p)]
        self.lengths = [p.detach().norm() for p, _ in self.matrices]

    @torch.no_grad()
    def step(self) -> None:
        before = [p.clone() for p, _ in self.matrices]
        super().step()
        for (p, group), length, old in zip(self.matrices, self.lengths, before, strict=True):
            self.change_(p, old, length, group["lr"])

    def change_(self, p: Tensor, old: Tensor, length: Tensor, lr: float) -> None:
        """Change a matrix in place.

        Args:
            p: after the step.  old: before it.  length: its initial norm.  lr: on this step.
        """
        raise NotImplementedError


class Cautious(ChangedSteps):
    """Elements that would move against the gradient stay; the others move further (Liang et al., 2024)."""

    def change_(self, p: Tensor, old: Tensor, length: Tensor, lr: float) -> None:
        move = p - old
        agrees = (move * p.grad < 0).to(p.dtype)
        p.copy_(old + move * agrees / agrees.mean().clamp_min(0.1))


class CautiousDecay(ChangedSteps):
    """Weight decay of 1, only for elements that the step moves towards zero (Chen et al., 2025)."""

    def change_(self, p: Tensor, old: Tensor, length: Tensor, lr: float) -> None:
        p.sub_(lr * old * ((p - old) * old < 0))


class ConstantNorm(ChangedSteps):
    """The norm of every matrix stays what it was."""

    def change_(self, p: Tensor, old: Tensor, length: Tensor, lr: float) -> None:
        p.mul_(length / p.norm())


class Hyperball(ChangedSteps):
    """The norm of every matrix stays, and so does that of its update: lr times the matrix's."""

    def change_(self, p: Tensor, old: Tensor, length: Tensor, lr: float) -> None:
        move = p - old
        p.copy_(old + move * (lr * length / move.norm().clamp_min(1e-30)))
        p.mul_(length / p.norm())


class GrowingMemory(OnModel):
    """`factor_decay` is 1 - 10 / step, at least the default and at most 0.97."""

    number = 0

    def step(self) -> None:
        self.number += 1
        decay = min(0.97, max(0.8, 1 - 10 / self.number))
        for group in self.param_groups:
            group["factor_decay"] = decay
        super().step()


class AveragedWeights(OnModel):
    """Validation takes the exponential average of the weights, with decay 0.98; the rate does not fall."""

    count = 0

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model, lr)
        self.all = [p for group in self.param_groups for p in group["params"]]
        self.averages = [p.detach().clone() for p in self.all]
        self.validates = False

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        self.count += 1
        torch._foreach_lerp_(self.averages, self.all, max(0.02, 1 / self.count))

    @torch.no_grad()
    def exchange(self) -> None:
        for p, average in zip(self.all, self.averages, strict=True):
            weights = p.clone()
            p.copy_(average)
            average.copy_(weights)

    def eval(self) -> None:
        self.exchange()
        self.validates = True

    def train(self) -> None:
        if self.validates:
            self.exchange()
        self.validates = False


def with_options(parameters: ModelParameters, lr: float, **options: object) -> list[Optimizer]:
    return [KrADagrad(param_groups(parameters.model, show=None), lr=lr, **options)]


def changed(kind: type[OnModel]) -> Callable[[ModelParameters, float], list[Optimizer]]:
    return lambda parameters, lr: [kind(parameters.model, lr)]


AVERAGING = "averaged weights at a constant rate"

VARIANTS: dict[str, Callable[[ModelParameters, float], list[Optimizer]]] = {
    "the default": with_options,
    "blocks of 128": partial(with_options, block_size=128),
    "roots on every fifth step": partial(with_options, root_every=5),
    "roots on every step": partial(with_options, root_every=1),
    "factors on every second step": partial(with_options, factor_every=2),
    "factor_decay 0.9": partial(with_options, factor_decay=0.9),
    "factor_decay growing to 0.97": changed(GrowingMemory),
    "betas (0.95, 0.99)": partial(with_options, betas=(0.95, 0.99)),
    "graft rms": partial(with_options, graft="rms"),
    "graft whitened": partial(with_options, graft="whitened"),
    "cautious steps": changed(Cautious),
    "cautious weight decay": changed(CautiousDecay),
    "constant norms": changed(ConstantNorm),
    "constant norms of weights and updates": changed(Hyperball),
    AVERAGING: changed(AveragedWeights),
}


def rival_of(name: str) -> Rival:
    """Return a variant as one of the arena's optimizers, without a second hyperparameter."""

    def make(parameters: ModelParameters, lr: float, _: float) -> list[Optimizer]:
        return VARIANTS[name](parameters, lr)

    return Rival(name, name, "kradagrad_ext", (RATE,), "", (0.0, 0.0, 0.0), make, name == AVERAGING)


def train(run: ArenaRun) -> Outcome:
    return train_on(task_of(run.task), rival_of(run.optimizer), run)


def missing_runs(options: argparse.Namespace, store: Store) -> Iterator[ArenaRun]:
    """Yield the runs that the CSV lacks, seed by seed, task by task."""
    done = store.done
    for seed in options.seeds:
        for task in options.tasks:
            for name in options.variants:
                run = ArenaRun(task, name, RATE, 0.0, options.steps or TASKS[task].steps, seed)
                if run not in done:
                    yield run


def table(records: Sequence[RunRecord]) -> str:
    """Return a table of median final losses, a variant a row, with the number of seeds from two on."""
    losses: dict[tuple[str, str], list[float]] = {}
    for record in records:
        losses.setdefault((record.run.optimizer, record.run.task), []).append(record.outcome.val_loss)
    tasks = [name for name in TASKS if any(task == name for _, task in losses)]
    rows = []
    for name in VARIANTS:
        cells = [cell(losses.get((name, task), [])) for task in tasks]
        if any(cells):
            rows.append([name, *cells])
    return markdown_table(["", *tasks], rows)


def cell(losses: Sequence[float]) -> str:
    if not losses:
        return ""
    several = f" ({len(losses)} seeds)" if len(losses) > 1 else ""
    return f"{statistics.median(losses):.4g}{several}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASK_NAMES))
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="default: the task's")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each; default: 2")
    parser.add_argument("--csv", type=Path, help="use this CSV")
    add_record_option(parser, "bench/results/variants.csv")
    options = parser.parse_args(arguments)
    store = Store(options.csv or (RECORDED if options.record else UNRECORDED) / "variants.csv")
    for task in options.tasks:
        TASKS[task].prepare(UNRECORDED / "arena")
    records = train_all(lambda: missing_runs(options, store), options.workers, train)
    total = sum(1 for _ in missing_runs(options, store))
    try:
        for record in tqdm(records, "variants", total=total, unit="run", dynamic_ncols=True):
            store.add(record)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr)
    finally:
        records.close()
    print(table(store.records), end="")


if __name__ == "__main__":
    main()
