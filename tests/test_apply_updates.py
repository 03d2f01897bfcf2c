"""`apply_updates_`: the update of every parameter, by every backend, against float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
from inputs.apply_updates import OPTIONS, SHAPES, exact_inputs, make, run
from tolerances import assert_as_accurate

from kradagrad_ext.backends import reference


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_float64(
    dtype: torch.dtype, transposed: bool, options: dict[str, Any], backend: str
) -> None:
    check(backend, make(dtype, transposed), **options)


@pytest.mark.parametrize("options", [{}, {"momenta": True, "added": 0.1}], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_with_residuals_agrees_with_float64(transposed: bool, options: dict[str, Any], backend: str) -> None:
    check(backend, make(torch.bfloat16, transposed), residuals=True, **options)


def check(backend: str, inputs: SimpleNamespace, **options: Any) -> None:
    ours = run(cases.ops(backend, inputs.lr.dtype), inputs, **options)
    plain = run(reference, inputs, **options)
    exact = run(reference, inputs, torch.float64, **options)
    for name in ("params", "momenta"):
        for i, tensors in enumerate(zip(*(getattr(r, name) for r in (ours, plain, exact)), strict=True)):
            assert_as_accurate(*tensors, f"{name}[{i}]")
        cases.assert_same_padding(getattr(ours, name), getattr(inputs, name)[: len(getattr(ours, name))])
    assert torch.equal(ours.params[3], inputs.params[3]), "an inactive parameter must stay"
    cases.assert_same_padding(ours.residuals, inputs.residuals[: len(ours.residuals)])


def test_a_scale_that_is_not_finite_takes_the_graft(backend: str) -> None:
    """If c3 is NaN, the update does not reach the parameter, whatever its values."""
    inputs = make(torch.float32)
    inputs.updates[4][:] = math.nan
    ours = run(cases.ops(backend, torch.float32), inputs)
    c0, c1, c2, _, _, largest, *_ = inputs.coefficients[4]
    graft = c0 * inputs.directions[4] / ((c1 * inputs.second_moments[4]).sqrt() + c2)
    graft = graft.clamp(-largest, largest)
    torch.testing.assert_close(ours.params[4], inputs.params[4] - inputs.lr * graft)


@pytest.mark.parametrize("count", [1, 7, 2**23 + 1])
def test_chance_rounds_to_a_neighbour_and_to_the_mean(count: int, backend: str) -> None:
    """Every backend writes the same bits, since chance depends on the values and the count alone."""
    inputs = exact_inputs(count)
    ours = run(cases.ops(backend, torch.float32), inputs)
    expected = run(reference, inputs)
    wanted = run(reference, inputs, torch.float64)
    errors = []
    for p, same, q, old in zip(ours.params, expected.params, wanted.params, inputs.params, strict=True):
        assert torch.equal(p, same)
        step = torch.maximum(q.abs(), old.double().abs()).clamp_min(1) * 2.0**-7
        assert ((p.double() - q).abs() < step).all()
        errors.append((p.double() - q).flatten())
    nearest = run(reference, exact_inputs(0))
    assert not all(map(torch.equal, ours.params, nearest.params))
    mean = torch.cat(errors).mean() / torch.cat(errors).std()
    assert abs(mean) < 4 / math.sqrt(40_000)


def test_equal_values_are_rounded_differently_on_different_steps(backend: str) -> None:
    """The mean of the rounded values over the steps is the value before rounding."""
    ops = cases.ops(backend, torch.float32)
    rounded = []
    for count in range(1, 401):
        inputs = exact_inputs(count)
        inputs.params[6].fill_(1.0)
        inputs.updates[6].fill_(0.25)
        p = run(ops, inputs).params[6].double()
        assert (p == p[0]).all()
        rounded.append(float(p[0]))
    exact = 1 - 2.0**-9
    assert set(rounded) == {1.0, 1 - 2.0**-8}
    assert abs(sum(rounded) / len(rounded) - exact) < 4 * 2.0**-9 / math.sqrt(len(rounded))


def whole(p: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return the float32 value of a bfloat16 parameter and its residual."""
    difference = torch.where(p != 0, residual.int(), 0)
    return (p.float().view(torch.int32) + difference).view(torch.float32)


def test_residuals_keep_what_rounding_leaves_over(backend: str) -> None:
    inputs = exact_inputs(0)
    ours = run(cases.ops(backend, torch.float32), inputs, residuals=True)
    for i in set(range(len(SHAPES))) - {3, 5}:
        before, after = (whole(tensors.params[i], tensors.residuals[i]) for tensors in (inputs, ours))
        wanted = before.double() - 2.0**-7 * inputs.updates[i].double().clamp(-1.25, 1.25)
        assert torch.equal(after, wanted.float())
        assert (
            (after.double() - ours.params[i].double()).abs() <= after.double().abs() * 2.0**-8 + 1e-30
        ).all()
    assert torch.equal(ours.residuals[3], inputs.residuals[3]), "an inactive parameter's must stay"


@pytest.mark.parametrize("rounded", [False, True])
def test_what_is_not_finite_stays_so(rounded: bool, backend: str) -> None:
    """Chance keeps NaN, and makes no finite value infinite."""
    inputs = exact_inputs(int(rounded))
    inputs.params[3] = torch.tensor([math.nan, 3.3e38, -3.3e38, 2e-38, -2e-38, 0.0, -0.0]).bfloat16()
    inputs.updates[3].zero_()
    inputs.active[3] = True
    ours = run(cases.ops(backend, torch.float32), inputs).params[3]
    assert torch.equal(ours.isfinite(), inputs.params[3].isfinite())
    assert torch.equal(ours[1:], inputs.params[3][1:])


def test_inactive_momenta_stay(backend: str) -> None:
    inputs = make(torch.float32)
    inputs.directions[3][:] = math.inf
    inputs.updates[3][:] = math.nan
    ours = run(cases.ops(backend, torch.float32), inputs, momenta=True)
    assert torch.equal(ours.momenta[3], inputs.momenta[3])
    assert torch.equal(ours.params[3], inputs.params[3])
