"""Faults in what all products share: tiles, fragments, splits, symmetric products, copies, sums."""

from __future__ import annotations

from .faults_square_root import PRODUCT
from .faults_square_root_resident import UPDATE
from .source_faults import Fault

SHARED = "tile_products.cuh"


def fault(file: str, name: str, old: str, new: str, layer: str = "values", kernel: str = UPDATE) -> Fault:
    return Fault(name, file, old, new, kernel, layer)


TILES = [
    fault(
        "tile.cuh",
        "wrong row of a fragment of A",
        "lane.group + 8 * (i % 2), 2 * lane.member + 8 * (i / 2)",
        "lane.group + 8 * (i / 2), 2 * lane.member + 8 * (i % 2)",
    ),
    fault(
        "tile.cuh",
        "wrong row of a fragment of B",
        "read_pair(tile, first_row + lane.group, 2 * lane.member + 8 * i)",
        "read_pair(tile, first_row + (lane.group ^ 1), 2 * lane.member + 8 * i)",
    ),
    fault(
        "tile.cuh",
        "no swizzle",
        "return (row * kTile + col) ^ ((row & 6) << 2);",
        "return row * kTile + col;",
        "budget",
    ),
    fault("tile.cuh", "a weaker swizzle", "^ ((row & 6) << 2);", "^ ((row & 4) << 2);", "budget"),
    fault(
        "tile.cuh",
        "symmetric tiles above the diagonal not transposed",
        "return {data + index * kTileFloats, !lower};",
        "return {data + index * kTileFloats, false};",
    ),
]

SPLITS = [
    fault(
        "precision.cuh",
        "low term of the split dropped",
        "pair.x -= __uint_as_float(terms[i] << 16);",
        "pair.x = 0;",
    ),
    fault(
        "precision.cuh",
        "both products with low terms dropped",
        "for (int sum = kTerms - 1; sum >= 0; --sum)",
        "for (int sum = 0; sum >= 0; --sum)",
    ),
    fault(
        "precision.cuh",
        "one product with a low term dropped",
        "for (int i = 0; i <= sum; ++i)",
        "for (int i = 0; i <= 0; ++i)",
    ),
]

SYMMETRIC = [
    fault(
        SHARED,
        "odd elements of the diagonal left out",
        "if (row < size && row == col + 1) pair[1] += value;",
        "",
    ),
    fault(
        SHARED,
        "off-diagonal tiles counted once in a norm",
        "(row / kTile == col / kTile ? 1 : 2) * (pair",
        "1 * (pair",
    ),
    fault(
        "memory.cuh",
        "no mirror of a symmetric matrix",
        "    if (col < row) at(col, row) = pair.x;\n    if (col + 1 < row) at(col + 1, row) = pair.y;\n",
        "",
        "uninitialised",
        PRODUCT,
    ),
    fault(
        "memory.cuh",
        "mirror of a pair swapped",
        "if (col < row) at(col, row) = pair.x;\n    if (col + 1 < row) at(col + 1, row) = pair.y;\n",
        "if (col < row) at(col, row) = pair.y;\n    if (col + 1 < row) at(col + 1, row) = pair.x;\n",
        "values",
        PRODUCT,
    ),
]

COPIES = [
    fault("memory.cuh", "no wait for copies", "  copy_async_wait<0>();\n", "", "in-flight"),
    fault("memory.cuh", "copies not committed", "  copy_async_commit();\n", "", "in-flight"),
    fault(
        "memory.cuh",
        "no barrier after copies",
        "  copy_async_wait<0>();\n  __syncthreads();\n",
        "  copy_async_wait<0>();\n",
        "race",
    ),
    fault(
        "memory.cuh",
        "read beyond a matrix's rows",
        "const bool inside = row < from.rows;",
        "const bool inside = true;",
        "bounds",
    ),
    fault(
        "memory.cuh",
        "written beyond a matrix's columns",
        "if (col < cols) at(row, col) = pair.x;",
        "at(row, col) = pair.x;",
        "race",
    ),
    fault(
        "memory.cuh",
        "written beyond a matrix's rows",
        "    if (row >= rows) return;\n",
        "",
        "bounds",
    ),
]

SUMS = [
    fault(
        "reduce.cuh",
        "no barrier before the warps' sums are read",
        "= value;\n  __syncthreads();\n",
        "= value;\n",
        "race",
    ),
    fault(
        "largest.cuh",
        "no barrier before the warps' maxima are read",
        "= value;\n  __syncthreads();\n",
        "= value;\n",
        "race",
    ),
]

FAULTS = [*TILES, *SPLITS, *SYMMETRIC, *COPIES, *SUMS]
