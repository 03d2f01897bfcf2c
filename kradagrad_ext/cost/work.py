"""The least work of a step's launches, from shapes alone: the bytes that they move, and their flops.

On blocks this is the minimum for any kernel of these formulas. Flops are one multiplication and one addition
per term, half of it where a product is symmetric. Bytes count every operand of an update and of a product
once: gradient, roots as triangles, factor in and out; direction, roots, update. Bytes that launches pass to
each other are not included (bench/roofline counts them).
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from kradagrad_ext.backends.base import COEFFICIENTS, WHOLE_SIDE
from kradagrad_ext.backends.scalars import COLUMNS, GRADIENT_DECAY, spans_of
from kradagrad_ext.blocking import Blocking, Shape, ShapeGroup, blocking_of, group_by_shape
from kradagrad_ext.config import Config
from kradagrad_ext.roots import resolve_method
from kradagrad_ext.schedule import damping_interval
from kradagrad_ext.state import keeps_residuals

from .parameters import ParamShape

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

CONCURRENT_WITH_UPDATE_MOMENTS = "resident_update_128_bf16x3"
"""The kernel beside which an SM has registers left for a CTA of `update_moments` on a side stream."""

SCALARS = len(COLUMNS) + COEFFICIENTS
"""Number of scalars and coefficients of a matrix."""


@dataclass(frozen=True)
class Cost:
    """The least work of the launches of one kernel at one point of a step.

    Attributes:
        kernel: its name at launch; "torch: " precedes torch's.  step: the part of the step that it computes.
        launches: launches per step; a fraction if they occur on some steps only.
        bytes: bytes of global memory, every operand of a launch once.
        flops: flops by kind of arithmetic, as executed: every term of split products, padding included.
        least_flops: one multiplication and addition per term of the formula, half of it if C is symmetric.
        concurrent_with: the kernel that this one shares the SMs with, if it is launched on the same step.
    """

    kernel: str
    step: str
    launches: float
    bytes: float
    flops: dict[str, float] = field(default_factory=dict)
    least_flops: float = 0.0
    concurrent_with: str = ""


@dataclass(frozen=True)
class GroupShapes:
    """Parameters or pieces of one parameter group, dtype and graft, which are stepped together."""

    options: Config
    dtype: torch.dtype
    blockings: list[Blocking] = field(default_factory=list)

    @functools.cached_property
    def groups(self) -> tuple[ShapeGroup, ...]:
        return group_by_shape(self.blockings)

    @property
    def shapes(self) -> tuple[list[Shape], list[Shape]]:
        """The shapes of those with blocks, and of the rest."""
        blocked = [blocking.shape for blocking in self.blockings if blocking.grids]
        return blocked, [blocking.shape for blocking in self.blockings if not blocking.grids]


def split_parts(members: Iterable[tuple[ParamShape, Blocking]]) -> list[GroupShapes]:
    """Sort parameters, or pieces of them, each with its blocking, by what is stepped together."""
    parts: dict[tuple[int, torch.dtype, str], GroupShapes] = {}
    for p, blocking in members:
        options = p.config.for_blocks(bool(blocking.grids))
        part = parts.setdefault((p.position, p.dtype, options.graft), GroupShapes(options, p.dtype))
        part.blockings.append(blocking)
    return list(parts.values())


def parts_of(
    shapes: Sequence[Shape],
    config: Config,
    dtype: torch.dtype = torch.float32,
    plain_shapes: Sequence[Shape] = (),
) -> list[GroupShapes]:
    """Return the shapes of two parameter groups on one rank; `plain_shapes` have ``precondition=False``."""
    groups = enumerate(((shapes, config), (plain_shapes, replace(config, precondition=False))))
    params = [ParamShape(shape, dtype, i, options) for i, (each, options) in groups for shape in each]
    return split_parts((p, blocking_of(p.shape, p.config)) for p in params)


def kernel_costs(
    parts: Sequence[GroupShapes], costs_on_blocks: Callable[[GroupShapes], Iterable[Cost]] | None = None
) -> list[Cost]:
    """Return the costs of a step without new roots; one of `factor_every` steps updates the factors.

    Args:
        costs_on_blocks: returns the costs on a part's blocks of the kernels in question; else the least.
    """
    on_blocks = costs_on_blocks or (lambda part: block_costs(part.groups, part.options, part.dtype))
    costs = [cost for part in parts for cost in before_blocks(*part.shapes, part.options, part.dtype)]
    costs += [cost for part in parts for cost in on_blocks(part)]
    return costs + [
        cost for part in parts for cost in apply_updates_costs(*part.shapes, part.options, part.dtype)
    ]


def elements(shapes: Sequence[Shape]) -> int:
    """Return the number of elements of all shapes together."""
    return sum(math.prod(shape) for shape in shapes)


def before_blocks(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """Yield the costs of the guard against non-finite gradients, moments, and norms of the grafting updates.

    Args:
        matrices, rest: shapes of parameters with and without blocks.
        dtype: that of parameters and gradients.
    """
    shapes = [*matrices, *rest]
    if not shapes:
        return
    count, size = elements(shapes), dtype.itemsize
    yield Cost("torch: foreach_norm", "guard", 1, size * count)
    yield Cost("guard_gradients", "guard", 1, FLOAT * (SCALARS + len(COLUMNS)) * len(shapes))
    each = size + 2 * FLOAT * (config.has_second_moment + (config.momentum_on == "gradient"))
    each += FLOAT * config.writes_directions
    each += size * bool(config.scalar_rule.decayed == GRADIENT_DECAY and config.weight_decay)
    host = CONCURRENT_WITH_UPDATE_MOMENTS if matrices else ""
    total = each * count + FLOAT * _norms(matrices, rest, config)
    yield Cost("update_moments", "moments", 1, total, concurrent_with=host)


def apply_updates_costs(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """Yield the costs of lengths, graft, weight decay, momentum of the update and the write.

    Args:
        matrices, rest, dtype: see `before_blocks`.
    """
    shapes = [*matrices, *rest]
    if not shapes:
        return
    norms = _norms(matrices, rest, config)
    if norms:
        yield Cost("scale_updates", "lengths", 1, FLOAT * (2 * SCALARS * len(shapes) + norms))
    size, averaged = dtype.itemsize, config.momentum_on == "gradient"
    each = 2 * size * (1 + keeps_residuals(config, dtype)) + 2 * FLOAT * (not averaged)
    direction = (FLOAT if averaged else size) + FLOAT * config.has_second_moment
    total = each * elements(shapes) + FLOAT * elements(matrices) + direction * elements(rest)
    yield Cost("apply_updates", "write", 1, total)


def _norms(matrices: Sequence[Shape], rest: Sequence[Shape], config: Config) -> int:
    """Return the number of norms of grafting updates; 0 if no update is scaled (`step.BatchStep`)."""
    scales = bool(matrices) or not config.scalar_rule.keeps_grafts
    return sum(spans_of(math.prod(shape)) for shape in [*matrices, *rest]) if scales else 0


def kernel_side(longest: int, precision: str) -> int | None:
    """Return the side of the kernel that processes a block whole; None if no kernel does."""
    if precision == "bf16x3":
        sides: Sequence[int] = (*RESIDENT_SIDES, WHOLE_SIDE)
    else:
        sides = RESIDENT_SIDES[0], RESIDENT_SIDES[-1]
    return next((side for side in sides if longest <= side), None)


def kernel_name(op: str, side: int, precision: str) -> str:
    """Return the name of a kernel that processes a block whole."""
    return f"wide_{op}" if side >= WHOLE_SIDE else f"resident_{op}_{side}_{precision}"


def root_side(d: int, precision: str) -> int | None:
    """Return the side to which the root kernel pads a factor; None if no kernel computes its root."""
    if d <= WHOLE_SIDE or precision != "bf16x3" or d > ROOT_SIDES[-1]:
        return kernel_side(d, precision)
    return -(-d // (WHOLE_SIDE // 2)) * (WHOLE_SIDE // 2)


def product_tile(precision: str) -> int:
    """Return the side of the CTA tiles of products, for blocks too large to be processed whole."""
    return 64 if precision == "tf32x3" else 128


def _kernels(group: ShapeGroup, precision: str) -> tuple[str, str]:
    """Return the kernels of most of a shape group's update and product; one name for what torch computes."""
    if len(group.block_shape) != 2 or not all(group.factored):
        return "kron_step", "kron_step"
    side = kernel_side(max(group.block_shape), precision)
    if side is None:
        return (f"square_root_product_{product_tile(precision)}_{precision}",) * 2
    return kernel_name("update", side, precision), kernel_name("precondition", side, precision)


