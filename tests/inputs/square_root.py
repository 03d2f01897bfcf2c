"""Shape groups for `kron_step_` in the square-root form, and the comparison of two results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cases
import torch
from tolerances import FACTOR, assert_as_accurate
from torch import Tensor

from kradagrad_ext.backends import square_root
from kradagrad_ext.backends.base import FALLBACKS, RMS, WEIGHT, BlockGroup, Side, UpdateRule

from . import layouts
from .op import Kernel, Op, Refusal, resident_kernels

RULE = UpdateRule(decay=0.9, weight=0.1, damping=1e-3)


@dataclass(frozen=True)
class Given:
    """All tensors of a call: `scales` of the gradients, 0 for an inactive block; `norms` before the call."""

    groups: list[BlockGroup]
    scales: Tensor
    norms: Tensor
    rule: UpdateRule = RULE
    calls: dict[str, bool] = field(default_factory=lambda: {"update": True, "precondition": True})

    @property
    def active(self) -> Tensor:
        """Mask of the active blocks, ``[N]`` bool."""
        return self.scales > 0


def trained_side(count: int, d: int, k: int, dtype: torch.dtype, factor_dtype: torch.dtype) -> Side:
    """Return a side after some gradients; every fifth block is before its first, with an arbitrary factor."""
    side = Side(
        torch.zeros(count, d, d, dtype=torch.float64),
        torch.zeros(count, 4, dtype=torch.float64),
        _root(count, d),
    )
    every_block = torch.ones(count, dtype=torch.float64)
    for _ in range(3):
        u = torch.randn(count, d, k, dtype=torch.float64)
        square_root.update_factor_(side.factor, side.statistics, [u], every_block, RULE)
    side.statistics[4::5] = 0
    side.factor[4::5] = 7.0
    return Side(side.factor.to(factor_dtype), side.statistics.to(dtype), side.root.to(dtype))


def check_overflow_in_rounding(ops: Any, d: int, rule: UpdateRule) -> None:
    """Check that a factor that is finite in float32 but not in bfloat16 stays, and is counted."""
    most = torch.finfo(torch.bfloat16).max
    factor = torch.eye(d).repeat(2, 1, 1)
    factor[1, 0, 0] = most
    factor, statistics = factor.bfloat16(), torch.tensor([[0.01, 1, 0, 0]]).repeat(2, 1)
    before, known = factor.clone(), statistics.clone()
    u = 0.01 * torch.randn(2, d, 9)
    u[:, 0] = 0
    rule = replace(rule, decay=0.995, damped_updates=0.0)  # the first direction is only forgotten
    assert most / 0.995**0.5 < torch.finfo(torch.float32).max
    ops.update_factor_(factor, statistics, [u], torch.ones(2), rule)
    assert torch.equal(factor[1], before[1])
    assert torch.equal(statistics[1, :FALLBACKS], known[1, :FALLBACKS])
    assert statistics[:, FALLBACKS].tolist() == [0, 1]
    assert not torch.equal(factor[0], before[0])


def _root(count: int, d: int) -> Tensor:
    """Return symmetric positive definite matrices near I."""
    a = torch.randn(count, d, d, dtype=torch.float64) / math.sqrt(max(d, 1))
    return torch.eye(d, dtype=torch.float64) + a @ a.mT


def group(
    count: int,
    shape: tuple[int, int],
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    view_dtype: torch.dtype | None = None,
    factor_dtype: torch.dtype | None = None,
    root_dtype: torch.dtype | None = None,
) -> BlockGroup:
    """Return a shape group; directions have the layout of the parameter, gradients that of its transpose."""
    m, n = shape
    left = trained_side(count, m, n, dtype, factor_dtype or dtype)
    right = trained_side(count, n, m, dtype, factor_dtype or dtype)
    stored = [replace(side, root=side.root.to(root_dtype or dtype)) for side in (left, right)]
    gradients = "transposed_grid" if layout == "grid" else layout
    random = [torch.randn(count, m, n).to(view_dtype or dtype) for _ in range(2)]
    return BlockGroup(
        *stored,
        layouts.LAYOUTS[gradients](random[0]),
        layouts.LAYOUTS[layout](random[1]),
        layouts.LAYOUTS[layout](torch.full((count, m, n), 7.0, dtype=dtype)),
    )


def given(groups: Sequence[BlockGroup], rule: UpdateRule = RULE, **calls: bool) -> Given:
    """Return a call with every fourth block inactive, and scaled gradients."""
    count = sum(len(group.left.factor) for group in groups)
    norms = torch.full((count,), 7.0, dtype=groups[0].left.statistics.dtype)
    scales = torch.tensor([1, 0.3, 0, 1.7], dtype=norms.dtype).repeat(count // 4 + 1)[:count]
    return Given(
        list(groups),
        scales,
        norms,
        rule,
        {"update": True, "precondition": True} | calls,
    )


def copied(call: Given, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Given:
    """Return the same call on copies, in another dtype or on another device if there is one."""

    def plain(old: Tensor) -> Tensor:
        return old.to(device or old.device, dtype or old.dtype, copy=True)

    def side(old: Side) -> Side:
        return Side(plain(old.factor), plain(old.statistics), plain(old.root))

    def views(old: Sequence[Tensor]) -> list[Tensor]:
        return [layouts.copied(view, dtype, device) for view in old]

    groups = [
        BlockGroup(side(g.left), side(g.right), views(g.grads), views(g.directions), views(g.out))
        for g in call.groups
    ]
    return replace(call, groups=groups, scales=plain(call.scales), norms=plain(call.norms))


def run(ops: Any, call: Given) -> Given:
    ops.kron_step_(call.groups, call.scales, call.norms, call.rule, **call.calls)
    return call


def compare(call: Given, ops: Any, atol: float | None = None) -> Given:
    """Run a copy of a call, and return it after `check`."""
    ours = run(ops, copied(call))
    check(call, ours, cases.square_root_atol(ops, call.rule) if atol is None else atol)
    return ours


def check(call: Given, ours: Given, atol: float | None = None) -> None:
    """Compare a call that was run with float64, by the error of plain PyTorch in the same dtype."""
    plain, exact = run(square_root, copied(call)), run(square_root, copied(call, torch.float64))
    scale = exact.norms.where(exact.norms > 0, 1)
    triple = [result.norms.to(scale.dtype) / scale for result in (ours, plain, exact)]
    assert_as_accurate(*(t.to(ours.norms.dtype) for t in triple[:2]), triple[2], "norms", atol)
    for i, results in enumerate(zip(ours.groups, plain.groups, exact.groups, strict=True)):
        for name in ("left", "right"):
            sides = [getattr(g, name) for g in results]
            _compare_sides(*sides, f"{name}[{i}]", atol)
        for views in zip(*(g.out for g in results), strict=True):
            assert_as_accurate(*views, f"out[{i}]", atol)
    assert_untouched(call, ours)


def _compare_sides(ours: Side, plain: Side, exact: Side, what: str, atol: float | None) -> None:
    products = [x_in_units(side) for side in (ours, plain, exact)]
    assert_as_accurate(*products, f"X of {what}", max(atol or 0, FACTOR[ours.factor.dtype]))
    for column in range(4):
        columns = [side.statistics[:, column] for side in (ours, plain, exact)]
        assert_as_accurate(*columns, f"statistics {column} of {what}", atol)


def x_in_units(side: Side) -> Tensor:
    """Return F F^T of blocks without units, in float64; zero before a gradient, and where F is not finite."""
    factor, statistics = side.factor.double(), side.statistics.double()
    scale = statistics[:, WEIGHT].sqrt() * statistics[:, RMS]
    x = factor @ factor.mT * scale.square()[:, None, None]
    return torch.where((statistics[:, WEIGHT] > 0)[:, None, None] & x.isfinite(), x, 0)


def assert_untouched(before: Given, after: Given) -> None:
    """Assert that inputs, padding and inactive blocks are the same as before, bit for bit."""
    first = 0
    for old, new in zip(before.groups, after.groups, strict=True):
        kept = ~before.active[first : first + len(old.left.factor)]
        first += len(old.left.factor)
        for old_side, new_side in ((old.left, new.left), (old.right, new.right)):
            assert torch.equal(old_side.factor[kept].nan_to_num(), new_side.factor[kept].nan_to_num())
            assert torch.equal(old_side.statistics[kept], new_side.statistics[kept])
            assert torch.equal(old_side.root, new_side.root)
        for old_views, new_views in ((old.grads, new.grads), (old.directions, new.directions)):
            for old_view, new_view in zip(old_views, new_views, strict=True):
                assert torch.equal(layouts.whole(old_view).isnan(), layouts.whole(new_view).isnan())
                assert torch.equal(old_view.nan_to_num(), new_view.nan_to_num())
        for old_view, new_view in zip(old.out, new.out, strict=True):
            assert torch.equal(layouts.whole(old_view).isnan(), layouts.whole(new_view).isnan())
        blocks = [torch.cat([v.flatten(0, -3) for v in group.out]) for group in (old, new)]
        assert torch.equal(blocks[0][kept], blocks[1][kept])


RULES = {
    "cholesky": RULE,
    "cholesky, undamped": replace(RULE, damped_updates=0.0),
    "products": replace(RULE, method="products"),
    "one product": replace(RULE, method="products", refine=1),
    "coupled": replace(RULE, coupled=True),
    "coupled products": replace(RULE, method="products", refine=3, coupled=True),
}

FLAT_RULE = (0.9, 0.5, 1e-3, 0.1, 1.0, "cholesky", 2, "bf16x3", True)
"""A rule as the schema has it."""


def kron_step_sample() -> tuple[object, ...]:
    """Return arguments for two shape groups: 4 blocks [5, 3] and 2 blocks [3, 2]."""
    shapes = [(4, 5, 3), (2, 3, 2)]
    left = [cases.spd(n, rows, torch.float32) for n, rows, _ in shapes]
    right = [cases.spd(n, columns, torch.float32) for n, _, columns in shapes]
    grad, direction = (
        [view for shape in shapes for view in cases.strided(torch.randn(shape))] for _ in range(2)
    )
    out, norms = [torch.zeros(shape) for shape in shapes], torch.zeros(6)
    roots = [x.clone() for x in left], [x.clone() for x in right]
    statistics = [[torch.ones(n, 4) for n, *_ in shapes] for _ in range(2)]
    scales = torch.tensor([1, 0.3, 0, 1, 1, 1])
    return (
        left,
        right,
        *statistics,
        out,
        norms,
        grad,
        direction,
        *roots,
        scales,
        *FLAT_RULE,
        True,
        True,
    )


def update_factor_sample() -> tuple[object, ...]:
    x, scales = cases.spd(4, 5, torch.float32), torch.ones(4)
    unfolding = cases.strided(torch.randn(4, 5, 3))
    return (x, torch.ones(4, 4), unfolding, scales, *FLAT_RULE)


KERNELS = {
    "square_root_product_64_tf32x3": Kernel("square_root_product", 2),
    **{
        f"square_root_product_128_{precision}": Kernel("square_root_product", 1)
        for precision in ("bf16x3", "fp32")
    },
    **dict.fromkeys(("gradient_norms", "start_sides", "finish_sides"), Kernel("square_root_state", 3)),
    "finish_norms": Kernel("square_root_state", 32),
    **{
        name: kernel
        for half in ("update", "precondition")
        for name, kernel in resident_kernels(half, swept=half == "update").items()
    },
    **{f"wide_{half}": Kernel(f"wide_{half}", 1) for half in ("update", "precondition")},
}
OPS = (
    Op(
        "update_factor_",
        update_factor_sample,
        [
            Refusal(0, torch.zeros(2, 3, 4), "`factor` must be"),
            Refusal(1, torch.zeros(4, 2), "`statistics` must be"),
            Refusal(2, [torch.zeros(4, 6, 3)], "`unfolding"),
            Refusal(3, torch.ones(4, dtype=torch.bool), "`scales` must be"),
            Refusal(4, 1.5, "`decay` must be in (0, 1], got 1.5"),
            Refusal(6, 0.0, "`damping` must be > 0"),
            Refusal(7, 0.0, "`prior` must be > 0"),
            Refusal(8, -1.0, "`damped_updates` must be >= 0"),
            Refusal(9, "qr", "`method` must be cholesky or products, got qr"),
            Refusal(10, 7, "`refine` must be 1 to 6, got 7"),
        ],
    ),
    Op(
        "kron_step_",
        kron_step_sample,
        [
            Refusal(1, [torch.zeros(4, 3, 3)], "`right` must be a list of 2"),
            Refusal(1, [torch.zeros(3, 3, 3), torch.zeros(2, 2, 2)], "`right[0]` must be"),
            Refusal(4, [torch.zeros(4, 5, 4), torch.zeros(2, 3, 2)], "`out[0]` must be"),
            Refusal(4, [torch.zeros(5, 5, 3), torch.zeros(2, 3, 2)], "`out` must be views"),
            Refusal(4, [torch.zeros(4, 5, 3)], "`out` must be views of 2 blocks for group 1"),
            Refusal(5, torch.zeros(4), "`norms` must be"),
            Refusal(8, [torch.zeros(4, 4, 4), torch.zeros(2, 3, 3)], "`left_root[0]` must"),
            Refusal(8, [], "`left_root` must be a list of 2"),
            Refusal(18, "half", "`precision` must be"),
        ],
        KERNELS,
    ),
)
