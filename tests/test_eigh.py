"""`eigh`: one matrix a core, as good as torch's own."""

from __future__ import annotations

import cases
import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(0, 4), (1, 1), (3, 7), (5, 33), (2, 129), (600, 3)])
def test_decomposes(n: int, d: int, dtype: torch.dtype, backend: str) -> None:
    x = cases.spd(n, d, dtype)
    values, vectors = cases.ops(backend, dtype).eigh(x)
    assert values.dtype == vectors.dtype == dtype
    eps = torch.finfo(dtype).eps
    identity = torch.eye(d, dtype=dtype).expand(n, d, d)
    torch.testing.assert_close(vectors.mT @ vectors, identity, rtol=0, atol=20 * d * eps)
    torch.testing.assert_close(vectors * values[:, None] @ vectors.mT, x, rtol=0, atol=2000 * d * eps)
    assert (values.diff(dim=-1) >= 0).all()
