"""Small calls of kron_step_ in the square-root form that mutants of its kernels are run on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from inputs import square_root
from inputs.square_root import Given, copied, given, group
from tolerances import FACTOR, precision_atol

from cuda.executor_backend import Executor, GroupedExecutor

RULE = replace(square_root.RULE, method="products")


@dataclass(frozen=True, eq=False)
class SquareRootProbe:
    """One call."""

    name: str
    call: Given
    executor: type[Executor]

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


RULES = {
    "three steps, coupled": replace(RULE, refine=3, coupled=True),
    "one step": replace(RULE, refine=1),
    "two steps, undamped": replace(RULE, damped_updates=0.0),
}


def make(executor: type[Executor], side: int) -> list[SquareRootProbe]:
    """Several tiles and groups; blocks before their first gradient, without one, not finite, inactive."""
    calls = {}
    for name, rule in RULES.items():
        groups = [group(7, (side, 20), "grid"), group(5, (9, 33), "experts", view_dtype=torch.bfloat16)]
        calls[name] = given(groups, rule)
        _spoil(calls[name])
    tiny = given([group(5, (9, 20))], RULES["three steps, coupled"])
    for own in (tiny.groups[0].left, tiny.groups[0].right):
        own.statistics.zero_()
    for view in (*tiny.groups[0].grads, *tiny.groups[0].directions):
        view.mul_(1e-30)
    calls["gradients of 1e-30"] = tiny
    calls["no update"] = given([group(5, (9, 20), "column")], RULE, update=False)
    return [SquareRootProbe(name, call, executor) for name, call in calls.items()]


def grouped() -> list[SquareRootProbe]:
    return make(GroupedExecutor, 70)


def resident() -> list[SquareRootProbe]:
    """With factors and roots in bfloat16, whose rows start aligned or anywhere, and a gradient of 1e12."""
    stored = {"factor_dtype": torch.bfloat16, "root_dtype": torch.bfloat16}
    rounded = given([group(5, (20, 33), **stored), group(5, (32, 24), **stored)], RULES["one step"])
    spike = given([group(2, (20, 9))], RULE, precondition=False)
    spike.groups[0].grads[0].mul_(1e12)
    return [
        *make(Executor, 50),
        SquareRootProbe("bfloat16", rounded, Executor),
        SquareRootProbe("a spike", spike, Executor),
    ]


def _spoil(call: Given) -> None:
    """In the first group: a gradient of zeros, NaN in one, in all of one, and in a factor."""
    blocks = call.groups[0].grads[0]
    flat = [blocks[i, j] for i in range(blocks.shape[0]) for j in range(blocks.shape[1])]
    flat[4].zero_()
    flat[1][3, 2] = math.nan
    flat[3].fill_(math.nan)
    call.groups[0].left.factor[5, 0, 0] = math.nan
