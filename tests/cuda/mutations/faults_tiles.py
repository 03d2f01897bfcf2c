"""Faults in the contents of shared-memory tiles: planes of bf16, floats, mirrors, splits; and in copies."""

from __future__ import annotations

from .faults_square_root import PRODUCT
from .source_faults import Fault

UPDATE, PRECONDITION = "resident_update_64_bf16x3", "resident_precondition_64_bf16x3"
ROOT, ROOT_TF32, ROOT_FP32 = (f"resident_root_64_{name}" for name in ("bf16x3", "tf32x3", "fp32"))
FORMATS, PRECISION = "tile_formats.cuh", "precision.cuh"


def fault(file: str, kernel: str, name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(name, file, old, new, kernel, layer)


def planes(name: str, old: str, new: str, layer: str = "values", kernel: str = ROOT) -> Fault:
    return Fault(f"{name} (planes)", FORMATS, old, new, kernel, layer)


def floats(kernel: str, name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (floats)", FORMATS, old, new, kernel, layer)


PLAIN = "load_matrices(words, tile.address + plane * kPlane + 16 * (kOfB ? swapped : straight));"
TRANSPOSED = (
    "load_matrices_transposed(words, tile.address + plane * kPlane + 16 * (kOfB ? straight : swapped));"
)
STORED = "const Address to = tile + (row / 8 + col / 8 * 2) * kMatrix + row % 8 * 16 + col % 8 * 2;"
ELEMENT = "const Address at = tile + (row / 8 + col / 8 * 2) * kMatrix + row % 8 * 16 + col % 8 * 2;"

READS = [
    planes("high and low swapped along rows", PLAIN, PLAIN.replace("plane *", "(1 - plane) *")),
    planes("high and low swapped along columns", TRANSPOSED, TRANSPOSED.replace("plane *", "(1 - plane) *")),
    planes(
        "8 x 8 matrices of A in B's order",
        PLAIN,
        PLAIN.replace("? swapped : straight", "? swapped : swapped"),
    ),
    planes(
        "8 x 8 matrices of B in A's order",
        PLAIN,
        PLAIN.replace("? swapped : straight", "? straight : straight"),
    ),
    planes(
        "8 x 8 matrices of A in B's order, transposed",
        TRANSPOSED,
        TRANSPOSED.replace("? straight : swapped", "? straight : straight"),
    ),
    planes(
        "8 x 8 matrices of B in A's order, transposed",
        TRANSPOSED,
        TRANSPOSED.replace("? straight : swapped", "? swapped : swapped"),
    ),
    planes("transposed tiles read along rows", "load_matrices_transposed(words,", "load_matrices(words,"),
    planes("plain tiles read along columns", "load_matrices(words,", "load_matrices_transposed(words,"),
    fault(
        "ptx.cuh",
        ROOT,
        "two matrices of a fragment swapped",
        "m8n8.x4.shared.b16 {%0, %1, %2, %3}",
        "m8n8.x4.shared.b16 {%0, %2, %1, %3}",
    ),
    fault(
        PRECISION,
        ROOT,
        "the low plane read from the high one",
        "Format::read<kOfB>(term[1], tile, 1, lane);",
        "Format::read<kOfB>(term[1], tile, 0, lane);",
    ),
]

STORES = [
    planes(
        "quadruples in the other half's matrix",
        STORED,
        STORED.replace("row / 8 + col / 8 * 2", "row / 8 * 2 + col / 8"),
    ),
    planes("the pairs of a quadruple swapped", "{left[plane], right[plane]}", "{right[plane], left[plane]}"),
    planes(
        "the low plane of a quadruple over the high one",
        "memory_at<uint2>(to + plane * kPlane)",
        "memory_at<uint2>(to)",
        "uninitialised",
    ),
    planes(
        "the low plane of a quadruple not stored",
        "for (int plane = 0; plane < 2; ++plane) {\n      memory_at<uint2>",
        "for (int plane = 0; plane < 1; ++plane) {\n      memory_at<uint2>",
        "uninitialised",
    ),
    planes(
        "the low plane of a product not written",
        "for (int p = 0; p < 2; ++p) {\n#pragma unroll\n        for (int i = 0; i < 4; ++i) memory_at",
        "for (int p = 0; p < 1; ++p) {\n#pragma unroll\n        for (int i = 0; i < 4; ++i) memory_at",
        "values",
        PRECONDITION,
    ),
    planes(
        "a product's lanes in the wrong places",
        "const Address to = tile + 4 * lane.index();",
        "const Address to = tile + 4 * (lane.member * 8 + lane.group);",
    ),
    planes(
        "a pair of a product swapped",
        "split_bf16({c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]}, terms);",
        "split_bf16({c[i / 2][i % 2 * 2 + 1], c[i / 2][i % 2 * 2]}, terms);",
    ),
    planes(
        "rows and columns of a product's halves swapped",
        "split_bf16({c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]}, terms);",
        "split_bf16({c[i % 2][i / 2 * 2], c[i % 2][i / 2 * 2 + 1]}, terms);",
    ),
    planes(
        "an element without its low plane",
        "return __uint_as_float(high << 16) + __uint_as_float(low << 16);",
        "return __uint_as_float(high << 16);",
    ),
    planes(
        "an element of the other half's matrix",
        ELEMENT,
        ELEMENT.replace("row / 8 + col / 8 * 2", "row / 8 * 2 + col / 8"),
    ),
    planes(
        "a written matrix added without its low plane",
        "factor * (__uint_as_float(high << 16) + __uint_as_float(low << 16));",
        "factor * __uint_as_float(high << 16);",
    ),
    planes(
        "odd columns of a written matrix added without their low plane",
        "factor * (__uint_as_float(high & 0xffff0000u) + __uint_as_float(low & 0xffff0000u));",
        "factor * __uint_as_float(high & 0xffff0000u);",
    ),
]

MIRRORS = [
    planes(
        "the low plane is not mirrored",
        "uint32_t (&words)[4] = plane[p];",
        "uint32_t (&words)[4] = plane[0];",
        "values",
        UPDATE,
    ),
    planes(
        "the mirror image not transposed", "words[2] = transpose_matrix(words[1]);", "words[2] = words[1];"
    ),
    planes(
        "the mirror image of the wrong matrix",
        "words[2] = transpose_matrix(words[1]);",
        "words[2] = transpose_matrix(words[0]);",
    ),
    planes("the mirror of the wrong matrices on the diagonal", "i < 4; i += 3)", "i < 4; i += 2)"),
    planes(
        "matrices on the diagonal mirrored without being transposed",
        "(transpose_matrix(words[i]) & ~kept)",
        "(words[i ^ 3] & ~kept)",
    ),
    floats(
        ROOT_TF32,
        "no mirror image",
        "      if (col < row) memory_at<float>(tile + 4 * offset(col, row)) = c[e / 4][e % 4];\n",
        "",
        "uninitialised",
    ),
    floats(
        ROOT_TF32,
        "mirrored from above the diagonal alone",
        "if (col > row) continue;",
        "if (col < row) continue;",
        "uninitialised",
    ),
]

SPLITS = [
    planes("the low term of a split dropped", "pair.x -= __uint_as_float(terms[i] << 16);", "pair.x = 0;"),
    planes(
        "the odd low term of a split dropped",
        "pair.y -= __uint_as_float(terms[i] & 0xffff0000u);",
        "pair.y = 0;",
    ),
    fault("ptx.cuh", ROOT, "bf16 halves swapped", ': "f"(high), "f"(low));', ': "f"(low), "f"(high));'),
    fault(
        PRECISION,
        ROOT_TF32,
        "the low term in tf32 dropped",
        "round_tf32(value - high);",
        "0;",
    ),
    floats(
        PRODUCT,
        "no swizzle",
        "return (row * kTile + col) ^ ((row & 6) << 2);",
        "return row * kTile + col;",
        "budget",
    ),
    floats(PRODUCT, "a weaker swizzle", "^ ((row & 6) << 2);", "^ ((row & 4) << 2);", "budget"),
    floats(
        ROOT_TF32,
        "a transposed pair from one row",
        "element(tile.address, k + 1, row)}",
        "element(tile.address, k, row + 1)}",
    ),
]

COPIES = [
    fault(
        "memory.cuh",
        PRODUCT,
        "read beyond a matrix's rows",
        "const bool inside = row < from.rows;",
        "const bool inside = true;",
        "bounds",
    ),
    fault(
        "memory.cuh",
        PRODUCT,
        "read beyond a matrix's columns",
        "const bool exists = inside && col + i < from.cols;",
        "const bool exists = inside;",
        "bounds",
    ),
    fault(
        "memory.cuh",
        PRODUCT,
        "quadruples read whole",
        "max(0, min(4, from.cols - col)) : 0",
        "4 : 0",
        "uninitialised",
    ),
    fault(
        "memory.cuh",
        PRODUCT,
        "written beyond a matrix's columns",
        "if (col < cols) *at<float>(row, col) = pair.x;",
        "*at<float>(row, col) = pair.x;",
        "race",
    ),
    fault(
        "memory.cuh",
        PRODUCT,
        "written beyond a matrix's rows",
        "    if (row >= rows) return;\n    if (aligned && col + 1",
        "    if (aligned && col + 1",
        "race",
    ),
    fault(
        "memory.cuh",
        PRECONDITION,
        "a view of another block",
        "const int64_t index = block - view.first;",
        "const int64_t index = block;",
        "values",
    ),
    fault(
        "memory.cuh",
        PRODUCT,
        "no mirror of a symmetric matrix",
        "    if (col < row) store(col, row, pair.x);\n    if (col + 1 < row) store(col + 1, row, pair.y);\n",
        "",
        "uninitialised",
    ),
    fault(
        "memory.cuh",
        PRODUCT,
        "mirror of a pair swapped",
        "    if (col < row) store(col, row, pair.x);\n    if (col + 1 < row) store(col + 1, row, pair.y);\n",
        "    if (col < row) store(col, row, pair.y);\n    if (col + 1 < row) store(col + 1, row, pair.x);\n",
    ),
]

FAULTS = [*READS, *STORES, *MIRRORS, *SPLITS, *COPIES]
