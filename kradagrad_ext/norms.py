"""Norms of many gradients at once, by the fastest method of a device, in float64, which holds every square.

On a GPU, torch computes the norms of a list in a few launches. On a CPU, it computes them one by one, so:

- small gradients of one shape are copied to the rows of one tensor, whose norms have the same bits;
- norms of large gradients are dot products in float32, which several threads compute, if the host may read
  values to check the result.

float64 gradients are divided by their largest element before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGE = 1 << 15
"""Number of elements from which, on a CPU, a dot product is faster than a norm."""

SMALL = 1 << 12
"""Number of elements up to which, on a CPU, the call of a norm takes longer than the norm itself."""

ROWS_BYTES = 1 << 20
"""Most bytes in the rows of one tensor, so that a processor's cache holds them."""

FEWEST_ROWS = 4
"""Fewest gradients of one shape that are copied to rows."""

SOUND = (1e-16, 1e34)
"""Bounds of squared norms between which a float32 sum of squares is accurate enough."""

Way = Callable[[list[Tensor]], Tensor]
"""A function that returns the norms ``[n]`` of n gradients, float64."""

Share = tuple[Way, list[int]]
"""A way, and the indices of the gradients that it is used for."""


@dataclass(frozen=True)
class Division:
    """The way by which each gradient's norm is computed.

    Attributes:
        shares: which together have every gradient once.
        order: ``[P]``, position of each gradient's norm among the concatenated results of all shares.
    """

    shares: list[Share]
    order: Tensor

    @classmethod
    def of(cls, shares: list[Share], device: torch.device) -> Division:
        concatenated = [number for _, numbers in shares for number in numbers]
        places = {number: place for place, number in enumerate(concatenated)}
        return cls(shares, torch.tensor([places[i] for i in range(len(concatenated))], device=device))

    def norms(self, grads: Sequence[Tensor]) -> Tensor:
        """Return the norms ``[P]`` of P gradients."""
        norms = [way([grads[i] for i in numbers]) for way, numbers in self.shares]
        return norms[0] if len(norms) == 1 else torch.cat(norms)[self.order]


class GradientNorms:
    """A function for |g|_F of the gradients of some parameters.

    Args:
        params: at least one, all on one device.
        dots: allow dot products for large gradients on a CPU, whose results have other bits.
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
        """Return the norms ``[P]`` float64 of one gradient per parameter; not finite if any element is not.

        Args:
            host_looks: true if the host may wait for values.
        """
        if not host_looks or torch.compiler.is_compiling():
            return self._of_any.norms(grads)
        # A norm sums in memory order, so only contiguous gradients have the same bits in rows.
        are_rows = all(map(Tensor.is_contiguous, grads))
        return (self._of_contiguous if are_rows else self._with_dots).norms(grads)


def _lists(params: Sequence[Tensor], numbers: Iterable[int]) -> Iterator[Share]:
    """Yield one list for each dtype, as a launch takes tensors of one dtype."""
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i in numbers:
        by_dtype.setdefault(params[i].dtype, []).append(i)
    for dtype, members in by_dtype.items():
        yield (_norms_of_shares if dtype == torch.float64 else _list_norms), members


def _rows(params: Sequence[Tensor], numbers: set[int]) -> Iterator[Share]:
    """Yield small gradients of equal shape, at least `FEWEST_ROWS` and at most `ROWS_BYTES` in one share."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i in sorted(numbers):
        if 0 < params[i].numel() <= SMALL and params[i].dtype != torch.float64:
            by_shape.setdefault(params[i].shape, []).append(i)
    for shape, members in by_shape.items():
        most = ROWS_BYTES // (shape.numel() * torch.float64.itemsize)
        for first in range(0, len(members) - FEWEST_ROWS + 1, most):
            yield _row_norms, members[first : first + most]


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
    squares = torch.stack([torch.dot(grad, grad) for grad in flat]).double()
    least, most = SOUND
    doubtful = ((squares > least) & (squares < most)).logical_not_()
    norms = squares.sqrt_()
    for i in doubtful.nonzero().flatten().tolist():
        norms[i] = torch.linalg.vector_norm(flat[i], dtype=torch.float64)
    return norms
