"""The contract of a backend: one function per op, with the formula that defines it.

Notation (docs/concepts.md). A *block* is a piece of a parameter's matrix. A *shape group* has the N blocks of
one shape. P counts parameters. F is a factor, X = F F^T the inverse that it represents, U an unfolding. A
*list of block views* is a list of strided tensors ``[*, m, n]`` whose leading dims, flattened and
concatenated over the list, enumerate the N blocks: gradients are read, and updates written, in the layout of
the parameters. Ops compute in the statistics' dtype (float32 or float64), not in that of the views.

Every op except ``decomposed_roots`` works in place and returns nothing. The tensors of an inactive parameter
(``active`` false) or block (``scales`` 0) keep all their bits, except what `guard_gradients_` records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .scalars import ScalarRule

PRECISIONS = ("bf16x3", "tf32x3", "fp32")
"""Precisions of products of float32 operands on tensor cores. Elsewhere products are computed in the factors'
dtype, whichever precision is requested. Sums are float32 in every case (docs/numerics.md)::

    bf16x3   a = ah + al in bfloat16:  a b ~ ah bh + ah bl + al bh
    tf32x3   the same in tf32
    fp32     fused multiply-adds, no tensor cores
"""

WHOLE_SIDE = 256
"""Longest side of a block that a native CUDA kernel processes whole, from beginning to end in one CTA."""

METHODS = ("cholesky", "products")
"""Methods that compute R with R R^T = H^-1, or above it::

    cholesky   H = L L^T, R = L^-T; exact; an upper triangular F stays upper triangular
    products   R = q(H), a polynomial with q(decay)^2 decay = 1 and q(h)^2 h >= 1 on every eigenvalue h of H
"""

RMS, WEIGHT, WHITENED, FALLBACKS = STATISTICS = range(4)
"""Columns of a side's statistics ``[N, 4]``: the root mean square of its gradients' entries; the sum of the
weights of the statistics in its factor; the mean square of the last gradient whitened on both sides (on this
side alone without coupling), 1 in equilibrium; the number of updates that fell back or were left out."""

REFUSALS, RESIDUAL, WHITENED_MEAN, WHITENED_WEIGHT = ROOT_STATS = range(4)
"""Columns of the statistics of a side's roots ``[N, 4]``: the number of refreshes on which a block kept its
old root because the new one was bad; the residual of the last root computed, accepted or refused, 0 only if
none was computed since the factor started; a running mean of the mean square of the whitened gradient; the
sum of this mean's weights. The last two are 0 unless lengths depend on them."""

