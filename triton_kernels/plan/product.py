"""Works of a plan for grouped products: their entries, tiles and specialisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import entry
from . import tuning
from .groups import StepRule
from .launch import TYPES, BlockWork, KernelConfig, Plan
from .views import Matrices, scratch_matrices


@dataclass(frozen=True)
class Product:
    """A product C = A B with A ``[rows, depth]``, and the kernel that uses it.

    Args:
        added, out: matrices 2 and 3 of the entry.
        fields: fields of the entry by index, besides those that follow from the matrices.
        typed: True if the dtypes of A and B and the orders of all three are constants of the kernel.
    """

    kernel: Any
    a: Matrices
    b: Matrices
    out: Matrices
    fields: Mapping[int, int]
    added: Matrices | None = None
    symmetric: bool = False
    typed: bool = False

    def matrices(self) -> dict[int, Matrices]:
        numbered = {0: self.a, 1: self.b, 2: self.added, 3: self.out}
        return {index: matrix for index, matrix in numbered.items() if matrix is not None}

    def types(self) -> dict[str, Any]:
        """Return the constants that describe the matrices."""
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
    """Return True if every matrix can be read in vectors of 16 bytes."""
    multiple = all(size % entry.SIZE_MULTIPLE.value == 0 for size in sizes)
    return multiple and all(matrix.aligned for matrix in matrices.values())


@dataclass(frozen=True)
class DepthRange:
    """Blocks `start` to before `end` of a group, whose shape class determines the tiles."""

    plan: Plan
    first_block: int
    start: int
    end: int
    shape: str
    rule: StepRule

    def matrices(self, rows: int, cols: int) -> Matrices:
        """Reserve scratch memory for one matrix of every block."""
        count = self.end - self.start
        return scratch_matrices(self.plan.floats(count * rows * cols), self.start, count, rows, cols)

    def config(self, kernel: Any) -> KernelConfig:  # noqa: ANN401
        return tuning.config(kernel, self.shape, self.rule.precision, self.rule.architecture)

    def tiles(self, kernel: Any, rows: int, cols: int, symmetric: bool = False) -> int:  # noqa: ANN401
        """Return the number of programs of one block's product."""
        tile = self.config(kernel).constants["BM"]
        down, across = -(-rows // tile), -(-cols // tile)
        return down * (down + 1) // 2 if symmetric else down * across

    def work(self, product: Product, **constants: Any) -> BlockWork:  # noqa: ANN401
        """Return the work that makes a product of these blocks."""
        rows, cols, depth = product.a.rows, product.b.cols, product.a.cols
        fields = {
            entry.FIRST_BLOCK.value: self.first_block,
            entry.TILE_COLS.value: self.tiles(product.kernel, 1, cols),
            entry.ROWS.value: rows,
            entry.COLS.value: cols,
            entry.DEPTH.value: depth,
            **product.fields,
        }
        constants |= product.types() | {"PRECISION": self.rule.precision, "VECTOR": product.vector()}
        tiles = self.tiles(product.kernel, rows, cols, product.symmetric)
        config = self.config(product.kernel)
        return BlockWork(
            product.kernel, config, constants, fields, product.matrices(), self.start, self.end, tiles
        )

    def per_block_work(
        self,
        kernel: Any,  # noqa: ANN401
        matrices: dict[int, Matrices],
        fields: Mapping[int, int],
        tiles: int = 1,
        **constants: Any,  # noqa: ANN401
    ) -> BlockWork:
        """Return a work that runs one program, or one program a tile, for each of these blocks."""
        fields = {entry.FIRST_BLOCK.value: self.first_block, **fields}
        return BlockWork(
            kernel, self.config(kernel), constants, fields, matrices, self.start, self.end, tiles
        )
