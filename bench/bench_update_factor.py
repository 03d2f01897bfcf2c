"""`update_factor_`: one mode of blocks of any order, from square to wide unfoldings."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from factor_cases import downdate_flops, matrix_block_arguments, scalars, spd
from op_case import Case
from workload import gradient

WIDE = (64, 576, 64)
"""d, k and N of a 3 x 3 convolution with 64 channels on each side, cut into blocks of 64."""


def square_arguments(side: int) -> dict:
    full = matrix_block_arguments(side)
    return dict(
        factor=full["left"][0],
        statistics=full["left_statistics"],
        unfolding=full["grad"],
        active=full["active"],
    )


def wide_arguments(d: int, k: int, blocks: int) -> dict:
    unfolding = gradient((blocks * d, k), 0, 0).view(blocks, d, k)
    mean = unfolding.square().sum((1, 2)) / d
    return dict(
        factor=spd(blocks, d, 1 / (1e-3 * mean.mean().item()), seed=1),
        statistics=torch.stack([mean, torch.zeros_like(mean)], 1),
        unfolding=[unfolding],
        active=torch.ones(blocks, dtype=torch.bool),
    )


@functools.lru_cache(maxsize=1)
def make_case(d: int, k: int, recipe: str) -> Case:
    arguments = square_arguments(d) if d == k else wide_arguments(*WIDE)
    blocks = len(arguments["factor"])
    return Case(
        op="update_factor_",
        arguments={**arguments, **scalars(recipe)},
        writes=("factor", "statistics"),
        shape=f"{d}x{k}",
        blocks=blocks,
        recipe=recipe,
        flops=blocks * downdate_flops(d, k, recipe),
    )


@pytest.mark.parametrize("recipe", ["frobenius", "exact"])
@pytest.mark.parametrize(("d", "k"), [WIDE[:2], (128, 128), (256, 256)])
def test_update_factor(
    d: int, k: int, recipe: str, backend: str, time_op: Callable[[Case, str], None]
) -> None:
    time_op(make_case(d, k, recipe), backend)
