"""The least work on blocks on a step, from their shapes: the minimum for any kernel of these formulas.

Flops are one multiplication and one addition per term, half of it where a product is symmetric. Bytes count
every operand of an update and of a product once: gradient, roots as triangles, factor in and out; direction,
roots, update. Bytes that launches pass to each other are not included (bench/roofline counts them).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from kradagrad_ext.backends.base import WHOLE_SIDE
from kradagrad_ext.blocking import ShapeGroup
from kradagrad_ext.config import Config
from kradagrad_ext.roots import resolve_method
from kradagrad_ext.schedule import damping_interval

from .gpus import Cost

FLOAT = 4  # bytes
TERMS = {"bf16x3": 3, "tf32x3": 3, "fp32": 1}
"""Number of products on tensor cores per product of float32 operands."""

KINDS = {"bf16x3": "bf16", "tf32x3": "tf32", "fp32": "fp32"}

RESIDENT_SIDES = (64, 96, 128)
"""Sides of the kernels that keep a block on chip; shorter sides are padded (csrc/cuda/plan/block_kernel.h).
Other kernels process blocks up to `WHOLE_SIDE` in memory, in bf16x3 alone, by tiles of half that side."""

ROOT_SIDES = (*RESIDENT_SIDES, WHOLE_SIDE, 512, 1024)
"""Longest sides of factors whose roots share a launch of one kernel (csrc/cuda/plan/root_plan.cpp)."""

EIGH_FLOPS = 9
"""Flops over d^3 of all eigenvalues and eigenvectors by the QR algorithm; a GPU takes far longer."""


def kernel_side(longest: int, precision: str) -> int | None:
    """Return the side of the kernel that processes a block whole; None if no kernel does."""
    sides = (
        (*RESIDENT_SIDES, WHOLE_SIDE) if precision == "bf16x3" else (RESIDENT_SIDES[0], RESIDENT_SIDES[-1])
    )
    return next((side for side in sides if longest <= side), None)


def kernel_name(op: str, side: int, precision: str) -> str:
    """Return the name of a kernel that processes a block whole."""
    return f"wide_{op}" if side >= WHOLE_SIDE else f"resident_{op}_{side}_{precision}"


def root_side(d: int, precision: str) -> int | None:
    """Return the side to which the root kernel pads a factor; None if no kernel computes its root."""
    if d <= WHOLE_SIDE or precision != "bf16x3" or d > ROOT_SIDES[-1]:
        return kernel_side(d, precision)
    return -(-d // (WHOLE_SIDE // 2)) * (WHOLE_SIDE // 2)


def launch_side(side: int) -> int:
    """Return the longest side of the factors whose roots share a launch with those of a padded side."""
    return next(longest for longest in ROOT_SIDES if side <= longest)


def product_tile(precision: str) -> int:
    """Return the side of the CTA tiles of products, for blocks too large to be processed whole."""
    return 64 if precision == "tf32x3" else 128


def _kernels(group: ShapeGroup, precision: str) -> tuple[str, str]:
    """Return the kernels of most of a shape group's update and product; one name for what torch computes."""
    if len(group.block_shape) != 2 or not all(group.factored):
        return "kron_step", "kron_step"
    longest = max(group.block_shape)
    side = kernel_side(longest, precision)
    if side is None:
        return (f"square_root_product_{product_tile(precision)}_{precision}",) * 2
    return kernel_name("update", side, precision), kernel_name("precondition", side, precision)


def block_costs(groups: Sequence[ShapeGroup], config: Config, dtype: torch.dtype) -> Iterator[Cost]:
    """Yield the costs of factor updates and products by kernel; `dtype`: of parameters and gradients."""
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


def _update_flops(group: ShapeGroup, config: Config) -> float:
    """Return the flops of factor updates.

    With coupling every mode's unfolding is whitened on the other modes. Damping, where it enters, adds F^T F.
    """
    flops = float(group.update_flops(config.refine))
    modes = sum(map(bool, group.factor_dims))
    if config.coupling == "kl":
        flops += (modes - 1) * group.product_flops
    if config.factor_decay == 1:
        return flops
    every = damping_interval(config, in_turns=_root_method(group, config)[1] == "polar")
    damped = 1.0 if config.capturable else min(1.0, config.factor_every / every)
    return flops + damped * group.blocks * sum(d**3 for d in group.factor_dims)


