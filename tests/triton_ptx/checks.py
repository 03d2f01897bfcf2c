"""Calls of the compiled Triton kernels, and checks of their results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cases
import torch
from inputs import apply_updates as apply_updates_inputs
from inputs import square_root
from inputs import update_moments as update_moments_inputs
from inputs.square_root import compare, group
from tolerances import FACTOR, assert_as_accurate, precision_atol

from kradagrad_ext.backends import reference

from .compiled import Compiled

RULE = replace(square_root.RULE, method="products")
COUPLED = replace(RULE, coupled=True)
GROUPED, RESIDENT = (70, 20), (9, 16)


def check(call: square_root.Given, backend: Any) -> square_root.Given:
    """Run a call and compare it with the reference in float32 and float64."""
    rule = call.rule
    atol = max(precision_atol(rule.precision, rule.refine), FACTOR[call.groups[0].left.factor.dtype])
    return compare(call, backend, atol)


def several() -> list[Any]:
    """Return resident groups and others, some without blocks or elements."""
    return [
        group(5, (70, 9)),
        group(3, (3, 2), "several"),
        group(2, (0, 4)),
        group(0, (4, 4)),
        group(4, (16, 9), "experts"),
        group(2, (70, 130), "grid"),
    ]


MODULES = {"update_moments_": update_moments_inputs, "apply_updates_": apply_updates_inputs}

WRITTEN = {
    "update_moments_": ("momenta", "second_moments", "directions", "graft_norms"),
    "apply_updates_": ("params", "momenta"),
}


def check_rounding(backend: Compiled, count: int, residuals: bool) -> None:
    """Check that the backend gives the reference's bits where arithmetic is exact."""
    inputs = apply_updates_inputs.exact_inputs(count)
    ours, plain = (apply_updates_inputs.run(b, inputs, residuals=residuals) for b in (backend, reference))
    for name in ("params", "residuals"):
        assert all(map(torch.equal, cases.tensors_of(ours, name), cases.tensors_of(plain, name)))


def check_elements(op: str, backend: Compiled, inputs: Any, **options: Any) -> None:
    module = MODULES[op]
    results = [module.run(backend, inputs, **options), module.run(reference, inputs, **options)]
    results.append(module.run(reference, inputs, torch.float64, **options))
    for name in WRITTEN[op]:
        lists = [cases.tensors_of(result, name) for result in results]
        for i, trio in enumerate(zip(*lists, strict=True)):
            assert_as_accurate(*trio, f"{name}[{i}]")
        cases.assert_same_padding(lists[0], cases.tensors_of(inputs, name)[: len(lists[0])])
