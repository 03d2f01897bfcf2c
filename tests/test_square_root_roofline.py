"""The roofline's launches of the square-root form: counts made by hand, and what csrc/cuda/plan launches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from kradagrad_ext.backends.base import UpdateRule
from kradagrad_ext.cost.square_root import Blocks, Call, step_costs

RULE = UpdateRule(decay=0.9, weight=0.1, damping=1e-3, method="products")
GROUPS = [Blocks(9, 192, 140), Blocks(4, 40, 192), Blocks(7, 100, 90), Blocks(3, 64, 64)]


def test_resident_block_of_128_by_hand() -> None:
    update, product = step_costs([Blocks(1, 128, 128)], Call(replace(RULE, coupled=True)))
    assert [cost.kernel for cost in (update, product)] == [
        "resident_update_128_bf16x3",
        "resident_precondition_128_bf16x3",
    ]
    # G, both roots, both factors in and out; D, both roots, V.
    assert (update.bytes, product.bytes) == (4 * 7 * 128**2, 4 * 4 * 128**2)
    # A side: U, B and F R are full; F^T F, B B^T and three of the iteration have 36 of 64 tiles.
    full, lower = 2 * 128**3, 2 * 36 * 256 * 128
    assert update.flops == {"bf16": 3 * 2 * (3 * full + 5 * lower)}
    assert update.least_flops == 2 * (3 * 2 + 5) * 128**3
    assert product.flops == {"bf16": 3 * 2 * full}
    assert not update.overlaps


def test_bfloat16_saves_products_and_bytes() -> None:
    exact = Call(RULE, grad=2, direction=2, factor=2, root=2)
    update, product = step_costs([Blocks(1, 64, 64)], exact)
    full, lower = 2 * 64**3, 2 * 10 * 256 * 64
    # U and F of B are exact, F of F^T F twice; F of F R alone.
    assert update.flops["bf16"] == 2 * (full * (1 + 2) + lower * (1 + 3 + 3 * 3))
    assert product.flops["bf16"] == full * (1 + 2)
    assert update.bytes == 2 * 5 * 64**2


def test_grouped_block_of_256_by_hand() -> None:
    costs = {cost.step: cost for cost in step_costs([Blocks(2, 256, 256)], Call(RULE))}
    both = 2 * 256**3
    # D P_r; B, M with as many columns again for damping, the iteration, F R of both sides; V.
    assert costs["first products"].least_flops == costs["V"].least_flops == 2 * both
    assert costs["B"].least_flops == costs["F R"].least_flops == 4 * both
    assert costs["M"].least_flops == 4 * both
    assert costs["T2"].bytes == 2 * 2 * 3 * 4 * 256**2


def tensor(*sizes: int) -> tuple[int, bool, list[int], list[int]]:
    return 4096, False, list(sizes), list(torch.empty(sizes, device="meta").stride())


def planned(call: Call) -> Counter[str]:
    """How often the plan launches each kernel; no address is looked at."""
    toolchain = pytest.importorskip("cuda.toolchain", reason="the plans' bindings are not here")
    groups = []
    for count, m, n in ((group.count, group.m, group.n) for group in GROUPS):
        views = [tensor(count, m, n)]
        groups.append({
            "blocks": count, "m": m, "n": n, "grad": views, "direction": views, "out": views,
            "left": (tensor(count, m, m), 4096), "right": (tensor(count, n, n), 4096),
            "left_root": tensor(count, m, m), "right_root": tensor(count, n, n),
        })  # fmt: skip
    rule = call.rule
    plan = toolchain.plans().square_root_step(
        groups, rule.decay, rule.weight, rule.damping, rule.damped_updates, rule.refine, rule.precision,
        rule.coupled, call.update, call.precondition, 4096, 4096, call.scratch_bytes, 163 << 10,
    )  # fmt: skip
    return Counter(name for name, *_ in plan.launches)


@pytest.mark.parametrize(("update", "precondition"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("scratch_bytes", [1 << 28, 1 << 21])
@pytest.mark.parametrize(
    ("refine", "coupled", "damped_updates"),
    [(1, True, 1.0), (2, False, 0.0), (3, True, 1.0), (6, False, 2.0)],
)
def test_launches_are_those_of_the_plans(
    refine: int, coupled: bool, damped_updates: float, scratch_bytes: int, update: bool, precondition: bool
) -> None:
    rule = replace(RULE, refine=refine, coupled=coupled, damped_updates=damped_updates)
    call = Call(rule, update=update, precondition=precondition, scratch_bytes=scratch_bytes)
    counted: Counter[str] = Counter()
    for cost in step_costs(GROUPS, call):
        counted[cost.kernel] += cost.launches
    assert counted == planned(call)


def test_updates_by_cholesky_are_refused() -> None:
    with pytest.raises(ValueError, match="Cholesky"):
        step_costs(GROUPS, Call(replace(RULE, method="cholesky")))
