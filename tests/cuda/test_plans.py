"""Plans of launches: the number of launches, and the addresses that a plan is bound to."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from . import toolchain

TABLE, SCRATCH = 1 << 44, 1 << 45
"""Addresses of a table and of scratch memory, far from each other and from all other addresses here."""
UNBOUND = 0x7ACE
"""Upper 16 bits of an address before its plan is bound: plus 0 in the table, plus 1 in scratch memory."""


def tensor(*sizes: int) -> tuple[int, bool, list[int], list[int]]:
    return 4096, False, list(sizes), list(torch.empty(sizes, device="meta").stride())


def kron_step(shapes: list[tuple[int, int]], refine: int = 2, blocks: int = 2, scratch_bytes: int = 1 << 28):
    """Return the plan of a whole coupled step of groups of these shapes."""
    groups = [
        {
            "blocks": blocks, "m": m, "n": n,
            "grad": [tensor(blocks, m, n)],
            "direction": [tensor(blocks, m, n)], "out": [tensor(blocks, m, n)],
            "left": (tensor(blocks, m, m), 4096), "right": (tensor(blocks, n, n), 4096),
            "left_root": tensor(blocks, m, m), "right_root": tensor(blocks, n, n),
        }
        for m, n in shapes
    ]  # fmt: skip
    rule = (0.95, 0.05, 1e-3, 0.03, 1.0, refine, "bf16x3", True)
    return toolchain.plans().square_root_step(
        groups, *rule, True, True, 4096, 4096, scratch_bytes, 163 << 10, 108
    )


def words(data: bytes) -> np.ndarray:
    return np.frombuffer(data[: len(data) // 8 * 8], np.uint64)


def within(data: bytes, start: int, size: int) -> int:
    """Count the words that are addresses in the `size` bytes from `start` on."""
    values = words(data)
    return int(((values >= start) & (values < start + max(size, 1))).sum())


def test_a_bound_plan_has_real_addresses_alone() -> None:
    plan = kron_step([(200, 160), (64, 64), (300, 72)])
    parts = [plan.table, *(launch[-1] for launch in plan.launches)]
    symbolic = [sum((words(part) >> 48 == UNBOUND + kind).sum() for part in parts) for kind in (0, 1)]
    assert min(symbolic) > 0
    plan.bind(TABLE, SCRATCH)
    launches = [launch[-1] for launch in plan.launches]
    assert not any((words(part) >> 49 == UNBOUND >> 1).any() for part in [plan.table, *launches])
    assert sum(within(launch, TABLE, len(plan.table)) for launch in launches) == symbolic[0]
    scratch = within(plan.table, SCRATCH, plan.scratch) + sum(
        within(x, SCRATCH, plan.scratch) for x in launches
    )
    assert scratch == symbolic[1]
    assert within(plan.table, TABLE, len(plan.table)) == 0, "a table is kept by content, at whatever address"


def test_what_is_not_an_address_stays_when_a_plan_is_bound() -> None:
    shapes = [(200, 160), (300, 72)]
    made, bound = kron_step(shapes), kron_step(shapes)
    bound.bind(TABLE, SCRATCH)
    for before, after in zip(made.launches, bound.launches, strict=True):
        assert before[:4] == after[:4]
        plain = words(before[-1]) >> 49 != UNBOUND >> 1
        assert (words(before[-1])[plain] == words(after[-1])[plain]).all()


@pytest.mark.parametrize("refine", [1, 2, 3])
def test_launches_are_as_docs_kernels_says(refine: int) -> None:
    """Each size up to 256 a side has two launches; larger blocks have twelve at refine 2, for any number.

    From refine 3 on, blocks of 128 need more shared memory than an A100 has: they join those of 256.
    """
    resident = (64, 128) if refine < 3 else (64,)
    products = {1: 5, 2: 8, 3: 10}[refine]
    for shapes in ([(300, 256)], [(300, 256), (257, 72), (400, 2)]):
        names = Counter(
            name for name, *_ in kron_step([*shapes, (128, 128), (3, 64), (200, 7)], refine).launches
        )
        assert names == {
            **{
                f"resident_{part}_{side}_bf16x3": 1
                for part in ("update", "precondition")
                for side in resident
            },
            **dict.fromkeys(("wide_update", "wide_precondition"), 1),
            "square_root_product_128_bf16x3": products,
            **dict.fromkeys(("gradient_norms", "start_sides", "finish_sides", "finish_norms"), 1),
        }


def test_each_slice_has_launches_of_its_own() -> None:
    one = len(kron_step([(384, 384)], blocks=8).launches)
    two = len(kron_step([(384, 384)], blocks=8, scratch_bytes=4 * 15 * 384 * 384 * 4).launches)
    assert (one, two) == (12, 24)
