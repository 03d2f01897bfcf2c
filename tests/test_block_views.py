"""Mode products of batches of blocks, against float64."""

from __future__ import annotations

import cases
import pytest
import torch

from kradagrad_ext.block_views import multiply_modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("root_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("blocks", [0, 1, 5])
@pytest.mark.parametrize("shape", [(1,), (33,), (7, 33), (129, 5), (3, 4, 5), (2, 3, 4, 5), (1, 6, 1)])
def test_mode_products(
    shape: tuple[int, ...], blocks: int, root_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    x = torch.randn(blocks, *shape, dtype=dtype)
    roots = [cases.spd(blocks, d, dtype).to(root_dtype or dtype) for d in shape]
    letters = "abcdefgh"[: len(shape)]
    exact = x.double()
    for letter, root in zip(letters, roots, strict=True):
        product = letters.replace(letter, "z")
        exact = torch.einsum(f"n{letters},nz{letter}->n{product}", exact, root.double())
    ours = multiply_modes(x, roots)
    assert ours.dtype == dtype
    assert (ours - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()
    assert ours.is_contiguous()
    assert ours.data_ptr() != x.data_ptr() or x.numel() == 0


def test_an_empty_matrix_is_the_identity() -> None:
    x = torch.randn(3, 4, 5)
    root, empty = cases.spd(3, 5, torch.float32), torch.empty(0, 4, 4)
    torch.testing.assert_close(multiply_modes(x, [empty, root]), x @ root)
    assert torch.equal(multiply_modes(x, [empty, empty]), x)


def test_strided_blocks() -> None:
    x = torch.randn(6, 5, 4, dtype=torch.float64).permute(2, 1, 0)
    roots = [cases.spd(4, 5, torch.float64), cases.spd(4, 6, torch.float64)]
    torch.testing.assert_close(multiply_modes(x, roots), roots[0] @ x @ roots[1])
