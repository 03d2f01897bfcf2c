"""The launches of one side's update in the square-root form (kradagrad_ext/backends/base.py), in stages.

::

    U = G P_r, or G^T P_l^T                       scaled_product    with |U|_F^2, where sides are coupled
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
from typing import Any

from . import entry as fields
from .blocks import Matrices
from .gram import gram
from .groups import SquareRootRule
from .inverse_root import inverse_root
from .launch import TYPES, Work
from .product_plan import Part, Product
from .scaled_product import scaled_product
from .side_state import finish_sides, track_statistics


@dataclass(frozen=True)
class SquareRootSide:
    """One factor of a group's blocks.

    Args:
        factor: F ``[d, d]``.  unfolding: G ``[d, k]``, as this side sees it.
        whitening: what G is multiplied by from the right, ``[k, k]``, where sides are coupled.
        words: of every entry of this side: where its state and its sums are (entry.py).
        stretched, finished: offsets in scratch memory of the shares of |U|_F^2 and |F'|_F^2.
    """

    factor: Matrices
    unfolding: Matrices
    whitening: Matrices | None
    words: Mapping[int, int]
    stretched: int
    finished: int


def squares_of(rule: SquareRootRule) -> int:
    """Matrices ``[d, d]`` in scratch memory: M, F', and what an iteration reads while it makes others."""
    return (2, 3, 5)[min(rule.refine, 3) - 1]


class SquareRootUpdate:
    """The update of a side for one part of its blocks."""

    def __init__(self, part: Part, rule: SquareRootRule, side: SquareRootSide) -> None:
        self.part, self.rule, self.side = part, rule, side
        self.d, self.k = side.unfolding.rows, side.unfolding.cols
        self.u = part.matrices(self.d, self.k) if side.whitening else side.unfolding
        self.b = part.matrices(self.d, self.k)
        self.squares = [part.matrices(self.d, self.d) for _ in range(squares_of(rule))]

    def whitened_gradients(self) -> list[Work]:
        """U, which needs nothing of this side."""
        if self.side.whitening is None:
            return []
        active = {fields.STATE.value: -1, **self._shares(self.side.stretched, self.k)}
        product = self._typed(self.side.unfolding, self.side.whitening, self.u, active)
        return [self._scaled(product, "one", norm=True)]

    def stages(self) -> Iterator[list[Work]]:
        """One list for each launch that the next waits for."""
        words = self._words(self._shares(self.side.stretched, self.k))
        words |= {fields.ROWS.value: self.d, fields.COLS.value: self.k}
        yield [self.part.once(track_statistics, {}, words, COUPLED=self.rule.coupled)]
        words = self._words(self._shares(self.side.words[fields.WHITENED.value], self.k))
        product = self._typed(self.side.factor.transposed, self.u, self.b, words)
        yield [self._scaled(product, "whitening", norm=True, of_factor=True)]
        m, *rest = self.squares
        yield [self._gram(m)]
        z = yield from self._iterates(m, rest)
        new = next(matrix for matrix in self.squares if matrix is not z)
        words = self._words(self._shares(self.side.finished, self.d))
        product = self._typed(self.side.factor, z, new, words)
        yield [self._scaled(product, "root", norm=True, of_factor=True)]
        yield [self._finish(new, words)]

    def _words(self, own: Mapping[int, int]) -> dict[int, int]:
        return {**self.side.words, **own}

    def _shares(self, place: int, cols: int) -> dict[int, int]:
        """Of a sum over the tiles of a matrix ``[d, cols]``."""
        return {
            fields.PARTIAL.value: place,
            fields.PARTIALS.value: self.part.tiles(scaled_product, self.d, cols),
        }

    def _typed(self, a: Matrices, b: Matrices, out: Matrices, words: Mapping[int, int]) -> Product:
        return Product(scaled_product, a, b, out=out, words=words, typed="AB")

    def _scaled(self, product: Product, scale: str, norm: bool, of_factor: bool = False) -> Work:
        return scaled(self.part, product, scale, self.rule.refine, norm, of_factor)

    def _gram(self, m: Matrices) -> Work:
        product = Product(
            gram,
            self.b,
            self.b.transposed,
            added=self.side.factor if self.rule.damped else None,
            out=m,
            words=self.side.words,
            symmetric=True,
        )
        return self.part.work(product, F_TYPE=TYPES[self.side.factor.dtype], DAMPED=self.rule.damped)

    def _iterates(self, m: Matrices, rest: list[Matrices]) -> Iterator[list[Work]]:
        """Z from M. Places that are free again are taken for what comes next."""
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
    ) -> Work:
        product = Product(inverse_root, a, b, added=added, out=out, words=self.side.words, symmetric=True)
        return self.part.work(product, STEP=step, NUMBER=number)

    def _finish(self, new: Matrices, words: dict[int, int]) -> Work:
        """F, from the scratch memory that it was made in: every tile of the product reads the old one."""
        d, factor = self.d, self.side.factor
        words |= {
            fields.ROWS.value: d,
            fields.TILE_COLS.value: self.part.tiles(finish_sides, 1, d),
        }
        tiles = self.part.tiles(finish_sides, d, d)
        return self.part.once(finish_sides, {0: new, 3: factor}, words, tiles, TYPE=TYPES[factor.dtype])


def scaled(
    part: Part, product: Product, scale: str, refine: int = 0, norm: bool = False, of_factor: bool = False
) -> Work:
    """A work of scaled_product."""
    constants: dict[str, Any] = {"SCALE": scale, "REFINE": refine if scale == "root" else 0}
    return part.work(product, **constants, OF_FACTOR=of_factor, NORM=norm)
