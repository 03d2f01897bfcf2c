"""Squared norms of many gradients at once, by what a device does fastest.

On a GPU, that is a list of them in a few launches. On a CPU, torch takes the norms of a list one by one:

- small gradients of one shape are put together as the rows of one tensor, whose norms have the same bits;
- large ones are dot products, where the caller allows that: several threads make one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGE = 1 << 15
"""Elements from which, on a CPU, a dot product is faster than a norm."""

SMALL = 1 << 12
"""Elements up to which, on a CPU, the call of a norm takes longer than the norm itself."""

ROWS_BYTES = 1 << 20
"""Of the rows of one tensor, which a processor's cache holds."""

FEWEST_ROWS = 4

Way = Callable[[list[Tensor], torch.dtype], Tensor]
"""Squared norms ``[n]`` of n gradients, in a dtype."""

Share = tuple[Way, list[int]]
"""A way, and the numbers of the gradients that it is for."""


@dataclass(frozen=True)
class Division:
    """Which gradient's norm is made which way; `order`: where each one's is when all have been made."""

    shares: list[Share]
    order: Tensor

    @classmethod
    def of(cls, shares: list[Share], device: torch.device) -> Division:
        made = [number for _, numbers in shares for number in numbers]
        places = {number: place for place, number in enumerate(made)}
        return cls(shares, torch.tensor([places[i] for i in range(len(made))], device=device))

    def norms(self, grads: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Squared, ``[P]``."""
        made = [way([grads[i] for i in numbers], dtype) for way, numbers in self.shares]
        return made[0] if len(made) == 1 else torch.cat(made)[self.order]


class GradientNorms:
    """|g|_F^2 of the gradients of some parameters.

    Args:
        params: at least one, all on one device.
        dtype: of the norms.
        dots: whether large gradients' may be dot products on a CPU, which have other bits.
    """

    def __init__(self, params: Sequence[Tensor], dtype: torch.dtype, *, dots: bool) -> None:
        self._dtype, device = dtype, params[0].device
        on_cpu = device.type == "cpu"
        large = [i for i, p in enumerate(params) if dots and on_cpu and p.numel() >= LARGE]
        dotted: list[Share] = [(_dots, large)] if large else []
        listed = set(range(len(params))).difference(large)
        self._of_any = Division.of([*dotted, *_lists(params, listed)], device)
        rows = list(_rows(params, listed, dtype)) if on_cpu else []
        alone = listed.difference(*(numbers for _, numbers in rows))
        self._of_contiguous = Division.of([*dotted, *rows, *_lists(params, alone)], device) if rows else None

    def of(self, grads: Sequence[Tensor]) -> Tensor:
        """Of one gradient for each parameter ``[P]``; not finite where any element is not."""
        division = self._of_any
        if self._of_contiguous is not None and not torch.compiler.is_compiling():
            # A norm adds up in the order in which elements lie, which is that of rows for these alone.
            division = self._of_contiguous if all(map(Tensor.is_contiguous, grads)) else division
        return division.norms(grads, self._dtype)


def _lists(params: Sequence[Tensor], numbers: set[int]) -> Iterator[Share]:
    """One list for each dtype, as a launch takes them."""
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i in sorted(numbers):
        by_dtype.setdefault(params[i].dtype, []).append(i)
    for own in by_dtype.values():
        yield _list_norms, own


def _rows(params: Sequence[Tensor], numbers: set[int], dtype: torch.dtype) -> Iterator[Share]:
    """Of each shape that several small ones have, as many at once as fit."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i in sorted(numbers):
        if 0 < params[i].numel() <= SMALL:
            by_shape.setdefault(params[i].shape, []).append(i)
    for shape, own in by_shape.items():
        most = ROWS_BYTES // (shape.numel() * dtype.itemsize)
        for first in range(0, len(own) - FEWEST_ROWS + 1, most):
            yield _row_norms, own[first : first + most]


def _list_norms(grads: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.stack(torch._foreach_norm(grads, 2, dtype=dtype)).square()


def _row_norms(grads: list[Tensor], dtype: torch.dtype) -> Tensor:
    rows = torch.stack(grads).reshape(len(grads), -1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    return norms.square()


def _dots(grads: list[Tensor], dtype: torch.dtype) -> Tensor:
    flat = [grad.reshape(-1).to(dtype) for grad in grads]
    return torch.stack([torch.dot(own, own) for own in flat])
