"""`guard_gradients_`: guard and coefficients of matrices, every backend against float64."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from inputs.guard_gradients import GUARD_GRADIENTS, OPTIONS, make, rows, run
from tolerances import assert_each_as_accurate

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.scalars import (
    MEAN_SQUARE,
    SKIPPED,
    UNIT,
    USUAL,
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_float64(dtype: torch.dtype, options: dict[str, Any], backend: str) -> None:
    inputs = make(dtype)
    ours = run(cases.ops(backend, dtype), inputs, **options)
    plain, exact = run(reference, inputs, **options), run(reference, inputs, torch.float64, **options)
    for name in ("scalars", "coefficients"):
        assert_each_as_accurate(getattr(ours, name), getattr(plain, name), getattr(exact, name), name)
    assert torch.equal(ours.active, exact.active)
    assert torch.equal(ours.restarts, exact.restarts)


@pytest.mark.parametrize("count", [0, 1, 129, 3000])
def test_any_number_of_matrices(count: int, backend: str) -> None:
    inputs = make(torch.float32)
    chosen = torch.arange(count) % len(inputs.numel)
    ours, whole = (
        run(cases.ops(backend, torch.float32), matrices) for matrices in (rows(inputs, chosen), inputs)
    )
    for name in GUARD_GRADIENTS.written:
        a, b = getattr(ours, name), getattr(whole, name)[chosen]
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_what_takes_no_part_stays(backend: str) -> None:
    inputs = make(torch.float32)
    ours = run(cases.ops(backend, torch.float32), inputs)
    rest = ~ours.active
    expected = inputs.scalars.clone()
    expected[:, SKIPPED] += inputs.present & ~inputs.norms.isfinite()
    assert torch.equal(ours.scalars[rest], expected[rest])
    assert not ours.restarts[rest].any()
    assert (ours.coefficients[rest, 3] == 0).all()
    assert (ours.coefficients[rest, 4] == 1).all()


def test_units_are_powers_of_two_near_the_gradients(backend: str) -> None:
    inputs = make(torch.float32)
    ours = run(cases.ops(backend, torch.float32), inputs)
    units = ours.scalars[ours.active & (ours.scalars[:, USUAL] > 0), UNIT]
    assert (torch.frexp(units).mantissa == 0.5).all()
    new = ours.restarts & (ours.scalars[:, UNIT] != inputs.scalars[:, UNIT])
    sizes = torch.maximum(ours.scalars[:, USUAL], ours.scalars[:, MEAN_SQUARE].sqrt() * ours.scalars[:, UNIT])
    ratio = (sizes / ours.scalars[:, UNIT])[new & (ours.scalars[:, USUAL] > 2e-38)]
    assert len(ratio) > 5
    assert ((ratio > 0.09) & (ratio < 2.01)).all(), ratio
