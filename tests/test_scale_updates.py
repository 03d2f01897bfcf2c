"""`scale_updates_`: the lengths of updates, every backend against float64."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from inputs.scale_updates import OPTIONS, SCALE_UPDATES, make, rows, run, sums
from tolerances import assert_each_as_accurate

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.scalars import LENGTHS


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_float64(dtype: torch.dtype, options: dict[str, Any], backend: str) -> None:
    inputs = make(dtype)
    ours = run(cases.ops(backend, dtype), inputs, **options)
    plain, exact = run(reference, inputs, **options), run(reference, inputs, torch.float64, **options)
    for name in SCALE_UPDATES.written:
        assert_each_as_accurate(getattr(ours, name), getattr(plain, name), getattr(exact, name), name)


@pytest.mark.parametrize("count", [0, 1, 129, 3000])
def test_any_number_of_matrices(count: int, backend: str) -> None:
    inputs = make(torch.float32)
    chosen = torch.arange(count) % len(inputs.numel)
    ours, whole = (
        run(cases.ops(backend, torch.float32), matrices) for matrices in (rows(inputs, chosen), inputs)
    )
    for name in SCALE_UPDATES.written:
        assert torch.equal(getattr(ours, name).nan_to_num(), getattr(whole, name)[chosen].nan_to_num())


@pytest.mark.parametrize("length", LENGTHS)
def test_an_update_without_a_sound_length_gives_way(length: str, backend: str) -> None:
    inputs = make(torch.float32)
    ours = run(cases.ops(backend, torch.float32), inputs, length=length)
    graft_norms, update_norms = sums(inputs)
    sound = inputs.preconditioned & (update_norms > 0) & (update_norms < math.inf)
    assert ours.coefficients[~sound, 3].isnan().all()
    usual = ((graft_norms - 1.7).abs() < 1e-3) & ((update_norms - 2.3).abs() < 1e-3)
    assert (sound & usual).any()
    assert ours.coefficients[sound & usual, 3].isfinite().all()
