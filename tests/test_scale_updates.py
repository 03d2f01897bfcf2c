"""`scale_updates_`: the lengths of updates, every backend against float64."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
from test_observe_gradients import RULE, rows
from tolerances import assert_each_as_accurate

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import COLUMNS, LENGTHS, UNIT, USUAL, ScalarRule

OPTIONS: list[dict[str, Any]] = [
    {"length": length, "averaged": averaged} for length in LENGTHS for averaged in (True, False)
] + [{"length": "rms", "beta1": 0.0}]
GRAFTS, UPDATES = [0.0, 1.7, 1e-20, 1e20, math.inf, math.nan], [0.0, 2.3, 1e-30, 1e30, math.inf, math.nan]
UNITS = [(0.0, 0.0), (1.3, 1.0), (1e-20, 2.0**-66), (1e9, 2.0**-9)]  # USUAL, UNIT


def inputs(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    """Whatever norms may be of a matrix in whatever state."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    found = list(itertools.product(GRAFTS, UPDATES, UNITS))
    count = len(found)
    scalars = torch.rand(count, len(COLUMNS), dtype=compute) * 9
    for i, column in enumerate((USUAL, UNIT)):
        scalars[:, column] = torch.tensor([own[i] for *_, own in found], dtype=compute)
    return SimpleNamespace(
        coefficients=torch.rand(count, COEFFICIENTS, dtype=compute) + 0.1,
        scalars=scalars,
        graft_norms=torch.tensor([graft for graft, *_ in found], dtype=compute),
        update_norms=torch.tensor([update for _, update, _ in found], dtype=compute),
        numel=torch.tensor([1.0, 7, 4096, 1e9, 33], dtype=compute).repeat(count)[:count],
        preconditioned=torch.arange(count) % 7 != 6,
    )


def run(
    backend: Any, given: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    result = cases.copied(given, dtype)
    backend.scale_updates_(*vars(result).values(), ScalarRule(**(RULE | options)))
    return result


WRITTEN = ("coefficients", "scalars")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_float64(dtype: torch.dtype, options: dict[str, Any], backend: str) -> None:
    given = inputs(dtype)
    ours = run(cases.ops(backend, dtype), given, **options)
    plain, exact = run(reference, given, **options), run(reference, given, torch.float64, **options)
    for name in WRITTEN:
        assert_each_as_accurate(getattr(ours, name), getattr(plain, name), getattr(exact, name), name)


@pytest.mark.parametrize("count", [0, 1, 129, 3000])
def test_any_number_of_matrices(count: int, backend: str) -> None:
    given = inputs(torch.float32)
    chosen = torch.arange(count) % len(given.numel)
    ours, whole = (run(cases.ops(backend, torch.float32), own) for own in (rows(given, chosen), given))
    for name in WRITTEN:
        assert torch.equal(getattr(ours, name).nan_to_num(), getattr(whole, name)[chosen].nan_to_num())


@pytest.mark.parametrize("length", LENGTHS)
def test_an_update_without_a_sound_length_gives_way(length: str, backend: str) -> None:
    given = inputs(torch.float32)
    ours = run(cases.ops(backend, torch.float32), given, length=length)
    sound = given.preconditioned & (given.update_norms > 0) & (given.update_norms < math.inf)
    assert ours.coefficients[~sound, 3].isnan().all()
    assert (
        ours.coefficients[sound & (given.graft_norms == 1.7) & (given.update_norms == 2.3), 3]
        .isfinite()
        .all()
    )
