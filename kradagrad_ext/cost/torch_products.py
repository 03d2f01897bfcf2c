"""What is left to torch's float32 products: blocks that no fused kernel serves, and roots.

Counted are the products that the formulas need, symmetric ones in whole; bytes are both operands and the
result of every product once. Passes over memory between products are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kradagrad_ext.backends.base import FALLBACK_REFINE
from kradagrad_ext.config import Config
from kradagrad_ext.plan import Group
from kradagrad_ext.roots import NEWTON_SCHULZ_STEPS, resolve_method
from kradagrad_ext.variants import DAMPING_REFINE

from .gpus import Cost
from .products import FLOAT, GRAM_SCALES, Rule

EIGH_FLOPS = 9
"""Of d^3, for all eigenvalues and vectors by the QR algorithm; what a GPU makes of it takes far longer."""


@dataclass
class Products:
    """A sum over products, as torch runs them: in float32, on cuBLAS.

    Attributes:
        root: bytes of an element of a root.
    """

    root: int = FLOAT
    launches: float = 0
    bytes: float = 0.0
    flops: float = 0.0
    least_flops: float = 0.0

    def multiply(self, blocks: float, rows: int, cols: int, depth: int, symmetric: bool = False) -> None:
        """[rows, depth] times [depth, cols], for so many blocks; a fraction where some steps have it."""
        self.launches += 1
        self.bytes += FLOAT * blocks * (rows * depth + depth * cols + rows * cols)
        self.flops += 2.0 * blocks * rows * cols * depth
        self.least_flops += (1.0 if symmetric else 2.0) * blocks * rows * cols * depth

    def factorise(self, blocks: int, d: int, columns: int) -> None:
        """Cholesky of [columns, columns], and its triangle solved for [columns, d]."""
        flops = blocks * (columns**3 / 3 + float(columns) ** 2 * d)
        self.launches += 2
        self.bytes += FLOAT * blocks * (3 * columns**2 + 2 * columns * d)
        self.flops += flops
        self.least_flops += flops

    def update(self, blocks: int, d: int, k: int, rule: Rule) -> None:
        """A factor [d, d] from an unfolding [d, k] (backends/downdate.py), chunk by chunk."""
        for columns in rule.chunks(d, k):
            self.multiply(blocks, d, columns, d)
            if rule.scale == "exact":
                self.multiply(blocks, columns, columns, d, symmetric=True)
                self.factorise(blocks, d, columns)
                self.multiply(blocks, d, d, columns, symmetric=True)
                # On a GPU nobody looks whether it failed: what then replaces it is made as well.
                self.multiply(blocks, d, columns, d)
                self.refined(blocks, d, columns, "frobenius", FALLBACK_REFINE)
            else:
                self.refined(blocks, d, columns, rule.scale, rule.refine)

    def refined(self, blocks: int, d: int, columns: int, scale: str, refine: int) -> None:
        """The bound, the iterates and the downdate, from Y."""
        if scale == "product":
            self.multiply(blocks, d, d, columns)
        side = columns if refine > 0 else min(d, columns)
        if refine > 0 or scale in GRAM_SCALES:
            self.multiply(blocks, side, side, d + columns - side, symmetric=side == columns)
        if scale == "schatten4":
            self.multiply(blocks, side, side, side, symmetric=side == columns)
        for _ in range(3 * refine - 2 if refine > 0 else 0):
            self.multiply(blocks, columns, columns, columns, symmetric=True)
        if refine > 0:
            self.multiply(blocks, d, columns, columns)
        self.multiply(blocks, d, d, columns, symmetric=True)

    def precondition(self, blocks: float, dims: Sequence[int], modes: Sequence[int]) -> None:
        """The products of blocks with the roots of some modes."""
        for mode in modes:
            d = dims[mode]
            self.multiply(blocks, d, math.prod(dims) // d, d)
            self.bytes += (self.root - FLOAT) * blocks * d * d

    def cost(self, step: str, share: float = 1.0) -> Cost:
        """Of the share of steps that have it."""
        kinds = {"cublas fp32": share * self.flops}
        return Cost(
            "torch: bmm", step, share * self.launches, share * self.bytes, kinds, share * self.least_flops
        )


def block_costs(groups: Sequence[Group], rule: Rule, update_share: float) -> list[Cost]:
    """A step of blocks that no fused kernel serves.

    Args:
        update_share: of the steps, those that update the factors.
    """
    updates, products = Products(rule.root), Products(rule.root)
    for group in groups:
        dims = group.block_shape
        modes = [mode for mode, factored in enumerate(group.factored) if factored]
        for mode in modes:
            updates.update(group.blocks, dims[mode], math.prod(dims) // dims[mode], rule)
        products.precondition(group.blocks, dims, modes)
    return [updates.cost("factors", update_share), products.cost("precondition")] if groups else []


def root_cost(groups: Sequence[Group], config: Config) -> Cost:
    """New roots, a step: one of `root_every` steps pays for them.

    Three products an iterate of a square root, and those of the residual; or an eigendecomposition, by its
    flops, which is less than what it takes.
    """
    rooted = Products()
    for group in groups:
        p = config.root_order(len(group.block_shape))
        method = resolve_method(
            "newton_schulz" if config.capturable else config.root_method, p, torch.device("cuda")
        )
        residual = 1 + (p - 1).bit_length() - 1 + (p - 1).bit_count() - 1 if p > 1 else 1
        for d in (d for d in group.factor_dims if d):
            square_roots = p.bit_length() - 1
            count = residual + (3 * NEWTON_SCHULZ_STEPS * square_roots if method == "newton_schulz" else 1)
            for _ in range(count):
                rooted.multiply(group.blocks, d, d, d)
            if method == "eigh":
                rooted.flops += EIGH_FLOPS * group.blocks * d**3
                rooted.least_flops += EIGH_FLOPS * group.blocks * d**3
    return rooted.cost("roots", 1 / config.root_every)


def damping_cost(groups: Sequence[Group], config: Config) -> Cost:
    """The factor update that damps every factor before its new root, a step (`variants.root`)."""
    damped = Products()
    if config.factor_decay < 1:
        rule = Rule("frobenius", DAMPING_REFINE, config.precision)
        for group in groups:
            for d in (d for d in group.factor_dims if d):
                damped.update(group.blocks, d, d, rule)
    return damped.cost("damping", 1 / config.root_every)
