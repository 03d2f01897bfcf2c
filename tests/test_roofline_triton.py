"""The roofline of Triton's launches, bench/roofline_triton.py: counts made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))

from roofline_triton import triton_kron_costs

from kradagrad_ext.cost.parameters import make_config
from kradagrad_ext.cost.products import Rule


def test_costs_by_hand() -> None:
    """10 b^3 multiplications and additions without refinement: five products of 2 b^3, from the plan."""
    rule = Rule("trace", 0, "bf16x3")
    config = make_config(refine=0, factor_scale="trace")
    costs = [cost for cost in triton_kron_costs([(256, 256)], config, rule, "sm_90") if cost.least_flops]
    assert sum(cost.least_flops for cost in costs) == 10 * 256**3
    # Y and Z^T, W and P move three matrices each; a downdate Y twice, half of X and all of it.
    assert sum(cost.bytes for cost in costs) == 4 * 256**2 * (4 * 3 + 2 * 3.5)
    executed = sum(cost.flops["triton bf16"] for cost in costs)
    assert executed == 3 * 2 * 256**3 * (4 + 2 * 0.625)  # three terms; 10 of 16 tiles of 64
    (small,) = triton_kron_costs([(32, 32)], make_config(), Rule("frobenius", 2, "bf16x3"), "sm_90")
    assert small.kernel == "triton kron_step_resident"
    assert small.bytes == 4 * 9 * 32**2
    # Of each side Y, Y C, the downdate, B and four products of the iterates; then the two-sided one.
    assert small.flops["triton bf16"] == 3 * 2 * 32**3 * (2 * (3 + 1 + 4) + 2)
