"""The least work on blocks on a step, from their shapes: what no kernel for these formulas can do without.

Flops are one multiplication and one addition a term, half of it where a product is symmetric. Bytes are every
operand of an update and of a product once: gradient, roots as triangles, factor in and out; direction, roots,
update. What launches move between one another comes on top (bench/roofline.py counts it).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from kradagrad_ext.backends.base import WHOLE_SIDE
from kradagrad_ext.clock import damping_interval
from kradagrad_ext.config import Config
from kradagrad_ext.plan import Group
from kradagrad_ext.roots import resolve_method

from .gpus import Cost

FLOAT = 4  # bytes
TERMS = {"bf16x3": 3, "tf32x3": 3, "fp32": 1}
"""Products on tensor cores that one of float32 operands takes."""

KINDS = {"bf16x3": "bf16", "tf32x3": "tf32", "fp32": "fp32"}

RESIDENT_SIDES = (64, 96, 128)
"""Of the kernels that keep a block on chip; shorter sides are padded (csrc/cuda/plan/block_kernel.h). Up to
`WHOLE_SIDE` others work on it in memory, in bf16x3 alone, by tiles of half that."""

ROOT_SIDES = (*RESIDENT_SIDES, WHOLE_SIDE, 512, 1024)
"""Of factors whose roots one launch makes, by one of these kernels (csrc/cuda/plan/root_plan.cpp)."""

EIGH_FLOPS = 9
"""Of d^3, for all eigenvalues and vectors by the QR algorithm; what a GPU makes of it takes far longer."""


def kernel_side(longest: int, precision: str) -> int | None:
    """The side of the kernel that takes a block as a whole; None where none does."""
    sides = (
        (*RESIDENT_SIDES, WHOLE_SIDE) if precision == "bf16x3" else (RESIDENT_SIDES[0], RESIDENT_SIDES[-1])
    )
    return next((side for side in sides if longest <= side), None)


def kernel_name(op: str, side: int, precision: str) -> str:
    """Of a kernel that takes a block as a whole."""
    return f"wide_{op}" if side >= WHOLE_SIDE else f"resident_{op}_{side}_{precision}"


def root_side(d: int, precision: str) -> int | None:
    """What the kernel that makes the root of a factor pads it to; None where none does."""
    if d <= WHOLE_SIDE or precision != "bf16x3" or d > ROOT_SIDES[-1]:
        return kernel_side(d, precision)
    return -(-d // (WHOLE_SIDE // 2)) * (WHOLE_SIDE // 2)


def launch_side(side: int) -> int:
    """The longest of factors whose roots share a launch with those of a padded side."""
    return next(longest for longest in ROOT_SIDES if side <= longest)


def product_tile(precision: str) -> int:
    """Side of the CTA tiles of products of blocks with longer sides."""
    return 64 if precision == "tf32x3" else 128


def _kernels(group: Group, precision: str) -> tuple[str, str]:
    """Which do most of a group's update and of its product; one name for what is left to torch."""
    if len(group.block_shape) != 2 or not all(group.factored):
        return "kron_step", "kron_step"
    longest = max(group.block_shape)
    side = kernel_side(longest, precision)
    if side is None:
        return (f"square_root_product_{product_tile(precision)}_{precision}",) * 2
    return kernel_name("update", side, precision), kernel_name("precondition", side, precision)


def block_costs(groups: Sequence[Group], config: Config, dtype: torch.dtype) -> Iterator[Cost]:
    """Factor updates and products by kernel; `dtype`: of parameters and gradients."""
    least, size = defaultdict[str, float](float), defaultdict[str, float](float)
    share = 1 / config.factor_every
    for group in groups:
        update, product = _kernels(group, config.precision)
        least[update] += share * _update_flops(group, config)
        size[update] += share * _update_bytes(group, config, dtype)
        least[product] += group.product_flops
        size[product] += _product_bytes(group, config, dtype)
    for kernel, flops in least.items():
        executed = {KINDS[config.precision]: TERMS[config.precision] * flops}
        yield Cost(kernel, "blocks", 1, size[kernel], executed, flops)
    if config.packed and groups:
        yield _packing_cost(groups, config)


def _update_flops(group: Group, config: Config) -> float:
    """With coupling every mode's unfolding is whitened on the others; damping adds F^T F where it enters."""
    flops = float(group.update_flops(config.refine))
    modes = sum(map(bool, group.factor_dims))
    if config.coupling == "kl":
        flops += (modes - 1) * group.product_flops
    if config.factor_decay == 1:
        return flops
    every = damping_interval(config, in_turns=_root_method(group, config)[1] == "polar")
    damped = 1.0 if config.capturable else min(1.0, config.factor_every / every)
    return flops + damped * group.blocks * sum(d**3 for d in group.factor_dims)


