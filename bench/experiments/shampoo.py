"""Shampoo as in the paper's comparison: sums of statistics, and their inverse fourth roots.

::

    L = L + G G^T,  R = R + G^T G,   U = L^(-1/4) G R^(-1/4)    block by block
    U = U |G| / |U|,   B = momentum B + U + weight_decay W,   W = W - lr B

All computations are in the parameter's dtype, because the experiments compare dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kradagrad_ext.published import blocks_of

TINY = 1e-16
"""Constant added to |U| before the division, as in the published code."""


class Shampoo(Optimizer):
    """Shampoo of matrices; parameters of other shapes take U = G.

    Args:
        params: parameters.
        eps: the statistics start at eps I, and smaller eigenvalues are replaced by eps.
        root_every: steps between roots; the first roots are computed in step `root_every`, U = G before.
        block_size: longest side of a block; None for one block per matrix.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        root_every: int = 3,
        block_size: int | None = None,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eps=eps)
        super().__init__(params, defaults | dict(root_every=root_every, block_size=block_size, step=0))

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

    def _step(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["buffer"], state["blocks"] = torch.zeros_like(p), []
        update = g
        if p.dim() == 2:
            update = preconditioned(g, state["blocks"], group)
            update = update * (g.norm() / (update.norm() + TINY))
        update = update + group["weight_decay"] * p
        state["buffer"].mul_(group["momentum"]).add_(update)
        p.sub_(group["lr"] * state["buffer"])


def preconditioned(g: Tensor, states: list[dict[str, Tensor]], group: dict[str, Any]) -> Tensor:
    """Return U ``[m, n]`` before it is rescaled; update the statistics and roots of the blocks.

    Args:
        g: G ``[m, n]``.
        states: for every block ``left`` and ``right``, and their roots once there are some; empty at first.
    """
    size = group["block_size"] or max(g.shape)
    update = torch.empty_like(g)
    blocks, targets = blocks_of(g, size), blocks_of(update, size)
    if not states:
        sides = (("left", 0), ("right", 1))
        states += [{side: group["eps"] * torch.eye(block.shape[i], dtype=g.dtype) for side, i in sides}
                   for block in blocks]  # fmt: skip
    for block, target, state in zip(blocks, targets, states, strict=True):
        state["left"] += block @ block.mT
        state["right"] += block.mT @ block
        if group["step"] % group["root_every"] == 0:
            for side in ("left", "right"):
                state[f"{side}_root"] = inverse_fourth_root(state[side], group["eps"])
        has_roots = "left_root" in state
        target.copy_(state["left_root"] @ block @ state["right_root"] if has_roots else block)
    return update


def inverse_fourth_root(statistics: Tensor, eps: float) -> Tensor:
    """Return S^(-1/4), with eigenvalues below eps replaced by eps."""
    values, vectors = torch.linalg.eigh(statistics)
    return vectors * values.clamp_min(eps) ** -0.25 @ vectors.mT
