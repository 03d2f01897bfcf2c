"""Norms of many gradients at once, by what a device does fastest, in float64, which holds every square.

On a GPU, that is a list of them in a few launches. On a CPU, torch takes the norms of a list one by one:

- small gradients of one shape are put together as the rows of one tensor, whose norms have the same bits;
- large ones are dot products in float32, where the host may look whether they are sound: several threads make
  one.

The squares of float64 gradients are those of their share of the largest element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

SOUND = (1e-16, 1e34)
"""Squared norms between which a sum of squares in float32 has lost nothing that counts."""

Way = Callable[[list[Tensor]], Tensor]
"""Norms ``[n]`` of n gradients, float64."""

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

    def norms(self, grads: Sequence[Tensor]) -> Tensor:
        """``[P]``."""
        made = [way([grads[i] for i in numbers]) for way, numbers in self.shares]
        return made[0] if len(made) == 1 else torch.cat(made)[self.order]


class GradientNorms:
    """|g|_F of the gradients of some parameters.

    Args:
        params: at least one, all on one device.
        dots: whether large gradients' may be dot products on a CPU, which have other bits.
    """

    def __init__(self, params: Sequence[Tensor], *, dots: bool = True) -> None:
        device = params[0].device
        on_cpu = device.type == "cpu"
        self._of_any = Division.of(list(_lists(params, range(len(params)))), device)
        large = [i for i, p in enumerate(params) if p.numel() >= LARGE and p.dtype != torch.float64]
        dotted: list[Share] = [(_dots, large)] if large and dots and on_cpu else []
        rest = set(range(len(params))).difference(*(numbers for _, numbers in dotted))
        rows = list(_rows(params, rest)) if on_cpu else []
        alone = rest.difference(*(numbers for _, numbers in rows))
        self._with_dots = Division.of([*dotted, *_lists(params, sorted(rest))], device)
        self._of_contiguous = Division.of([*dotted, *rows, *_lists(params, sorted(alone))], device)

    def of(self, grads: Sequence[Tensor], host_looks: bool) -> Tensor:
        """Of one gradient for each parameter ``[P]`` float64; not finite where any element is not.

        Args:
            host_looks: whether the host may wait for values.
        """
        if not host_looks or torch.compiler.is_compiling():
            return self._of_any.norms(grads)
        # A norm adds up in the order in which elements lie, which is that of rows for these alone.
        are_rows = all(map(Tensor.is_contiguous, grads))
        return (self._of_contiguous if are_rows else self._with_dots).norms(grads)


def _lists(params: Sequence[Tensor], numbers: Iterable[int]) -> Iterator[Share]:
    """One list for each dtype, as a launch takes them."""
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i in numbers:
        by_dtype.setdefault(params[i].dtype, []).append(i)
    for dtype, own in by_dtype.items():
        yield (_norms_of_shares if dtype == torch.float64 else _list_norms), own


def _rows(params: Sequence[Tensor], numbers: set[int]) -> Iterator[Share]:
    """Of each shape that several small ones have, as many at once as fit."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i in sorted(numbers):
        if 0 < params[i].numel() <= SMALL and params[i].dtype != torch.float64:
            by_shape.setdefault(params[i].shape, []).append(i)
    for shape, own in by_shape.items():
        most = ROWS_BYTES // (shape.numel() * torch.float64.itemsize)
        for first in range(0, len(own) - FEWEST_ROWS + 1, most):
            yield _row_norms, own[first : first + most]


def _list_norms(grads: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float64))


def _norms_of_shares(grads: list[Tensor]) -> Tensor:
    largest = torch.stack([grad.abs().amax() if grad.numel() else grad.new_zeros(()) for grad in grads])
    units = torch.where((largest > 0) & (largest < torch.inf), largest, 1)
    return _list_norms(list(torch._foreach_div(grads, list(units.unbind())))) * units


def _row_norms(grads: list[Tensor]) -> Tensor:
    rows = torch.stack(grads).reshape(len(grads), -1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms


def _dots(grads: list[Tensor]) -> Tensor:
    flat = [grad.reshape(-1).float() for grad in grads]
    squares = torch.stack([torch.dot(own, own) for own in flat]).double()
    least, most = SOUND
    doubtful = ((squares > least) & (squares < most)).logical_not_()
    norms = squares.sqrt_()
    for i in doubtful.nonzero().flatten().tolist():
        norms[i] = torch.linalg.vector_norm(flat[i], dtype=torch.float64)
    return norms
