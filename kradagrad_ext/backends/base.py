"""What a backend must do: one function per op, with the formula that defines it.

Notation (docs/concepts.md). A *block* is a piece of a parameter, a *group* holds the N blocks of equal
shape, P counts parameters. F is a factor, X = F F^T the inverse that it stands for, U an unfolding. A *list
of block views* is a list of strided tensors ``[*, m, n]`` whose leading dims, flattened and concatenated over
the list, run over the N blocks of the group: gradients are read and updates written in place in the
parameters' own layout. Compute happens in the statistics' dtype (float32 or float64), not in the views'.

Every op but ``decomposed_roots`` works in place and returns nothing. An inactive parameter (``active`` false)
or block (``scales`` 0) keeps all of its tensors, bit for bit, but for what `observe_gradients_` tells of it.
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
"""How products of float32 operands are made where they run on tensor cores; elsewhere they are made in the
factors' own dtype, whatever is asked for. Sums are float32 in every case (docs/numerics.md)::

    bf16x3   a = ah + al in bfloat16:  a b ~ ah bh + ah bl + al bh
    tf32x3   the same in tf32
    fp32     fused multiply-adds, no tensor cores
"""

WHOLE_SIDE = 256
"""The longest side of blocks that a native CUDA kernel takes as a whole, from beginning to end in one CTA."""

METHODS = ("cholesky", "products")
"""How R with R R^T = H^-1 is made::

    cholesky   H = L L^T, R = L^-T; exact, and an upper triangular F stays one
    products   R = q(H), a polynomial with q(decay)^2 decay = 1 and q(h)^2 h >= 1 on every eigenvalue h of H
"""

RMS, WEIGHT, WHITENED, FALLBACKS = STATISTICS = range(4)
"""Columns of a side's statistics ``[N, 4]``: root mean square of the entries of its gradients; sum of the
weights of the statistics that its factor holds; mean square of the last gradient whitened on both sides (on
this one alone without coupling), 1 in equilibrium; calls on which an update fell back or was left out."""

REFUSALS, RESIDUAL, WHITENED_MEAN, WHITENED_WEIGHT = ROOT_STATS = range(4)
"""Columns of the statistics of a side's roots ``[N, 4]``: refreshes on which a block's old root stayed since
the new one was bad; the residual of the last root made, accepted or not, 0 only where none was made since the
factor started; a running mean of the mean square of the whitened gradient and the sum of its weights, both 0
unless lengths depend on them."""

COEFFICIENTS = 10
"""Columns of the ``coefficients [P, 10]`` of `accumulate_` and `parameter_step_`: c0, c1, c2 of the graft;
c3, the gradient's scale, later that of the update; c4, what brings moments to the gradient's unit; c5, the
largest update of an element; c6, a whole number below 2^24 that chance depends on, 0 for none; c7, c8, c9,
the weight decay that is added to gradients or to updates, or is decoupled. `observe_gradients_` writes them,
`scale_updates_` those of lengths."""


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"UpdateRule: `{name}` must be {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """The scalars of a factor update, in the order of the native ops' schemas.

    Attributes:
        decay: of the old statistics, in (0, 1].
        weight: of the new one, > 0.
        damping: relative to the mean eigenvalue of the statistics, > 0.
        prior: statistics that a new factor holds before its first gradient, relative to that one's mean
            eigenvalue, > 0.
        damped_updates: how many updates' worth of damping enters with this one, >= 0.
        method: one of `METHODS`.
        refine: degree of the polynomial q in the sense of `METHODS`, 1 to 6: ``3 (refine - 1)`` products.
        precision: one of `PRECISIONS`.
        coupled: whether each side sees the gradient whitened on the other one.

    Raises:
        ValueError: one of them is out of range.
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
    """One side of the N blocks of a group.

    Attributes:
        factor: F ``[N, d, d]``, contiguous, in the compute dtype or bfloat16; X = F F^T.
        statistics: ``[N, 4]`` in the compute dtype, see `STATISTICS`.
        root: P ``[N, d, d]``, symmetric, of which a backend may read one triangle alone; contiguous, in the
            compute dtype or bfloat16: without units, see `roots`.
    """

    factor: Tensor
    statistics: Tensor
    root: Tensor


