"""What the kron step's kernels do to one block [m, n], after csrc/cuda/plan and the kernels' own comments.

Not counted: a block's statistics and norm, a few numbers beside its matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

TILE = 16  # side of a tensor-core tile, csrc/cuda/kernels/tile.cuh
DEPTH = 32  # kProductDepth
LEAST_CHUNK = 64  # kLeastChunk
FLOAT = 4  # bytes
GRAM_SCALES = ("frobenius", "schatten4")  # bounds made from A^T X A
TRACES = "traces of squares"

TERMS = {"bf16x3": 2, "tf32x3": 2, "bf16x6": 3, "fp32": 1}
KINDS = {"bf16x3": "bf16", "tf32x3": "tf32", "bf16x6": "bf16", "fp32": "fp32"}

Operands = Mapping[str, float]
"""Bytes of what a launch reads or writes, by name."""


def ceil_to(size: int, unit: int) -> int:
    """The least multiple of a unit that is not smaller."""
    return -(-size // unit) * unit


def terms(precision: str, exact_a: bool = False, exact_b: bool = False) -> int:
    """Products of a split product: terms i and j with i + j < the number of terms of an operand.

    A bf16 operand is exact in its first term: the products with its others are left out.
    """
    count = TERMS[precision]
    pairs = [(i, j) for i in range(count) for j in range(count - i)]
    return sum(not (exact_a and i) and not (exact_b and j) for i, j in pairs)


def lower_elements(side: int) -> int:
    """Elements of the 16 x 16 tiles on and below the diagonal."""
    whole, rest = divmod(side, TILE)
    return TILE * TILE * whole * (whole + 1) // 2 + rest * side


@dataclass(frozen=True)
class Rule:
    """What all blocks of a call share.

    Attributes:
        scale: `factor_scale`, or ``exact``.  refine, precision: as the ops take them.
        grad, direction, root: bytes of an element.
    """

    scale: str
    refine: int
    precision: str
    grad: int = FLOAT
    direction: int = FLOAT
    root: int = FLOAT

    def chunks(self, d: int, k: int) -> list[int]:
        """Columns of the unfolding's chunks (backends/base.py)."""
        limit = max(d, LEAST_CHUNK)
        if (self.refine == 0 and self.scale != "exact") or k <= limit:
            return [k]
        return [min(limit, k - start) for start in range(0, k, limit)]

    @property
    def needs_gram(self) -> bool:
        return self.refine > 0 or self.scale in GRAM_SCALES


@dataclass
class Work:
    """Of one block in one launch: bytes by operand, each once, executed and least flops."""

    operands: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    least_flops: float = 0.0

    def move(self, operands: Operands) -> None:
        for name, size in operands.items():
            self.operands[name] = max(size, self.operands.get(name, 0))

    @property
    def bytes(self) -> float:
        return sum(self.operands.values())


class Resident:
    """kron_step_resident: the whole step of a block of up to `side` a side in one launch."""

    def __init__(self, m: int, n: int, side: int, rule: Rule) -> None:
        self.m, self.n, self.side, self.rule = m, n, side, rule
        self.work = Work()

    def step(self, update: bool = True, precondition: bool = True) -> Work:
        m, n, rule, work = self.m, self.n, self.rule, self.work
        if update:
            work.move({"grad": rule.grad * m * n})
            for name, d, k in (("left", m, n), ("right", n, m)):
                work.move({f"{name} read": FLOAT * lower_elements(d), f"{name} written": FLOAT * d * d})
                for columns in rule.chunks(d, k):
                    self.update(d, columns)
        if precondition:
            work.move({"direction": rule.direction * m * n, "out": FLOAT * m * n})
            roots = rule.root * lower_elements(m), rule.root * lower_elements(n)
            work.move({"left root": roots[0], "right root": roots[1]})
            self.full(m, n, m, exact_a=rule.root == 2, exact_b=rule.direction == 2)
            self.full(m, n, n, exact_b=rule.root == 2)
        return work

    def update(self, d: int, columns: int) -> None:
        """One side's factor from `columns` of its unfolding."""
        rule, exact = self.rule, self.rule.grad == 2
        self.full(d, columns, d, exact_b=exact)
        if rule.needs_gram:
            self.lower(columns, d, exact_a=exact)
        if rule.scale == "schatten4":
            self.lower(columns, columns)
        if rule.scale == "product":
            self.full(d, d, columns, exact_b=exact)
        if rule.refine > 0:
            # V of every iterate; W V but in the last, C V but in the first, where C = I.
            for _ in range(3 * rule.refine - 2):
                self.lower(columns, columns)
            self.full(d, columns, columns)
        self.lower(d, columns)

    def full(self, rows: int, cols: int, depth: int, exact_a: bool = False, exact_b: bool = False) -> None:
        """The warps' shares are fixed: a smaller matrix is padded to the kernel's side."""
        split = terms(self.rule.precision, exact_a, exact_b)
        self.work.flops += 2 * self.side**2 * ceil_to(depth, TILE) * split
        self.work.least_flops += 2 * rows * cols * depth

    def lower(self, rows: int, depth: int, exact_a: bool = False) -> None:
        split = terms(self.rule.precision, exact_a)
        self.work.flops += 2 * lower_elements(ceil_to(rows, TILE)) * ceil_to(depth, TILE) * split
        self.work.least_flops += rows * rows * depth


