"""`update_moments_`: momentum, second moment and the norm of the adam graft."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from bench.ops.case import Case
from bench.ops.elementwise import DTYPES, SHAPE, common_arguments, moments
from bench.workload import LAYER_ELEMENTS, gpt2
from kradagrad_ext.backends.scalars import spans_of


@functools.lru_cache(maxsize=1)
def make_case(dtype: str) -> Case:
    momenta, second_moments = moments()
    grads = [gradient.to(DTYPES[dtype]) for gradient in gpt2().gradients(0)]
    scalars = dict(beta1=0.9, beta2=0.99, weight2=0.01, nesterov=False)
    return Case(
        op="update_moments_",
        arguments=dict(
            momenta=momenta,
            second_moments=second_moments,
            directions=[],
            graft_norms=torch.zeros(sum(spans_of(grad.numel()) for grad in grads)),
            grads=grads,
            **common_arguments(dtype),
            **scalars,
        ),
        writes=("momenta", "second_moments", "graft_norms"),
        shape=SHAPE,
        blocks=len(grads),
        # Both moments are read and written, the gradient is read.
        bytes=LAYER_ELEMENTS * (4 * 4 + grads[0].element_size()),
        bound=1e-5,
        dtype=dtype,
        canonical=lambda results: [*results[:-1], results[-1].sum()[None]],  # the sum over all spans
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_update_moments(dtype: str, backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(make_case(dtype), backend)
