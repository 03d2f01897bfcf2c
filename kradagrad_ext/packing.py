"""Symmetric and triangular matrices in half the memory: one triangle of each.

::

    [a . .]                                [a b d]
    [b c .]   and the upper triangular     [0 c e]   are kept as   a b c d e f
    [d e f]                                [0 0 f]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PLACES: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}


def pack(matrices: Tensor) -> Tensor:
    """The lower triangles ``[N, d (d + 1) / 2]`` of ``[N, d, d]``."""
    d = matrices.shape[-1]
    return matrices.flatten(1)[:, _places(d, matrices.device)[0]]


def pack_upper(matrices: Tensor) -> Tensor:
    """The upper triangles ``[N, d (d + 1) / 2]`` of ``[N, d, d]``, column by column."""
    return pack(matrices.mT.contiguous())


def unpack_upper(triangles: Tensor, d: int) -> Tensor:
    """The upper triangular matrices ``[N, d, d]`` of ``[N, d (d + 1) / 2]``."""
    return unpack(triangles, d).triu_()


def unpack(triangles: Tensor, d: int) -> Tensor:
    """The symmetric matrices ``[N, d, d]`` of ``[N, d (d + 1) / 2]``."""
    return triangles[:, _places(d, triangles.device)[1]].reshape(len(triangles), d, d)


def side_of(elements: int) -> int:
    """d of a triangle of d (d + 1) / 2 elements."""
    return (math.isqrt(8 * elements + 1) - 1) // 2


def _places(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of every element of a triangle in its matrix, and the other way round, as flat indices."""
    if (d, device) not in _PLACES:
        _PLACES[d, device] = _make_places(d, device)
    return _PLACES[d, device]


def _make_places(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(d, d, device=device)
    flat = torch.arange(d * d, device=device)
    row, column = flat // d, flat % d
    longer, shorter = torch.maximum(row, column), torch.minimum(row, column)
    return rows * d + columns, longer * (longer + 1) // 2 + shorter