def block_costs(groups: Sequence[ShapeGroup], config: Config, dtype: torch.dtype) -> Iterator[Cost]:
    """Yield the costs of factor updates and products by kernel; `dtype`: of parameters and gradients."""
    least, size = defaultdict[str, float](float), defaultdict[str, float](float)
    share = 1 / config.factor_every
    direction = FLOAT if config.momentum_on == "gradient" else dtype.itemsize
    root = _root_bytes(config)
    for group in groups:
        update, product = _kernels(group, config.precision)
        elements_of, triangles = group.blocks * math.prod(group.block_shape), root * _triangles(group)
        least[update] += share * _update_flops(group, config)
        moved = dtype.itemsize * elements_of + FLOAT * 2 * group.factor_elements
        size[update] += share * (moved + triangles * (config.coupling == "kl"))
        least[product] += group.product_flops
        size[product] += (direction + FLOAT) * elements_of + triangles
    for kernel, flops in least.items():
        executed = {KINDS[config.precision]: TERMS[config.precision] * flops}
        yield Cost(kernel, "blocks", 1, size[kernel], executed, flops)
    if config.packed and groups:  # roots are unpacked from triangles on every step
        both = sum(group.factor_elements + _triangles(group) for group in groups)
        yield Cost("torch: index", "triangles", 2 * len(groups), root * both)


