"""Grouped products as works of a plan: their entries, tiles and specialisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import entry as fields
from . import tuning
from .blocks import Matrices, scratch_matrices
from .groups import Rule
from .launch import TYPES, Config, Plan, Work


@dataclass(frozen=True)
class Product:
    """C = A B, A ``[rows, depth]``, and what the kernel makes of it.

    Args:
        added, out: matrices 2 and 3 of the entry.
        words: of the entry beside those that follow from the matrices.
        typed: whether the kernel is told the dtypes of A and B, and the orders of all three.
    """

    kernel: Any
    a: Matrices
    b: Matrices
    out: Matrices
    words: Mapping[int, int]
    added: Matrices | None = None
    symmetric: bool = False
    typed: bool = False

    def matrices(self) -> dict[int, Matrices]:
        numbered = {0: self.a, 1: self.b, 2: self.added, 3: self.out}
        return {index: matrix for index, matrix in numbered.items() if matrix is not None}

    def types(self) -> dict[str, Any]:
        """Constants that tell of the matrices."""
        if not self.typed:
            return {}
        return {
            "A_TYPE": TYPES[self.a.dtype],
            "A_ORDER": self.a.order,
            "B_TYPE": TYPES[self.b.dtype],
            "B_ORDER": self.b.order,
            "OUT_ORDER": self.out.order,
        }

    def vector(self) -> bool:
        return in_vectors((self.a.rows, self.b.cols, self.a.cols), self.matrices())


def in_vectors(sizes: Iterable[int], matrices: Mapping[Any, Matrices]) -> bool:
    """Whether every matrix can be read in vectors of 16 bytes."""
    multiple = all(size % fields.SIZE_MULTIPLE.value == 0 for size in sizes)
    return multiple and all(matrix.aligned for matrix in matrices.values())


@dataclass(frozen=True)
class Part:
    """Blocks `start` to `end` of a group, whose shape class decides on the tiles."""

    plan: Plan
    first_block: int
    start: int
    end: int
    shape: str
    rule: Rule

    def matrices(self, rows: int, cols: int) -> Matrices:
        """Scratch memory for a matrix of every block."""
        count = self.end - self.start
        return scratch_matrices(self.plan.floats(count * rows * cols), self.start, count, rows, cols)

    def config(self, kernel: Any) -> Config:  # noqa: ANN401
        return tuning.config(kernel, self.shape, self.rule.precision, self.rule.architecture)

    def tiles(self, kernel: Any, rows: int, cols: int, symmetric: bool = False) -> int:  # noqa: ANN401
        """Programs of one block's product."""
        tile = self.config(kernel).constants["BM"]
        down, across = -(-rows // tile), -(-cols // tile)
        return down * (down + 1) // 2 if symmetric else down * across

    def work(self, product: Product, **constants: Any) -> Work:  # noqa: ANN401
        """A product of these blocks."""
        rows, cols, depth = product.a.rows, product.b.cols, product.a.cols
        words = {
            fields.FIRST_BLOCK.value: self.first_block,
            fields.TILE_COLS.value: self.tiles(product.kernel, 1, cols),
            fields.ROWS.value: rows,
            fields.COLS.value: cols,
            fields.DEPTH.value: depth,
            **product.words,
        }
        constants |= product.types() | {"PRECISION": self.rule.precision, "VECTOR": product.vector()}
        tiles = self.tiles(product.kernel, rows, cols, product.symmetric)
        config = self.config(product.kernel)
        return Work(product.kernel, config, constants, words, product.matrices(), self.start, self.end, tiles)

    def once(
        self,
        kernel: Any,  # noqa: ANN401
        matrices: dict[int, Matrices],
        words: Mapping[int, int],
        tiles: int = 1,
        **constants: Any,  # noqa: ANN401
    ) -> Work:
        """What one program, or one a tile, does to each of these blocks."""
        own = {fields.FIRST_BLOCK.value: self.first_block, **words}
        return Work(kernel, self.config(kernel), constants, own, matrices, self.start, self.end, tiles)
