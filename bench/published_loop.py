"""The published KrADagrad* formulas as a plain PyTorch loop over blocks: the baseline of the step bench.

Every block and mode i pays a statistic S = U U^T of the unfolding U, the products X S X, an eigh where roots
are due and the product with the root: 16 b^3 flops for a square block of side b, and nothing is batched. The
formulas are those of the published code (Mei, Moreno and Walters, UAI 2023), step by step::

    X = X / beta2;  t = d (1 + tr(S X));  X = X - X S X / t      every factor_every steps
    P = (X + 1e-8 I)^(1/p),  p = 2k, or k with the ONS exponent  every root_every steps
    U = G x_1 P_1 ... x_k P_k,  rescaled to |G| over the whole parameter
    buf = momentum buf + U + weight_decay p;  p = p - lr buf

`golden_error` holds it to trajectories of the authors' own code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT_RIDGE = 1e-8
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def merged_shape(shape: Iterable[int], block_size: int) -> list[int]:
    """Neighbouring dims multiplied while the product stays within `block_size`; dims of 1 vanish."""
    merged: list[int] = []
    product = 1
    for size in shape:
        if product * size <= block_size:
            product *= size
            continue
        if product > 1:
            merged.append(product)
        product = size
    return [*merged, product] if product > 1 else merged


def split_blocks(tensor: Tensor, block_size: int) -> list[Tensor]:
    """Views of the blocks of `tensor`, row-major; the last of a dim may be shorter."""
    blocks = [tensor]
    for dim in range(tensor.dim()):
        blocks = [piece for block in blocks for piece in block.split(block_size, dim)]
    return blocks


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """The mode's unfolding, ``[d, k]``."""
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    moved = tensor.movedim(mode, 0)
    return (matrix @ unfold(tensor, mode)).reshape(moved.shape).movedim(0, mode)


class PublishedLoop(torch.optim.Optimizer):
    """KrADagrad* as published, one block after another.

    Args:
        params: parameters or groups, any float dtype.
        lr, momentum, weight_decay: coupled decay, heavy-ball momentum.
        matrix_eps: X starts at I / matrix_eps.  beta2: X is divided by it before an update.
        block_size, root_every, factor_every, start_step: as in the package.
        ons_exponent: root 1/k instead of 1/(2k).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float = 1e-3,
        momentum: float = 0.9,
        matrix_eps: float = 1e-4,
        beta2: float = 1.0,
        block_size: int = 256,
        root_every: int = 10,
        factor_every: int = 1,
        start_step: int = 1,
        weight_decay: float = 0.0,
        ons_exponent: bool = False,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, matrix_eps=matrix_eps, beta2=beta2, block_size=block_size)
        defaults |= dict(root_every=root_every, factor_every=factor_every, start_step=start_step)
        defaults |= dict(weight_decay=weight_decay, ons_exponent=ons_exponent)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for options in self.param_groups:
            for param in options["params"]:
                if param.grad is not None:
                    self._step_parameter(param, param.grad, options)
        return loss

    def _step_parameter(self, param: Tensor, grad: Tensor, options: dict) -> None:
        state = self.state[param]
        if not state:
            self._start(state, param, options)
        state["step"] += 1
        update = grad
        if state["shape"]:
            update = self._preconditioned(state, grad.reshape(state["shape"]), options).reshape(grad.shape)
            update = update * (grad.norm() / (update.norm() + 1e-16))
        update = update + options["weight_decay"] * param
        state["buffer"].mul_(options["momentum"]).add_(update)
        param.add_(state["buffer"], alpha=-options["lr"])

    def _start(self, state: dict, param: Tensor, options: dict) -> None:
        shape = merged_shape(param.shape, options["block_size"])
        blocks = split_blocks(param.reshape(shape), options["block_size"]) if shape else []
        eyes = [[torch.eye(d, dtype=param.dtype) for d in block.shape] for block in blocks]
        state.update(step=0, shape=shape, buffer=torch.zeros_like(param), roots=eyes)
        state["factors"] = [[eye / options["matrix_eps"] for eye in modes] for modes in eyes]

    def _preconditioned(self, state: dict, grad: Tensor, options: dict) -> Tensor:
        step, order = state["step"], grad.dim()
        update = torch.empty_like(grad)
        power = 1.0 / (order if options["ons_exponent"] else 2 * order)
        sources = split_blocks(grad, options["block_size"])
        targets = split_blocks(update, options["block_size"])
        for source, target, factors, roots in zip(
            sources, targets, state["factors"], state["roots"], strict=True
        ):
            if step % options["factor_every"] == 0:
                for mode in range(order):
                    factors[mode] = updated_factor(factors[mode], unfold(source, mode), options["beta2"])
            if step % options["root_every"] == 0:
                roots[:] = [matrix_power(factor, power) for factor in factors]
            block = source
            for mode in range(order):
                block = mode_product(block, roots[mode], mode)
            target.copy_(block)
        return update if step >= options["start_step"] else grad


def updated_factor(factor: Tensor, unfolding: Tensor, beta2: float) -> Tensor:
    factor = factor / beta2
    statistic = unfolding @ unfolding.T
    scale = len(factor) * (1 + (statistic * factor).sum())
    return factor - factor @ statistic @ factor / scale


def matrix_power(factor: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(factor + ROOT_RIDGE * torch.eye(len(factor), dtype=factor.dtype))
    return (vectors * values.clamp_min(0).pow(power)) @ vectors.T


def golden_error(path: Path) -> float:
    """Largest difference from a golden trajectory of the authors' code, in units of its largest parameter."""
    with np.load(path) as golden:
        config = json.loads(str(golden["config"]))
        param = torch.nn.Parameter(torch.from_numpy(golden["initial"].copy()))
        gradients, expected = (torch.from_numpy(golden[name]) for name in ("gradients", "parameters"))
    names = (
        "lr",
        "momentum",
        "matrix_eps",
        "beta2",
        "block_size",
        "root_every",
        "factor_every",
        "weight_decay",
    )
    optimizer = PublishedLoop(
        [param],
        start_step=config["start_preconditioning_step"],
        ons_exponent=bool(config["inverse_exponent_override"]),
        **{name: config[name] for name in names},
    )
    worst = 0.0
    for gradient, target in zip(gradients, expected, strict=True):
        param.grad = gradient.clone()
        optimizer.step()
        worst = max(worst, (param.detach() - target).abs().max().item())
    return worst / expected.abs().max().item()


def verify(bound: float = 1e-10) -> int:
    """Holds the loop to every star trajectory and returns how many there are.

    Raises:
        RuntimeError: the golden files are missing, or a trajectory differs by more than `bound`.
    """
    paths = sorted(GOLDEN.glob("star_*.npz"))
    if not paths:
        raise RuntimeError(f"published_loop: no star_*.npz under {GOLDEN}")
    for path in paths:
        error = golden_error(path)
        if not math.isfinite(error) or error > bound:
            raise RuntimeError(f"published_loop: {path.name} must agree to {bound:g}, differs by {error:.2e}")
    return len(paths)


if __name__ == "__main__":
    for golden_path in sorted(GOLDEN.glob("star_*.npz")):
        print(f"{golden_path.name:36} {golden_error(golden_path):.1e}")
    verify()
