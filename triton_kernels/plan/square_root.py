"""The launches of one side's update in the square-root form (kradagrad_ext/backends/base.py), in stages.

::

    U = G P_r, or G^T P_l^T                       scaled_product    with |U|_F^2, if sides are coupled
    rms', w', start, s                            track_statistics
    B = sqrt(weight) s F^T U                      scaled_product    with |B|_F^2
    M = B B^T + C^T C                             gram              with |M|_F^2
    Y, T and Z, `refine` times                    inverse_root
    F' = F R                                      scaled_product    with |F'|_F^2
    F and its statistics                          finish_sides
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .. import entry
from ..gram import gram
from ..inverse_root import inverse_root
from ..scaled_product import scaled_product
from ..side_state import finish_sides, track_statistics
from .groups import StepRule
from .launch import TYPES, BlockWork
from .product import DepthRange, Product
from .views import Matrices


@dataclass(frozen=True)
class SquareRootSide:
    """One factor of a group's blocks.

    Args:
        factor: F ``[d, d]``.  unfolding: G ``[d, k]``, as this side sees it.
        whitening: the root ``[k, k]`` that multiplies G from the right, if sides are coupled.
        fields: fields of every entry of this side, by index (entry.py): where its state and its sums are.
        stretched, finished: offsets in scratch memory of the shares of |U|_F^2 and |F'|_F^2.
    """

    factor: Matrices
    unfolding: Matrices
    whitening: Matrices | None
    fields: Mapping[int, int]
    stretched: int
    finished: int


def squares_of(rule: StepRule) -> int:
    """Return the number of scratch matrices ``[d, d]``: M, F', and the iterates of a step."""
    return (2, 3, 5)[min(rule.refine, 3) - 1]


class SquareRootUpdate:
    """The update of a side for one range of its blocks."""

    def __init__(self, part: DepthRange, rule: StepRule, side: SquareRootSide) -> None:
        self.part, self.rule, self.side = part, rule, side
        self.d, self.k = side.unfolding.rows, side.unfolding.cols
        self.u = part.matrices(self.d, self.k) if side.whitening else side.unfolding
        self.b = part.matrices(self.d, self.k)
        self.squares = [part.matrices(self.d, self.d) for _ in range(squares_of(rule))]

    def whitened_gradients(self) -> list[BlockWork]:
        """Return the work that makes U, which needs no result of this side."""
        if self.side.whitening is None:
            return []
        fields = self._shares(self.side.stretched, self.k)
        return [scaled(self.part, "one", self.side.unfolding, self.side.whitening, self.u, fields, norm=True)]

    def stages(self) -> Iterator[list[BlockWork]]:
        """Yield the works in stages: lists of works, each list waiting for the one before."""
        factor, (m, *rest) = self.side.factor, self.squares
        yield [self._track()]
        fields = self._shares(self.side.fields[entry.WHITENED.value], self.k)
        yield [self._of_factor("whitening", factor.transposed, self.u, self.b, fields)]
        yield [self._gram(m)]
        z = yield from self._iterates(m, rest)
        new = next(matrix for matrix in self.squares if matrix is not z)
        yield [self._of_factor("root", factor, z, new, self._shares(self.side.finished, self.d))]
        yield [self._finish(new)]

    def _shares(self, offset: int, cols: int) -> dict[int, int]:
        """Return the fields that locate the shares of a sum by tile of a product ``[d, cols]``."""
        tiles = self.part.tiles(scaled_product, self.d, cols)
        return {entry.PARTIAL.value: offset, entry.PARTIALS.value: tiles}

    def _track(self) -> BlockWork:
        sizes = {entry.ROWS.value: self.d, entry.COLS.value: self.k}
        fields = {**self.side.fields, **sizes, **self._shares(self.side.stretched, self.k)}
        return self.part.per_block_work(track_statistics, {}, fields, COUPLED=self.side.whitening is not None)

    def _of_factor(
        self, scale: str, factor: Matrices, b: Matrices, out: Matrices, shares: Mapping[int, int]
    ) -> BlockWork:
        fields, refine = {**self.side.fields, **shares}, self.rule.refine if scale == "root" else 0
        return scaled(self.part, scale, factor, b, out, fields, norm=True, refine=refine, of_factor=True)

    def _gram(self, m: Matrices) -> BlockWork:
        product = Product(
            gram,
            self.b,
            self.b.transposed,
            added=self.side.factor if self.rule.damped else None,
            out=m,
            fields=self.side.fields,
            symmetric=True,
        )
        return self.part.work(product, F_TYPE=TYPES[self.side.factor.dtype], DAMPED=self.rule.damped)

    def _iterates(self, m: Matrices, rest: list[Matrices]) -> Iterator[list[BlockWork]]:
        """Yield the stages that make Z from M, and return Z; reuse matrices that nothing needs again."""
        if self.rule.refine == 1:
            yield [self._iterate("only", 1, m, m, m, added=m)]
            return m
        y, t, *free = rest
        yield [self._iterate("first", 1, m, m, y, added=m)]
        yield [self._iterate("second", 2, m, y, t, added=y)]
        if self.rule.refine == 2:
            yield [self._iterate("third", 2, m, t, y, added=t)]
            return y
        z, next_y = free
        yield [self._iterate("third", 2, m, t, z, added=t), self._iterate("product", 0, y, t, next_y)]
        free, y = [m, y], next_y
        for number in range(3, self.rule.refine + 1):
            yield [self._iterate("polynomial", number, z, y, t)]
            works = [self._iterate("product", 0, t, z, free[0])]
            if number < self.rule.refine:
                works.append(self._iterate("product", 0, y, t, free[1]))
            yield works
            (z, y), free = free, [z, y]
        return z

    def _iterate(
        self,
        step: str,
        number: int,
        a: Matrices,
        b: Matrices,
        out: Matrices,
        added: Matrices | None = None,
    ) -> BlockWork:
        product = Product(inverse_root, a, b, added=added, out=out, fields=self.side.fields, symmetric=True)
        return self.part.work(product, STEP=step, NUMBER=number)

    def _finish(self, new: Matrices) -> BlockWork:
        """Return the work that copies F' from scratch memory: all tiles of F R read the old F."""
        d, factor = self.d, self.side.factor
        sizes = {entry.ROWS.value: d, entry.TILE_COLS.value: self.part.tiles(finish_sides, 1, d)}
        fields = {**self.side.fields, **sizes, **self._shares(self.side.finished, d)}
        tiles = self.part.tiles(finish_sides, d, d)
        return self.part.per_block_work(
            finish_sides, {0: new, 3: factor}, fields, tiles, TYPE=TYPES[factor.dtype]
        )


def scaled(
    part: DepthRange,
    scale: str,
    a: Matrices,
    b: Matrices,
    out: Matrices,
    fields: Mapping[int, int],
    *,
    norm: bool = False,
    refine: int = 0,
    of_factor: bool = False,
) -> BlockWork:
    """Return a work of scaled_product; `refine` is used by the scale "root" only."""
    product = Product(scaled_product, a, b, out=out, fields=fields, typed=True)
    return part.work(product, SCALE=scale, REFINE=refine, OF_FACTOR=of_factor, NORM=norm)
