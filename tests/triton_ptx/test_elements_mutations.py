"""Faults in the Triton kernels of the elementwise ops are noticed, each by the layer named with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from marks import slow

from .checks import OPS, check_elements, check_rounding
from .compiled import Compiled
from .mutants import Fault, edited, layer_that_notices

FAULTS = [
    Fault(
        "a span's tail is written", "update_moments.py",
        "tl.store(momentum, d, mask=exists)", "tl.store(momentum, d)", "update_moments_", "race",
    ),
    Fault(
        "an inactive parameter keeps its norm", "update_moments.py",
        "    elif HAS_NORMS:\n        tl.store(norm, 0.0)\n", "", "update_moments_", "values",
    ),
    Fault(
        "the gradient's scale left out", "update_moments.py",
        "            g *= tl.load(c + 3)\n", "", "update_moments_", "values",
    ),
    Fault(
        "spans overlap", "elements.py",
        "* SPAN + chunk", "* CHUNK + chunk", "update_moments_", "race",
    ),
    Fault(
        "a scale that is not finite is used", "apply_updates.py",
        'tl.abs(scale) < float("inf")', "True", "apply_updates_", "values",
    ),
    Fault(
        "all spans' norms in one place", "update_moments.py",
        " + tl.program_id(0) - tl.load(entry + FIRST_PROGRAM)", "", "update_moments_", "race",
    ),
    Fault(
        "the second moment in the previous unit", "update_moments.py",
        "beta2 * shift * shift", "beta2 * shift", "update_moments_", "values",
    ),
    Fault(
        "no bound", "apply_updates.py",
        "tl.where(u > largest, largest, u)", "u", "apply_updates_", "values",
    ),
    Fault(
        "chance without the count", "apply_updates.py",
        "mixed ^ count.to(tl.uint32) * 0x9E3779B9", "mixed", "rounding", "values",
    ),
    Fault(
        "chance of fifteen bits", "apply_updates.py",
        "mixed & 0xFFFF)", "mixed & 0x7FFF)", "rounding", "values",
    ),
]  # fmt: skip


def run(probe: str, backend: Any) -> None:
    """Raise AssertionError if a check notices a fault."""
    if probe == "rounding":
        check_rounding(backend, 5, False)
    elif probe == "update_moments_":
        check_elements(OPS[probe], backend, OPS[probe].make(torch.float32, True), nesterov=True)
    else:
        check_elements(OPS[probe], backend, OPS[probe].make(torch.float32), momenta=True)


def found(fault: Fault | None, probe: str) -> str | None:
    return layer_that_notices(fault, lambda **options: run(probe, Compiled("sm_80", **options)))


@pytest.mark.parametrize("probe", ["update_moments_", "apply_updates_", "rounding"])
def test_unedited_kernels_pass(probe: str) -> None:
    """Otherwise every fault would count as noticed."""
    assert found(None, probe) is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_applies(fault: Fault) -> None:
    """A fault whose source has changed fails here."""
    edited(fault)


@slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault: Fault) -> None:
    assert found(fault, fault.probe) == fault.layer
