"""`update_factor_`: one mode of blocks of any order, from square to wide unfoldings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.ops.case import Arguments, Case
from bench.ops.factors import RECIPES, RULE, matrix_block_group, side_of_a_run, update_flops
from bench.workload import gradient

WIDE = (64, 576, 64)
"""d, k and N of a 3 x 3 convolution with 64 input and 64 output channels, cut into blocks of 64."""


def square_arguments(side: int) -> Arguments:
    group = matrix_block_group(side)
    return dict(factor=group.left.factor, statistics=group.left.statistics, unfolding=group.grads)


def wide_arguments(d: int, k: int, blocks: int) -> Arguments:
    unfolding = gradient((blocks * d, k), 0, 0).view(blocks, d, k)
    rms = unfolding.square().mean().sqrt().item()
    side = side_of_a_run(blocks, d, k, rms, seed=1)
    return dict(factor=side.factor, statistics=side.statistics, unfolding=[unfolding])


@functools.lru_cache(maxsize=1)
def make_case(d: int, k: int, recipe: str) -> Case:
    arguments = square_arguments(d) if d == k else wide_arguments(*WIDE)
    blocks = len(arguments["factor"])
    scales, rule = torch.ones(blocks), replace(RULE, **RECIPES[recipe])
    return Case(
        op="update_factor_",
        arguments={**arguments, "scales": scales, "rule": rule},
        writes=("factor", "statistics"),
        shape=f"{d}x{k}",
        blocks=blocks,
        recipe=recipe,
        flops=blocks * update_flops(d, k, recipe),
    )


@pytest.mark.parametrize("recipe", ["cholesky", "products"])
@pytest.mark.parametrize(("d", "k"), [WIDE[:2], (128, 128), (256, 256)])
def test_update_factor(
    d: int, k: int, recipe: str, backend: str, time_op: Callable[[Case, str], None]
) -> None:
    time_op(make_case(d, k, recipe), backend)
