"""Square roots P of X = F F^T by products alone: P = F Q^T, Q the orthogonal polar factor of F.

Q comes from minimax polynomials of degree 5 in F. There is no host sync, so a CUDA graph can capture it. The
iteration does not form X: the condition of F is the square root of that of X.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .backends.base import REFUSALS, RESIDUAL, RMS, WEIGHT, RootRule, RootSide, Turn
from .decomposed_roots import residuals, usable_factors
from .linalg import symmetric

Polynomial = tuple[float, float, float]
RootFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A function of F ``[N, d, d]`` without units, float32 or float64; returns P ``[N, d, d]`` and the residuals
``[N]``."""

FLOORS = {5: 5.5e-3, 6: 1.1e-3, 7: 3e-4, 8: 2e-4}
"""By the number of steps: the smallest singular value, relative to a bound of the largest, that the
polynomials are optimised for. With a relative damping of 1e-3, the smallest one of F is about 1e-3 for blocks
of 256. Smaller singular values get less than their root."""

POLYNOMIALS: dict[int, tuple[Polynomial, ...]] = {
    5: (
        (8.1980194, -23.6403554, 17.1564459),
        (3.85775084, -2.8248132, 0.531678925),
        (3.11677464, -2.29851492, 0.475065958),
        (2.16875211, -1.53529069, 0.397178245),
        (1.88165953, -1.25737974, 0.375738737),
    ),
    6: (
        (8.38260539, -24.3547111, 17.7134661),
        (4.13693352, -3.01478398, 0.552307841),
        (3.91173807, -2.86184045, 0.535694469),
        (3.2419601, -2.39024657, 0.484849153),
        (2.2603136, -1.61719235, 0.405008153),
        (1.88860528, -1.26503531, 0.376506683),
    ),
    7: (
        (8.41702511, -24.4879711, 17.8173945),
        (4.19335021, -3.05274468, 0.556436956),
        (4.12645161, -3.00771608, 0.551539264),
        (3.87423655, -2.83613563, 0.532906518),
        (3.1537897, -2.3257829, 0.477969076),
        (2.19388663, -1.55805237, 0.399331268),
        (1.88327525, -1.2591643, 0.375917605),
    ),
    8: (
        (8.42134658, -24.5047034, 17.8304442),
        (4.20053693, -3.05757079, 0.556962066),
        (4.15544823, -3.02725681, 0.553664347),
        (3.97975921, -2.90828739, 0.540735452),
        (3.41712292, -2.51644513, 0.49837786),
        (2.42423422, -1.75778043, 0.418883696),
        (1.90959515, -1.28465744, 0.375763889),
        (1.87501821, -1.25002023, 0.375002019),
    ),
}
"""(a, b, c) of a x + b x^3 + c x^5 for every step. Each polynomial is the nearest to 1 on the interval to
which the steps before map [floor, 1] (Amsel et al., 2025, section 3). Except for the last step, the interval
is made 1% wider, because beyond its upper end the next polynomials amplify rounding errors. Eight steps end
within 5e-8 of 1, fewer within 1e-3."""

SMALLEST = torch.finfo(torch.float32).tiny
"""Stored instead of a residual of 0, because 0 means that no root was computed."""

SLICE_ELEMENTS = {"cpu": 1 << 18, "accelerator": 1 << 26}
"""Factors are rooted in slices of about this many elements, which bounds the memory of a refresh."""


def units(factor_stats: Tensor, k: int) -> Tensor:
    """Return sqrt(w k) rms ``[N]``, 0 before a gradient.

    Multiplied by it, F has no units, and the mean of (F F^T)^-1 is near 1.

    Args:
        factor_stats: ``[N, 4]``.  k: columns of the side's unfoldings.
    """
    return (factor_stats[:, WEIGHT] * k).sqrt() * factor_stats[:, RMS]


