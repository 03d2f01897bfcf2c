"""Inputs and declaration of `scale_updates_`: norms of every size, of matrices in every state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import cases
import torch

from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import COLUMNS, LENGTHS, UNIT, USUAL, ScalarRule, sums_of

from .guard_gradients import RULE
from .op import Kernel, Refusal, ScalarOp

OPTIONS: list[dict[str, Any]] = [
    {"length": length, "averaged": averaged} for length in LENGTHS for averaged in (True, False)
] + [{"length": "rms", "beta1": 0.0}]


GRAFTS, UPDATES = [0.0, 1.7, 1e-20, 1e20, math.inf, math.nan], [0.0, 2.3, 1e-30, 1e30, math.inf, math.nan]


UNITS = [(0.0, 0.0), (1.3, 1.0), (1e-20, 2.0**-66), (1e9, 2.0**-9)]  # USUAL, UNIT


SPANS, BLOCKS = (1, 3, 200, 2, 1), (2, 1, 1, 130)
"""Parts of the norms of matrices, in rotation; a norm of zero has no parts in every second matrix."""


def parts_of(
    norms: Sequence[float], counts: Sequence[int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared norms of spans or blocks, as equal parts of those of matrices, and their offsets."""
    parts: list[float] = []
    offsets = [0]
    for i, norm in enumerate(norms):
        count = counts[i % len(counts)] if norm != 0 or i % 2 else 0
        parts += [norm / max(count, 1)] * count
        offsets.append(len(parts))
    return torch.tensor(parts, dtype=dtype), torch.tensor(offsets)


def sums(inputs: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared norms ``[M]`` of grafting updates and updates."""
    return (
        sums_of(inputs.graft_norms, inputs.graft_offsets),
        sums_of(inputs.update_norms[inputs.update_order], inputs.update_offsets),
    )


def rows(inputs: SimpleNamespace, chosen: torch.Tensor) -> SimpleNamespace:
    """Return the inputs of some of the matrices, which may be repeated."""
    of_matrices = {
        name: getattr(inputs, name)[chosen] for name in ("coefficients", "scalars", "numel", "preconditioned")
    }
    parts = {}
    for name in ("graft", "update"):
        offsets = getattr(inputs, f"{name}_offsets")
        places = [torch.arange(offsets[i], offsets[i + 1]) for i in chosen.tolist()]
        parts[name] = torch.cat([torch.empty(0, dtype=torch.int64), *places])
        counts = torch.tensor([0, *map(len, places)])
        of_matrices[f"{name}_offsets"] = counts.cumsum(0)
    norms = inputs.update_norms[inputs.update_order[parts["update"]]]
    of_matrices |= {"graft_norms": inputs.graft_norms[parts["graft"]], "update_norms": norms.flip(0)}
    of_matrices["update_order"] = torch.arange(len(norms)).flip(0)
    return SimpleNamespace(**{name: of_matrices[name] for name in vars(inputs)})


def make(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    """Return every combination of the two norms and the state of a matrix."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    combinations = list(itertools.product(GRAFTS, UPDATES, UNITS))
    count = len(combinations)
    scalars = torch.rand(count, len(COLUMNS), dtype=compute) * 9
    for i, column in enumerate((USUAL, UNIT)):
        scalars[:, column] = torch.tensor([units[i] for *_, units in combinations], dtype=compute)
    graft_norms, graft_offsets = parts_of([graft for graft, *_ in combinations], SPANS, compute)
    update_norms, update_offsets = parts_of([update for _, update, _ in combinations], BLOCKS, compute)
    order = torch.randperm(len(update_norms))
    return SimpleNamespace(
        coefficients=torch.rand(count, COEFFICIENTS, dtype=compute) + 0.1,
        scalars=scalars,
        graft_norms=graft_norms,
        graft_offsets=graft_offsets,
        update_norms=update_norms[order.argsort()],
        update_order=order,
        update_offsets=update_offsets,
        numel=torch.tensor([1.0, 7, 4096, 1e9, 33], dtype=compute).repeat(count)[:count],
        preconditioned=torch.arange(count) % 7 != 6,
    )


def run(
    backend: Any, inputs: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    result = cases.copied(inputs, dtype)
    backend.scale_updates_(*vars(result).values(), ScalarRule(**(RULE | options)))
    return result


def sample() -> tuple[object, ...]:
    inputs = rows(make(torch.float32), torch.arange(7))
    return (*vars(inputs).values(), 0.9, True, "graft")


SCALE_UPDATES = ScalarOp(
    "scale_updates_",
    sample,
    [
        Refusal(0, torch.zeros(7, 9), "`coefficients` must be [M, 10]"),
        Refusal(1, torch.zeros(7, 8), "`scalars` must be [7, 9] float32"),
        Refusal(2, torch.zeros(7).double(), "`graft_norms` must be [S] float32"),
        Refusal(3, torch.zeros(7).long(), "`graft_offsets` must be [8] int64"),
        Refusal(4, torch.zeros(7).double(), "`update_norms` must be [B] float32"),
        Refusal(5, torch.zeros(1).long(), "`update_order` must be ["),
        Refusal(6, torch.zeros(8), "`update_offsets` must be [8] int64"),
        Refusal(7, torch.zeros(6), "`numel` must be [7] float32"),
        Refusal(8, torch.zeros(7), "`preconditioned` must be [7] bool"),
        Refusal(9, -0.5, "`beta1` must be in [0, 1), got -0.5"),
        Refusal(11, "norm", "`length` must be graft, gradient, rms or whitened, got"),
    ],
    {"scale_updates": Kernel("scalars", 8, swept=True)},
    make=make,
    options=OPTIONS,
    run=run,
    written=("coefficients", "scalars"),
    rows=rows,
)
OPS = (SCALE_UPDATES,)
