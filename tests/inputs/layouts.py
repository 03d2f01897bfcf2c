"""Layouts of a shape group's blocks in parameters and gradients: all that real models have.

Each layout gives a list of block views ``[*, m, n]`` of tensors whose other elements are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[Tensor], list[Tensor]]
OFFSET = 3
"""Elements before a parameter within its storage, so that it is not aligned by default."""


def _padded(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a contiguous tensor of NaN that starts within its storage."""
    return like.new_full((OFFSET + math.prod(shape) + 1,), math.nan)[OFFSET:-1].view(shape)


def _filled(view: Tensor, blocks: Tensor) -> Tensor:
    return view.copy_(blocks.reshape(view.shape))


def _sides(count: int) -> tuple[int, int]:
    """Return the rows and columns of the grid of `count` blocks that is the nearest to a square."""
    rows = next(r for r in range(math.isqrt(max(count, 1)), 0, -1) if count % r == 0)
    return rows, count // rows


def contiguous(blocks: Tensor) -> list[Tensor]:
    """Return one batch, as experts' matrices of one block each are."""
    return [blocks.clone()]


def grid(blocks: Tensor) -> list[Tensor]:
    """Return a weight's layout: rows and columns of blocks of a matrix, with a rest on both sides."""
    count, m, n = blocks.shape
    rows, columns = _sides(count)
    matrix = _padded((rows * m + 2, columns * n + 1), blocks)
    view = (
        matrix[: rows * m, : columns * n].unflatten(0, (rows, m)).unflatten(2, (columns, n)).transpose(1, 2)
    )
    return [_filled(view, blocks)]


def transposed_grid(blocks: Tensor) -> list[Tensor]:
    """Return a grid of a matrix stored by columns, as the gradient of a transposed product is."""
    return [view.mT for view in grid(blocks.mT)]


def experts(blocks: Tensor) -> list[Tensor]:
    """Return experts' matrices ``[experts, rows, columns]``, each cut into a grid: three leading dims."""
    count, m, n = blocks.shape
    first, rest = _sides(count)
    rows, columns = _sides(rest)
    batch = _padded((first, rows * m, columns * n + 2), blocks)[..., : columns * n]
    view = batch.unflatten(1, (rows, m)).unflatten(3, (columns, n)).transpose(2, 3)
    return [_filled(view, blocks)]


def column(blocks: Tensor) -> list[Tensor]:
    """Return blocks below each other in a matrix of aligned rows, from an odd column on."""
    count, m, n = blocks.shape
    width = -(-(n + 1) // 64) * 64
    matrix = blocks.new_full((count * m, width), math.nan)
    return [_filled(matrix[:, 1 : 1 + n].unflatten(0, (count, m)), blocks)]


def wide_rows(blocks: Tensor) -> list[Tensor]:
    """Return blocks below each other in a matrix of aligned rows that are wider than the blocks."""
    count, m, n = blocks.shape
    matrix = blocks.new_full((count * m, -(-(n + 1) // 64) * 64), math.nan)
    return [_filled(matrix[:, :n].unflatten(0, (count, m)), blocks)]


def several(blocks: Tensor) -> list[Tensor]:
    """Return parameters of different layouts for one group, one of them without blocks."""
    third = max(1, len(blocks) // 3)
    first, second, rest = blocks[:third], blocks[third : 2 * third], blocks[2 * third :]
    views = [*grid(first), blocks[:0].clone(), *transposed_grid(second), *column(rest)]
    return [view for view in views if view.numel() or len(view) == 0]


LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout
    for layout in (contiguous, grid, transposed_grid, experts, column, wide_rows, several)
}


def whole(view: Tensor) -> Tensor:
    """Return all of a view's storage, the padding included."""
    return view.new_empty(0).set_(view.untyped_storage())


def copied(view: Tensor, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Return a copy with the same layout in a new storage."""
    storage = whole(view).to(device or view.device, dtype or view.dtype, copy=True)
    return storage.as_strided(view.shape, view.stride(), view.storage_offset())
