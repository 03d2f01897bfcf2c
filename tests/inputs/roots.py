"""Sides for `polar_roots_`, and the distance of their roots from float64's."""

from __future__ import annotations

import torch
from torch import Tensor

from kradagrad_ext import polar
from kradagrad_ext.backends.base import RMS, WEIGHT, RootRule, RootSide, Side

from .op import Kernel, Op, Refusal, resident_kernels

BOUND = 1e-2
RULE = RootRule(polar.POLYNOMIALS[8], BOUND)


def root_side(blocks: int, d: int, condition: float = 1e3, dtypes=(torch.float32, torch.float32)) -> RootSide:
    """Return factors whose X has a condition, in the units of gradients of 1e-3, with roots of 7."""
    source = torch.Generator().manual_seed(d)
    square = torch.randn(2, blocks, d, d, dtype=torch.float64, generator=source)
    (left, right), _ = torch.linalg.qr(square)
    values = condition ** (-torch.linspace(0, 0.5, d, dtype=torch.float64))
    stats = torch.zeros(blocks, 4)
    stats[:, RMS], stats[:, WEIGHT] = 1e-3, 0.7
    unit = polar.units(stats.double(), 5)
    factor = (left * values) @ right.mT / unit[:, None, None]
    root = torch.full((blocks, d, d), 7.0, dtype=dtypes[1])
    side = Side(factor.to(dtypes[0]), stats, root)
    return RootSide(side, torch.zeros(blocks, 4), torch.ones(blocks, dtype=torch.bool), 5)


def wanted(side: RootSide) -> Tensor:
    """Return the roots in float64."""
    factor = (
        side.side.factor.double() * polar.units(side.side.statistics.double(), side.columns)[:, None, None]
    )
    values, vectors = torch.linalg.eigh(factor @ factor.mT)
    return (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT


def error(side: RootSide) -> float:
    want = wanted(side)
    difference = torch.linalg.matrix_norm(side.side.root.double() - want) / torch.linalg.matrix_norm(want)
    return difference.max().item() if difference.numel() else 0.0


OPS = (
    Op(
        "polar_roots_",
        kernels=resident_kernels("root", swept=True) | {"wide_root": Kernel("wide_root", 1)},
    ),
    Op(
        "decomposed_roots",
        lambda: (torch.rand(3, 6, 6), 2),
        [
            Refusal(0, torch.zeros(3, 4, 5), "`factors` must be [N, d, d]"),
            Refusal(0, torch.zeros(3, 4, 4).half(), "`factors` must be"),
            Refusal(1, 0, "`p` must be at least 1, got 0"),
        ],
    ),
)
