"""`decomposed_roots`: roots of batches of triangular factors, with their residuals."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from bench.ops.case import Case
from bench.ops.factors import side_of_a_run

BLOCKS = {64: 64, 128: 24, 256: 8, 512: 2}


@functools.lru_cache(maxsize=1)
def make_case(side: int) -> Case:
    return Case(
        op="decomposed_roots",
        arguments=dict(factors=side_of_a_run(BLOCKS[side], side, side, side**-0.5, seed=0).factor, p=2),
        writes=(),
        shape=f"{side}x{side}",
        blocks=BLOCKS[side],
        bound=1e-5,
        canonical=lambda results: results[:1],  # residuals are only rounding errors
    )


@pytest.mark.parametrize("side", BLOCKS)
def test_decomposed_roots(side: int, backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(make_case(side), backend)