COEFFICIENTS = 10
"""Number of columns of the ``coefficients [P, 10]`` of `update_moments_` and `apply_updates_`: c0, c1, c2 of
the graft; c3, the scale of the gradient, later of the update; c4, the factor that converts moments to the
gradient's unit; c5, the largest update of an element; c6, the seed of stochastic rounding, an integer below
2^24, 0 for none; c7, c8, c9, the weight decay that is added to gradients, added to updates, or decoupled.
`guard_gradients_` writes them, `scale_updates_` rewrites those of lengths (c0, c3)."""


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"UpdateRule: `{name}` must be {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """The scalars of a factor update, in the order of the native ops' schemas.

    Attributes:
        decay: factor of the old statistics, in (0, 1].
        weight: weight of the new statistic, > 0.
        damping: relative to the mean eigenvalue of the statistics, > 0.
        prior: statistics that a new factor represents before its first gradient, relative to the mean
            eigenvalue of this gradient's statistic, > 0.
        damped_updates: number of updates whose damping enters with this update, >= 0.
        method: one of `METHODS`.
        refine: degree of the polynomial q of `METHODS`, 1 to 6, which takes ``3 (refine - 1)`` products.
        precision: one of `PRECISIONS`.
        coupled: True if each side gets the gradient whitened on the other side.

    Raises:
        ValueError: an attribute is out of range.
    """

    decay: float
    weight: float
    damping: float
    prior: float = 0.03
    damped_updates: float = 1.0
    method: str = "cholesky"
    refine: int = 2
    precision: str = "bf16x3"
    coupled: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.decay <= 1, "decay", "in (0, 1]", self.decay)
        for name in ("weight", "damping", "prior"):
            _require(0 < getattr(self, name) < math.inf, name, "> 0 and finite", getattr(self, name))
        damped = self.damped_updates
        _require(0 <= damped < math.inf, "damped_updates", ">= 0 and finite", damped)
        _require(1 <= self.refine <= 6, "refine", "1 to 6", self.refine)
        _require(self.method in METHODS, "method", f"one of {METHODS}", self.method)
        _require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}", self.precision)


@dataclass(frozen=True)
class Side:
    """One side of the N blocks of a shape group.

    Attributes:
        factor: F ``[N, d, d]``, contiguous, in the compute dtype or bfloat16; X = F F^T.
        statistics: ``[N, 4]`` in the compute dtype, see `STATISTICS`.
        root: P ``[N, d, d]``, symmetric (a backend may read one triangle alone), contiguous, in the compute
            dtype or bfloat16; without units, see `roots`.
    """

    factor: Tensor
    statistics: Tensor
    root: Tensor


@dataclass(frozen=True)
class BlockGroup:
    """The N blocks ``[m, n]`` of a shape group, as lists of block views ``[*, m, n]`` with N blocks in total.

    Attributes:
        left, right: the sides of lengths m and n.
        grads, directions: float32, float64 or bfloat16; read.
        out: in the compute dtype; written; may be `directions` itself.
    """

    left: Side
    right: Side
    grads: Sequence[Tensor] = ()
    directions: Sequence[Tensor] = ()
    out: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Turn:
    """The blocks of a side that are due on a step: the next ones in order, so that `turns` steps cover all.

    Blocks that have no root since their factor started are always due.

    Attributes:
        number: the turn's number.
        turns: on every turn ``ceil(N / turns)`` of N blocks are due; none with 0.
        counter: 0-dim int64 tensor on the device that replaces `number`, for a CUDA graph, which repeats the
            same launches on every step.
    """

    number: int = 0
    turns: int = 1
    counter: Tensor | None = None

    def __post_init__(self) -> None:
        if self.number < 0 or self.turns < 0:
            raise ValueError(f"Turn: `number` and `turns` must be >= 0, got {self.number}, {self.turns}")

    def count(self, blocks: int) -> int:
        """Return how many of `blocks` blocks are due."""
        return -(-blocks // self.turns) if self.turns else 0

    def due(self, blocks: int, device: torch.device) -> Tensor:
        """Return the indices of the blocks that are due, on a device."""
        count = self.count(blocks)
        number = self.number if self.counter is None else self.counter
        return (number * count + torch.arange(count, device=device)) % max(blocks, 1)


@dataclass(frozen=True)
class RootSide:
    """One side of the N blocks of a shape group, for new roots.

    Attributes:
        side: its factors are read, its roots are written.
        root_stats: ``[N, 4]`` in the compute dtype, see `ROOT_STATS`; written.
        active: ``[N]`` bool: True for blocks that take part.
        columns: k of the side's unfoldings.
    """

    side: Side
    root_stats: Tensor
    active: Tensor
    columns: int


@dataclass(frozen=True)
class RootRule:
    """Settings of roots that are computed by products.

    Attributes:
        polynomials: (a, b, c) of each step ``Q <- Q (a I + b G + c G^2)``; at most 8.
        bound: largest residual of a root that is accepted.
        precision: one of `PRECISIONS`.
    """

    polynomials: tuple[tuple[float, float, float], ...]
    bound: float
    precision: str = "bf16x3"


class Backend(Protocol):
    """The ops; implementations are modules or objects with these functions."""

    name: str

    def update_factor_(
        self,
        factor: Tensor,
        statistics: Tensor,
        unfolding: Sequence[Tensor],
        scales: Tensor,
        rule: UpdateRule,
    ) -> None:
        """Update the factors of one mode from the unfoldings of their blocks, in place.

        For every active block, with U = scale times its unfolding, g^2 = |U|_F^2 / (d k), and (rms, w) from
        its statistics::

            nothing changes where g = 0
            w' = decay w + weight,   rms'^2 = (decay w rms^2 + weight g^2) / w'
            where w = 0:  F = I / (rms' sqrt(prior k))
            B  = sqrt(weight) F^T U
            H  = decay I + B B^T + damped_updates weight damping k rms'^2 F^T F
            F' = F R,  R R^T = H^-1 or above it                      (by `UpdateRule.method`)
            whitened = w |B|_F^2 / (weight d)

        By Cholesky F' F'^T = (decay X^-1 + weight U U^T + damping I)^-1, the damping as in H. If this fails
        for a block, its triangle comes from a QR decomposition of [sqrt(decay) I; B^T; root of the damping
        term], which is counted. By products F' F'^T dominates it (the KrAD lemma, docs/concepts.md). Squares
        are summed in float64. A block keeps its state if rms' or F' is not finite, which is counted, too.

        Args:
            factor: F ``[N, d, d]``.  statistics: ``[N, 4]``, in the compute dtype.
            unfolding: block views ``[*, d, k]``.
            scales: ``[N]``, in the compute dtype, >= 0; 0 for an inactive block.
        """

    def kron_step_(
        self,
        groups: Sequence[BlockGroup],
        scales: Tensor,
        norms: Tensor,
        rule: UpdateRule,
        *,
        update: bool,
        precondition: bool,
    ) -> None:
        """Update both factors of every block and precondition its direction, for several shape groups.

        With the present roots P of both sides, G a block's gradient times its scale, D its direction, and |G|
        the Frobenius norm::

            if update:
                coupled:   U = |G| / |G P_r| G P_r  and  |G| / |P_l G| (P_l G)^T       (scale is not coupled)
                else:      U = G and G^T
                update_factor_ of the left side with the first U, of the right side with the second
                coupled:   whitened times |G P_r|^2 / |G|^2, and |P_l G|^2 / |G|^2
            if precondition:
                V = P_l (D / rms_l) P_r,   out = V,   norms = |V|_F^2

        An inactive block and a block without elements have norm 0. A block without a gradient yet has V = 0.

        Args:
            groups: the shape groups, in the order of `scales` and `norms`.
            scales: ``[sum of N]`` in the compute dtype, >= 0; 0 for an inactive block.
            norms: ``[sum of N]`` in the compute dtype; written.
        """

    def guard_gradients_(
        self,
        scalars: Tensor,
        coefficients: Tensor,
        active: Tensor,
        restarts: Tensor,
        norms: Tensor,
        numel: Tensor,
        present: Tensor,
        weight_decay: Tensor,
        rule: ScalarRule,
    ) -> None:
        """Guard M matrices against spikes and gradients that are not finite; write all coefficients.

        A gradient that is present and finite, with rms = norm / sqrt(numel), updates the matrix's scalars
        from top to bottom; they are named like their columns. A UNIT of 0 counts as 1::

            large  = USUAL > 0 and rms > spike_limit USUAL;   spike = large and IN_A_ROW < MOST_SPIKES
            STEPS + 1;   SPIKES + spike;   IN_A_ROW + 1 with a spike, else 0
            USUAL' = USUAL where rms = 0;   rms where USUAL = 0, or large without a spike (factors restart)
                     hypot(sqrt(0.95) USUAL, sqrt(0.05) min(rms, spike_limit USUAL))  else
            size   = max(USUAL', sqrt(MEAN_SQUARE) UNIT), >= weight_decay / UNITS_APART where `decayed` is 7
            UNIT'  = 2^floor(log2 size), a normal number as is its reciprocal, where size would be > 0 without
                     weight decay, and the matrix has no unit or UNIT / UNIT' is not within
                     (1 / UNITS_APART, UNITS_APART) (factors restart);   else UNIT
            c4     = UNIT / UNIT', within `LARGEST_SHIFT`;   MEAN_SQUARE c4^2
            c3     = 1 / UNIT', or with a spike USUAL / UNIT' / rms
            MEAN_SQUARE = decay2 MEAN_SQUARE + weight2 (c3 rms)^2

        Otherwise c3 = 0 and c4 = 1, and a gradient that is present is counted as SKIPPED. For all matrices::

            c0 = 1 / (1 - beta1^(t + nesterov)) where averaged, else 1;   t = max(STEPS, 1)
            c1 = 1 / (1 - bias2^t);   c2 = eps sqrt(c1 MEAN_SQUARE);   c5 = `ScalarRule.largest`
            c6 = STEPS where `by_chance`, else 0;   c7, c8, c9 = 0, but column `decayed` is weight_decay

        Args:
            scalars: ``[M, 9]`` float32 or float64, see `scalars.COLUMNS`; the compute dtype.
            coefficients: ``[M, 10]``.  active, restarts: ``[M]`` bool, True for matrices that take part, and
                for those whose factors restart. All three are written completely.
            norms: |g|_F ``[M]`` float64; not finite where any element is not.
            numel: elements of each matrix ``[M]``, at least 1.  present: ``[M]`` bool, True with a gradient.
            weight_decay: 0-dim, in the compute dtype.
        """

    def scale_updates_(
        self,
        coefficients: Tensor,
        scalars: Tensor,
        graft_norms: Tensor,
        graft_offsets: Tensor,
        update_norms: Tensor,
        update_order: Tensor,
        update_offsets: Tensor,
        numel: Tensor,
        preconditioned: Tensor,
        rule: ScalarRule,
    ) -> None:
        """Set the lengths of the updates of M matrices: c0 and c3 of their coefficients::

            graft_norm  = sum of graft_norms from graft_offsets[i] to graft_offsets[i + 1]
            update_norm = sum of update_norms[update_order] likewise
            g   = 1, or c3 where averages are of updates
            graft:      s = sqrt(graft_norm) / sqrt(update_norm);   gradient: UNIT times that, and g UNIT
            rms:        s = length / sqrt(update_norm / numel),   whitened: s = c0;   for both
                        rms = sqrt(graft_norm / numel),   g length / rms (0 where rms is 0),
                        noise = SPENT sqrt((1 - beta1) / (1 + beta1)) USUAL / UNIT,
                        length = RMS_LENGTH min(rms / noise, 1), or RMS_LENGTH where noise is not > 0
            c0  = c0 g
            c3  = s; NaN where the matrix is not preconditioned, its update zero or not finite, or s infinite
            RATIO = s where c3 is a number;   else FALLBACKS + 1 for a preconditioned matrix with a graft

        Args:
            graft_norms, update_norms: squared, of spans ``[S]`` and of blocks ``[B]``; summed in float64.
            graft_offsets, update_offsets: ``[M + 1]``, update_order: ``[B]``, int64.  preconditioned: bool.
        """

    def update_moments_(
        self,
        momenta: list[Tensor],
        second_moments: list[Tensor],
        directions: list[Tensor],
        graft_norms: Tensor,
        grads: list[Tensor],
        params: list[Tensor],
        coefficients: Tensor,
        active: Tensor,
        beta1: float,
        beta2: float,
        weight2: float,
        nesterov: bool,
    ) -> None:
        """Update momentum and second moment and compute the grafting update's norms, for active parameters::

            g = c3 (grad + c7 p)
            m = beta1 c4 m + (1 - beta1) g        (if momenta);   d = m, or g without momenta
            d = beta1 m + (1 - beta1) g           (if nesterov)
            direction = d                         (if directions)
            v = beta2 c4^2 v + weight2 g^2        (if second_moments)
            graft = c0 d / (sqrt(c1 v) + c2)      (0 where the denominator is 0), or c0 d without v
            graft_norms = |graft|^2 of each span  (0 for an inactive parameter)

        Args:
            momenta, second_moments, directions: P tensors each in the coefficients' dtype, or none.
            graft_norms: ``[S]``, `scalars.spans_of` entries for each parameter, over which a backend may
                distribute its elements freely; or ``[0]`` if the norms are not needed.
            coefficients: ``[P, 10]``, see `COEFFICIENTS`; float32 or float64.
            grads, params: P tensors, float32, float64 or bfloat16, any strides (alike shapes).
            active: ``[P]`` bool.
        """

    def apply_updates_(
        self,
        params: list[Tensor],
        momenta: list[Tensor],
        residuals: list[Tensor],
        updates: list[Tensor],
        directions: list[Tensor],
        second_moments: list[Tensor],
        coefficients: Tensor,
        active: Tensor,
        lr: Tensor,
        momentum: float,
        nesterov: bool,
    ) -> None:
        """Apply graft, weight decay and momentum, and write every active parameter::

            u = c3 update,  or where the update is an empty tensor or c3 is not finite
            u = c0 d / (sqrt(c1 v) + c2)          (0 where the denominator is 0), or c0 d without v
            q = p, or with residuals: bits(q) = bits(p) + residual
            u = u + c8 q
            b = momentum b + u;  u = b, or u + momentum b if nesterov      (if momenta)
            q = (1 - lr c9) q - lr min(max(u, -c5), c5)
            p = q as it is stored

        bits are those of float32; a residual of p = 0 counts as 0. With residuals p is the upper half of
        bits(q) + 2^15 and the residual is bits(q) - bits(p), so that nothing of q is lost.

        A bfloat16 parameter with c6 > 0 and no residuals is rounded stochastically, with mean q: a hash
        modulo 2^16 is added to the 32 bits of q, of which the upper 16 remain. With float32 bits x of the
        source of u (the update or d) and y of the old p, the hash is ``mix(x xor (y 0x85EBCA77) xor (c6
        0x9E3779B9))``, mix the finalizer of MurmurHash3. It does not depend on where an element is stored.

        Args:
            params: P tensors, float32, float64 or bfloat16.
            momenta, second_moments: P tensors each in the coefficients' dtype, or none.
            residuals: P int16 tensors, or none; with them parameters are bfloat16.
            updates: P tensors in the coefficients' dtype, of the parameter's shape or empty.
            directions: P tensors d in the coefficients' dtype or the parameters'.
            coefficients: ``[P, 10]``.  active: ``[P]`` bool.  lr: 0-dim, in the coefficients' dtype.
        """

    def polar_roots_(self, sides: Sequence[RootSide], rule: RootRule, turn: Turn) -> None:
        """Replace the roots of the blocks that are due (`Turn`) by P = (F F^T)^(1/2), with products alone.

        For every active block that has had a gradient (w and rms of its statistics are not 0)::

            F' = sqrt(w k) rms F                                     without the gradients' units
            Q  = F' / s,  s^2 = |F'^T F'|_F
            Q <- Q (a I + b G + c G^2),  G = Q^T Q                   for (a, b, c) of every step
            P  = F' Q^T, symmetrized
            residual = |P P - F' F'^T|_F / |F' F'^T|_F               infinite where it would be NaN, never 0
            root = P where the residual is at most `bound`, else the refusal is counted

        Args:
            sides: sides of any shape groups.
        """

    def decomposed_roots(self, factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
        """Return P = (F F^T)^(1/p) by eigenvalues, in float64 where the condition of F F^T requires it.

        Args:
            factors: F ``[N, d, d]`` without units, float32 or float64.  p: at least 1.

        Returns:
            P ``[N, d, d]``, symmetric, and the residual |P^p - F F^T|_F / |F F^T|_F ``[N]``. Where F is zero
            or not finite, or no decomposition converges, the residual is NaN and P has no meaning.
        """
