"""`decomposed_roots` of every backend: accuracy, orders, layouts and reports of bad factors."""

from __future__ import annotations

import math

import cases
import pytest
import torch

from kradagrad_ext import decomposed_roots as by_torch

SHAPES = [(0, 4), (2, 0), (1, 1), (3, 7), (5, 33), (2, 129), (600, 3), (2, 300)]
"""Numbers of blocks and sides: no block, empty blocks, one number, few, many, sides of several strips."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_root_to_the_p_is_the_gram_matrix(n: int, d: int, p: int, dtype: torch.dtype, backend: str) -> None:
    f = cases.factors(n, d, 1e3).to(dtype)
    root, residual = cases.ops(backend, dtype).decomposed_roots(f, p)
    assert root.dtype == residual.dtype == dtype
    error = 100 * torch.finfo(dtype).eps
    exact = cases.exact_root(f, p)
    for other in (exact, root.double().mT):
        difference = torch.linalg.matrix_norm(root.double() - other)
        assert (difference <= error * torch.linalg.matrix_norm(exact)).all()
    assert residual.shape == (n,)
    assert (residual < error).all() or d == 0


def test_layouts(backend: str) -> None:
    """The batch may be transposed, or start within its storage."""
    f = cases.factors(7, 20, 1e2).float()
    ops = cases.ops(backend, torch.float32)
    transposed = f.mT.contiguous().mT
    torch.testing.assert_close(ops.decomposed_roots(transposed, 2)[0], ops.decomposed_roots(f, 2)[0])
    torch.testing.assert_close(ops.decomposed_roots(f[3:5], 2)[0], ops.decomposed_roots(f, 2)[0][3:5])


@pytest.mark.parametrize("n", [2, 7])
def test_threads(n: int) -> None:
    """With fewer matrices than threads, decompositions use the threads; with more, the batch does."""
    f, threads = cases.factors(n, 90, 1e3).float(), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            root, residual = cases.ops("native", torch.float32).decomposed_roots(f, 2)
            torch.testing.assert_close(root, cases.exact_root(f, 2).float(), rtol=1e-4, atol=1e-4)
            assert (residual < 1e-5).all()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("condition", "dtype"), [(1e8, torch.float32), (1e12, torch.float32), (1e16, torch.float64)]
)
def test_small_eigenvalues_are_not_lost(condition: float, dtype: torch.dtype, backend: str) -> None:
    """They survive even where F F^T loses them; well-conditioned neighbours need no second decomposition."""
    f = torch.cat([cases.factors(1, 40, 10.0), cases.factors(2, 40, condition)]).to(dtype)
    root, residual = cases.ops(backend, dtype).decomposed_roots(f, 2)
    exact = cases.exact_root(f, 2)
    assert (residual < 1e-5).all()
    smallest = torch.linalg.eigvalsh(exact)[:, :1, None]
    assert ((root.double() - exact).abs() < 1e-6 + 1e-2 * smallest).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, "largest"])
def test_a_bad_factor_is_reported_and_affects_no_other(
    value: float | str, dtype: torch.dtype, backend: str
) -> None:
    """A factor is bad if a single element is not finite or overflows in F F^T."""
    f = cases.factors(3, 9, 10.0).to(dtype)
    if value == 0.0:
        f[1] = value
    else:
        f[1, 4, 7] = torch.finfo(dtype).max if value == "largest" else value
    root, residual = cases.ops(backend, dtype).decomposed_roots(f, 2)
    assert residual.isnan().tolist() == [False, True, False]
    good = [0, 2]
    torch.testing.assert_close(root[good], cases.exact_root(f[good], 2).to(dtype), rtol=1e-4, atol=1e-4)


def test_many_equal_singular_values_converge(backend: str) -> None:
    """LAPACK's float32 SVD does not converge on them."""
    root, residual = cases.ops(backend, torch.float32).decomposed_roots(torch.eye(200).repeat(2, 1, 1), 2)
    torch.testing.assert_close(root, torch.eye(200).repeat(2, 1, 1))
    assert (residual < 1e-6).all()


def test_a_decomposition_that_fails_gives_way_to_float64(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eigh = torch.linalg.eigh

    def fails(matrices: torch.Tensor) -> object:
        if matrices.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    f = torch.eye(6).repeat(2, 1, 1)
    root, residual = by_torch.decomposed_roots(f, 2)
    torch.testing.assert_close(root, f)
    assert (residual < 1e-6).all()
    assert "trying float64" in caplog.text


def test_a_failure_of_every_decomposition_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(matrices: torch.Tensor) -> object:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    assert by_torch.decomposed_roots(torch.eye(6)[None], 2)[1].isnan().all()
    assert "the old roots stay" in caplog.text


def test_an_error_that_is_not_about_convergence_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrices: torch.Tensor) -> object:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(torch.OutOfMemoryError):
        by_torch.decomposed_roots(torch.eye(6)[None], 2)


def test_float32_is_not_trusted_with_small_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only blocks whose condition is too large for float32 are decomposed in float64."""
    seen = []
    careful = by_torch._careful_root
    monkeypatch.setattr(by_torch, "_careful_root", lambda f, p: seen.append(len(f)) or careful(f, p))
    by_torch.decomposed_roots(torch.cat([cases.factors(2, 16, 1e2), cases.factors(1, 16, 1e6)]).float(), 2)
    assert seen == [1]
