"""The paper's two optimizers as its authors' code computes them, in plain PyTorch.

Source: Mei, Moreno and Walters, KrADagrad, UAI 2023 (PMLR 216:1412-1422), and the authors' code.

A parameter's neighbouring dims are merged, the result is cut into blocks, and every block G of order k is
preconditioned separately. Mode i has the unfolding A_i = mat_i(G) ``[d_i, numel / d_i]``, a factor X_i
``[d_i, d_i]`` that approximates the inverse of the sum of all A_i A_i^T, and the factor's root P_i. The
factor update of both optimizers needs no inversion (the KrAD lemma, docs/concepts.md)::

    Y = X A,   X <- X - Y Y^T / t,   t >= the largest eigenvalue of I + A^T X A

The optimizers differ in t, in the modes that a step updates, and in the gradient that it uses: see
`star_step` and `plain_step`. `PublishedKrADagrad` has the step of a whole parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from .config import check_rate, check_tensor, is_int, is_number, parameter_name, require
from .coverage import warn
from .full_precision import full_float32
from .state import compute_dtype

VARIANTS = ("star", "plain")

RIDGE = 1e-8
"""Added to a factor's diagonal before each eigendecomposition."""

Options = Mapping[str, Any]  # a parameter group


class PublishedKrADagrad(Optimizer):
    """KrADagrad* (``star``) and KrADagrad (``plain``), as the paper's authors published them.

    On step n = 1, 2, ... of a parameter p, with U assembled from the blocks' updates::

        U = G                             before start_step
        U <- U |G| / (|U| + 1e-16)        star only: the length of the gradient, over the whole parameter
        m <- momentum m + U + weight_decay p
        p <- p - lr m

    Factors, roots and m are float64 for a float64 parameter, else float32. Products are computed in that
    dtype even if TF32 or autocast is on. A parameter whose merged shape has no dims takes U = G. A gradient
    with NaN or Inf, or whose squared norm overflows, leaves its parameter and all its state as they were. The
    defects of the authors' code are not reproduced (docs/concepts.md).

    Every option can be overridden in a parameter group.

    Args:
        params: parameters, named parameters or parameter groups: float32, float64 or bfloat16, dense.
        variant: ``star`` or ``plain``.
        lr: a number or a one-element tensor.
        momentum, weight_decay: heavy-ball momentum and coupled decay, both of the finished update.
        matrix_eps: ``star``: a factor starts at I / matrix_eps.  ``plain``: the damping.
        beta2: divisor of a factor before its update; 1 for no forgetting.
        block_size: longest side of a block, and limit of the product of merged dims.
        factor_every, root_every: steps between updates of the factors, and of their roots.
        start_step: first step that is preconditioned.
        ons_exponent: twice the power: X^(1/k) for X^(1/2k) (star), X for X^(1/2) (plain).

    Raises:
        ValueError: an option is out of range.
        TypeError: a parameter or gradient is sparse, complex, integer or of an unsupported dtype.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        variant: str,
        lr: float | Tensor,
        momentum: float = 0.9,
        matrix_eps: float = 1e-4,
        beta2: float = 1.0,
        block_size: int = 128,
        root_every: int = 1,
        factor_every: int = 1,
        start_step: int = 1,
        weight_decay: float = 0.0,
        ons_exponent: bool = False,
    ) -> None:
        defaults = dict(variant=variant, lr=lr, momentum=momentum, matrix_eps=matrix_eps, beta2=beta2)
        defaults |= dict(block_size=block_size, root_every=root_every, factor_every=factor_every)
        defaults |= dict(start_step=start_step, weight_decay=weight_decay, ons_exponent=ons_exponent)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options that override the optimizer's; raise as the class does."""
        super().add_param_group(param_group)
        try:
            check_published_options(self.param_groups[-1])
            for i, p in enumerate(self.param_groups[-1]["params"]):
                check_tensor(p, f"parameter {i} of parameter group {len(self.param_groups) - 1}")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._warn_of_vectors(len(self.param_groups) - 1)

    def _warn_of_vectors(self, position: int) -> None:
        """Warn once if the group's block size merges a matrix into a vector, which has one large factor."""
        group = self.param_groups[position]
        for i, p in enumerate(group["params"]):
            is_matrix = p.numel() > 0 and sum(size != 1 for size in p.shape) > 1
            if is_matrix and len(merged_shape(p.shape, group["block_size"])) == 1:
                warn(
                    f"PublishedKrADagrad: `block_size` {group['block_size']} merges "
                    f"{parameter_name(position, i)} {list(p.shape)} into a vector, as the authors' code does"
                )
                return

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError, TypeError: as for the class; nothing is changed.
            torch.linalg.LinAlgError: an eigendecomposition does not converge; nothing is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for position, group in enumerate(self.param_groups):
            check_published_options(group)
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    check_tensor(p.grad, f"the gradient of parameter {i} of parameter group {position}")
        with full_float32():
            stepped = [
                (p, self._stepped(p, p.grad, group))
                for group in self.param_groups
                for p in group["params"]
                if p.grad is not None and p.grad.to(compute_dtype(p.dtype)).square().sum().isfinite()
            ]
        for p, (state, value) in stepped:
            self.state[p] = state
            p.copy_(value)
        return loss

    def _stepped(self, p: Tensor, gradient: Tensor, options: Options) -> tuple[dict[str, Any], Tensor]:
        """Return state and value of a parameter after this step, without changing the current ones."""
        grad = gradient.to(compute_dtype(p.dtype))
        old = self.state[p] if p in self.state else new_state(grad, options)
        factors, roots = ([list(modes) for modes in old[key]] for key in ("factors", "roots"))
        state = {"step": old["step"] + 1, "momentum": old["momentum"], "factors": factors, "roots": roots}
        update = preconditioned(grad, state, options) + options["weight_decay"] * p.to(grad.dtype)
        state["momentum"] = options["momentum"] * old["momentum"] + update
        return state, p.to(grad.dtype) - float(options["lr"]) * state["momentum"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`, bit for bit; `torch.optim.Optimizer` alone would round it to bfloat16.

        Raises:
            ValueError: the state dict does not fit this optimizer. Nothing is loaded then.
        """
        for group in state_dict["param_groups"]:
            check_published_options(group)
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, index in zip(group["params"], saved["params"], strict=True):
                if index in state_dict["state"]:
                    self.state[p] = _moved(state_dict["state"][index], p.device)


def _moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Copy the dicts and lists of a parameter's saved state, with its tensors on a device."""
    if isinstance(value, dict):
        return {key: _moved(entry, device) for key, entry in value.items()}
    if isinstance(value, list):
        return [_moved(entry, device) for entry in value]
    return value.to(device) if isinstance(value, Tensor) else value


def check_published_options(options: Options) -> None:
    """Raise ValueError, naming the option, if one of a parameter group is missing or out of range."""
    expected: list[tuple[str, str, Callable[[Any], bool]]] = [
        ("variant", f"one of {VARIANTS}", lambda value: value in VARIANTS),
        ("momentum", "a number in [0, 1)", lambda value: is_number(value) and 0 <= value < 1),
        ("beta2", "a number in (0, 1]", lambda value: is_number(value) and 0 < value <= 1),
        ("matrix_eps", "a number > 0", lambda value: is_number(value) and value > 0),
        ("weight_decay", "a number >= 0", lambda value: is_number(value) and value >= 0),
        ("block_size", "an integer >= 1", lambda value: is_int(value) and value >= 1),
        ("root_every", "an integer >= 1", lambda value: is_int(value) and value >= 1),
        ("factor_every", "an integer >= 1", lambda value: is_int(value) and value >= 1),
        ("start_step", "an integer >= 0", lambda value: is_int(value) and value >= 0),
        ("ons_exponent", "a bool", lambda value: isinstance(value, bool)),
    ]
    missing = [name for name in ("lr", *(name for name, _, _ in expected)) if name not in options]
    if missing:
        raise ValueError(f"KrADagrad: a parameter group lacks the options {missing}")
    check_rate("lr", options["lr"])
    for name, wanted, is_valid in expected:
        require(is_valid(options[name]), name, wanted, options[name])


def new_state(grad: Tensor, options: Options) -> dict[str, Any]:
    """Return the state of a parameter before its first step.

    Returns:
        ``step`` (an int), ``momentum`` (like `grad`), and ``factors`` and ``roots``: lists over blocks of
        lists over modes of ``[d, d]``. P = I; X = I / matrix_eps (star) or I (plain).
    """
    scale = options["matrix_eps"] if options["variant"] == "star" else 1.0
    blocks = blocks_of(grad.reshape(merged_shape(grad.shape, options["block_size"])), options["block_size"])
    roots = [[torch.eye(d, dtype=grad.dtype, device=grad.device) for d in block.shape] for block in blocks]
    factors = [[root / scale for root in modes] for modes in roots]
    return {"step": 0, "momentum": torch.zeros_like(grad), "factors": factors, "roots": roots}


def preconditioned(grad: Tensor, state: Mapping[str, Any], options: Options) -> Tensor:
    """Return U of a whole parameter, before weight decay; replace factors and roots of its blocks.

    Args:
        grad: G, float32 or float64, of the parameter's shape.
        state: see `new_state`, with the number of this step.
    """
    shape = merged_shape(grad.shape, options["block_size"])
    if not shape or grad.numel() == 0:
        return grad
    star = options["variant"] == "star"
    step_block = star_step if star else plain_step
    update = torch.empty(shape, dtype=grad.dtype, device=grad.device)
    blocks, targets = (blocks_of(tensor, options["block_size"]) for tensor in (grad.reshape(shape), update))
    for i, (block, target) in enumerate(zip(blocks, targets, strict=True)):
        target.copy_(step_block(block, state["factors"][i], state["roots"][i], state["step"], options))
    if state["step"] < options["start_step"]:
        return grad
    if star:
        update = update * (grad.norm() / (update.norm() + 1e-16))
    return update.reshape(grad.shape)


def star_step(
    block: Tensor, factors: list[Tensor], roots: list[Tensor], step: int, options: Options
) -> Tensor:
    """Take a step of KrADagrad* on a block: all modes on every step, from the gradient itself::

        X_i <- X_i / beta2,   then the KrAD update with A = mat_i(G) and t = d_i (1 + tr(A^T X_i A))
        P_i = X_i^(1/2k)                                          (X_i^(1/k) with the ONS exponent)
        U = G x_1 P_1 ... x_k P_k

    Args:
        block: G ``[d_1, ..., d_k]``.
        factors, roots: X_i and P_i ``[d_i, d_i]``, replaced where they are due.
        step: n = 1, 2, ...; factors and roots are due if factor_every and root_every divide it.

    Returns:
        U, like G.
    """
    order = block.dim()
    if step % options["factor_every"] == 0:
        for i in range(order):
            updated = krad_update(factors[i] / options["beta2"], unfold(block, i), trace_dim_bound)
            factors[i] = finite_or(updated, factors[i])
    if step % options["root_every"] == 0:
        roots[:] = [root_of(factor, order if options["ons_exponent"] else 2 * order) for factor in factors]
    return mode_products(block, roots, range(order))


def plain_step(
    block: Tensor, factors: list[Tensor], roots: list[Tensor], step: int, options: Options
) -> Tensor:
    """Take a step of KrADagrad on a block: one mode i, from the gradient preconditioned on all others::

        G' = G with P_j on every mode j except i
        X_i <- X_i / beta2,   X_i <- X_i - matrix_eps X_i^2
        then the KrAD update with A = mat_i(G') and t = 1 + |X_i A A^T|_F
        P_j = X_j^(1/2) for all modes j with a turn since the last roots  (X_j with the ONS exponent)
        U = G' x_i P_i

    Arguments and result are those of `star_step`, except that roots are due if root_every divides n - 1.
    """
    i, every = plain_mode(step - 1, block.shape), options["root_every"]
    others = mode_products(block, roots, [j for j in range(block.dim()) if j != i])
    if step % options["factor_every"] == 0:
        factor = factors[i] / options["beta2"]
        factor = factor - options["matrix_eps"] * factor @ factor
        factors[i] = finite_or(krad_update(factor, unfold(others, i), product_bound), factors[i])
    if (step - 1) % every == 0:
        turns = range(max(0, step - every), step)
        for j in sorted({plain_mode(turn, block.shape) for turn in turns}):
            roots[j] = root_of(factors[j], 1 if options["ons_exponent"] else 2)
    return mode_products(others, roots, [i])


def plain_mode(turn: int, shape: Sequence[int]) -> int:
    """Return the mode i of turn s = 0, 1, ...; with growing s, it is the longest mode ever more often.

    i = s mod k while s < k^2; then e = s - floor(sqrt(s))^2 if e < k, else the first of the longest.
    """
    order = len(shape)
    if turn < order * order:
        return turn % order
    excess = turn - math.isqrt(turn) ** 2
    return excess if excess < order else list(shape).index(max(shape))


def krad_update(factor: Tensor, unfolding: Tensor, bound: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return X - Y Y^T / t with Y = X A, exactly symmetric.

    It dominates (X^-1 + A A^T)^-1, so it is positive definite.

    Args:
        factor: X ``[d, d]``.  unfolding: A ``[d, k]``.  bound: computes t ``[]`` from Y and A.
    """
    y = factor @ unfolding
    updated = factor - y @ y.mT / bound(y, unfolding)
    return (updated + updated.mT) / 2


def trace_dim_bound(y: Tensor, unfolding: Tensor) -> Tensor:
    """Return t = d (1 + tr(A^T X A)) from Y = X A and A ``[d, k]``."""
    return len(y) * (1 + (unfolding * y).sum())


def product_bound(y: Tensor, unfolding: Tensor) -> Tensor:
    """Return t = 1 + |X A A^T|_F from Y = X A and A ``[d, k]``."""
    return 1 + (y @ unfolding.mT).square().sum().sqrt()


def root_of(factor: Tensor, p: int) -> Tensor:
    """Return P = (X + 1e-8 I)^(1/p) ``[d, d]`` by eigendecomposition; negative eigenvalues count as 0."""
    ridge = RIDGE * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    values, vectors = torch.linalg.eigh(factor + ridge)
    root: Tensor = vectors * values.clamp_min(0) ** (1 / p) @ vectors.mT
    return root


def finite_or(new: Tensor, old: Tensor) -> Tensor:
    """Return the new factor, or the old one if the new one is not finite."""
    return new if new.isfinite().all() else old


def unfold(block: Tensor, mode: int) -> Tensor:
    """Return mat_i(G) ``[d_i, numel / d_i]``: the mode's dim against all others."""
    return block.movedim(mode, 0).reshape(block.shape[mode], -1)


def mode_products(block: Tensor, matrices: Sequence[Tensor], modes: Iterable[int]) -> Tensor:
    """Return G x_i M_i over some modes i: each M_i ``[d_i, d_i]`` times the mode's unfolding, folded back."""
    for i in modes:
        block = torch.tensordot(matrices[i], block, dims=([1], [i])).movedim(0, i)
    return block


def merged_shape(shape: Sequence[int], block_size: int) -> list[int]:
    """Return the shape without dims of 1, neighbours multiplied from the left up to `block_size`."""
    merged: list[int] = []
    for size in shape:
        if size == 1:
            continue
        if merged and merged[-1] * size <= block_size:
            merged[-1] *= size
        else:
            merged.append(size)
    return merged


def blocks_of(tensor: Tensor, block_size: int) -> list[Tensor]:
    """Return views of a tensor's blocks in row-major order; the last along a dim may be shorter."""
    blocks = [tensor]
    for dim in range(tensor.dim()):
        blocks = [part for block in blocks for part in torch.split(block, block_size, dim)]
    return blocks
