"""What a backend must do: one function per op, with the formula that defines it.

Notation (docs/concepts.md). A *block* is a piece of a parameter, a *group* holds the N blocks of equal
shape, P counts parameters. X is a factor, A an unfolding, S = A A^T its statistic. A *list of block views*
is a list of strided tensors ``[*, m, n]`` whose leading dims, flattened and concatenated over the list,
run over the N blocks of the group: gradients are read and updates written in place in the parameters' own
layout. Compute happens in the factors' dtype (float32 or float64), whatever the dtype of the views.

Every op but ``precondition`` and ``eigh`` works in place and returns nothing. An inactive block or
parameter (``active`` false) keeps every one of its tensors as it was, bit for bit.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

FACTOR_SCALES = ("trace_dim", "trace", "frobenius", "schatten4", "product", "exact")
"""Upper bounds t of the largest eigenvalue of N = I + A^T X A, from loose to tight (docs/concepts.md)::

    trace_dim   t = d (1 + tr(A^T X A))            the published star variant
    trace       t = 1 + tr(A^T X A)
    product     t = 1 + |X A A^T|_F                the published plain variant
    frobenius   t = 1 + |A^T X A|_F
    schatten4   t = 1 + |(A^T X A)^2|_F^(1/2)
    exact       no bound: C = N^-1 by Cholesky
"""

FALLBACK_REFINE = 2
"""`refine` of the frobenius update that stands in for an exact one whose Cholesky failed."""


class Backend(Protocol):
    """The ops; implementations are modules or objects with these functions."""

    name: str

    def update_factor_(
        self,
        factor: Tensor,
        statistics: Tensor,
        unfolding: list[Tensor],
        active: Tensor,
        decay: float,
        weight: float,
        damping: float,
        factor_scale: str,
        refine: int,
    ) -> None:
        """Update the factors X of one mode from the unfoldings U of their blocks, in place.

        With A = sqrt(weight) U and s = |U|_F^2 / d, for every active block::

            if damping > 0:                       # relative damping; 0 in the published mode
                if mean == 0: mean = s;  X = I / (damping s)      (nothing at all happens while s == 0)
                else:         mean = decay mean + (1 - decay) s
            X = X / decay
            Y = X A,  N = I + A^T Y
            C = N^-1                              (exact, by Cholesky), or
            C = I / t,  then `refine` times C <- C (5 I - 8 W + 4 W^2) with W = N C
            X = X - Y C Y^T                       (symmetric to the bit)

        X' dominates (X^-1 + A A^T)^-1 and so stays positive definite (docs/concepts.md, the KrAD lemma).
        With `refine` > 0 or ``exact`` and k > max(d, 64), A is fed in chunks of max(d, 64) columns (mean
        and decay once). An exact update whose Cholesky fails is replaced, for that block, by the frobenius
        update with refine 2; where t, the mean or the result is not finite X stays. Both are counted.

        Args:
            factor: X, ``[N, d, d]`` float32 or float64, contiguous.
            statistics: ``[N, 2]`` in the factor's dtype: the running mean of tr(S) / d, and the count of
                updates that fell back.
            unfolding: list of block views ``[*, d, k]``, float32, float64 or bfloat16.
            active: ``[N]`` bool.
            decay: in (0, 1].  weight: of the new statistic, > 0.  damping: relative, >= 0.
            factor_scale: one of `FACTOR_SCALES`.  refine: >= 0, ignored by ``exact``.
        """

    def kron_step_(
        self,
        left: Tensor,
        right: Tensor,
        left_statistics: Tensor,
        right_statistics: Tensor,
        out: list[Tensor],
        norms: Tensor,
        grad: list[Tensor],
        direction: list[Tensor],
        left_root: Tensor,
        right_root: Tensor,
        active: Tensor,
        decay: float,
        weight: float,
        damping: float,
        factor_scale: str,
        refine: int,
        update: bool,
    ) -> None:
        """Both factor updates of order-2 blocks and the two-sided product, in one call::

            if update: update_factor_(left, G), update_factor_(right, G^T)
            P = left_root D right_root;  out = P;  norms = |P|_F^2     (0 for an inactive block)

        Args:
            left, right: ``[N, m, m]`` and ``[N, n, n]``, as in `update_factor_`.
            left_statistics, right_statistics: ``[N, 2]``.
            out: list of block views ``[*, m, n]`` in the factors' dtype; may be `direction` itself.
            norms: ``[N]`` in the factors' dtype.
            grad, direction: lists of block views G and D, ``[*, m, n]``, float32, float64 or bfloat16.
            left_root, right_root: ``[N, m, m]`` and ``[N, n, n]``, the factors' dtype or bfloat16.
            active: ``[N]`` bool; the scalars as in `update_factor_`.
        """

    def precondition(self, blocks: Tensor, roots: list[Tensor]) -> Tensor:
        """Mode products ``blocks x_1 roots[0] ... x_k roots[k-1]``, as a new tensor.

        Args:
            blocks: ``[N, d_1, ..., d_k]``, any strides, float32 or float64.
            roots: k tensors ``[N, d_i, d_i]`` (blocks' dtype or bfloat16), or empty for the identity.
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
        l2: float,
        nesterov: bool,
    ) -> None:
        """Momentum, second moment and the norm of the grafting update, for every active parameter::

            g = grad + l2 p
            m = beta1 m + (1 - beta1) g           (if momenta);   d = m, or g without momenta
            d = beta1 m + (1 - beta1) g           (if nesterov)
            direction = d                         (if directions)
            v = beta2 v + weight2 g^2             (if second_moments)
            graft = c0 d / (sqrt(c1 v) + c2)      (0 where the denominator is 0), or c0 d without v
            graft_norm = |graft|^2                (0 for an inactive parameter)

        Args:
            momenta, second_moments, directions: P tensors each, or none; the coefficients' dtype.
            graft_norms: ``[P]``.  coefficients: ``[P, 4]``, columns c0 to c3; float32 or float64.
            grads, params: P tensors, float32, float64 or bfloat16, any strides (alike shapes).
            active: ``[P]`` bool.
        """

    def parameter_step_(
        self,
        params: list[Tensor],
        momenta: list[Tensor],
        updates: list[Tensor],
        directions: list[Tensor],
        second_moments: list[Tensor],
        coefficients: Tensor,
        active: Tensor,
        lr: Tensor,
        momentum: float,
        decay: float,
        l2: float,
        nesterov: bool,
    ) -> None:
        """Graft, weight decay, momentum and the write of every active parameter::

            u = c3 update,  or where the update is an empty tensor or c3 is not finite
            u = c0 d / (sqrt(c1 v) + c2)          (0 where the denominator is 0), or c0 d without v
            u = u + l2 p
            b = momentum b + u;  u = b, or u + momentum b if nesterov      (if momenta)
            p = (1 - lr decay) p - lr u

        Args:
            params: P tensors, float32, float64 or bfloat16.
            momenta, second_moments: P tensors each in the coefficients' dtype, or none.
            updates: P tensors in the coefficients' dtype, of the parameter's shape or empty.
            directions: P tensors d, the coefficients' dtype or the parameters'.
            coefficients: ``[P, 4]``.  active: ``[P]`` bool.  lr: 0-dim, the coefficients' dtype.
        """

    def eigh(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``[N, d]``, ascending, and eigenvectors ``[N, d, d]`` of symmetric matrices."""
