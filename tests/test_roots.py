"""Roots from factors: accuracy at every condition, units, and refusals."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import cast

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kradagrad_ext import KrADagrad, polar, roots
from kradagrad_ext.backends import native, triton
from kradagrad_ext.backends.base import REFUSALS, RESIDUAL, RMS, WEIGHT, RootRule, RootSide, Side, Turn
from kradagrad_ext.decomposed_roots import decomposed_roots

METHODS = {"polar": roots.roots_by_products, "eigh": decomposed_roots}
MARGIN = 1.01
"""Factor by which the intervals are wider that polynomials are made for."""


def root_function(method: str) -> polar.RootFunction:
    """Return the function of a method for p = 2."""
    return functools.partial(METHODS[method], p=2)


def refresh(
    factors: Tensor,
    statistics: Tensor,
    new: Tensor,
    method: str,
    *,
    k: int = 1,
    active: Tensor | None = None,
    turn: Turn | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Call `roots.refresh_due_` for active blocks (default: all); return root statistics, `known` before."""
    stats = torch.zeros(len(new), 4) if known is None else known.clone()
    every_block = torch.ones(len(new), dtype=torch.bool)
    side = RootSide(Side(factors, statistics, new), stats, every_block if active is None else active, k)
    roots.refresh_due_(side, root_function(method), True, turn or Turn())
    return stats


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 20),
    p=st.sampled_from([1, 2, 3, 4, 8]),
    method=st.sampled_from(list(METHODS)),
    seed=st.integers(0, 999),
)
def test_root_to_the_p_is_the_factor(d: int, p: int, method: str, seed: int) -> None:
    torch.manual_seed(seed)
    f = cases.factors(2, d, 100.0)
    p = p if method == "eigh" else 2 ** max(1, p.bit_length() - 1)
    root, residual = METHODS[method](f, p)
    torch.testing.assert_close(torch.linalg.matrix_power(root, p), f @ f.mT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(root, root.mT, rtol=1e-12, atol=1e-12)
    assert (residual < 1e-6).all()
    assert torch.linalg.eigvalsh(root).min() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("condition", "all_of_it", "smallest"), [(1e2, 3e-6, 1e-5), (1e4, 5e-6, 1e-4), (1e6, 1e-5, 1e-2)]
)
def test_float32_accuracy_also_of_the_smallest_directions(
    condition: float, all_of_it: float, smallest: float, method: str
) -> None:
    """Conditions are those that relative damping leaves, and larger ones; docs/numerics.md has the table."""
    f = cases.factors(3, 128, condition).float()
    ours, exact = METHODS[method](f, 2)[0].double(), cases.exact_root(f, 2)
    difference = ours - exact
    assert (torch.linalg.matrix_norm(difference) / torch.linalg.matrix_norm(exact)).max() < all_of_it
    inverse = torch.linalg.inv(exact)
    assert torch.linalg.matrix_norm(inverse @ difference, ord=2).max() < smallest * 10


@pytest.mark.parametrize(("steps", "left"), [(5, 1e-3), (6, 1e-3), (7, 1e-3), (8, 5e-8)])
def test_every_polynomial_is_the_nearest_to_one_on_its_interval(steps: int, left: float) -> None:
    """Errors alternate, equally large at both ends and both extrema; the last one's is below `left`."""
    low, high = polar.FLOORS[steps], 1.0
    for i, (a, b, c) in enumerate(polar.POLYNOMIALS[steps]):
        margin = MARGIN if i < steps - 1 else 1.0
        ends = low / (margin if i > 0 else 1.0), high * margin
        x = torch.logspace(*map(math.log10, ends), 200_001, dtype=torch.float64)
        y = a * x + b * x**3 + c * x**5
        within = y[(low <= x) & (x <= high)]
        low, high = float(within.min()), float(within.max())
        if margin > 1:
            parts = (y - 1).tensor_split(torch.diff(torch.sign(y - 1)).nonzero().flatten() + 1)
            most = float((y - 1).abs().max())
            assert [float(part.abs().max()) for part in parts] == pytest.approx(4 * [most], rel=1e-2)
    assert max(1 - low, high - 1) < left


@pytest.mark.parametrize("steps", polar.POLYNOMIALS)
def test_fewer_steps_fall_short_in_small_directions_alone(steps: int) -> None:
    """A singular value below the floor gets less than its root; one above gets its root within 1e-3."""
    floor = polar.FLOORS[steps]
    values = torch.logspace(0, math.log10(floor / 30), 64, dtype=torch.float64)
    bound = float(torch.linalg.vector_norm(values**2).sqrt())
    v = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q
    f = v * values
    root, residual = roots.roots_by_products(f[None], 2, polar.POLYNOMIALS[steps])
    made = torch.linalg.vecdot(v, root[0] @ v, dim=0)
    above = values > 1.1 * floor * bound
    assert 0 < above.sum() < 64
    torch.testing.assert_close(made[above], values[above], rtol=1e-3, atol=0)
    assert (made[~above] < 1.001 * values[~above]).all()
    assert (made > 0).all()
    assert residual.max() < roots.RESIDUAL_BOUND / 3


