"""Costs of the launches of ``kron_step_`` on CUDA, after csrc/cuda/plan and the kernels' comments.

A block's statistics and norms are not counted: they are a few numbers, compared with its matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kradagrad_ext.backends.base import UpdateRule
from kradagrad_ext.blocking import iteration_products
from kradagrad_ext.cost.work import (
    FLOAT,
    KINDS,
    RESIDENT_SIDES,
    WHOLE_SIDE,
    Cost,
    kernel_name,
    kernel_side,
    product_tile,
)

TILE = 16  # side of a tensor-core tile, csrc/cuda/kernels/tile.cuh
DEPTH = 32  # kProductDepth
WIDE_TILE = WHOLE_SIDE // 2  # side of a tile of C
STATIC_BYTES = 1024  # kStaticShared
SPLITS = {"bf16x3": 2, "tf32x3": 2, "fp32": 1}
"""Terms of an operand, by precision."""

SCRATCH_BYTES = 256 << 20
SHARED_BYTES = 227 << 10
"""Shared memory of a CTA on an H100 or B200. An A100 has 163 KB, which matters only for refine 3 and more."""

Side = tuple[str, int, int]
"""A side's name, its d and its k."""


def ceil_to(size: int, unit: int) -> int:
    """Return the least multiple of `unit` that is not below `size`."""
    return -(-size // unit) * unit


def terms(precision: str, exact_a: bool = False, exact_b: bool = False) -> int:
    """Count the products of a split product: terms i and j with i + j < the number of terms of an operand.

    A bf16 operand is exact in its first term, so products with its other terms are left out.
    """
    count = SPLITS[precision]
    pairs = [(i, j) for i in range(count) for j in range(count - i)]
    return sum(not (exact_a and i) and not (exact_b and j) for i, j in pairs)


def lower_elements(side: int) -> int:
    """Count the elements of the 16 x 16 tiles on and below the diagonal."""
    whole, rest = divmod(side, TILE)
    return TILE * TILE * whole * (whole + 1) // 2 + rest * side


@dataclass
class Work:
    """Work of one block in one launch: bytes by operand, each once; executed and least flops."""

    operands: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    least_flops: float = 0.0

    def move(self, operands: Mapping[str, float]) -> None:
        for name, size in operands.items():
            self.operands[name] = max(size, self.operands.get(name, 0))

    @property
    def bytes(self) -> float:
        return sum(self.operands.values())


@dataclass(frozen=True)
class Blocks:
    """Blocks of equal shape."""

    count: int
    m: int
    n: int

    @property
    def longest(self) -> int:
        return max(self.m, self.n)

    @property
    def sides(self) -> tuple[Side, Side]:
        return ("left", self.m, self.n), ("right", self.n, self.m)


@dataclass(frozen=True)
class CallOptions:
    """Options that all blocks of a call share.

    Attributes:
        grad, direction, factor, root: bytes of an element.
        scratch_bytes: scratch memory of a slice of the grouped products.
        shared_bytes: shared memory of a CTA.
    """

    rule: UpdateRule
    update: bool = True
    precondition: bool = True
    grad: int = FLOAT
    direction: int = FLOAT
    factor: int = FLOAT
    root: int = FLOAT
    scratch_bytes: int = SCRATCH_BYTES
    shared_bytes: int = SHARED_BYTES

    def kernel_side(self, longest: int) -> int | None:
        """Return the side of the smallest kernels that take a whole block and fit the shared memory."""
        side = kernel_side(longest, self.rule.precision)
        while side in RESIDENT_SIDES and resident_shared(side, self) > self.shared_bytes:
            side = kernel_side(side + 1, self.rule.precision)
        return side

    @property
    def damps(self) -> bool:
        return self.rule.damped_updates > 0

    @property
    def kind(self) -> str:
        return KINDS[self.rule.precision]


def resident_shared(side: int, call: CallOptions) -> int:
    """Return the shared bytes of a CTA of one or two teams.

    A team has a matrix, and a second one or the lower tiles of two or three symmetric matrices.
    """
    tiles = side // TILE
    lower = ceil_to(tiles * (tiles + 1) // 2, 2)
    symmetric = (3 if call.update and call.rule.refine > 2 else 2) * lower
    return (1 if tiles > 6 else 2) * (tiles**2 + max(tiles**2, symmetric)) * 1024 + STATIC_BYTES


def step_costs(groups: Sequence[Blocks], call: CallOptions) -> list[Cost]:
    """Return the launches of one call with all groups, the resident ones first.

    Raises:
        ValueError: updates by Cholesky, which no kernel computes.
    """
    if call.update and call.rule.method == "cholesky":
        raise ValueError("no kernel serves updates by Cholesky, which are torch's")
    by_side: dict[int | None, list[Blocks]] = {}
    for group in groups:
        by_side.setdefault(call.kernel_side(group.longest), []).append(group)
    grouped = by_side.pop(None, [])
    costs = [cost for side in by_side for cost in whole_costs(by_side[side], side, call)]
    return costs + (list(GroupedCosts(grouped, call).launches()) if grouped else [])


def whole_costs(groups: Sequence[Blocks], side: int, call: CallOptions) -> Iterator[Cost]:
    """Yield the update and the product of blocks by the kernels of a side, one launch each."""
    resident = side in RESIDENT_SIDES
    halves: list[tuple[str, bool, Callable[[Blocks, int, CallOptions], Work]]] = [
        ("update", call.update, resident_update if resident else wide_update),
        ("precondition", call.precondition, resident_precondition if resident else wide_precondition),
    ]
    for name, wanted, make in halves:
        if not wanted:
            continue
        works = [(group.count, make(group, side, call)) for group in groups]
        yield _cost(kernel_name(name, side, call.rule.precision), name, 1, works, call)


def _cost(
    kernel: str, step: str, launches: int, works: Sequence[tuple[int, Work]], call: CallOptions
) -> Cost:
    """Return the cost of launches from pairs of a number of blocks and the work of each."""
    size = sum(count * work.bytes for count, work in works)
    flops = sum(count * work.flops for count, work in works)
    least = sum(count * work.least_flops for count, work in works)
    return Cost(kernel, step, launches, size, {call.kind: flops} if flops else {}, least)


class _Resident:
    """Products of a CTA with fixed shares of its warps: a smaller matrix is padded to the kernel's side."""

    def __init__(self, side: int, call: CallOptions) -> None:
        self.side, self.precision, self.work = side, call.rule.precision, Work()

    def full(self, rows: int, cols: int, depth: int, *exact: bool) -> None:
        self.work.flops += 2 * self.side**2 * ceil_to(depth, TILE) * terms(self.precision, *exact)
        self.work.least_flops += 2 * rows * cols * depth

    def lower(self, rows: int, depth: int, exact: bool = False) -> None:
        executed = 2 * lower_elements(ceil_to(rows, TILE)) * ceil_to(depth, TILE)
        self.work.flops += executed * terms(self.precision, exact, exact)
        self.work.least_flops += rows * rows * depth


def resident_update(block: Blocks, side: int, call: CallOptions) -> Work:
    """Return the work on both factors of one block."""
    cta, rule = _Resident(side, call), call.rule
    factor, grad, root = call.factor == 2, call.grad == 2, call.root == 2
    cta.work.move({"grad": call.grad * block.m * block.n})
    for name, d, k in block.sides:
        cta.work.move({f"{name} read": call.factor * d * d, f"{name} written": call.factor * d * d})
        if rule.coupled:
            cta.work.move({f"root of {name}": call.root * lower_elements(k)})
            cta.full(block.m, block.n, k, grad, root)
        cta.full(d, k, d, factor, grad and not rule.coupled)
        if call.damps:
            cta.lower(d, d, factor)
        cta.lower(d, k)
        for _ in range(iteration_products(rule.refine)):
            cta.lower(d, d)
        cta.full(d, d, d, factor)
    return cta.work


def resident_precondition(block: Blocks, side: int, call: CallOptions) -> Work:
    """Return the work on the two-sided product of one block."""
    cta, (m, n) = _Resident(side, call), (block.m, block.n)
    cta.work.move({"direction": call.direction * m * n, "out": FLOAT * m * n})
    roots = {"left root": call.root * lower_elements(m), "right root": call.root * lower_elements(n)}
    cta.work.move(roots)
    cta.full(m, n, n, call.direction == 2, call.root == 2)
    cta.full(m, n, m, call.root == 2)
    return cta.work


class _Wide:
    """Products of a CTA whose matrices are grids in its global scratch memory, read and written there."""

    def __init__(self, call: CallOptions) -> None:
        self.call, self.work = call, Work()
        self.grids = 0.0

    def read(self, elements: int, size: int) -> None:
        """Count the conversion of a matrix to a grid."""
        self.grids += elements * (size + FLOAT)

    def product(
        self, rows: int, cols: int, depth: int, *exact: bool, symmetric: bool = False, writes: bool = True
    ) -> None:
        """Count the product of two grids into a third."""
        high, wide = math.ceil(rows / WIDE_TILE), math.ceil(cols / WIDE_TILE)
        tiles = high * (high + 1) // 2 if symmetric else high * wide
        self.work.flops += 2 * tiles * WIDE_TILE**2 * ceil_to(depth, DEPTH) * terms("bf16x3", *exact)
        self.work.least_flops += rows * cols * depth * (1 if symmetric else 2)
        self.grids += FLOAT * ((rows + cols) * depth + writes * rows * cols)

    def done(self) -> Work:
        self.work.move({"grids": self.grids})
        return self.work


def wide_update(block: Blocks, side: int, call: CallOptions) -> Work:
    """Return the work on both factors of one block."""
    cta, rule = _Wide(call), call.rule
    factor, grad, root = call.factor == 2, call.grad == 2, call.root == 2
    for _, d, k in block.sides:
        cta.read(block.m * block.n, call.grad)
        if rule.coupled:
            cta.read(k * k, call.root)
            cta.product(block.m, block.n, k, grad, root)
        cta.read(d * d, call.factor)
        cta.product(d, k, d, factor, grad and not rule.coupled)
        cta.product(d, d, k, symmetric=True)
        if call.damps:
            cta.product(d, d, d, factor, factor, symmetric=True, writes=False)
        for _ in range(iteration_products(rule.refine)):
            cta.product(d, d, d, symmetric=True)
        cta.product(d, d, d, factor)
        cta.grids += call.factor * d * d
    return cta.done()


def wide_precondition(block: Blocks, side: int, call: CallOptions) -> Work:
    """Return the work on the two-sided product of one block."""
    cta, (m, n) = _Wide(call), (block.m, block.n)
    cta.read(m * n, call.direction)
    cta.read(n * n, call.root)
    cta.product(m, n, n, call.direction == 2, call.root == 2)
    cta.read(m * m, call.root)
    cta.product(m, n, m, call.root == 2)
    return cta.done()


class GroupedCosts:
    """Launches of blocks with longer sides, as grouped products."""

    def __init__(self, groups: Sequence[Blocks], call: CallOptions) -> None:
        self.groups, self.call = groups, call
        self.tile = product_tile(call.rule.precision)
        self.kernel = f"square_root_product_{self.tile}_{call.rule.precision}"

    def launches(self) -> Iterator[Cost]:
        """Yield the launches in the order of one slice; each is launched once per slice."""
        slices, call = self.slices(), self.call
        if call.update:
            yield self.between("gradient_norms", slices, self.gradient)
        steps = [self.steps(group) for group in self.groups]
        for step in dict.fromkeys(step for each in steps for step in each):
            if step == "B":
                yield self.between("start_sides", slices, self.started)
            if step == "V":
                yield from self.finishes(slices)
            works = [(group.count, each[step]) for group, each in zip(self.groups, steps, strict=True)]
            yield _cost(self.kernel, step, slices, works, call)
        if call.precondition:
            yield self.between("finish_norms", slices, lambda group: Work())
        else:
            yield from self.finishes(slices)

    def finishes(self, slices: int) -> Iterator[Cost]:
        if self.call.update:
            yield self.between("finish_sides", slices, self.finished)

    def between(self, kernel: str, slices: int, make: Callable[[Blocks], Work]) -> Cost:
        works = [(group.count, make(group)) for group in self.groups]
        return _cost(kernel, "between", slices, works, self.call)

    def gradient(self, group: Blocks) -> Work:
        return Work({"grad": self.call.grad * group.m * group.n})

    def started(self, group: Blocks) -> Work:
        each = (self.call.factor + FLOAT) if self.call.damps else 0
        return Work({name: each * d * d for name, d, _ in group.sides})

    def finished(self, group: Blocks) -> Work:
        return Work({name: (FLOAT + self.call.factor) * d * d for name, d, _ in group.sides})

    def slices(self) -> int:
        """Return the number of slices; each has as many blocks as fit the scratch memory."""
        count, used = 1, 0
        for group in self.groups:
            each, left = self.scratch(group), group.count
            while left > 0:
                if used > 0 and used + each > self.call.scratch_bytes:
                    count, used = count + 1, 0
                fit = min(left, max((self.call.scratch_bytes - used) // each, 1))
                used += fit * each
                left -= fit
        return count

    def scratch(self, group: Blocks) -> int:
        """Return the scratch bytes of one block."""
        call, refine = self.call, self.call.rule.refine
        floats = group.m * group.n * (call.precondition + 2 * (call.update and call.rule.coupled))
        squares = 1 + (1, 3, 5)[min(refine, 3) - 1]
        for _, d, k in group.sides if call.update else ():
            floats += d * (k + d * call.damps) + squares * d * d
        return max(FLOAT * floats, 1)

    def steps(self, group: Blocks) -> dict[str, Work]:
        """Return the work of one block by launch."""
        call, (m, n) = self.call, (group.m, group.n)
        works: dict[str, Work] = {}
        first, half = works.setdefault("first products", Work()), FLOAT * m * n
        if call.precondition:
            read = {"direction": call.direction * m * n, "right root": call.root * n * n, "half": half}
            self.add(first, m, n, n, read, (call.direction == 2, call.root == 2))
        if call.update:
            self.couple(first, group)
            for name, d, k in group.sides:
                self.side(works, name, d, k)
        if call.precondition:
            read = {"left root": call.root * m * m, "half": half, "out": half}
            self.add(works.setdefault("V", Work()), m, n, m, read, (call.root == 2, False))
        return {step: work for step, work in works.items() if work.operands}

    def couple(self, work: Work, group: Blocks) -> None:
        """Add G P_r for the left side, P_l G for the right one."""
        call, other = self.call, {"left": "right", "right": "left"}
        for name, _, k in group.sides if call.rule.coupled else ():
            grad, root = call.grad * group.m * group.n, call.root * k * k
            unfolding = FLOAT * group.m * group.n
            operands = {"grad": grad, f"{other[name]} root": root, f"{name} u": unfolding}
            self.add(work, group.m, group.n, k, operands, (call.grad == 2, call.root == 2))

    def side(self, works: dict[str, Work], name: str, d: int, k: int) -> None:
        """Add B, M, the iteration and F R of one side."""
        call, refine = self.call, self.call.rule.refine
        columns, square = k + d * call.damps, FLOAT * d * d
        factor, exact = {f"{name} factor": call.factor * d * d}, call.factor == 2
        u = FLOAT if call.rule.coupled else call.grad
        operands = {
            **factor,
            f"{name} u" if call.rule.coupled else "grad": u * d * k,
            f"{name} b": FLOAT * d * k,
        }
        self.add(works.setdefault("B", Work()), d, k, d, operands, (exact, u == 2))
        operands = {f"{name} b": FLOAT * d * columns, f"{name} m": square}
        self.add(works.setdefault("M", Work()), d, d, columns, operands, symmetric=True)
        for step in range(2, refine + 1):
            # From the third step on, Y is computed in the same launch as the Z of the step before.
            y = "Y1" if step == 2 else f"Z{step - 1}"
            for launch, read in ((y, ("y", "t")), (f"T{step}", ("z", "y")), (f"Z{step}", ("t", "z"))):
                operands = {f"{name} {operand}": square for operand in (*read, f"new in {launch}")}
                self.add(works.setdefault(launch, Work()), d, d, d, operands, symmetric=True)
        operands = {**factor, f"{name} z": square, f"{name} updated": square}
        self.add(works.setdefault("F R", Work()), d, d, d, operands, (exact, False))

    def add(
        self,
        work: Work,
        rows: int,
        cols: int,
        depth: int,
        operands: dict[str, int],
        exact: tuple[bool, bool] = (False, False),
        symmetric: bool = False,
    ) -> None:
        """Add one product to a launch."""
        work.move(operands)
        tile_rows, tile_cols = math.ceil(rows / self.tile), math.ceil(cols / self.tile)
        tiles = tile_rows * (tile_rows + 1) // 2 if symmetric else tile_rows * tile_cols
        executed = 2 * tiles * self.tile**2 * ceil_to(depth, DEPTH)
        work.flops += executed * terms(self.call.rule.precision, *exact)
        work.least_flops += rows * cols * depth * (1 if symmetric else 2)
