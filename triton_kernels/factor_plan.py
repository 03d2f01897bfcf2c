"""The launches of one side's factor update (kradagrad_ext/backends/base.py), stage after stage.

::

    Y = X A / u                              factor_product    with tr(A^T X A) and |A|_F^2
    B = weight u A^T Y [k, k]                grouped_product   with |B|_F^2; or another matrix of the bound
    V, W and C, `refine` times               refinement
    Z = Y C                                  grouped_product
    X <- X - weight u^2 / t Z Y^T            downdate
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import entry as fields
from .blocks import Matrices
from .downdate import downdate
from .factor_product import factor_product
from .factor_state import trace_of_square
from .grouped_product import grouped_product
from .groups import Rule
from .launch import Work
from .product_plan import Part, Product
from .refinement import refinement

LEAST_CHUNK = 64


def chunk_of(d: int, k: int, rule: Rule) -> int:
    """How many columns of an unfolding one update takes at once."""
    return min(k, max(d, LEAST_CHUNK)) if rule.refine else k


@dataclass(frozen=True)
class Side:
    """One factor of a group's blocks.

    Args:
        factor: X ``[d, d]``.  unfolding: A ``[d, k]``, the gradient as this side sees it.
        state: words of every entry of this side: where its state is (entry.py).
        pending: offset in scratch memory of what is pending, ``[chunks + 1, blocks]``.
        sums: whether |A|_F^2 is summed up here, for both sides.
    """

    factor: Matrices
    unfolding: Matrices
    state: dict[int, int]
    pending: int
    blocks: int
    chunk: int
    sums: bool

    @property
    def chunks(self) -> int:
        return -(-self.unfolding.cols // self.chunk)


class SideUpdate:
    """The update of a side for one part of its blocks."""

    def __init__(self, part: Part, rule: Rule, side: Side) -> None:
        self.part, self.rule, self.side = part, rule, side
        self.d = side.factor.rows
        self.wide = not rule.refine and side.chunk > self.d
        side_of_square = self.d if self.wide else side.chunk
        self.y = part.matrices(self.d, side.chunk)
        self.z = part.matrices(self.d, side.chunk) if rule.refine else self.y
        self.squares = [part.matrices(side_of_square, side_of_square) for _ in range(self._square_count())]

    def stages(self) -> Iterator[list[Work]]:
        """One list for each launch that the next waits for."""
        for index in range(self.side.chunks):
            first = index * self.side.chunk
            yield from self._chunk(index, first, min(self.side.chunk, self.side.unfolding.cols - first))

    def _square_count(self) -> int:
        """B and, with refinement, C, W, and two more where both are made from one another's places."""
        if self.rule.refine:
            return (0, 2, 3, 5)[min(self.rule.refine, 3)]
        schatten = self.rule.factor_scale == "schatten4"
        return int(schatten) + int(self.wide and (schatten or self.rule.factor_scale == "frobenius"))

    def _chunk(self, index: int, first: int, columns: int) -> Iterator[list[Work]]:
        a = self.side.unfolding.columns(first, columns)
        y, z = self.y.sized(self.d, columns), self.z.sized(self.d, columns)
        pending = self.side.pending + 4 * index * self.side.blocks
        self.words = self.side.state | {
            fields.PENDING.value: pending,
            fields.NEXT_PENDING.value: pending + 4 * self.side.blocks,
            fields.BOUNDS.value: self._bounds(columns),
        }
        yield [self._factor_product(a, y)]
        yield from self._bound(a, y)
        if self.rule.refine:
            squares = [square.sized(columns, columns) for square in self.squares]
            c = yield from self._refine(squares)
            yield [self._product(y, c, z)]
        yield [self._downdate(z, y)]

    def _bounds(self, columns: int) -> int:
        """How many shares the bound's sum has."""
        tiles = self.part.tiles
        if self.rule.factor_scale in ("trace", "trace_dim"):
            return tiles(factor_product, self.d, columns)
        if self.rule.factor_scale == "product":
            return tiles(grouped_product, self.d, self.d)
        return 1 if self.wide else tiles(grouped_product, columns, columns, symmetric=True)

    def _factor_product(self, a: Matrices, y: Matrices) -> Work:
        traced = self.rule.factor_scale in ("trace", "trace_dim")
        squares = self.side.sums and self.side.chunks == 1  # or start_factors sums them up
        product = Product(factor_product, self.side.factor, a, out=y, words=self.words, typed="B")
        return self.part.work(product, TRACE=traced, SQUARES=squares)

    def _bound(self, a: Matrices, y: Matrices) -> Iterator[list[Work]]:
        """The norm of what the scale asks for, and B where the refinement does."""
        scale = self.rule.factor_scale
        if scale == "product":
            yield [self._product(y, a.transposed, None, norm=True, weighted=True)]
        if self.wide and scale in ("frobenius", "schatten4"):
            yield from self._wide_bound(a, y)
        elif self.rule.refine or scale in ("frobenius", "schatten4"):
            b = self.squares[0].sized(a.cols, a.cols) if self.squares else None
            norm = scale == "frobenius"
            yield [self._product(a.transposed, y, b, norm=norm, weighted=True, symmetric=True)]
            if scale == "schatten4":
                yield [self._product(b, b, None, norm=True, symmetric=True)]

    def _wide_bound(self, a: Matrices, y: Matrices) -> Iterator[list[Work]]:
        """weight X A A^T [d, d], not symmetric, has the eigenvalues of B that are not zero."""
        square = self.squares[0]
        yield [self._product(y, a.transposed, square, weighted=True)]
        if self.rule.factor_scale == "schatten4":
            yield [self._product(square, square, self.squares[1])]
            square = self.squares[1]
        yield [self.part.once(trace_of_square, {0: square}, self.words)]

    def _refine(self, squares: list[Matrices]) -> Iterator[list[Work]]:
        """C from B. Places: 0 V, 1 C, 2 W and, as C and W are read while new ones are made, 3 and 4."""
        refine = self.rule.refine
        v, c, *rest = squares
        yield [self._iterate("start", v, v, c, added=v)]
        if refine > 1:
            w = rest.pop(0)
            yield [self._iterate("first", v, c, w, added=c)]
        for number in range(2, refine + 1):
            yield [self._iterate("polynomial", w, w, v, added=w)]
            last = number == refine
            next_c = w if last and not rest else rest[0]
            works = [self._iterate("product", c, v, next_c)]
            if not last:
                works.append(self._iterate("product", w, v, rest[1]))
                w, rest[1] = rest[1], w
            if rest:
                rest[0] = c
            c = next_c
            yield works
        return c

    def _iterate(
        self, step: str, a: Matrices, b: Matrices, out: Matrices, added: Matrices | None = None
    ) -> Work:
        product = Product(refinement, a, b, added=added, out=out, words=self.words, symmetric=True)
        scale = self.rule.factor_scale if step in ("start", "first") else "none"
        return self.part.work(product, STEP=step, SCALE=scale)

    def _product(
        self,
        a: Matrices,
        b: Matrices,
        out: Matrices | None,
        norm: bool = False,
        weighted: bool = False,
        symmetric: bool = False,
    ) -> Work:
        """out = a b, or weight a b, and its norm for the bound."""
        words = self.words | {
            fields.PARTIAL.value: self.words[fields.BOUND.value],
            fields.PARTIALS.value: self.words[fields.BOUNDS.value],
        }
        product = Product(grouped_product, a, b, out=out, words=words, symmetric=symmetric, typed="AB")
        return self.part.work(product, WEIGHTED=weighted, SYMMETRIC=symmetric, NORM=norm)

    def _downdate(self, z: Matrices, y: Matrices) -> Work:
        product = Product(downdate, z, y.transposed, out=self.side.factor, words=self.words, symmetric=True)
        return self.part.work(product, SCALE=self.rule.factor_scale)
