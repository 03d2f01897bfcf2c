"""The paper's synthetic experiment: optimizers in float32 and float64 on an ill-conditioned quadratic.

    python -m bench.experiments.quadratic                        # n = 128 and 512, about ten minutes
    python -m bench.experiments.quadratic --sizes 1536 --rates 5e-3

The experiment is the synthetic one of Mei, Moreno and Walters, UAI 2023. The loss is sum(W * (H0 W H1)) for a
matrix W [n, n], in float64. H0 and H1 have eigenvalues 10^(-r^2), r from 0 to -2, scaled to at most 10, in
random orthogonal bases: condition 1e4 each, 1e8 together. A run has 250 steps, momentum 0.9, one block, and
roots of order 4 every third step (KrADagrad: more often in the first forty). Every optimizer computes in the
dtype of its row, and W is stored in it. Results go to a CSV; docs/paper.md has the table and the plot.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from bench.common import ROOT
from bench.experiments.shampoo import Shampoo
from kradagrad_ext import KrADagrad, PublishedKrADagrad

STEPS, ROOT_EVERY, MOMENTUM = 250, 3, 0.9
RATES = (2.5e-3, 5e-3, 1e-2)

Factory = Callable[[list[torch.nn.Parameter], float], Optimizer]


@dataclass(frozen=True)
class OptimizerInDtype:
    """An optimizer and the dtype that it computes in.

    Attributes:
        factory: makes the optimizer from parameters and a learning rate.
        rates: learning rates of this optimizer; None for those of the command line.
    """

    name: str
    dtype: torch.dtype
    factory: Factory
    rates: tuple[float, ...] | None = None

    @property
    def label(self) -> str:
        return f"{self.name}, {str(self.dtype).removeprefix('torch.')}"


def ours(**options: object) -> Factory:
    """Return KrADagrad with the experiment's schedule, exponent and momentum; statistics do not decay."""

    def make(params: list[torch.nn.Parameter], lr: float) -> Optimizer:
        return KrADagrad(
            params, lr=lr, betas=(MOMENTUM, 0.0), momentum_on="update", nesterov=False, graft="sgd",
            block_size=max(params[0].shape), factor_decay=1.0, damping=1e-12, exponent=0.25,
            root_every=ROOT_EVERY, start_step=ROOT_EVERY, **options,
        )  # fmt: skip

    return make


def published(variant: str) -> Factory:
    """Return an optimizer with the authors' formulas."""

    def make(params: list[torch.nn.Parameter], lr: float) -> Optimizer:
        return PublishedKrADagrad(
            params, variant=variant, lr=lr, momentum=MOMENTUM, matrix_eps=1e-8, beta2=1.0,
            block_size=max(params[0].shape), root_every=ROOT_EVERY, start_step=ROOT_EVERY,
        )  # fmt: skip

    return make


def adam(params: list[torch.nn.Parameter], lr: float) -> Optimizer:
    return torch.optim.Adam(params, lr=lr)


def sgd(params: list[torch.nn.Parameter], lr: float) -> Optimizer:
    return torch.optim.SGD(params, lr=lr)


OPTIMIZERS = (
    OptimizerInDtype("Shampoo", torch.float64, Shampoo),
    OptimizerInDtype("Shampoo", torch.float32, Shampoo),
    OptimizerInDtype("KrADagrad", torch.float32, ours(coupling="none")),
    OptimizerInDtype("KrADagrad, coupled", torch.float32, ours(coupling="kl")),
    OptimizerInDtype("published star", torch.float32, published("star")),
    OptimizerInDtype("published plain", torch.float32, published("plain"), (1e-2,)),
    OptimizerInDtype("Adam", torch.float32, adam, (1.0,)),
    OptimizerInDtype("SGD", torch.float32, sgd, (1e-3,)),
)


@dataclass(frozen=True)
class Quadratic:
    """H0 and H1 ``[n, n]`` and the initial W, float64."""

    left: Tensor
    right: Tensor
    start: Tensor

    @classmethod
    def of_size(cls, n: int) -> Quadratic:
        torch.manual_seed(4750)
        values = 10 ** -torch.linspace(0, -2, n, dtype=torch.float64).square()
        values = values / values.max() * 10
        bases = [torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for _ in range(2)]
        torch.manual_seed(95054)
        left, right = ((q * values) @ q.mT for q in bases)
        return cls(left, right, torch.randn(n, n, dtype=torch.float64))

    def gradient(self, w: Tensor) -> Tensor:
        """Return the gradient in float64 for any dtype of w."""
        return 2 * self.left @ w.double() @ self.right

    def loss(self, w: Tensor) -> float:
        return float((w.double() * self.gradient(w)).sum()) / 2


