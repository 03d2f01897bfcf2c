"""The roofline of Triton's launches, bench/roofline/triton_costs.py: counts by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from bench.roofline.triton_costs import costs_of_blocks
from kradagrad_ext.triton_kernels.plan.groups import StepRule

B = 256


def rule(coupled: bool, refine: int = 2) -> StepRule:
    return StepRule(refine, coupled, True, "bf16x3", "sm_90")


@pytest.mark.parametrize(("coupled", "refine", "cubes"), [(False, 2, 22), (True, 2, 26), (True, 3, 32)])
def test_least_flops_of_grouped_products(coupled: bool, refine: int, cubes: int) -> None:
    """A side takes B 2 b^3, B B^T and C^T C 1 each, an iteration step 3, F R 2, coupling 2; the product 4."""
    costs = costs_of_blocks([(3, B, B)], rule(coupled, refine))
    assert sum(cost.least_flops for cost in costs) == 3 * cubes * B**3
    (resident,) = costs_of_blocks([(3, 64, 64)], rule(coupled, refine))
    assert resident.least_flops == 3 * cubes * 64**3


@pytest.mark.parametrize(("coupled", "refine", "squares"), [(False, 2, 41), (True, 2, 47), (True, 3, 65)])
def test_bytes(coupled: bool, refine: int, squares: int) -> None:
    """A launch moves every matrix once; a resident step G, D, V and the roots once, and both F twice."""
    costs = costs_of_blocks([(3, B, B)], rule(coupled, refine))
    moved = sum(cost.bytes for cost in costs) - 16 * 3 * 3  # statistics of both sides, and the norm
    assert moved == 3 * 4 * squares * B**2
    (resident,) = costs_of_blocks([(3, 64, 64)], rule(coupled, refine))
    assert resident.bytes == 3 * 4 * 9 * 64**2
    (stored,) = costs_of_blocks([(3, 64, 64)], rule(coupled, refine), torch.bfloat16, torch.bfloat16)
    assert stored.bytes == 3 * (2 * 8 + 4) * 64**2


def test_executed_flops_of_a_resident_step() -> None:
    """Every whole product has three terms: a side has one of coupling and seven more, the direction two."""
    (cost,) = costs_of_blocks([(1, 32, 32)], rule(True))
    assert cost.flops == {"triton bf16": 3 * 2 * 32**3 * (2 + 2 * 7 + 2)}