def polar_roots(factors: Tensor, polynomials: Sequence[Polynomial]) -> tuple[Tensor, Tensor]:
    """Return P ``[N, d, d]`` of F without units, and the residuals ``[N]``; see `Backend.polar_roots_`.

    A step is three products and an addition to a diagonal.
    """
    f, usable = usable_factors(factors)
    gram = f.mT @ f
    q = f * torch.linalg.matrix_norm(gram).rsqrt()[:, None, None]
    for a, b, c in polynomials:
        gram = q.mT @ q
        even = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        even.diagonal(dim1=-2, dim2=-1).add_(a)
        q = q @ even
    root = symmetric(f @ q.mT)
    return root, residuals(root, f @ f.mT, 2, usable)


def polar_roots_(sides: Sequence[RootSide], rule: RootRule, turn: Turn) -> None:
    """Refresh the roots of all sides that are due; see `Backend.polar_roots_`."""
    for root_side in sides:
        due = due_blocks(
            root_side, turn, host_looks=root_side.active.device.type == "cpu" and turn.counter is None
        )
        refresh_(root_side, partial(polar_roots, polynomials=rule.polynomials), rule.bound, due)


def slice_length(factors: Tensor, share: int = 1) -> int:
    """Return the number of blocks to work on at a time, which bounds memory.

    Args:
        share: divisor of `SLICE_ELEMENTS`, for work that needs `share` times the memory.
    """
    elements = SLICE_ELEMENTS["cpu" if factors.device.type == "cpu" else "accelerator"]
    return max(1, elements // max(1, share * factors[:1].numel()))


def refresh_(
    root_side: RootSide, root_function: RootFunction, bound: float, due: Tensor, least: int = 1
) -> None:
    """Replace the roots of active blocks that are due by new ones that pass the residual check.

    A block that has had no gradient keeps its root. A residual of NaN is stored as infinity.

    Args:
        due: indices of the blocks, see `due_blocks`.
        least: least number of blocks to work on at a time.
    """
    factors, stats, roots = root_side.side.factor, root_side.side.statistics, root_side.side.root
    if factors.numel() == 0:
        return
    for blocks in torch.split(due, max(least, slice_length(factors))):
        unit = units(stats[blocks], root_side.columns)
        new, residual = root_function(factors[blocks].to(stats.dtype) * unit[:, None, None])
        store_roots_(
            roots, root_side.root_stats, blocks, root_side.active[blocks] & (unit > 0), new, residual, bound
        )


def due_blocks(root_side: RootSide, turn: Turn, host_looks: bool) -> Tensor:
    """Return the indices of the blocks that are due.

    Blocks without a root are due in addition to those of the turn.

    Args:
        host_looks: true if the host may wait for values. If not, the number of due blocks is the turn's:
            blocks without a root come first, and replace the last of the others.
    """
    device, count = root_side.active.device, len(root_side.active)
    due = turn.due(count, device)
    if len(due) == count:
        return due
    new = (
        root_side.active
        & (root_side.root_stats[:, RESIDUAL] == 0)
        & (units(root_side.side.statistics, root_side.columns) > 0)
    )
    if host_looks:
        return torch.cat([due, new.index_fill(0, due, False).nonzero()[:, 0]])
    is_due = torch.zeros_like(root_side.active).index_fill(0, due, True)
    return (~is_due).long().sub(2 * new.long()).argsort(stable=True)[: len(due)]


def store_roots_(
    roots: Tensor,
    root_stats: Tensor,
    due: Tensor,
    chosen: Tensor,
    new: Tensor,
    residual: Tensor,
    bound: float,
) -> None:
    """Write the chosen new roots that pass the residual check, and count those that do not.

    Args:
        roots: ``[N, d, d]``.  root_stats: ``[N, 4]``.  due: indices ``[n]`` of the blocks.
        chosen, new, residual: of these n blocks, in their order.
    """
    good = residual <= bound
    roots[due] = torch.where((chosen & good)[:, None, None], new.to(roots.dtype), roots[due])
    finite = residual.nan_to_num(nan=math.inf, posinf=math.inf).to(root_stats.dtype).clamp_min(SMALLEST)
    stats = root_stats[due]
    stats[:, REFUSALS] += chosen & ~good
    stats[:, RESIDUAL] = torch.where(chosen, finite, stats[:, RESIDUAL])
    root_stats[due] = stats
