"""Small calls of kron_step_ in the square-root form that mutants of its kernels are run on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from inputs import square_root
from inputs.square_root import Given, copied, given, group
from tolerances import FACTOR, precision_atol

from cuda.executor_backend import SquareRootExecutor

RULE = replace(square_root.RULE, method="products")


@dataclass(frozen=True, eq=False)
class SquareRootProbe:
    """One call."""

    name: str
    call: Given
    executor = SquareRootExecutor

    def run(self, backend: Any) -> Given:
        return square_root.run(backend, copied(self.call))

    def check(self, ours: Given) -> None:
        """AssertionError where a result is not as accurate as it must be, or something else was written."""
        rule = self.call.rule
        atol = max(precision_atol(rule.precision, rule.refine), FACTOR[self.call.groups[0].left.factor.dtype])
        square_root.check(self.call, ours, atol)

    def same_bits(self, one: Given, other: Given) -> bool:
        pairs = [(one.norms, other.norms)]
        for a, b in zip(one.groups, other.groups, strict=True):
            for side, same in ((a.left, b.left), (a.right, b.right)):
                pairs += [(side.factor, same.factor), (side.statistics, same.statistics)]
            pairs += zip(a.out, b.out, strict=True)
        return all(torch.equal(first.nan_to_num(), second.nan_to_num()) for first, second in pairs)


def make() -> list[SquareRootProbe]:
    """Several tiles and groups; blocks before their first gradient, without one, not finite, inactive."""
    rules = {
        "three steps, coupled": replace(RULE, refine=3, coupled=True),
        "one step": replace(RULE, refine=1),
        "two steps, undamped": replace(RULE, damped_updates=0.0),
    }
    probes = []
    for name, rule in rules.items():
        call = given(
            [group(7, (70, 20), "grid"), group(5, (9, 33), "experts", view_dtype=torch.bfloat16)], rule
        )
        _spoil(call)
        probes.append(SquareRootProbe(name, call))
    tiny = given([group(5, (9, 20))], rules["three steps, coupled"])
    for side in (tiny.groups[0].left, tiny.groups[0].right):
        side.statistics.zero_()
    for view in (*tiny.groups[0].grads, *tiny.groups[0].directions):
        view.mul_(1e-30)
    probes.append(SquareRootProbe("gradients of 1e-30", tiny))
    halves = given([group(5, (9, 20), "column")], RULE, update=False)
    probes.append(SquareRootProbe("no update", halves))
    return probes


def _spoil(call: Given) -> None:
    """In the first group: a block that never had a gradient, and NaN in a gradient and in a factor."""
    blocks = call.groups[0].grads[0]
    flat = [blocks[i, j] for i in range(blocks.shape[0]) for j in range(blocks.shape[1])]
    flat[4].zero_()
    flat[1][3, 2] = math.nan
    call.groups[0].left.factor[5, 0, 0] = math.nan
