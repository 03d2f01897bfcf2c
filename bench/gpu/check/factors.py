"""The ops on factors: random arguments, flat lists of them, and calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.check.specs import CaseSpec
from bench.roofline.cuda_costs import Blocks, CallOptions, step_costs
from kradagrad_ext import polar
from kradagrad_ext.backends import native, reference, resolve, triton
from kradagrad_ext.backends.base import BlockGroup, RootRule, RootSide, Side, Turn, UpdateRule
from kradagrad_ext.cost.work import Cost
from kradagrad_ext.roots import RESIDUAL_BOUND

Arguments = dict[str, Any]
OPS = {"reference": reference, "native": native, "triton": triton}


def rule_of(spec: CaseSpec, decay: float, damping: float) -> UpdateRule:
    return UpdateRule(
        decay=decay,
        weight=1 - decay,
        damping=damping,
        method="products",
        refine=spec.refine,
        precision=spec.precision,
        coupled=spec.coupled,
    )


def side(count: int, d: int, k: int, scale: float, noise: Tensor, spec: CaseSpec) -> tuple[Tensor, Tensor]:
    """Return F, near the multiple of I that whitens gradients of this scale, and its statistics.

    Args:
        noise: normal, ``[count, d, d]``.
    """
    eye = torch.eye(d, device=noise.device)
    factor = (eye + noise * (0.2 / math.sqrt(d))) / (scale * math.sqrt(k))
    stored = torch.bfloat16 if spec.what == "stored" else torch.float32
    known = (0.0, 0.0, 0.0, 0.0) if spec.what == "first" else (scale, 1.0, 1.0, 0.0)
    return factor.to(stored), torch.tensor(known, device=noise.device).repeat(count, 1)


def function(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> Callable[..., None]:
    """Return an op that takes the arguments of `inputs.make` as keywords."""
    resolve(backend, device, dtype)  # raises an error that explains why a backend cannot run
    ops: Any = OPS[backend]
    calls = {"kron_step_": _step, "update_factor_": _update, "polar_roots_": _roots}
    return lambda **arguments: calls[op](ops, arguments)


def _step(ops: Any, arguments: Arguments) -> None:  # noqa: ANN401
    sides = [
        [
            Side(*tensors)
            for tensors in zip(
                arguments[name], arguments[f"{name}_statistics"], arguments[f"{name}_root"], strict=True
            )
        ]
        for name in ("left", "right")
    ]
    views = [[[view] for view in arguments[name]] for name in ("grad", "direction", "out")]
    groups = [BlockGroup(*group) for group in zip(*sides, *views, strict=True)]
    ops.kron_step_(
        groups,
        arguments["scales"],
        arguments["norms"],
        arguments["rule"],
        update=arguments["update"],
        precondition=True,
    )


def _update(ops: Any, arguments: Arguments) -> None:  # noqa: ANN401
    ops.update_factor_(
        arguments["factor"],
        arguments["statistics"],
        arguments["unfolding"],
        arguments["scales"],
        arguments["rule"],
    )


def root_rule_of(spec: CaseSpec) -> RootRule:
    return RootRule(polar.POLYNOMIALS[8], RESIDUAL_BOUND, spec.precision)


def _roots(ops: Any, arguments: Arguments) -> None:  # noqa: ANN401
    active = (arguments["scales"] > 0).split([len(factor) for factor in arguments["factors"]])
    sides = [
        RootSide(Side(factor, statistics, root), stats, mask, k)
        for factor, statistics, root, stats, mask, k in zip(
            arguments["factors"],
            arguments["statistics"],
            arguments["roots"],
            arguments["root_stats"],
            active,
            arguments["columns"],
            strict=True,
        )
    ]
    ops.polar_roots_(sides, arguments["rule"], Turn())


def costs(spec: CaseSpec, arguments: Arguments) -> tuple[Cost, ...]:
    """Return the costs for the roofline's prediction; none for an update of one side alone."""
    if spec.op != "kron_step_":
        return ()
    groups = [
        Blocks(len(left), left.shape[1], right.shape[1])
        for left, right in zip(arguments["left"], arguments["right"], strict=True)
    ]
    grad: torch.dtype = getattr(torch, spec.dtype)
    stored = arguments["left"][0].element_size()
    options = CallOptions(
        arguments["rule"], update=arguments["update"], grad=grad.itemsize, factor=stored, root=stored
    )
    return tuple(step_costs(groups, options))


def bmm_products(arguments: Arguments) -> Callable[[], None]:
    """Return ``kron_step_``'s products by torch on contiguous float32 blocks, without norms, guard or gather.

    The values do not matter, so every coefficient is 1. Symmetric products compute the whole matrix here.
    """
    names = ("left", "right", "left_root", "right_root", "grad", "direction")
    groups = [
        [tensor.reshape(-1, *tensor.shape[-2:]).float().contiguous() for tensor in tensors]
        for tensors in zip(*(arguments[name] for name in names), strict=True)
    ]
    rule, update = arguments["rule"], arguments["update"]

    def run() -> None:
        for left, right, a, b, grad, direction in groups:
            if update:
                pair = (torch.bmm(grad, b), torch.bmm(a, grad)) if rule.coupled else (grad, grad)
                _times_inverse_root(left, pair[0], rule.refine)
                _times_inverse_root(right, pair[1].mT, rule.refine)
            torch.bmm(torch.bmm(a, direction), b)

    return run


def _times_inverse_root(factor: Tensor, unfolding: Tensor, refine: int) -> Tensor:
    """Compute the products of one side's update."""
    whitened = torch.bmm(factor.mT, unfolding)
    y = torch.baddbmm(torch.bmm(factor.mT, factor), whitened, whitened.mT)
    z = polynomial = y
    for _ in range(refine - 1):
        y = torch.bmm(y, polynomial)
        polynomial = torch.bmm(z, y)
        z = torch.bmm(polynomial, z)
    return torch.bmm(factor, z)
