"""`update_moments_`: moments and graft norms, every backend against float64."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from inputs.update_moments import OPTIONS, make, run
from tolerances import assert_as_accurate

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import SPAN, spans_of


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_float64(
    dtype: torch.dtype, transposed: bool, options: dict[str, Any], backend: str
) -> None:
    inputs = make(dtype, transposed)
    ours = run(cases.ops(backend, inputs.graft_norms.dtype), inputs, **options)
    plain = run(reference, inputs, **options)
    exact = run(reference, inputs, torch.float64, **options)
    for name in ("momenta", "second_moments", "directions"):
        for i, tensors in enumerate(zip(*(getattr(r, name) for r in (ours, plain, exact)), strict=True)):
            assert_as_accurate(*tensors, f"{name}[{i}]")
        cases.assert_same_padding(getattr(ours, name), getattr(inputs, name)[: len(getattr(ours, name))])
    assert_as_accurate(ours.graft_norms, plain.graft_norms, exact.graft_norms, "graft_norms")


def test_inactive_parameters_stay(backend: str) -> None:
    inputs = make(torch.float32)
    inputs.grads[3][:] = torch.nan
    ours = run(cases.ops(backend, torch.float32), inputs, nesterov=True)
    for name in ("momenta", "second_moments", "directions"):
        assert torch.equal(getattr(ours, name)[3], getattr(inputs, name)[3])
    assert ours.graft_norms[2] == 0  # since the third parameter has no elements
    assert ours.graft_norms.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graft_norms_are_optional(dtype: torch.dtype, backend: str) -> None:
    inputs = make(dtype)
    with_norms = run(cases.ops(backend, torch.float32), inputs)
    inputs.graft_norms = torch.empty(0)
    ours = run(cases.ops(backend, torch.float32), inputs)
    assert not len(ours.graft_norms)
    for name in ("momenta", "second_moments", "params"):
        assert all(map(torch.equal, getattr(ours, name), getattr(with_norms, name)))


@pytest.mark.parametrize("numel", [SPAN - 1, SPAN, SPAN + 1, 4 * SPAN + 1])
def test_no_span_exceeds_its_length(numel: int, backend: str) -> None:
    """Gradients of ones, so that a norm counts elements; the reference counts all in the first span."""
    ones, norms = torch.ones(numel), torch.full((spans_of(numel),), -1.0)
    coefficients = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 0, 0, 0])[None]
    cases.ops(backend, torch.float32).update_moments_(
        [], [], [], norms, [ones], [ones], coefficients, torch.tensor([True]), 0.9, 0.99, 0.01, False
    )
    assert norms.sum() == numel
    assert backend == "reference" or norms.max() <= SPAN


def test_zero_over_zero_is_zero(backend: str) -> None:
    """A parameter that never had a gradient, with eps 0, gets no update instead of NaN."""
    inputs = make(torch.float32)
    for tensors in (inputs.momenta, inputs.second_moments, inputs.grads):
        for tensor in tensors:
            tensor.zero_()
    inputs.coefficients[:, 2] = 0
    ours = run(cases.ops(backend, torch.float32), inputs)
    assert not ours.graft_norms.any()


def test_no_parameters(backend: str) -> None:
    norms = torch.empty(0)
    cases.ops(backend, torch.float32).update_moments_(
        [], [], [], norms, [], [], torch.empty(0, COEFFICIENTS), norms.bool(), 0.9, 0.99, 0.01, False
    )
    assert norms.shape == (0,)


def test_same_bits_for_any_number_of_threads(backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    inputs = make(torch.float32)
    threads = torch.get_num_threads()
    try:
        norms = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.append(run(ops, inputs).graft_norms)
    finally:
        torch.set_num_threads(threads)
    if backend != "reference":  # whose sums are torch's
        assert all(torch.equal(norms[0], other) for other in norms[1:])
