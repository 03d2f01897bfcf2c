"""`parameter_step_`: the write of every parameter, every backend against float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
from tolerances import assert_as_accurate

from kradagrad_ext.backends import reference

SHAPES = [(), (1,), (0, 3), (7,), (33, 129), (5, 4, 3), (40_000,)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momenta": True},
    {"momenta": True, "nesterov": True},
    {"second_moments": False},
    {"decay": 0.1},
    {"l2": 0.1, "momenta": True},
]


def inputs(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    found = {
        name: [torch.randn(shape).to(kind) for shape in SHAPES]
        for name, kind in (
            ("params", dtype),
            ("momenta", compute),
            ("updates", compute),
            ("directions", dtype),
            ("second_moments", compute),
        )
    }
    if transposed:
        for name, held in found.items():
            found[name] = [cases.padded(t, name == "params") if t.ndim == 2 else t for t in held]
    for second_moment in found["second_moments"]:
        second_moment.abs_()
    found["updates"][5] = torch.empty(0, dtype=compute)
    given = SimpleNamespace(**found)
    given.coefficients = torch.rand(len(SHAPES), 4, dtype=compute) + 0.1
    given.coefficients[4, 3] = math.nan
    given.active = torch.arange(len(SHAPES)) != 3
    given.lr = torch.tensor(0.3, dtype=compute)
    return given


def run(
    backend: Any, given: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    chosen: dict[str, Any] = {"momentum": 0.9, "decay": 0.0, "l2": 0.0, "nesterov": False}

    result = cases.copied(given, dtype)
    if not options.pop("momenta", False):
        result.momenta = []
    if not options.pop("second_moments", True):
        result.second_moments = []
    backend.parameter_step_(*vars(result).values(), *(chosen | options).values())
    return result


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_float64(
    dtype: torch.dtype, transposed: bool, options: dict[str, Any], backend: str
) -> None:
    given = inputs(dtype, transposed)
    ours = run(cases.ops(backend, given.lr.dtype), given, **options)
    plain = run(reference, given, **options)
    exact = run(reference, given, torch.float64, **options)
    for name in ("params", "momenta"):
        for i, tensors in enumerate(zip(*(getattr(r, name) for r in (ours, plain, exact)), strict=True)):
            assert_as_accurate(*tensors, f"{name}[{i}]")
        cases.assert_same_padding(getattr(ours, name), getattr(given, name)[: len(getattr(ours, name))])
    assert torch.equal(ours.params[3], given.params[3]), "an inactive parameter must stay"


def test_a_scale_that_is_not_finite_takes_the_graft(backend: str) -> None:
    """Where c3 is NaN the update, whatever it holds, does not reach the parameter."""
    given = inputs(torch.float32)
    given.updates[4][:] = math.nan
    ours = run(cases.ops(backend, torch.float32), given)
    c0, c1, c2, _ = given.coefficients[4]
    graft = c0 * given.directions[4] / ((c1 * given.second_moments[4]).sqrt() + c2)
    torch.testing.assert_close(ours.params[4], given.params[4] - given.lr * graft)


def test_inactive_momenta_stay(backend: str) -> None:
    given = inputs(torch.float32)
    given.directions[3][:] = math.inf
    given.updates[3][:] = math.nan
    ours = run(cases.ops(backend, torch.float32), given, momenta=True)
    assert torch.equal(ours.momenta[3], given.momenta[3])
    assert torch.equal(ours.params[3], given.params[3])
