"""The claims of docs/proofs.md, one test each, on random and on adversarial inputs."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kradagrad_ext import published
from kradagrad_ext.backends.base import RMS, WEIGHT, BlockGroup, Side, UpdateRule
from kradagrad_ext.backends.square_root import inverse_root_by_products, kron_step_, update_factor_
from kradagrad_ext.linalg import identity_like
from kradagrad_ext.polar import FLOORS, POLYNOMIALS, Polynomial, polar_roots, units

PAGE = Path(__file__).resolve().parent.parent / "docs/proofs.md"
RULE = UpdateRule(decay=0.8, weight=0.2, damping=1e-3, prior=0.03, method="cholesky")
SPIKES = [1.0, 1e3, 1e6]
"""Size of one gradient among others of size 1."""


def gradients(d: int, k: int, spike: float = 1.0, count: int = 6, rank: int | None = None) -> list[Tensor]:
    """Return unfoldings ``[1, d, k]`` float64, of a rank; the third one is multiplied by `spike`."""
    full = [
        torch.randn(1, d, rank or k).double() @ torch.randn(1, rank or k, k).double() for _ in range(count)
    ]
    return [u / (k if rank is None else rank) ** 0.5 * (spike if i == 2 else 1) for i, u in enumerate(full)]


def new_side(d: int, dtype: torch.dtype = torch.float64) -> Side:
    return Side(
        torch.zeros(1, d, d, dtype=dtype), torch.zeros(1, 4, dtype=dtype), torch.eye(d, dtype=dtype)[None]
    )


def updated(side: Side, u: Tensor, rule: UpdateRule = RULE) -> Side:
    """Return a copy of a side after one update."""
    new = Side(side.factor.clone(), side.statistics.clone(), side.root)
    ones = torch.ones(1, dtype=new.statistics.dtype)
    update_factor_(new.factor, new.statistics, [u.to(new.statistics.dtype)], ones, rule)
    return new


def fed(us: list[Tensor], rule: UpdateRule = RULE, dtype: torch.dtype = torch.float64) -> Side:
    side = new_side(us[0].shape[-2], dtype)
    for u in us:
        side = updated(side, u, rule)
    return side


def x_of(side: Side) -> Tensor:
    factor = side.factor.double()
    return factor @ factor.mT


def damping_of(side: Side, k: int, rule: UpdateRule = RULE) -> float:
    """Return c of the update that led to this side."""
    return rule.damped_updates * rule.weight * rule.damping * k * float(side.statistics[0, RMS]) ** 2


def eigenvalues(a: Tensor, b: Tensor) -> Tensor:
    """Return the eigenvalues of ``b^-1 a``: those of A relative to B, both positive definite."""
    inverse = torch.linalg.inv(torch.linalg.cholesky(b))
    return torch.linalg.eigvalsh(inverse @ a @ inverse.mT)


def dominates(a: Tensor, b: Tensor, slack: float = 1e-8) -> bool:
    """Return True if A >= B up to a relative slack in every direction."""
    return bool((eigenvalues(a, b) >= 1 - slack).all())


def condition(x: Tensor) -> float:
    return float(torch.linalg.cond(x).max())


def with_condition(d: int, kappa: float) -> Tensor:
    """Return F ``[1, d, d]`` with random singular vectors and geometrically spaced singular values."""
    left, right = (torch.linalg.qr(torch.randn(d, d).double()).Q for _ in range(2))
    return (left * torch.logspace(0, -math.log10(kappa), d).double() @ right)[None]


@pytest.mark.parametrize("spike", SPIKES)
@pytest.mark.parametrize(("d", "k"), [(6, 4), (8, 30), (1, 3)])
def test_the_update_is_exact(d: int, k: int, spike: float) -> None:
    """Claim 1; the tolerance is relative in every direction."""
    us = gradients(d, k, spike)
    side = updated(new_side(d), us[0])
    for u in us[1:]:
        new = updated(side, u)
        inverse = RULE.decay * torch.linalg.inv(x_of(side)) + RULE.weight * u @ u.mT
        inverse += damping_of(new, k) * identity_like(inverse)
        relative = eigenvalues(x_of(new), torch.linalg.inv(inverse))
        torch.testing.assert_close(relative, torch.ones_like(relative), rtol=0, atol=1e-12 * max(1, spike**2))
        side = new


@pytest.mark.parametrize("spike", SPIKES)
def test_what_the_factor_approximates(spike: float) -> None:
    """Claim 2: prior, decayed statistics, damping, and the trace of the statistics."""
    d, k = 7, 5
    us = gradients(d, k, spike)
    first = float(us[0].square().mean())
    inverse = RULE.prior * k * first * torch.eye(d, dtype=torch.float64)[None]
    statistics = torch.zeros_like(inverse)
    side = new_side(d)
    for u in us:
        side = updated(side, u)
        statistics = RULE.decay * statistics + RULE.weight * u @ u.mT
        inverse = RULE.decay * inverse + RULE.weight * u @ u.mT
        inverse = inverse + damping_of(side, k) * identity_like(inverse)
        torch.testing.assert_close(torch.linalg.inv(x_of(side)), inverse, rtol=1e-6, atol=1e-9 * spike**2)
        weight, rms = side.statistics[0, WEIGHT], side.statistics[0, RMS]
        torch.testing.assert_close(statistics.diagonal(dim1=-2, dim2=-1).sum(), d * k * weight * rms**2)


def by_woodbury(x: Tensor, u: Tensor, rule: UpdateRule) -> Tensor:
    """Return the undamped update of X itself, in the dtype of X."""
    decayed, a = x / rule.decay, math.sqrt(rule.weight) * u.to(x.dtype)
    y = decayed @ a
    inner = identity_like(a.mT @ y) + a.mT @ y
    new = decayed - y @ torch.linalg.solve(inner, y.mT)
    return (new + new.mT) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["cholesky", "products"])
@pytest.mark.parametrize("spike", [*SPIKES, 1e9])
def test_positive_definite_after_a_spike(spike: float, method: str, dtype: torch.dtype) -> None:
    """Claim 3: in float32, too; there the update of X itself becomes indefinite."""
    d, k = 16, 24
    us = gradients(d, k, spike)
    rule = replace(RULE, method=method, damped_updates=0.0)
    side = updated(new_side(d, dtype), us[0], rule)
    x = x_of(side).to(dtype)
    for u in us[1:]:
        h_norm = RULE.decay + RULE.weight * float(torch.linalg.matrix_norm(side.factor.mT.double() @ u)) ** 2
        smallest = float(torch.linalg.svdvals(side.factor.double()).min())
        side, x = updated(side, u, rule), by_woodbury(x, u, rule)
        factor = side.factor.double()
        assert factor.isfinite().all()
        new_smallest = float(torch.linalg.svdvals(factor).min())
        assert new_smallest >= 0.99 * smallest / math.sqrt(h_norm) > 0
    if dtype == torch.float32 and spike == 1e6:
        assert float(torch.linalg.eigvalsh(x.double()).min()) < 0


@pytest.mark.parametrize("damped_updates", [1.0, 10.0])
@pytest.mark.parametrize("rank", [1, None])
@pytest.mark.parametrize("spike", SPIKES)
def test_damping_bounds_the_condition(spike: float, rank: int | None, damped_updates: float) -> None:
    """Claim 4, also where every gradient is a multiple of one matrix of rank 1."""
    d, k = 12, 9
    rule, undamped = replace(RULE, damped_updates=damped_updates), replace(RULE, damped_updates=0.0)
    us = gradients(d, k, spike, rank=rank)
    us = [us[0] * float(u.norm() / us[0].norm()) for u in us] if rank else us
    side = new_side(d)
    for u in us * 3:
        side = updated(side, u, rule)
        x, weight = x_of(side), float(side.statistics[0, WEIGHT])
        largest = 1 / damping_of(side, k, rule)
        assert float(torch.linalg.eigvalsh(x).max()) <= largest * (1 + 1e-9)
        bound = 1 + d * weight / (damped_updates * rule.weight * rule.damping)
        assert condition(side.factor) ** 2 <= bound * (1 + 1e-6)
        later = side
        for number in range(1, 4):
            later = updated(later, us[0], undamped)
            assert float(torch.linalg.eigvalsh(x_of(later)).max()) <= largest / rule.decay**number * (
                1 + 1e-9
            )
    if rank:  # the bound is sharp, up to the factor by which all damping exceeds that of the last update
        assert condition(side.factor) ** 2 > 0.1 * bound * rule.weight


@pytest.mark.parametrize("kappa", [1e1, 1e3, 1e5])
@pytest.mark.parametrize("epsilon", [2.0**-24, 2.0**-8])
def test_rounding_a_factor(kappa: float, epsilon: float) -> None:
    """Claim 5: by rounding to float32 or bfloat16, and by the worst error of this size."""
    d = 20
    f = with_condition(d, kappa)
    x, size = f @ f.mT, float(torch.linalg.matrix_norm(f, 2))
    left, _, right = torch.linalg.svd(f)
    worst = -epsilon * size * left[:, :, -1:] @ right[:, -1:, :]
    rounded = f.to(torch.float32 if epsilon < 1e-6 else torch.bfloat16).double()
    for g in (f + worst, rounded):
        error = float(torch.linalg.matrix_norm(g - f, 2)) / size
        delta = error * kappa
        if delta < 0.5:
            relative = eigenvalues(g @ g.mT, x)
            assert float(relative.min()) >= (1 - delta) ** 2 - 1e-6
            assert float(relative.max()) <= (1 + delta) ** 2 + 1e-6
        gram = (g @ g.mT)[0]
        assert float(torch.linalg.eigvalsh(gram).min()) >= -1e-14 * size**2
    vector = left[:, :, -1:]
    smallest = float((vector.mT @ (x - epsilon * size**2 * vector @ vector.mT) @ vector).squeeze())
    assert smallest == pytest.approx(size**2 * (kappa**-2 - epsilon), rel=1e-3)
    assert (smallest < 0) == (epsilon * kappa**2 > 1)


@pytest.mark.parametrize("size", [1.0, 10.0, 1e3])
def test_errors_of_an_update_depend_on_h(size: float) -> None:
    """Claim 6: with the worst error of H, and with all errors of a step in float32."""
    d, k, kappa = 16, 24, 30.0
    f = with_condition(d, kappa)
    u = torch.linalg.solve(f.mT, torch.randn(1, d, k).double()) * size / k**0.5
    b = math.sqrt(RULE.weight) * f.mT @ u
    h = RULE.decay * identity_like(f) + b @ b.mT
    exact = f @ torch.linalg.inv(h) @ f.mT
    values, vectors = torch.linalg.eigh(h)
    worst = float(values.max()) / RULE.decay
    for eta, sign in itertools.product([1e-8, 0.1 / worst], [1, -1]):
        rho = eta * worst
        error = sign * eta * float(values.max()) * vectors[:, :, :1] @ vectors[:, :, :1].mT
        relative = eigenvalues(f @ torch.linalg.inv(h + error) @ f.mT, exact)
        assert float(relative.min()) >= 1 / (1 + rho) - 1e-9
        assert float(relative.max()) <= 1 / (1 - rho) + 1e-9
    rule, statistics = replace(RULE, damped_updates=0.0), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    new = updated(Side(f.float(), statistics, f), u, rule)
    relative = eigenvalues(x_of(new), exact)
    assert float((relative - 1).abs().max()) < 2**-24 * d * kappa * worst


@pytest.mark.parametrize("factor", [1.5, 100.0])
@pytest.mark.parametrize("spike", SPIKES)
def test_errors_are_forgotten(factor: float, spike: float) -> None:
    """Claim 7: of two factors, one multiplied by the largest error in one half of its directions."""
    d, k = 8, 12
    rule = replace(RULE, damped_updates=0.0)
    side = updated(new_side(d), gradients(d, k)[0], rule)
    x = x_of(side)
    values, vectors = torch.linalg.eigh(x)
    errors = torch.where(torch.arange(d) % 2 == 0, factor, 1 / factor).double()
    z = vectors * (values * errors)[:, None, :] @ vectors.mT
    other = Side(torch.linalg.cholesky(z), side.statistics, side.root)
    bound = factor
    for u in gradients(d, k, spike)[1:]:
        side, other = updated(side, u, rule), updated(other, u, rule)
        theta = float(eigenvalues(rule.weight * u @ u.mT, torch.linalg.inv(x_of(side))).min())
        bound -= theta * (bound - 1)
        relative = eigenvalues(x_of(other), x_of(side))
        assert float(relative.max()) <= bound * (1 + 1e-6)
        assert float(relative.min()) >= 1 / bound * (1 - 1e-6)
    assert bound < factor


@pytest.mark.parametrize("refine", range(1, 7))
@pytest.mark.parametrize("largest", [1.0, 3.0, 100.0, 1e4, 1e12])
def test_updates_by_products_dominate(refine: int, largest: float) -> None:
    """Claim 8: on eigenvalues from beta to their bound, and of two factors."""
    beta = RULE.decay
    h = torch.logspace(math.log10(beta), math.log10(beta * largest), 60).double()
    h[0] = beta
    matrix = torch.diag(h)[None]
    t = beta + float((h - beta).norm())
    q = inverse_root_by_products(matrix, beta, refine)[0].diagonal()
    shares = q.square() * h
    assert float(shares[0]) == pytest.approx(1, rel=1e-9)
    assert float(shares.min()) >= 1 - 1e-9
    assert float(shares.max()) <= (1 - (1 - math.sqrt(beta / t)) ** (2**refine)) ** -2 * (1 + 1e-9)
    assert float(q.square().max()) <= 1 / beta * (1 + 1e-9)
    us = gradients(8, 12, min(largest, 1e6))
    side = fed(us[:2])
    exact = updated(side, us[2])
    crude = updated(side, us[2], replace(RULE, method="products", refine=refine))
    slack = 1e-12 * max(1.0, min(largest, 1e6) ** 2)
    assert dominates(x_of(crude), x_of(exact), slack)
    assert dominates(x_of(side) / beta, x_of(crude), slack)


@pytest.mark.parametrize("bound", [published.trace_dim_bound, published.product_bound])
@pytest.mark.parametrize("spike", [1.0, 1e3])
def test_the_papers_lemma(bound: object, spike: float) -> None:
    """Claim 9."""
    d, k = 6, 9
    x = x_of(fed(gradients(d, k)))[0]
    u = spike * torch.randn(d, k).double()
    new = published.krad_update(x, u, bound)
    exact = torch.linalg.inv(torch.linalg.inv(x) + u @ u.mT)
    t = float(bound(x @ u, u))
    assert t >= float(torch.linalg.eigvals(torch.eye(k).double() + u.mT @ x @ u).real.max())
    assert dominates(new, exact, 1e-8 * spike)


@pytest.mark.parametrize("steps", POLYNOMIALS)
@pytest.mark.parametrize("kappa", [1.0, 10.0, 100.0])
def test_the_root_is_a_polar_factor(kappa: float, steps: int) -> None:
    """Claim 10: the singular vectors stay, and the error is that of the singular values."""
    d = 12
    f = with_condition(d, kappa)
    left, values, _ = torch.linalg.svd(f)
    end = values / torch.linalg.matrix_norm(f.mT @ f).sqrt()
    for a, b, c in POLYNOMIALS[steps]:
        end = end * (a + b * end**2 + c * end**4)
    root, residual = polar_roots(f, POLYNOMIALS[steps])
    expected = left * (values * end)[:, None, :] @ left.mT
    torch.testing.assert_close(root, expected, rtol=0, atol=1e-12)
    delta = float((end - 1).abs().max())
    exact = left * values[:, None, :] @ left.mT
    assert dominates(root, (1 - delta) * exact)
    assert dominates((1 + delta) * exact, root)
    assert float(residual) <= 2 * delta + delta**2 + 1e-12


def image(polynomial: Polynomial, low: float, high: float) -> tuple[float, float]:
    """Return the range of a x + b x^3 + c x^5 on an interval of numbers >= 0."""
    a, b, c = polynomial
    squares = [(-3 * b + sign * math.sqrt(max(0, 9 * b * b - 20 * a * c))) / (10 * c) for sign in (1, -1)]
    inner = [math.sqrt(y) for y in squares if y > 0 and low <= math.sqrt(y) <= high]
    values = [x * (a + b * x**2 + c * x**4) for x in (low, high, *inner)]
    return min(values), max(values)


@pytest.mark.parametrize(("steps", "delta"), [(8, 5e-8), (7, 4.4e-4), (6, 9.1e-4), (5, 3.2e-4)])
def test_the_iteration_reaches_one(steps: int, delta: float) -> None:
    """Claim 11, with the table of the page."""
    low, high, top = FLOORS[steps], 1.0, 1.0
    rows: tuple[list[str], list[str]] = ([], [])
    for a, b, c in POLYNOMIALS[steps]:
        lowest = min(max(-b / (2 * c), 0), top**2)
        assert a + b * lowest + c * lowest**2 > 0
        low, high = image((a, b, c), low, high)
        top = image((a, b, c), 0, top)[1]
        rows[0].append(f"{low:.4f}")
        rows[1].append(f"{high:.4f}")
    assert 1 - delta < low < high < 1 + delta
    assert top < 1 + delta
    if steps == 8:
        page = PAGE.read_text()
        for name, row in zip(("smallest", "largest"), rows, strict=True):
            assert f"| {name} | " + " | ".join(row[:-1]) + " | " in page
    f = with_condition(16, 1e3)
    size = torch.linalg.matrix_norm(f.mT @ f).sqrt()
    assert float(torch.linalg.svdvals(f).min() / size) >= (math.sqrt(16) * 1e6) ** -0.5


@pytest.mark.parametrize("method", ["cholesky", "products"])
@pytest.mark.parametrize("factor", [2.0**-90, 2.0**60, 1e-30, 3.0])
def test_steps_have_no_units(factor: float, method: str) -> None:
    """Claim 12: for both sides of a block, with coupling; the same bits for powers of two."""
    m, n = 6, 9
    rule = replace(RULE, method=method, coupled=True)
    us = gradients(m, n)

    def outcome(scale: float) -> tuple[Tensor, ...]:
        left, right, out = new_side(m), new_side(n), torch.zeros(1, m, n).double()
        norms = torch.zeros(1).double()
        for u in us:
            group = BlockGroup(left, right, [scale * u], [scale * u], [out])
            kron_step_([group], torch.ones(1).double(), norms, rule, update=True, precondition=True)
        unit = [units(side.statistics, k)[0] for side, k in ((left, n), (right, m))]
        return out, unit[0] * left.factor, unit[1] * right.factor, norms

    exact = math.frexp(factor)[0] == 0.5
    for one, other in zip(outcome(1.0), outcome(factor), strict=True):
        torch.testing.assert_close(one, other, rtol=0 if exact else 1e-9, atol=0 if exact else 1e-9)


def test_every_claim_names_its_test() -> None:
    page = PAGE.read_text()
    claims = re.findall(r"^### Claim (\d+): ", page, re.MULTILINE)
    named = re.findall(r"`tests/test_proofs\.py::(\w+)`", page)
    assert claims == [str(number + 1) for number in range(len(claims))]
    assert len(named) == len(set(named)) == len(claims) >= 12
    defined = re.findall(r"^def (test_\w+)\(", Path(__file__).read_text(), re.MULTILINE)
    assert sorted([*named, "test_every_claim_names_its_test"]) == sorted(defined)
    for number, part in enumerate(page.split("\n### Claim ")[1:], 1):
        name = re.search(r"test_proofs\.py::(\w+)", part)
        assert name is not None
        assert f"Claim {number}" in Path(__file__).read_text().split(f"def {name[1]}(")[1].split("\ndef ")[0]
