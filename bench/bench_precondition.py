"""`precondition`: mode products of blocks of order 1 to 4 with their roots."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from factor_cases import spd
from op_case import Case

ELEMENTS = 1 << 20


@functools.lru_cache(maxsize=1)
def make_case(shape: tuple[int, ...]) -> Case:
    blocks = max(1, ELEMENTS // math.prod(shape))
    source = torch.Generator().manual_seed(0)
    return Case(
        op="precondition",
        arguments=dict(
            blocks=torch.randn(blocks, *shape, generator=source),
            roots=[spd(blocks, side, 1.0, seed) for seed, side in enumerate(shape)],
        ),
        writes=(),
        shape="x".join(map(str, shape)),
        blocks=blocks,
        flops=2.0 * blocks * math.prod(shape) * sum(shape),
        bound=1e-5,
    )


@pytest.mark.parametrize(
    "shape", [(256,), (64, 64), (128, 128), (256, 256), (512, 512), (64, 64, 9), (64, 32, 3, 3)], ids=str
)
def test_precondition(shape: tuple[int, ...], backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(make_case(shape), backend)
