"""`kron_step_`: both factor updates and the two-sided product of square blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from factor_cases import RECIPES, downdate_flops, matrix_block_arguments, product_flops, scalars
from op_case import Case


@functools.lru_cache(maxsize=1)
def make_case(side: int, recipe: str) -> Case:
    arguments = matrix_block_arguments(side)
    blocks = len(arguments["norms"])
    return Case(
        op="kron_step_",
        arguments={**arguments, **scalars(recipe), "update": True},
        writes=("left", "right", "left_statistics", "right_statistics", "out", "norms"),
        shape=f"{side}x{side}",
        blocks=blocks,
        recipe=recipe,
        flops=blocks * (2 * downdate_flops(side, side, recipe) + product_flops(side, side)),
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_kron_step(side: int, recipe: str, backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(make_case(side, recipe), backend)
