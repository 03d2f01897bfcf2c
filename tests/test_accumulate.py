"""`accumulate_`: moments and graft norms, every backend against float64."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from inputs.accumulate import OPTIONS, make, run
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
    given = make(dtype, transposed)
    ours = run(cases.ops(backend, given.graft_norms.dtype), given, **options)
    plain = run(reference, given, **options)
    exact = run(reference, given, torch.float64, **options)
    for name in ("momenta", "second_moments", "directions"):
        for i, tensors in enumerate(zip(*(getattr(r, name) for r in (ours, plain, exact)), strict=True)):
            assert_as_accurate(*tensors, f"{name}[{i}]")
        cases.assert_same_padding(getattr(ours, name), getattr(given, name)[: len(getattr(ours, name))])
    assert_as_accurate(ours.graft_norms, plain.graft_norms, exact.graft_norms, "graft_norms")


def test_inactive_parameters_stay(backend: str) -> None:
    given = make(torch.float32)
    given.grads[3][:] = torch.nan
    ours = run(cases.ops(backend, torch.float32), given, nesterov=True)
    for name in ("momenta", "second_moments", "directions"):
        assert torch.equal(getattr(ours, name)[3], getattr(given, name)[3])
    assert ours.graft_norms[2] == 0  # since the third has no elements
    assert ours.graft_norms.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_that_nobody_asks_for(dtype: torch.dtype, backend: str) -> None:
    given = make(dtype)
    asked = run(cases.ops(backend, torch.float32), given)
    given.graft_norms = torch.empty(0)
    ours = run(cases.ops(backend, torch.float32), given)
    assert not len(ours.graft_norms)
    for name in ("momenta", "second_moments", "params"):
        assert all(map(torch.equal, getattr(ours, name), getattr(asked, name)))


@pytest.mark.parametrize("numel", [SPAN - 1, SPAN, SPAN + 1, 4 * SPAN + 1])
def test_a_span_has_no_more_elements_than_it_may(numel: int, backend: str) -> None:
    """Of ones each, of which the reference counts all in the first."""
    ones, norms = torch.ones(numel), torch.full((spans_of(numel),), -1.0)
    coefficients = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 0, 0, 0])[None]
    cases.ops(backend, torch.float32).accumulate_(
        [], [], [], norms, [ones], [ones], coefficients, torch.tensor([True]), 0.9, 0.99, 0.01, False
    )
    assert norms.sum() == numel
    assert backend == "reference" or norms.max() <= SPAN


def test_zero_over_zero_is_zero(backend: str) -> None:
    """A parameter that never saw a gradient, with eps 0: no update rather than NaN."""
    given = make(torch.float32)
    for tensors in (given.momenta, given.second_moments, given.grads):
        for tensor in tensors:
            tensor.zero_()
    given.coefficients[:, 2] = 0
    ours = run(cases.ops(backend, torch.float32), given)
    assert not ours.graft_norms.any()


def test_no_parameters(backend: str) -> None:
    norms = torch.empty(0)
    cases.ops(backend, torch.float32).accumulate_(
        [], [], [], norms, [], [], torch.empty(0, COEFFICIENTS), norms.bool(), 0.9, 0.99, 0.01, False
    )
    assert norms.shape == (0,)


def test_same_bits_for_any_number_of_threads(backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    given = make(torch.float32)
    threads = torch.get_num_threads()
    try:
        norms = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.append(run(ops, given).graft_norms)
    finally:
        torch.set_num_threads(threads)
    if backend != "reference":  # whose sums are torch's own
        assert all(torch.equal(norms[0], other) for other in norms[1:])
