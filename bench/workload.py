"""Timed workloads: parameters, above all those of GPT-2 layers, their gradients, and views of blocks."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

GPT2_LAYER = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
LAYER_ELEMENTS = sum(rows * columns for rows, columns in GPT2_LAYER)
TINY = ((8, 8), (8, 16), (16, 8), (16, 16))
GRADIENT_RANK = 16
GRADIENT_SCALE = 1e-3


def generator(*key: int) -> torch.Generator:
    """Return a generator seeded by the key, so that a step's gradient depends only on its index."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % (2**63)
    return torch.Generator().manual_seed(seed)


def gradient(shape: tuple[int, ...], index: int, step: int) -> Tensor:
    """Make a gradient, float32: half its squared norm in a fixed subspace of rank 16, half noise.

    The coefficients in the subspace change with the step. Gradients of a network are far from white. Plain
    noise would favour methods whose roots converge faster for better conditioned statistics. A vector's
    gradient is noise.
    """
    bases, fresh = generator(index), generator(index, step)
    if len(shape) < 2:
        return GRADIENT_SCALE * torch.randn(shape, generator=fresh)
    left = torch.randn(shape[0], GRADIENT_RANK, generator=bases)
    right = torch.randn(GRADIENT_RANK, shape[1], generator=bases)
    coefficients = torch.randn(GRADIENT_RANK, GRADIENT_RANK, generator=fresh) / GRADIENT_RANK
    signal = left @ coefficients @ right
    return signal.add_(torch.randn(shape, generator=fresh)).mul_(GRADIENT_SCALE / 2**0.5)


@dataclass(frozen=True)
class Workload:
    """Parameters by their shapes, float32, each ``[m, n]`` or ``[n]``."""

    name: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    def gradients(self, step: int) -> list[Tensor]:
        """Return one gradient a parameter, the same for every optimizer at this step."""
        return [gradient(shape, index, step) for index, shape in enumerate(self.shapes)]

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters at the usual scale of GPT-2."""
        source = generator(len(self.shapes))
        return [torch.nn.Parameter(0.02 * torch.randn(shape, generator=source)) for shape in self.shapes]


def gpt2(layers: int = 1) -> Workload:
    """Return the matrices of `layers` GPT-2 layers."""
    return Workload(f"gpt2-layer x{layers}", GPT2_LAYER * layers)


def tiny(count: int) -> Workload:
    """Return `count` matrices of 64 to 256 elements."""
    return Workload(f"{count} tiny", tuple(itertools.islice(itertools.cycle(TINY), count)))


def block_view(param: Tensor, rows: int, columns: int) -> Tensor:
    """Return the blocks of a matrix as a strided view, ``[M / rows, N / columns, rows, columns]``."""
    height, width = param.shape
    return param.view(height // rows, rows, width // columns, columns).transpose(1, 2)
