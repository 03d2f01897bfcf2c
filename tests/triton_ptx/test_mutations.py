"""Faults put into the Triton kernels' source are noticed, each by the layer that is named with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import test_accumulate
import test_parameter_step
import torch
from marks import slow
from test_kron_step import inputs, merged

from .compiled import Compiled
from .mutants import Fault, layer_that_notices
from .test_kernels import check, check_elements

FAULTS = [
    Fault(
        "the depth's tail is read", "multiply.py",
        "(i, k, rows, depth)", "(i, k, rows, depth + 64)", "grouped", "bounds",
    ),
    Fault(
        "a row too many is written", "multiply.py",
        "out_cols, i, j, ORDER), value, mask=inside(i, j, rows, cols)",
        "out_cols, i, j, ORDER), value, mask=inside(i, j, rows + 1, cols)", "grouped", "race",
    ),
    Fault(
        "no mirror", "multiply.py",
        "tl.store(upper, tl.trans(value), mask=inside(j, i, rows, rows))", "pass", "grouped", "uninitialised",
    ),
    Fault(
        "all shares in one place", "multiply.py",
        "tl.load(entry + COUNT) + tile, value", "tl.load(entry + COUNT), value", "grouped", "race",
    ),
    Fault(
        "a share too many", "multiply.py",
        "mask=start + lanes < count", "mask=start + lanes <= count", "grouped", "uninitialised",
    ),
    Fault(
        "the entry before", "entry.py",
        "FIRST_PROGRAM) <= program", "FIRST_PROGRAM) < program", "grouped", "bounds",
    ),
    Fault(
        "inactive blocks take part", "entry.py",
        "FIRST_BLOCK) + block) != 0", "FIRST_BLOCK) + block) >= 0", "grouped", "values",
    ),
    Fault(
        "strides exchanged", "entry.py",
        "i[:, None] + j[None, :] * col_stride", "i[:, None] * col_stride + j[None, :]", "grouped", "bounds",
    ),
    Fault(
        "no second term of A", "precision.py",
        "sum = tl.dot(_rest(a, ah).to(tl.bfloat16), bh, sum)", "sum = sum", "grouped", "values",
    ),
    Fault(
        "no second term of B", "precision.py",
        "sum = tl.dot(ah, _rest(b, bh).to(tl.bfloat16), sum)", "sum = sum",
        "grouped", "values",
    ),
    Fault(
        "nothing is pending", "downdate.py",
        "pending * held", "held", "grouped", "values",
    ),
    Fault(
        "tiles below the diagonal count once", "grouped_product.py",
        "tl.where(row > col, 2, 1)", "1", "grouped", "values",
    ),
    Fault(
        "another polynomial", "refinement.py",
        "8 * held + 5 * one", "8 * held + 4 * one", "grouped", "values",
    ),
    Fault(
        "no failure is ever cleared", "factor_state.py",
        "    tl.store(floats(entry, scratch, FAILED) + block, 0.0)\n", "", "grouped", "uninitialised",
    ),
    Fault(
        "upper half not mirrored", "kron_step_resident.py",
        "lower, tl.trans(lower))", "lower, lower)", "resident", "values",
    ),
    Fault(
        "another polynomial, resident", "kron_step_resident.py",
        "- 8 * w + 5 * one", "- 8 * w + 4 * one", "resident", "values",
    ),
    Fault(
        "no decay", "kron_step_resident.py",
        "* start, x) / decay", "* start, x)", "resident", "values",
    ),
    Fault(
        "updated although the mean is not finite", "downdate.py",
        'finite = finite & (tl.abs(tracked_mean(entry, block, scratch, decay)) < float("inf"))', "pass",
        "not finite", "values",
    ),
    Fault(
        "Y not in its unit", "factor_product.py",
        "PENDING) + block) / u", "PENDING) + block)", "not finite", "values",
    ),
    Fault(
        "a span's tail is written", "accumulate.py",
        "tl.store(momentum, d, mask=exists)", "tl.store(momentum, d)", "accumulate_", "race",
    ),
    Fault(
        "the last span is left out", "accumulate.py",
        "+ SPAN - 1) // SPAN", ") // SPAN", "accumulate_", "values",
    ),
    Fault(
        "spans overlap", "elements.py",
        "* SPAN + chunk", "* CHUNK + chunk", "accumulate_", "race",
    ),
    Fault(
        "a scale that is not finite is taken", "parameter_step.py",
        'tl.abs(scale) < float("inf")', "True", "parameter_step_", "values",
    ),
]  # fmt: skip


def given_of(probe: str) -> SimpleNamespace:
    """Ragged shapes, strided views with padding of NaN, an inactive block, several entries a launch."""
    shapes = {"grouped": [(3, 70, 130), (4, 130, 40)], "resident": [(3, 7, 16), (3, 13, 9)]}
    shapes["not finite"] = [(2, 70, 130)]  # the last columns of one side, whose first come before
    given = merged([inputs(*shape, torch.float32, "strided") for shape in shapes[probe]])
    if probe == "not finite":
        for statistics in (*given.left_statistics, *given.right_statistics):
            statistics[:, 0] = 0.7
        given.grad[-1][..., -1, -1] = torch.nan
    return given


def run(probe: str, backend: Any) -> None:
    """AssertionError where a check notices."""
    if probe == "accumulate_":
        check_elements(probe, backend, test_accumulate.inputs(torch.float32, True), nesterov=True)
    elif probe == "parameter_step_":
        check_elements(probe, backend, test_parameter_step.inputs(torch.float32), momenta=True)
    else:
        check(given_of(probe), backend, factor_scale="frobenius", refine=2, damping=1e-3)


def found(fault: Fault | None, probe: str) -> str | None:
    return layer_that_notices(fault, lambda **options: run(probe, Compiled("sm_80", **options)))


@pytest.mark.parametrize("probe", ["grouped", "not finite", "resident", "accumulate_", "parameter_step_"])
def test_unedited_kernels_pass(probe: str) -> None:
    """Or every fault would be noticed."""
    assert found(None, probe) is None


@slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault: Fault) -> None:
    assert found(fault, fault.probe) == fault.layer
