"""Calls of the compiled Triton kernels, and checks of their results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cases
import inputs
import torch
from inputs import apply_updates as apply_updates_inputs
from inputs import square_root
from inputs.op import ElementwiseOp
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


OPS = {name: op for name, op in inputs.elementwise().items() if op.on_triton}
"""The elementwise ops that have a Triton kernel."""


def check_rounding(backend: Compiled, count: int, residuals: bool) -> None:
    """Check that the backend gives the reference's bits where arithmetic is exact."""
    given = apply_updates_inputs.exact_inputs(count)
    ours, plain = (apply_updates_inputs.run(b, given, residuals=residuals) for b in (backend, reference))
    for name in ("params", "residuals"):
        assert all(map(torch.equal, cases.tensors_of(ours, name), cases.tensors_of(plain, name)))


def check_elements(op: ElementwiseOp, backend: Compiled, given: Any, **options: Any) -> None:
    results = [op.run(backend, given, **options), op.run(reference, given, **options)]
    results.append(op.run(reference, given, torch.float64, **options))
    for name in op.written:
        lists = [cases.tensors_of(result, name) for result in results]
        for i, trio in enumerate(zip(*lists, strict=True)):
            assert_as_accurate(*trio, f"{name}[{i}]")
        cases.assert_same_padding(lists[0], cases.tensors_of(given, name)[: len(lists[0])])
