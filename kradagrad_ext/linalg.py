"""Small helpers for batches of matrices, and storage of symmetric or triangular matrices in half the memory.

Only one triangle is stored::

    [a . .]                                [a b d]
    [b c .]   and the upper triangular     [0 c e]   are stored as   a b c d e f
    [d e f]                                [0 0 f]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def symmetric(matrix: Tensor) -> Tensor:
    """Return the symmetric part."""
    return (matrix + matrix.mT) / 2


def identity_like(matrix: Tensor) -> Tensor:
    """Return I ``[d, d]`` for matrices ``[..., d, d]``."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


_PLACES: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}


def pack_lower(matrices: Tensor) -> Tensor:
    """Return the lower triangles ``[N, d (d + 1) / 2]`` of ``[N, d, d]``, row by row."""
    d = matrices.shape[-1]
    return matrices.flatten(1)[:, _places(d, matrices.device)[0]]


def pack_upper(matrices: Tensor) -> Tensor:
    """Return the upper triangles ``[N, d (d + 1) / 2]`` of ``[N, d, d]``, column by column."""
    return pack_lower(matrices.mT.contiguous())


def unpack_upper(triangles: Tensor, d: int) -> Tensor:
    """Return the upper triangular matrices ``[N, d, d]`` of triangles ``[N, d (d + 1) / 2]``."""
    return unpack_lower(triangles, d).triu_()


def unpack_lower(triangles: Tensor, d: int) -> Tensor:
    """Return the symmetric matrices ``[N, d, d]`` of triangles ``[N, d (d + 1) / 2]``."""
    return triangles[:, _places(d, triangles.device)[1]].reshape(len(triangles), d, d)


def side_of(elements: int) -> int:
    """Return d of a triangle of d (d + 1) / 2 elements."""
    return (math.isqrt(8 * elements + 1) - 1) // 2


def _places(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return flat indices of a triangle's elements in the matrix, and of the matrix's in the triangle."""
    if (d, device) not in _PLACES:
        _PLACES[d, device] = _make_places(d, device)
    return _PLACES[d, device]


def _make_places(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(d, d, device=device)
    flat = torch.arange(d * d, device=device)
    row, column = flat // d, flat % d
    longer, shorter = torch.maximum(row, column), torch.minimum(row, column)
    return rows * d + columns, longer * (longer + 1) // 2 + shorter
