"""The table of tolerances, and comparisons of a result with its float64 counterpart.

The error of a kernel may be twice that of plain PyTorch in the same dtype on the same inputs, plus a small
absolute share of the result's largest element (`ATOL`).
"""

from __future__ import annotations

import torch
from torch import Tensor

ATOL = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Absolute shares by the dtype of the compared result, relative to the largest element in float64."""

FACTOR = {torch.float64: 1e-11, torch.float32: 5e-5, torch.bfloat16: 2e-2}
"""The same share for F F^T without units, by the dtype of F. After a first gradient F is multiplied by an
ill-conditioned matrix, and inverses of its triangles lose more accuracy than solves with them."""

PRECISION = {"bf16x3": 4e-5, "tf32x3": 2e-6, "fp32": 2e-6}
"""The same share by the precision of products on tensor cores. Each of the first three refinements of a
factor update multiplies the share by 3: the inverse's error grows with every iterate (docs/numerics.md)."""

TRAJECTORY = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 3e-2}
"""Relative difference of parameters after tens of optimizer steps, by the parameters' dtype."""


def largest(tensor: Tensor) -> float:
    """Return the largest absolute element, 0 for an empty tensor."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def precision_atol(precision: str, refine: int) -> float:
    """Return the absolute share for products of a precision, after a refined factor update."""
    return PRECISION[precision] * 3 ** min(refine, 3)


def backend_atol(backend: str, refine: int = 0, precision: str = "bf16x3") -> float | None:
    """Return the share for a backend whose products run on tensor cores or emulate them; None for another."""
    return precision_atol(precision, refine) if backend == "triton" else None


def assert_each_as_accurate(result: Tensor, plain: Tensor, exact: Tensor, what: str) -> None:
    """Compare like `assert_as_accurate`, element by element, for results with independent elements."""
    ours, plain = result.double(), plain.double()
    share, least = ATOL[result.dtype], torch.finfo(result.dtype).tiny
    allowed = 2 * (plain - exact).abs() + share * exact.abs() + least
    # Where only float64 is finite, or neither is, the result must equal plain PyTorch's.
    wanted = torch.where(allowed.isfinite(), exact, plain)
    is_same = (ours == wanted) | (ours.isnan() & wanted.isnan())
    wrong = ~(is_same | (allowed.isfinite() & ((ours - exact).abs() <= allowed)))
    places = wrong.nonzero().tolist()[:5]
    assert not places, f"{what} at {places}: {ours[wrong][:5].tolist()}, not {exact[wrong][:5].tolist()}"


def assert_as_accurate(
    result: Tensor, plain: Tensor, exact: Tensor, what: str, atol: float | None = None
) -> None:
    """Compare a result with float64, by the error that plain PyTorch (`plain`) makes."""
    assert result.shape == exact.shape, f"{what}: shape {tuple(result.shape)}, not {tuple(exact.shape)}"
    error = largest(result.double() - exact)
    share = ATOL[result.dtype] if atol is None else atol
    allowed = 2 * largest(plain.double() - exact) + share * largest(exact)
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"