def _update_bytes(group: ShapeGroup, config: Config, dtype: torch.dtype) -> float:
    """Return the bytes of the gradient, the factors read and written, and for coupled updates the roots."""
    elements = group.blocks * math.prod(group.block_shape)
    roots = _root_bytes(config) * _triangles(group) if config.coupling == "kl" else 0
    return dtype.itemsize * elements + FLOAT * 2 * group.factor_elements + roots


def _product_bytes(group: ShapeGroup, config: Config, dtype: torch.dtype) -> float:
    """Return the bytes of direction and update, and of the roots."""
    direction = FLOAT if config.momentum_on == "gradient" else dtype.itemsize
    elements = group.blocks * math.prod(group.block_shape)
    return (direction + FLOAT) * elements + _root_bytes(config) * _triangles(group)


def _root_bytes(config: Config) -> int:
    """Return the bytes of an element of a root."""
    return FLOAT if config.root_dtype is None else config.root_dtype.itemsize


def _triangles(group: ShapeGroup) -> int:
    """Return the number of distinct elements of symmetric matrices of the factors' sizes."""
    return sum(group.blocks * d * (d + 1) // 2 for d in group.factor_dims)


def _packing_cost(groups: Sequence[ShapeGroup], config: Config) -> Cost:
    """Return the cost of unpacking roots from triangles on every step."""
    elements = sum(group.factor_elements for group in groups)
    triangles = sum(map(_triangles, groups))
    return Cost("torch: index", "triangles", 2 * len(groups), _root_bytes(config) * (elements + triangles))


def _root_method(group: ShapeGroup, config: Config) -> tuple[int, str]:
    """Return p, and the method of the root on a GPU."""
    p = config.root_order(len(group.block_shape))
    return p, resolve_method(config.wanted_root_method, p, torch.device("cuda"))


def root_costs(groups: Sequence[ShapeGroup], config: Config) -> list[Cost]:
    """Return the costs of new roots per step (one of `root_every` is due), by kernels or torch's products."""
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
            of_block = (
                _root_of_kernel(d, side, config) if side else _root_of_torch(d, p, method, config.polar_steps)
            )
            of_group = (group.blocks * share * work for work in of_block)
            sums[kernel] = [total + work for total, work in zip(sums[kernel], of_group, strict=True)]
    costs = []
    for kernel, (size, executed, least) in sums.items():
        kind = "cublas fp32" if kernel == "torch: bmm" else KINDS[config.precision]
        costs.append(Cost(kernel, "roots", sum(launches[kernel].values()), size, {kind: executed}, least))
    return costs


def _root_of_kernel(d: int, side: int, config: Config) -> tuple[float, float, float]:
    """Return bytes, executed and least flops of one block's root by a kernel, which pads it to its side.

    Matrices with long sides together exceed an L2 cache: both operands are read for every tile of a product.
    """
    products, extra = _of_root(2, "polar", config.polar_steps)
    flops = products + 2 + extra  # X and P^2 for the residual
    size = float((FLOAT + _root_bytes(config)) * d**2)
    if side > WHOLE_SIDE:
        size += (3 * config.polar_steps + 3) * 2 * FLOAT * side**3 / (WHOLE_SIDE // 2)
    return size, TERMS[config.precision] * flops * side**3, flops * d**3


def _root_of_torch(d: int, p: int, method: str, steps: int) -> tuple[float, float, float]:
    """Return the same for float32 products by torch: X, powers of P for the residual, those of `_of_root`.

    All except one per polar step are symmetric, which torch's products do not exploit.
    """
    products, extra = _of_root(p, method, steps)
    products += p.bit_length() + p.bit_count() - 1
    executed = 2 * products + (extra if method == "eigh" else 0)
    return FLOAT * 3 * products * d**2, executed * d**3, (products + extra) * d**3


def _of_root(p: int, method: str, steps: int) -> tuple[int, int]:
    """Return the number of products of a root, and the flops over d^3 beyond those of symmetric products.

    A polar step has G, G^2 and Q times their sum, which is not symmetric; a step that halves the exponent of
    P has four symmetric products. An eigendecomposition is counted by its flops, which underestimates it.
    """
    if p == 1:
        return 0, 0
    if method == "eigh":
        return 1, EIGH_FLOPS
    return (3 + 4 * (p.bit_length() - 2)) * steps + 1, steps
