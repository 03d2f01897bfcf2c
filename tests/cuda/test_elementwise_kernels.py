"""The CUDA kernels of the elementwise ops on the PTX executor, against float64."""

from __future__ import annotations

from typing import Any

import cases
import inputs
import pytest
import torch
from cases import tensors_of
from inputs import apply_updates as apply_updates_inputs
from inputs.op import ElementwiseOp
from tolerances import assert_as_accurate

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.base import COEFFICIENTS

from .executor_backend import Executor

DTYPES = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
OPS = inputs.elementwise()
CASES = [(op, options) for op in OPS.values() for options in op.options]


def named(value: object) -> str:
    return value.name if isinstance(value, ElementwiseOp) else str(value)


@pytest.mark.parametrize(("op", "options"), CASES, ids=named)
@pytest.mark.parametrize(("dtype", "transposed"), DTYPES)
def test_agrees_with_float64(
    op: ElementwiseOp, options: dict[str, Any], dtype: torch.dtype, transposed: bool
) -> None:
    given = op.make(dtype, transposed)
    ours = op.run(Executor(), given, **options)
    plain = op.run(reference, given, **options)
    exact = op.run(reference, given, torch.float64, **options)
    for name in op.written:
        results = (tensors_of(result, name) for result in (ours, plain, exact))
        for i, (a, b, c) in enumerate(zip(*results, strict=True)):
            assert_as_accurate(a, b, c, f"{name}[{i}]")
        cases.assert_same_padding(
            tensors_of(ours, name), tensors_of(given, name)[: len(tensors_of(ours, name))]
        )


@pytest.mark.parametrize(("count", "residuals"), [(5, False), (0, True)])
def test_rounding(count: int, residuals: bool) -> None:
    """Where arithmetic is exact, the kernel and the reference give the same bits."""
    given = apply_updates_inputs.exact_inputs(count)
    ours, plain = (
        apply_updates_inputs.run(backend, given, residuals=residuals) for backend in (Executor(), reference)
    )
    for name in ("params", "residuals"):
        assert all(map(torch.equal, tensors_of(ours, name), tensors_of(plain, name)))


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_same_bits_for_any_order_of_blocks_and_warps(op: ElementwiseOp) -> None:
    given = op.make(torch.float32)
    results = [op.run(Executor(seed), given) for seed in (0, 1, 2)]
    for name in op.written:
        for first, *others in zip(*(tensors_of(result, name) for result in results), strict=True):
            assert all(torch.equal(first, other) for other in others), name


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_one_launch_serves_all_parameters(op: ElementwiseOp) -> None:
    executor = Executor()
    op.run(executor, op.make(torch.float32))
    assert len(executor.launches) == 1


def test_elements_more_than_two_to_the_31_apart() -> None:
    """The tensor takes gigabytes of address space, of which little is touched."""
    stride = 2**31 + 4
    near = torch.randn(2, 8)
    far = torch.empty(stride + 8).as_strided((2, 8), (stride, 1)).copy_(near)
    update, coefficients = torch.randn(2, 8), torch.ones(1, COEFFICIENTS)
    for param in (near, far):
        arguments = (coefficients, torch.ones(1, dtype=torch.bool), torch.tensor(0.1), 0.0, False)
        Executor(races=False).apply_updates_([param], [], [], [update], [update], [], *arguments)
    assert torch.equal(far, near)


def test_too_many_separate_dims_are_refused() -> None:
    """The error names a parameter that no merging of dims makes addressable, before any launch."""
    whole = torch.zeros(3, 3, 3, 3, 3, 6)
    strided = whole[:, ::2, ::2, ::2, ::2, ::2]
    assert strided.dim() == 6
    ones = torch.ones(1, COEFFICIENTS), torch.ones(1, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"update_moments_: `params\[0\]`.*at most 5 dims.*got 6"):
        Executor().update_moments_(
            [], [], [], torch.zeros(1), [strided], [strided], *ones, 0.9, 0.99, 0.01, False
        )