@pytest.mark.parametrize("d", [1, 2, 8])
def test_the_bound_of_the_largest_singular_value_may_be_met(d: int) -> None:
    """One number meets it, and a matrix of rank 1 and little else nearly does."""
    v = torch.randn(200, d, 1)
    _, residual = roots.roots_by_products(v @ v.mT + 1e-2 * torch.eye(d), 2)
    assert residual.max() < 5e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rms", [1e-30, 1.0, 1e30])
def test_roots_have_no_units(rms: float, method: str) -> None:
    """Factors of gradients times c give the same roots."""
    f = cases.factors(2, 20, 1e3).float()
    statistics = torch.zeros(2, 4)
    statistics[:, WEIGHT], statistics[:, RMS] = 0.25, rms
    new = torch.zeros(2, 20, 20)
    stats = refresh(f / 2 / rms, statistics, new, method, k=16)  # so that the unit is 2 rms
    torch.testing.assert_close(new, METHODS[method](f, 2)[0], rtol=1e-4, atol=1e-5)
    assert (stats[:, RESIDUAL] < 1e-5).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_bad_factor_keeps_its_old_root(value: float, method: str) -> None:
    f, old = cases.factors(4, 8, 100.0).float(), torch.randn(4, 8, 8)
    f[1] = value
    statistics = torch.ones(4, 4)
    statistics[3] = 0  # before its first gradient: nothing to root
    new = old.clone()
    stats = refresh(f, statistics, new, method, active=torch.tensor([True, True, False, True]))
    torch.testing.assert_close(new[0] @ new[0], f[0] @ f[0].mT, rtol=1e-3, atol=1e-3)
    assert torch.equal(new[1:], old[1:])
    assert stats[:, REFUSALS].tolist() == [0, 1, 0, 0]
    assert stats[1:, RESIDUAL].tolist() == [math.inf, 0, 0]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_stored_dtypes(stored: torch.dtype) -> None:
    f, new = cases.factors(2, 8, 100.0).to(stored), torch.zeros(2, 8, 8, dtype=torch.bfloat16)
    refresh(f, torch.ones(2, 4), new, "eigh")
    torch.testing.assert_close(new, cases.exact_root(f, 2).bfloat16(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_turns_take_all_blocks_in_rotation(method: str) -> None:
    """Of seven blocks with roots, three are due on a turn and no other; any three turns take every block."""
    f, known = cases.factors(7, 6, 100.0).float(), torch.ones(7, 4)
    for first in range(5):
        made = torch.zeros(7, dtype=torch.bool)
        for number in range(first, first + 3):
            new = torch.zeros(7, 6, 6)
            refresh(f, torch.ones(7, 4), new, method, turn=Turn(number, 3), known=known)
            due = Turn(number, 3).due(7, new.device)
            assert new.flatten(1).any(1).nonzero().flatten().tolist() == sorted(due.tolist())
            made[due] = True
        assert made.all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("turns", [0, 3])
def test_a_block_without_a_root_is_due_in_any_case(turns: int, method: str) -> None:
    """An inactive block, and one whose factor has not started, are the exceptions."""
    f, new, known, statistics = cases.factors(7, 6, 100.0).float(), torch.zeros(7, 6, 6), *torch.ones(2, 7, 4)
    known[[1, 3, 4, 6], RESIDUAL] = 0
    statistics[4] = 0
    active = torch.arange(7) != 6
    turn = Turn(0, turns)
    stats = refresh(f, statistics, new, method, active=active, turn=turn, known=known)
    made = {1, 3} | ({0, 2} if turns else set())
    assert set(new.flatten(1).any(1).nonzero().flatten().tolist()) == made
    assert ((stats[:, RESIDUAL] == 0).nonzero().flatten()).tolist() == [4, 6]


def test_where_the_host_does_not_look_blocks_without_a_root_come_first() -> None:
    """Two of seven blocks are due: those without a root, then the first of those whose turn it is."""
    statistics, stats = torch.ones(2, 7, 4)
    side = RootSide(Side(torch.ones(7, 1, 1), statistics, torch.ones(7, 1, 1)), stats, torch.ones(7) > 0, 1)
    stats[5, RESIDUAL] = 0
    due = [polar.due_blocks(side, Turn(number, 4), host_looks=False).tolist() for number in range(4)]
    assert due == [[5, 0], [5, 2], [5, 4], [5, 0]]


def test_a_counter_stands_for_the_number_of_a_turn() -> None:
    device = torch.device("cpu")
    for number in range(9):
        assert torch.equal(Turn(0, 4, torch.tensor(number)).due(10, device), Turn(number, 4).due(10, device))
    assert Turn(3, 4).due(0, device).tolist() == []
    with pytest.raises(ValueError, match="`number` and `turns` must be >= 0, got 0, -1"):
        Turn(0, -1)


def test_the_op_does_what_refresh_does() -> None:
    """`polar_roots_` of the reference is what kernels are compared with."""
    f, statistics = cases.factors(5, 6, 100.0).float(), torch.ones(5, 4)
    ours, same = torch.zeros(5, 6, 6), torch.zeros(5, 6, 6)
    active = torch.tensor([True, True, False, True, True])
    stats = refresh(f, statistics, same, "polar", active=active, turn=Turn(1, 2))
    side = RootSide(Side(f, statistics, ours), torch.zeros(5, 4), active, 1)
    polar.polar_roots_([side], RootRule(polar.POLYNOMIALS[8], roots.RESIDUAL_BOUND), Turn(1, 2))
    assert torch.equal(ours, same)
    assert torch.equal(side.root_stats, stats)


def sides_on_a_gpu(*blocks_and_sides: tuple[int, int]) -> list[RootSide]:
    """Return sides with as much data as the choice of kernels reads."""
    return [
        RootSide(
            Side(torch.empty(0, d, d), torch.empty(0), torch.empty(0)),
            torch.empty(0),
            cast(Tensor, _Active([True] * blocks)),
            1,
        )
        for blocks, d in blocks_and_sides
    ]


class _Active(list[bool]):
    device = torch.device("cuda", 0)
    is_cuda = True


@pytest.mark.parametrize(
    ("blocks", "turns", "kilobytes", "precision", "longest"),
    [
        (40, 1, 227, "bf16x3", 1024),
        (33, 1, 227, "bf16x3", 1024),
        (32, 1, 227, "bf16x3", 256),
        (330, 10, 227, "bf16x3", 1024),
        (320, 10, 227, "bf16x3", 256),
        (40, 1, 99, "bf16x3", 1024),
        (40, 1, 163, "tf32x3", 128),
        (40, 1, 99, "tf32x3", 64),
        (40, 1, 64, "fp32", 0),
    ],
)
def test_long_roots_are_the_kernels_where_many_are_due(
    monkeypatch: pytest.MonkeyPatch, blocks: int, turns: int, kilobytes: int, precision: str, longest: int
) -> None:
    """Many are a quarter of 132 multiprocessors or more; torch's products use the whole GPU for each root."""
    gpu = SimpleNamespace(shared_memory_per_block_optin=kilobytes << 10, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    sides = sides_on_a_gpu((1000, 128), (blocks, 300), (1000, 2000))
    assert native._longest_root_side(sides, precision, turns) == longest


@pytest.mark.parametrize(("reason", "by_kernels"), [(None, True), ("not built", False)])
def test_triton_has_the_native_kernels_make_roots(
    monkeypatch: pytest.MonkeyPatch, reason: str | None, by_kernels: bool
) -> None:
    made: list[str] = []
    monkeypatch.setattr(native, "available", lambda device: reason)
    monkeypatch.setattr(native, "polar_roots_", lambda *_: made.append("native"))
    monkeypatch.setattr(polar, "polar_roots_", lambda *_: made.append("torch"))
    rule = RootRule(polar.POLYNOMIALS[8], roots.RESIDUAL_BOUND)
    triton.polar_roots_(sides_on_a_gpu((4, 300)), rule, Turn())
    triton.polar_roots_([], rule, Turn())
    assert made == ["native" if by_kernels else "torch", "torch"]


def trained(root_every: int, root_steps: int | None) -> Tensor:
    """Return a parameter after thirty steps with roots by products."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(8, 6))
    optimizer = KrADagrad([p], root_method="polar", root_every=root_every, root_steps=root_steps)
    for _ in range(30):
        p.grad = torch.randn(8, 6)
        optimizer.step()
    return p.detach()


def test_fewer_steps_where_every_step_makes_all_roots() -> None:
    """`root_steps` overrides their number. With `root_every=2`, the last ten steps make roots in turns."""
    assert torch.equal(trained(1, None), trained(1, 6))
    assert not torch.equal(trained(1, None), trained(1, 8))
    assert torch.equal(trained(2, None), trained(2, 8))
