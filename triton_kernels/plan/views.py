"""Locations of blocks in memory, as the kernels' tables describe them.

A table is int64 ``[entries, WIDTH]`` on the device: one entry for every range of blocks that a launch
processes alike. A program finds its entry by binary search over the entries' first programs, so that one
launch processes blocks of any number, shape and layout, in place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

VECTOR_BYTES = 16


@dataclass(frozen=True)
class View:
    """Location of the blocks from `first` to before `first + count`.

    Block ``first + i`` starts ``i // inner * outer_stride + i % inner * inner_stride`` elements after `data`.
    """

    data: int
    first: int
    count: int
    inner: int
    outer_stride: int
    inner_stride: int
    row_stride: int
    col_stride: int

    def fields(self, scratch: bool) -> list[int]:
        """Return the fields that `entry.matrix` reads."""
        strides = [self.inner, self.outer_stride, self.inner_stride, self.row_stride, self.col_stride]
        return [self.data, int(scratch), self.first, *strides]


@dataclass(frozen=True)
class Matrices:
    """One matrix ``[rows, cols]`` for every block of a group.

    Args:
        scratch: True if the views' `data` is an offset in bytes into the launch's scratch memory.
    """

    views: tuple[View, ...]
    rows: int
    cols: int
    dtype: torch.dtype
    scratch: bool = False

    @functools.cached_property
    def order(self) -> str:
        """``row`` if rows are contiguous, ``col`` if columns are, else ``any``."""
        if all(view.col_stride == 1 for view in self.views):
            return "row"
        return "col" if all(view.row_stride == 1 for view in self.views) else "any"

    @functools.cached_property
    def aligned(self) -> bool:
        """True if every contiguous row or column starts at a multiple of 16 bytes."""
        if self.order == "any":
            return False
        size, by_rows = self.dtype.itemsize, self.order == "row"
        for view in self.views:
            steps = [view.outer_stride, view.inner_stride, view.row_stride if by_rows else view.col_stride]
            if view.data % VECTOR_BYTES or any(step * size % VECTOR_BYTES for step in steps):
                return False
        return True

    @functools.cached_property
    def transposed(self) -> Matrices:
        views = tuple(replace(v, row_stride=v.col_stride, col_stride=v.row_stride) for v in self.views)
        return replace(self, views=views, rows=self.cols, cols=self.rows)

    def cuts(self) -> set[int]:
        """Return the blocks at which a view begins."""
        return {view.first for view in self.views}

    def at(self, block: int) -> View:
        """Return the view that contains a block."""
        return next(view for view in self.views if view.first <= block < view.first + view.count)


def matrices_of(tensors: list[Tensor]) -> Matrices:
    """Describe a list of block views ``[*, rows, cols]`` of one dtype that contain at least one block."""
    views: list[View] = []
    first = 0
    for tensor in tensors:
        for view in _views_of(tensor, first):
            views.append(view)
            first += view.count
    rows, cols = tensors[0].shape[-2:]
    return Matrices(tuple(views), rows, cols, tensors[0].dtype)


def scratch_matrices(offset: int, first: int, count: int, rows: int, cols: int) -> Matrices:
    """Describe contiguous float32 matrices of `count` blocks from `first` on, `offset` bytes into scratch."""
    view = View(offset, first, count, count, 0, rows * cols, cols, 1)
    return Matrices((view,), rows, cols, torch.float32, scratch=True)


def _views_of(tensor: Tensor, first: int) -> Iterator[View]:
    """Yield a tensor's views: a view has two leading dims, one for each index of the other dims."""
    if tensor.numel() == 0:
        return
    dims = _leading_dims(tensor)
    outer = dims[:-2]
    (_, outer_stride), (inner, inner_stride) = [(1, 0), (1, 0), *dims][-2:]
    count = math.prod(size for size, _ in dims[-2:])
    row_stride, col_stride = tensor.stride()[-2:]
    offsets = [0]
    for size, stride in outer:
        offsets = [offset + i * stride for offset in offsets for i in range(size)]
    for i, offset in enumerate(offsets):
        data = tensor.data_ptr() + offset * tensor.element_size()
        start = first + i * count
        yield View(data, start, count, inner, outer_stride, inner_stride, row_stride, col_stride)


def _leading_dims(tensor: Tensor) -> list[tuple[int, int]]:
    """Return sizes and strides before the last two dims, contiguous dims merged, dims of size 1 dropped."""
    dims: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[:-2], tensor.stride()[:-2], strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == stride * size:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    return dims