@dataclass(frozen=True)
class BlockGroup:
    """N blocks ``[m, n]`` of equal shape, as lists of block views ``[*, m, n]`` with N blocks in all.

    Attributes:
        left, right: sides of m and n.
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
    """Which blocks of a side are due on a step: the next so many, all of them within `turns` steps.

    Blocks without a root since their factor started are due in any case.

    Attributes:
        number: of the turn.
        turns: on every turn ``ceil(N / turns)`` of N blocks are due; none with 0.
        counter: 0-dim int64 on the device that holds the number in place of `number`; for a graph that does
            the same on every step.
    """

    number: int = 0
    turns: int = 1
    counter: Tensor | None = None

    def __post_init__(self) -> None:
        if self.number < 0 or self.turns < 0:
            raise ValueError(f"Turn: `number` and `turns` must be >= 0, got {self.number}, {self.turns}")

    def count(self, blocks: int) -> int:
        """How many of so many blocks have their turn."""
        return -(-blocks // self.turns) if self.turns else 0

    def due(self, blocks: int, device: torch.device) -> Tensor:
        """Indices of the blocks that have their turn, on a device."""
        count = self.count(blocks)
        number = self.number if self.counter is None else self.counter
        return (number * count + torch.arange(count, device=device)) % max(blocks, 1)


@dataclass(frozen=True)
class RootSide:
    """One side of the N blocks of a group, for new roots.

    Attributes:
        side: its factors are read, its roots written.
        root_stats: ``[N, 4]`` in the compute dtype, see `ROOT_STATS`; written.
        active: ``[N]`` bool: blocks that take part.
        columns: k of the side's unfoldings.
    """

    side: Side
    root_stats: Tensor
    active: Tensor
    columns: int


@dataclass(frozen=True)
class RootRule:
    """How roots are made by products.

    Attributes:
        polynomials: (a, b, c) of every step ``Q <- Q (a I + b G + c G^2)``; at most 8.
        bound: a root with a larger residual is refused.
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

        For every active block, with U = scale times its unfolding, g^2 = |U|_F^2 / (d k), and (rms, w) of its
        statistics::

            nothing at all changes where g = 0
            w' = decay w + weight,   rms'^2 = (decay w rms^2 + weight g^2) / w'
            where w = 0:  F = I / (rms' sqrt(prior k))
            B  = sqrt(weight) F^T U
            H  = decay I + B B^T + damped_updates weight damping k rms'^2 F^T F
            F' = F R,  R R^T = H^-1 or above it                      (by `UpdateRule.method`)
            whitened = w |B|_F^2 / (weight d)

        By Cholesky F' F'^T = (decay X^-1 + weight U U^T + damping I)^-1, the damping as in H; where it fails,
        the triangle comes from a QR decomposition of [sqrt(decay) I; B^T; the root of the damping's term],
        for that block, which is counted. By products F' F'^T dominates it (the KrAD lemma, docs/concepts.md).
        Squares are summed in float64. A block with an rms' or F' that is not finite stays, and is counted.

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
        """Update both factors of every block, and precondition its direction, for several groups in one call.

        With the roots P of both sides as they are, G a block's gradient times its scale, D its direction, and
        |G| the Frobenius norm::

            if update:
                coupled:   U = |G| / |G P_r| G P_r  and  |G| / |P_l G| (P_l G)^T       (scale is not coupled)
                else:      U = G and G^T
                update_factor_ of the left side with the first, of the right one with the second
                coupled:   whitened times |G P_r|^2 / |G|^2, and |P_l G|^2 / |G|^2
            if precondition:
                V = P_l (D / rms_l) P_r,   out = V,   norms = |V|_F^2

        An inactive block, and one of no elements, has norm 0; one that has had no gradient has V = 0.

        Args:
            groups: the blocks, group after group.
            scales: ``[sum of N]`` in the compute dtype, >= 0; 0 for an inactive block.
            norms: ``[sum of N]`` in the compute dtype; written.
        """

    def observe_gradients_(
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
        """Guard M matrices against gradients that are not finite, and spikes; write all coefficients.

        A gradient that is present and finite, with rms = norm / sqrt(numel), changes the matrix's scalars,
        named as their columns, from top to bottom; UNIT is 1 where it is 0::

            large  = USUAL > 0 and rms > spike_limit USUAL;   spike = large and IN_A_ROW < MOST_SPIKES
            STEPS + 1;   SPIKES + spike;   IN_A_ROW + 1 with a spike, else 0
            USUAL' = USUAL where rms = 0;   rms where USUAL = 0, or large without a spike (factors restart)
                     hypot(sqrt(0.95) USUAL, sqrt(0.05) min(rms, spike_limit USUAL))  else
            size   = max(USUAL', sqrt(ENERGY) UNIT), at least weight_decay / UNITS_APART where `decayed` is 7
            UNIT'  = 2^floor(log2 size), a normal number as is its reciprocal, where size would be > 0 without
                     weight decay, and the matrix has no unit or UNIT / UNIT' is not within
                     (1 / UNITS_APART, UNITS_APART) (factors restart);   else UNIT
            c4     = UNIT / UNIT', within `LARGEST_SHIFT`;   ENERGY c4^2
            c3     = 1 / UNIT', or with a spike USUAL / UNIT' / rms
            ENERGY = decay2 ENERGY + weight2 (c3 rms)^2

        Any other gives c3 = 0 and c4 = 1, and counts as SKIPPED where it is there. Of all matrices::

            c0 = 1 / (1 - beta1^(t + nesterov)) where averaged, else 1;   t = max(STEPS, 1)
            c1 = 1 / (1 - bias2^t);   c2 = eps sqrt(c1 ENERGY);   c5 = `ScalarRule.largest`
            c6 = STEPS where by chance, else 0;   c7, c8, c9 = 0, but that of `decayed` is weight_decay

        Args:
            scalars: ``[M, 9]`` float32 or float64, see `scalars.COLUMNS`; the compute dtype.
            coefficients: ``[M, 10]``.  active, restarts: ``[M]`` bool, which take part, and whose factors
                start anew. All three are written, whatever they held.
            norms: |g|_F ``[M]`` float64; not finite where any element is not.
            numel: elements of each matrix ``[M]``, at least 1.  present: ``[M]`` bool, which have a gradient.
            weight_decay: 0-dim, the compute dtype.
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
        """Give the updates of M matrices their lengths: c0 and c3 of their coefficients::

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
            graft_norms, update_norms: squared, of spans ``[S]``, of blocks ``[B]``; summed in float64.
            graft_offsets, update_offsets: ``[M + 1]``, update_order: ``[B]``, int64.  preconditioned: bool.
        """

    def accumulate_(
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
        """Momentum, second moment and the norms of the grafting update, for every active parameter::

            g = c3 (grad + c7 p)
            m = beta1 c4 m + (1 - beta1) g        (if momenta);   d = m, or g without momenta
            d = beta1 m + (1 - beta1) g           (if nesterov)
            direction = d                         (if directions)
            v = beta2 c4^2 v + weight2 g^2        (if second_moments)
            graft = c0 d / (sqrt(c1 v) + c2)      (0 where the denominator is 0), or c0 d without v
            graft_norms = |graft|^2 of each span  (0 for an inactive parameter)

        Args:
            momenta, second_moments, directions: P tensors each, or none; the coefficients' dtype.
            graft_norms: ``[S]``, of each parameter's `scalars.spans_of`, which share out its elements as they
                like; or ``[0]``, where nobody asks for them.
            coefficients: ``[P, 10]``, see `COEFFICIENTS`; float32 or float64.
            grads, params: P tensors, float32, float64 or bfloat16, any strides (alike shapes).
            active: ``[P]`` bool.
        """

    def parameter_step_(
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
        """Graft, weight decay, momentum and the write of every active parameter::

            u = c3 update,  or where the update is an empty tensor or c3 is not finite
            u = c0 d / (sqrt(c1 v) + c2)          (0 where the denominator is 0), or c0 d without v
            q = p, or with residuals: bits(q) = bits(p) + residual
            u = u + c8 q
            b = momentum b + u;  u = b, or u + momentum b if nesterov      (if momenta)
            q = (1 - lr c9) q - lr min(max(u, -c5), c5)
            p = q as it is stored

        bits are those of float32; a residual of p = 0 counts as 0. With residuals p has the upper half of
        bits(q) + 2^15, and the residual is bits(q) - bits(p): nothing of q is lost.

        A bfloat16 parameter with c6 > 0 and no residuals is rounded up or down by chance, to the mean q: its
        32 bits, with a hash modulo 2^16 added to them, are cut off after 16. Of what u is made of (the update
        or d) and the old p, float32 bits x and y, the hash is ``mix(x xor (y 0x85EBCA77) xor (c6
        0x9E3779B9))`` with the finalizer of MurmurHash3: the same wherever an element lies.

        Args:
            params: P tensors, float32, float64 or bfloat16.
            momenta, second_moments: P tensors each in the coefficients' dtype, or none.
            residuals: P int16 tensors, or none; with them parameters are bfloat16.
            updates: P tensors in the coefficients' dtype, of the parameter's shape or empty.
            directions: P tensors d, the coefficients' dtype or the parameters'.
            coefficients: ``[P, 10]``.  active: ``[P]`` bool.  lr: 0-dim, the coefficients' dtype.
        """

    def polar_roots_(self, sides: Sequence[RootSide], rule: RootRule, turn: Turn) -> None:
        """Replace the roots of the blocks that are due (`Turn`) by P = (F F^T)^(1/2), by products alone.

        For every active block that has had a gradient (w and rms of its statistics are not 0)::

            F' = sqrt(w k) rms F                                     without the gradients' units
            Q  = F' / s,  s^2 = |F'^T F'|_F
            Q <- Q (a I + b G + c G^2),  G = Q^T Q                   for (a, b, c) of every step
            P  = F' Q^T, made symmetric
            residual = |P P - F' F'^T|_F / |F' F'^T|_F               infinite where it is not a number, not 0
            root = P where the residual is at most `bound`, else its refusals are counted

        Args:
            sides: of any groups.
        """

    def decomposed_roots(self, factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
        """P = (F F^T)^(1/p) by eigenvalues, in float64 where the condition of F F^T asks for it.

        Args:
            factors: F ``[N, d, d]`` without units, float32 or float64.  p: at least 1.

        Returns:
            P ``[N, d, d]``, symmetric, and |P^p - F F^T|_F / |F F^T|_F ``[N]``; where F is zero or not
            finite, or no decomposition converges, NaN, and a P that tells nothing.
        """
