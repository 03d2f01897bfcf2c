"""`apply_updates_`: graft, weight decay and the write of every parameter."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from bench.ops.case import Case
from bench.ops.elementwise import DTYPES, SHAPE, common_arguments, moments
from bench.workload import LAYER_ELEMENTS, gpt2


@functools.lru_cache(maxsize=1)
def make_case(dtype: str) -> Case:
    momenta, second_moments = moments()
    common = common_arguments(dtype)
    size = common["params"][0].element_size()
    return Case(
        op="apply_updates_",
        arguments=dict(
            momenta=[],
            residuals=[],
            updates=gpt2().gradients(3),
            directions=momenta,
            second_moments=second_moments,
            lr=torch.tensor(0.02),
            momentum=0.9,
            nesterov=False,
            **common,
        ),
        writes=("params",),
        shape=SHAPE,
        blocks=len(momenta),
        # The update is read, the parameter read and written. The graft is needed only where c3 is not finite.
        bytes=LAYER_ELEMENTS * (4 + 2 * size),
        bound=1e-5 if dtype == "float32" else 4e-3,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_updates(dtype: str, backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(make_case(dtype), backend)
