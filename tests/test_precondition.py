"""`precondition`: mode products, every backend against float64."""

from __future__ import annotations

import cases
import pytest
import torch
from tolerances import assert_as_accurate

from kradagrad_ext.backends import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("root_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("blocks", [0, 1, 5])
@pytest.mark.parametrize("shape", [(1,), (33,), (7, 33), (129, 5), (3, 4, 5), (2, 3, 4, 5), (1, 6, 1)])
def test_agrees_with_float64(
    shape: tuple[int, ...], blocks: int, root_dtype: torch.dtype | None, dtype: torch.dtype, backend: str
) -> None:
    x = torch.randn(blocks, *shape, dtype=dtype)
    roots = [cases.spd(blocks, d, dtype).to(root_dtype or dtype) for d in shape]
    ours = cases.ops(backend, dtype).precondition(x, roots)
    plain = reference.precondition(x, roots)
    exact = reference.precondition(x.double(), [root.double() for root in roots])
    assert_as_accurate(ours, plain, exact, "product")
    assert ours.is_contiguous()
    assert ours.data_ptr() != x.data_ptr() or x.numel() == 0


def test_an_empty_root_is_the_identity(backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    x = torch.randn(3, 4, 5)
    root, empty = cases.spd(3, 5, torch.float32), torch.empty(0, 4, 4)
    torch.testing.assert_close(ops.precondition(x, [empty, root]), x @ root)
    assert torch.equal(ops.precondition(x, [empty, empty]), x)


def test_strided_blocks(backend: str) -> None:
    ops = cases.ops(backend, torch.float64)
    x = torch.randn(6, 5, 4, dtype=torch.float64).permute(2, 1, 0)
    roots = [cases.spd(4, 5, torch.float64), cases.spd(4, 6, torch.float64)]
    torch.testing.assert_close(ops.precondition(x, roots), roots[0] @ x @ roots[1])