def losses(problem: Quadratic, chosen: OptimizerInDtype, lr: float) -> Iterator[float]:
    """Yield the loss after every step; stop after the first loss that is not finite."""
    w = torch.nn.Parameter(problem.start.to(chosen.dtype))
    optimizer = chosen.factory([w], lr)
    for _ in range(STEPS):
        w.grad = problem.gradient(w.detach()).to(w.dtype)
        optimizer.step()
        loss = problem.loss(w.detach())
        yield loss
        if not math.isfinite(loss):
            return


def run(sizes: Sequence[int], rates: Sequence[float]) -> pd.DataFrame:
    """Run every optimizer, size and learning rate; return one row per step."""
    runs = [(n, chosen, lr) for n in sizes for chosen in OPTIMIZERS for lr in chosen.rates or rates]
    rows = []
    with tqdm(total=STEPS * len(runs), desc="quadratic", disable=None) as progress:
        for n, chosen, lr in runs:
            progress.set_postfix_str(f"n = {n}, {chosen.label}, lr {lr:g}")
            for step, loss in enumerate(losses(Quadratic.of_size(n), chosen, lr), start=1):
                rows.append((n, chosen.label, lr, step, loss))
                progress.update()
    return pd.DataFrame(rows, columns=["n", "optimizer", "lr", "step", "loss"])


def markdown(rows: pd.DataFrame) -> str:
    """Return a table of final losses by learning rate; optimizers with fixed rates have a separate column."""
    rates = sorted(rows.loc[rows["optimizer"].isin(common_labels()), "lr"].unique())
    head = "| n | optimizer | " + " | ".join(f"lr {lr:g}" for lr in rates) + " | other lr |"
    lines = [head, "|---" * (3 + len(rates)) + "|"]
    for (n, optimizer), runs in rows.groupby(["n", "optimizer"], sort=False):
        ends = runs[runs["step"] == STEPS].set_index("lr")["loss"].to_dict()
        cells = [f"{ends[lr]:.4g}" if lr in ends else "" for lr in rates]
        if optimizer not in common_labels():
            cells = [""] * len(rates) + [f"{loss:.4g} at {lr:g}" for lr, loss in ends.items()]
        lines.append(f"| {n} | {optimizer} | " + " | ".join([*cells, ""][: len(rates) + 1]) + " |")
    return "\n".join(lines)


def common_labels() -> list[str]:
    """Return the labels of the optimizers that run at the learning rates of the command line."""
    return [chosen.label for chosen in OPTIMIZERS if chosen.rates is None]


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Plot the loss over steps, each optimizer at its best learning rate, one panel per size."""
    sizes = rows["n"].unique()
    style = {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
    with mpl.rc_context(style):
        figure, panels = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4), squeeze=False)
        for n, axes in zip(sizes, panels[0], strict=True):
            for optimizer, runs in rows[rows["n"] == n].groupby("optimizer", sort=False):
                ends = runs[runs["step"] == STEPS].set_index("lr")["loss"]
                if ends.empty:
                    continue
                best = runs[runs["lr"] == ends.idxmin()]
                axes.plot(best["step"], best["loss"], label=optimizer, **line_of(optimizer))
            axes.set(yscale="log", xlabel="step", title=f"n = {n}")
        panels[0][0].set_ylabel("loss")
        panels[0][-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def line_of(optimizer: str) -> dict[str, Any]:
    """Return an optimizer's line style; of two curves that coincide, one is wide and the other dashed."""
    if optimizer == "KrADagrad, float32":
        return {"linewidth": 4, "color": "#f0b27a"}
    if optimizer == "Shampoo, float64":
        return {"linewidth": 1.4, "color": "black", "linestyle": "--", "zorder": 5}
    return {"linewidth": 1.2}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/quadratic", help="folder of CSV and plot")
    options = parser.parse_args(arguments)
    rows = run(options.sizes, options.rates)
    options.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(options.out / "quadratic.csv", index=False)
    plot(rows, options.out / "quadratic.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