def _update_flops(group: ShapeGroup, config: Config) -> float:
    """Return the flops of factor updates.

    With coupling every mode's unfolding is whitened on the other modes. Damping, where it enters, adds F^T F.
    """
    flops = float(group.update_flops(config.refine))
    if config.coupling == "kl":
        flops += (len(group.modes) - 1) * group.product_flops
    if config.factor_decay == 1:
        return flops
    every = damping_interval(config, in_turns=_root_method(group, config)[1] == "polar")
    damped = 1.0 if config.capturable else min(1.0, config.factor_every / every)
    return flops + damped * group.blocks * sum(d**3 for d in group.factor_dims)


def _root_bytes(config: Config) -> int:
    """Return the bytes of an element of a root."""
    return FLOAT if config.root_dtype is None else config.root_dtype.itemsize


def _triangles(group: ShapeGroup) -> int:
    """Return the number of distinct elements of symmetric matrices of the factors' sizes."""
    return sum(group.blocks * d * (d + 1) // 2 for d in group.factor_dims)


def _root_method(group: ShapeGroup, config: Config) -> tuple[int, str]:
    """Return p, and the method of the root on a GPU."""
    p = config.root_order(len(group.block_shape))
    return p, resolve_method(config.wanted_root_method, p, torch.device("cuda"))


def root_costs(groups: Sequence[ShapeGroup], config: Config) -> list[Cost]:
    """Return the costs of new roots per step (one of `root_every` is due), by kernels or torch's products."""
    works: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    launches: dict[str, dict[object, float]] = defaultdict(dict)
    share = 1 / config.root_every
    for number, group in enumerate(groups):
        p, method = _root_method(group, config)
        for mode in group.modes:
            d = group.block_shape[mode]
            side = root_side(d, config.precision) if (p, method) == (2, "polar") else None
            kernel = kernel_name("root", side, config.precision) if side else "torch: bmm"
            shared = next(longest for longest in ROOT_SIDES if side <= longest) if side else (number, mode)
            launches[kernel][shared] = 1.0 if method == "polar" else share  # in turns on every step
            size, executed, least = _root_work(d, side, p, method, config)
            count = group.blocks * share
            works[kernel].append((count * size, count * executed, count * least))
    costs = []
    for kernel, each in works.items():
        size, executed, least = map(sum, zip(*each, strict=True))
        kind = "cublas fp32" if kernel == "torch: bmm" else KINDS[config.precision]
        costs.append(Cost(kernel, "roots", sum(launches[kernel].values()), size, {kind: executed}, least))
    return costs


def _root_work(d: int, side: int | None, p: int, method: str, config: Config) -> tuple[float, float, float]:
    """Return bytes, executed and least flops of one block's root.

    A polar step has G, G^2 and Q times their sum, which is not symmetric; a step that halves the exponent of
    P has four symmetric products. An eigendecomposition is counted by its flops, which underestimates it.
    Torch's products do not exploit symmetry.

    Args:
        side: that to which a kernel pads F; None for torch.
    """
    products, extra = 1, EIGH_FLOPS  # extra: flops over d^3 beyond those of symmetric products
    if p == 1:
        products, extra = 0, 0
    elif method == "polar":
        products, extra = (3 + 4 * (p.bit_length() - 2)) * config.polar_steps + 1, config.polar_steps
    products += p.bit_length() + p.bit_count() - 1  # X, and powers of P for the residual
    least = (products + extra) * d**3
    if side is None:
        executed = (2 * products + extra * (method == "eigh")) * d**3
        return FLOAT * 3 * products * d**2, executed, least
    size = float((FLOAT + _root_bytes(config)) * d**2)
    if side > WHOLE_SIDE:  # beyond an L2 cache: both operands are read for every tile of a product
        size += products * 2 * FLOAT * side**3 / (WHOLE_SIDE // 2)
    return size, TERMS[config.precision] * (products + extra) * side**3, least