class Grouped:
    """The products of a block of any size, one `Work` for every launch (csrc/cuda/plan/grouped_plan.h).

    Args:
        tile: side of a CTA's tile.
    """

    def __init__(self, m: int, n: int, tile: int, rule: Rule) -> None:
        self.m, self.n, self.tile, self.rule = m, n, tile, rule
        self.launches: dict[tuple[int, int, str], Work] = {}
        self.sides = (("left", m, n), ("right", n, m))

    def step(self, update: bool = True, precondition: bool = True) -> dict[tuple[int, int, str], Work]:
        """By (chunk of the unfolding, position in the chunk, what is made), in the order of launches."""
        if precondition:
            self.two_sided(update)
        for name, d, k in self.sides if update else ():
            for chunk, columns in enumerate(self.rule.chunks(d, k)):
                self.update(name, d, chunk, columns)
        return dict(sorted(self.launches.items()))

    def scratch_floats(self, update: bool = True, precondition: bool = True) -> int:
        """Floats of scratch memory, which decide how many blocks a slice holds."""
        floats = self.m * self.n if precondition else 0
        for _, d, k in self.sides if update else ():
            chunk = self.rule.chunks(d, k)[0]
            square = chunk if self.rule.refine else min(chunk, d)
            floats += d * chunk * (2 if self.rule.refine else 1) + square**2 * self.squares(d, chunk)
        return floats

    def squares(self, d: int, chunk: int) -> int:
        """Square matrices that a side works with."""
        if self.rule.refine > 0:
            return (2, 3, 5)[min(self.rule.refine, 3) - 1]
        if self.rule.scale == "schatten4":
            return 2 if chunk > d else 1
        return 1 if self.rule.scale == "frobenius" and chunk > d else 0

    def tiles(self, rows: int, cols: int, symmetric: bool = False) -> int:
        tile_rows, tile_cols = math.ceil(rows / self.tile), math.ceil(cols / self.tile)
        return tile_rows * (tile_rows + 1) // 2 if symmetric else tile_rows * tile_cols

    def add(
        self,
        key: tuple[int, int, str],
        rows: int,
        cols: int,
        depth: int,
        operands: Operands,
        symmetric: bool = False,
        exact: tuple[bool, bool] = (False, False),
    ) -> None:
        """One more product in the launch `key`."""
        work = self.launches.setdefault(key, Work())
        work.move(operands)
        executed = 2 * self.tiles(rows, cols, symmetric) * self.tile**2 * ceil_to(depth, DEPTH)
        work.flops += executed * terms(self.rule.precision, *exact)
        work.least_flops += rows * cols * depth * (1 if symmetric else 2)

    def two_sided(self, update: bool) -> None:
        """W^T = right_root D^T with the first launch, out = left_root W with the next."""
        m, n, rule = self.m, self.n, self.rule
        half, root = FLOAT * m * n, rule.root
        self.add(
            (0, 0, "Y and R D^T"), n, m, n,
            {"right root": root * n * n, "direction": rule.direction * m * n, "half": half},
            exact=(root == 2, rule.direction == 2),
        )  # fmt: skip
        bounded = update and (rule.needs_gram or rule.scale == "product")
        self.add(
            (0, 1, "bound and L W") if bounded else (0, 90, "downdate"), m, n, m,
            {"left root": root * m * m, "half": half, "out": half}, exact=(root == 2, False),
        )  # fmt: skip

    def update(self, name: str, d: int, chunk: int, columns: int) -> None:
        """One side's factor from one chunk of its unfolding."""
        rule, y = self.rule, FLOAT * d * columns
        grad = rule.grad * d * columns
        y_name, yc = f"{name} y", y if rule.refine else 0
        self.add(
            (chunk, 0, "Y and R D^T"), d, columns, d,
            {f"{name} factor": FLOAT * d * d, "grad": grad, y_name: y}, exact=(False, rule.grad == 2),
        )  # fmt: skip
        self.bound(name, d, chunk, columns)
        if rule.refine:
            self.refinement(name, d, chunk, columns)
        factor = {f"{name} read": FLOAT * lower_elements(d), f"{name} written": FLOAT * d * d}
        operands = {y_name: y, f"{name} yc": yc, **factor}
        self.add((chunk, 90, "downdate"), d, d, columns, operands, symmetric=True)

    def bound(self, name: str, d: int, chunk: int, columns: int) -> None:
        rule, key = self.rule, (chunk, 1, "bound and L W")
        read = {f"{name} y": FLOAT * d * columns, "grad": rule.grad * d * columns}
        if rule.scale == "product":
            self.add(key, d, d, columns, read, exact=(False, rule.grad == 2))
        if not rule.needs_gram:
            return
        if rule.refine == 0 and columns > d:
            self.wide_bound(name, d, chunk, columns, read)
            return
        square = {f"{name} square": FLOAT * columns**2}
        stored = square if rule.refine or rule.scale == "schatten4" else {}
        self.add(key, columns, columns, d, {**read, **stored}, True, (rule.grad == 2, False))
        if rule.scale == "schatten4":
            self.add((chunk, 3, "square"), columns, columns, columns, square, True)

    def wide_bound(self, name: str, d: int, chunk: int, columns: int, read: Operands) -> None:
        """From Y A^T [d, d], which is smaller than A^T Y but not symmetric."""
        square, second = {f"{name} square": FLOAT * d * d}, {f"{name} second": FLOAT * d * d}
        exact = (False, self.rule.grad == 2)
        self.add((chunk, 1, "bound and L W"), d, d, columns, {**read, **square}, exact=exact)
        if self.rule.scale == "frobenius":
            self.launches.setdefault((chunk, 2, TRACES), Work()).move(square)
            return
        self.add((chunk, 3, "square"), d, d, d, {**square, **second})
        self.launches.setdefault((chunk, 4, TRACES), Work()).move(second)

    def refinement(self, name: str, d: int, chunk: int, columns: int) -> None:
        """V = 5 I - 8 W + 4 W^2; C <- C V; W <- W V; in the end Y C. The first V, of B = N - I, is also C."""

        def product(position: int, step: str, *operands: str) -> None:
            squares = {f"{name} {operand}": FLOAT * columns**2 for operand in operands}
            self.add((chunk, position, step), columns, columns, columns, squares, True)

        last = self.rule.refine - 1
        product(10, "refine: V", "b", "c")
        if last > 0:
            product(11, "refine: W and C", "b", "c", "w")
        for i in range(1, last + 1):
            product(10 + 2 * i, "refine: V", "w", "v")
            product(11 + 2 * i, "refine: W and C", "c", "v", "next c")
            if i < last:
                product(11 + 2 * i, "refine: W and C", "w", "v", "next w")
        y = {f"{name} y": FLOAT * d * columns, f"{name} yc": FLOAT * d * columns}
        self.add((chunk, 80, "Y C"), d, columns, columns, {**y, f"{name} c": FLOAT * columns**2})