def _update_bytes(group: Group, config: Config, dtype: torch.dtype) -> float:
    """Gradient, factors read and written, and for coupled updates the roots."""
    elements = group.blocks * math.prod(group.block_shape)
    roots = _root_bytes(config) * _triangles(group) if config.coupling == "kl" else 0
    return dtype.itemsize * elements + FLOAT * 2 * group.factor_elements + roots


def _product_bytes(group: Group, config: Config, dtype: torch.dtype) -> float:
    """Direction and update, and the roots."""
    direction = FLOAT if config.momentum_on == "gradient" else dtype.itemsize
    elements = group.blocks * math.prod(group.block_shape)
    return (direction + FLOAT) * elements + _root_bytes(config) * _triangles(group)


def _root_bytes(config: Config) -> int:
    """Of an element."""
    return FLOAT if config.root_dtype is None else config.root_dtype.itemsize


def _triangles(group: Group) -> int:
    """Elements of symmetric matrices as large as the factors."""
    return sum(group.blocks * d * (d + 1) // 2 for d in group.factor_dims)


def _packing_cost(groups: Sequence[Group], config: Config) -> Cost:
    """Roots made whole on every step, from triangles."""
    elements = sum(group.factor_elements for group in groups)
    triangles = sum(map(_triangles, groups))
    return Cost("torch: index", "triangles", 2 * len(groups), _root_bytes(config) * (elements + triangles))


def _root_method(group: Group, config: Config) -> tuple[int, str]:
    """p, and how a GPU makes the root."""
    p = config.root_order(len(group.block_shape))
    return p, resolve_method(config.wanted_root_method, p, torch.device("cuda"))


def root_costs(groups: Sequence[Group], config: Config) -> list[Cost]:
    """New roots, a step, which makes one of `root_every` of them: by a kernel, and by torch's products."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 3)
    launches: dict[str, dict[tuple[int, ...], float]] = defaultdict(dict)
    share = 1 / config.root_every
    for number, group in enumerate(groups):
        p, method = _root_method(group, config)
        for mode, d in enumerate(group.factor_dims):
            if d == 0:
                continue
            side = root_side(d, config.precision) if (p, method) == (2, "polar") else None
            kernel = kernel_name("root", side, config.precision) if side else "torch: bmm"
            shared = (launch_side(side),) if side else (number, mode)
            launches[kernel][shared] = 1.0 if method == "polar" else share  # in turns on every step
            own = (
                _root_of_kernel(d, side, config) if side else _root_of_torch(d, p, method, config.polar_steps)
            )
            each = (group.blocks * share * work for work in own)
            sums[kernel] = [total + work for total, work in zip(sums[kernel], each, strict=True)]
    costs = []
    for kernel, (size, executed, least) in sums.items():
        kind = "cublas fp32" if kernel == "torch: bmm" else KINDS[config.precision]
        costs.append(Cost(kernel, "roots", sum(launches[kernel].values()), size, {kind: executed}, least))
    return costs


def _root_of_kernel(d: int, side: int, config: Config) -> tuple[float, float, float]:
    """Bytes, executed and least flops of one block by a kernel, which pads it to its side.

    Matrices of long sides are larger than an L2 in all: both operands are read for every tile of a product.
    """
    products, extra = _of_root(2, "polar", config.polar_steps)
    flops = products + 2 + extra  # X and P^2 for the residual
    size = float((FLOAT + _root_bytes(config)) * d**2)
    if side > WHOLE_SIDE:
        size += (3 * config.polar_steps + 3) * 2 * FLOAT * side**3 / (WHOLE_SIDE // 2)
    return size, TERMS[config.precision] * flops * side**3, flops * d**3


def _root_of_torch(d: int, p: int, method: str, steps: int) -> tuple[float, float, float]:
    """The same by float32 products: X, the powers of P for the residual, and the products of `_of_root`.

    All but one a polar step are symmetric, which torch's products make no use of.
    """
    products, extra = _of_root(p, method, steps)
    products += p.bit_length() + p.bit_count() - 1
    executed = 2 * products + (extra if method == "eigh" else 0)
    return FLOAT * 3 * products * d**2, executed * d**3, (products + extra) * d**3


def _of_root(p: int, method: str, steps: int) -> tuple[int, int]:
    """Products that make a root, and what they take beyond symmetric products, of d^3.

    A polar step has G, G^2 and Q times their sum, which is not symmetric; one that halves the exponent of P
    has four symmetric products. An eigendecomposition counts by its flops, which is less than what it takes.
    """
    if p == 1:
        return 0, 0
    if method == "eigh":
        return 1, EIGH_FLOPS
    return (3 + 4 * (p.bit_length() - 2)) * steps + 1, steps
