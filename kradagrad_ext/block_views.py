"""Block views ``[*grid, *block_shape]`` of parameters, and stacked blocks ``[N, *block_shape]``.

The blocks of a list of views are stacked in the order of the list, each view's in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def gather(views: Sequence[Tensor], order: int, dtype: torch.dtype) -> Tensor:
    """Stack the blocks of some views.

    Args:
        order: number of dims of a block.  dtype: of the result.
    """
    return torch.cat([view.reshape(_blocks(view, order), *_block_shape(view, order)) for view in views]).to(
        dtype
    )


def with_blocks(views: Sequence[Tensor], order: int) -> Iterator[tuple[Tensor, slice]]:
    """Yield each view and the slice of its blocks among the stacked blocks."""
    first = 0
    for view in views:
        last = first + _blocks(view, order)
        yield view, slice(first, last)
        first = last


def squared_norms(blocks: Tensor) -> Tensor:
    """Return |block|_F^2 ``[N]``, summed in float64."""
    return blocks.flatten(1).double().square().sum(1)


def _blocks(view: Tensor, order: int) -> int:
    return math.prod(view.shape[: view.ndim - order])


def _block_shape(view: Tensor, order: int) -> torch.Size:
    return view.shape[view.ndim - order :]


def multiply_modes(blocks: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Return the mode products ``blocks x_1 matrices[0] ... x_k matrices[k-1]`` as a new contiguous tensor.

    Args:
        blocks: ``[N, d_1, ..., d_k]``, any strides.
        matrices: k tensors ``[N, d_i, d_i]`` of any floating dtype, or empty for the identity.
    """
    product = blocks.clone()
    for mode, matrix in enumerate(matrices, start=1):
        if matrix.numel() > 0:
            unfolded = product.movedim(mode, 1)
            moved = matrix.to(blocks.dtype) @ unfolded.reshape(*unfolded.shape[:2], -1)
            product = moved.reshape(unfolded.shape).movedim(1, mode)
    return product.contiguous()
