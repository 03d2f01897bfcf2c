"""The roofline of Triton's launches in the square-root form: counts made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))

from roofline_triton import costs_of_blocks

from kradagrad_ext.triton_kernels.groups import SquareRootRule

B = 256


def rule(coupled: bool, refine: int = 2) -> SquareRootRule:
    return SquareRootRule(refine, coupled, True, "bf16x3", "sm_90")


@pytest.mark.parametrize(("coupled", "refine", "cubes"), [(False, 2, 22), (True, 2, 26), (True, 3, 32)])
def test_least_flops_of_grouped_products(coupled: bool, refine: int, cubes: int) -> None:
    """A side: B 2, B B^T and C^T C 1 each, iteration 3 a step, F R 2, coupling 2; the product 4 b^3."""
    costs = costs_of_blocks([(3, B, B)], rule(coupled, refine))
    assert sum(cost.least_flops for cost in costs) == 3 * cubes * B**3
    (resident,) = costs_of_blocks([(3, 64, 64)], rule(coupled, refine))
    assert resident.least_flops == 3 * cubes * 64**3


@pytest.mark.parametrize(("coupled", "refine", "squares"), [(False, 2, 41), (True, 2, 47), (True, 3, 65)])
def test_bytes(coupled: bool, refine: int, squares: int) -> None:
    """A product: three matrices, two where both factors are one. A resident step: G, D, V, F twice, P."""
    costs = costs_of_blocks([(3, B, B)], rule(coupled, refine))
    moved = sum(cost.bytes for cost in costs) - 16 * 3 * 3  # statistics of both sides, and the norm
    assert moved == 3 * 4 * squares * B**2
    (resident,) = costs_of_blocks([(3, 64, 64)], rule(coupled, refine))
    assert resident.bytes == 3 * 4 * 9 * 64**2
    (stored,) = costs_of_blocks([(3, 64, 64)], rule(coupled, refine), torch.bfloat16, torch.bfloat16)
    assert stored.bytes == 3 * (2 * 8 + 4) * 64**2


def test_executed_flops_of_a_resident_step() -> None:
    """Three terms of whole products of 2 b^3: two of coupling, seven a side, two of the product."""
    (cost,) = costs_of_blocks([(1, 32, 32)], rule(True))
    assert cost.flops == {"triton bf16": 3 * 2 * 32**3 * (2 + 2 * 7 + 2)}
