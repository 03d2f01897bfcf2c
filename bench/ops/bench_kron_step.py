"""`kron_step_`: both factor updates and the two-sided product of square blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.ops.case import Case
from bench.ops.factors import RECIPES, RULE, matrix_block_group, product_flops, update_flops


@functools.lru_cache(maxsize=1)
def make_case(side: int, recipe: str) -> Case:
    group = matrix_block_group(side)
    blocks = len(group.left.factor)
    return Case(
        op="kron_step_",
        arguments=dict(
            groups=[group],
            scales=torch.ones(blocks),
            norms=torch.zeros(blocks),
            rule=replace(RULE, **RECIPES[recipe]),
            update=True,
            precondition=True,
        ),
        writes=("groups", "norms"),
        shape=f"{side}x{side}",
        blocks=blocks,
        recipe=recipe,
        flops=blocks * (2 * update_flops(side, side, recipe) + product_flops(side, side)),
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_kron_step(side: int, recipe: str, backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(make_case(side, recipe), backend)
