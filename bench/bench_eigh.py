"""`eigh`: eigendecompositions of batches of symmetric factors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from factor_cases import spd
from op_case import Case
from torch import Tensor

BLOCKS = {64: 64, 128: 24, 256: 8, 512: 2}


def rebuilt(results: list[Tensor]) -> list[Tensor]:
    """The values and V diag(values) V^T: eigenvectors are unique up to sign only."""
    values, vectors = results
    return [values, (vectors * values.unsqueeze(-2)) @ vectors.mT]


@functools.lru_cache(maxsize=1)
def make_case(side: int) -> Case:
    return Case(
        op="eigh",
        arguments=dict(matrices=spd(BLOCKS[side], side, 1.0, seed=0)),
        writes=(),
        shape=f"{side}x{side}",
        blocks=BLOCKS[side],
        bound=1e-5,
        canonical=rebuilt,
    )


@pytest.mark.parametrize("side", BLOCKS)
def test_eigh(side: int, backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(make_case(side), backend)
