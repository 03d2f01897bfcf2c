"""Shampoo as in the paper's comparison: sums of statistics, and their inverse fourth roots.

::

    L = L + G G^T,  R = R + G^T G,   U = L^(-1/4) G R^(-1/4),   U = U |G| / |U|
    B = momentum B + U,  W = W - lr B

All computations are in the parameter's dtype, because the experiment compares dtypes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

TINY = 1e-16
"""Constant added to |U| before the division, as in the published code."""


class Shampoo(Optimizer):
    """Shampoo with one block per matrix.

    Args:
        params: matrices.
        eps: the statistics start at eps I, and smaller eigenvalues are replaced by eps.
        root_every: steps between roots; the first roots are computed in step `root_every`, U = G before.
    """

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        eps: float = 1e-8,
        root_every: int = 3,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, eps=eps, root_every=root_every, step=0))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step on all parameters that have a gradient."""
        if closure is not None:
            raise ValueError("Shampoo: `closure` must be None, got one")
        for group in self.param_groups:
            group["step"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)

    def _step(self, p: Tensor, g: Tensor, group: dict[str, float]) -> None:
        state, eps = self.state[p], group["eps"]
        if not state:
            state["buffer"] = torch.zeros_like(p)
            for side, d in (("left", p.shape[0]), ("right", p.shape[1])):
                state[side] = eps * torch.eye(d, dtype=p.dtype)
        state["left"] += g @ g.mT
        state["right"] += g.mT @ g
        if group["step"] % group["root_every"] == 0:
            for side in ("left", "right"):
                state[f"{side}_root"] = inverse_fourth_root(state[side], eps)
        update = g
        if "left_root" in state:
            update = state["left_root"] @ g @ state["right_root"]
            update = update * (g.norm() / (update.norm() + TINY))
        state["buffer"].mul_(group["momentum"]).add_(update)
        p.sub_(group["lr"] * state["buffer"])


def inverse_fourth_root(statistics: Tensor, eps: float) -> Tensor:
    """Return S^(-1/4), with eigenvalues below eps replaced by eps."""
    values, vectors = torch.linalg.eigh(statistics)
    return vectors * values.clamp_min(eps) ** -0.25 @ vectors.mT
