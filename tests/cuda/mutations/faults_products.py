"""Faults in products of tiles: terms, shapes, segments of k, the lower tiles of each warp."""

from __future__ import annotations

from .faults_square_root import PRODUCT
from .faults_tiles import PRECISION, PRECONDITION, ROOT, ROOT_FP32, ROOT_TF32, UPDATE, fault
from .source_faults import Fault

ROOT_96, ROOT_128 = "resident_root_96_bf16x3", "resident_root_128_bf16x3"
UPDATE_128 = "resident_update_128_bf16x3"
PRECONDITION_96, PRECONDITION_128 = "resident_precondition_96_bf16x3", "resident_precondition_128_bf16x3"
SHARED = "tile_products.cuh"


def product(kernel: str, name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(name, SHARED, old, new, kernel, layer)


TERMS = [
    fault(
        PRECISION,
        ROOT,
        "no product with the low term of B",
        "    if (!exact.b) add_terms<Shape, kFirst, kEnd>(c, a, b, 0, 1);\n",
        "",
    ),
    fault(
        PRECISION,
        ROOT,
        "no product with the low term of A",
        "    if (!exact.a) add_terms<Shape, kFirst, kEnd>(c, a, b, 1, 0);\n",
        "",
    ),
    fault(
        PRECISION,
        UPDATE,
        "the exact operand is the other one",
        "if (!exact.b) add_terms<Shape, kFirst, kEnd>(c, a, b, 0, 1);\n    if (!exact.a)",
        "if (!exact.a) add_terms<Shape, kFirst, kEnd>(c, a, b, 0, 1);\n    if (!exact.b)",
    ),
    fault(PRECISION, ROOT, "terms of A and B swapped", "mma_bf16(c, a.term[i],", "mma_bf16(c, a.term[j],"),
    fault(
        PRECISION,
        ROOT,
        "halves of k of B swapped",
        "{b.term[j][2 * half], b.term[j][2 * half + 1]});\n  }\n};\n\n// Of tiles",
        "{b.term[j][2 * half + 1], b.term[j][2 * half]});\n  }\n};\n\n// Of tiles",
    ),
    fault(
        PRECISION,
        PRODUCT,
        "rows of pairs of A and B swapped",
        "of_b ? pair / 2 : pair % 2",
        "of_b ? pair % 2 : pair / 2",
    ),
    fault(
        PRECISION,
        ROOT_TF32,
        "A's k and rows swapped in tf32",
        "kOfB ? row / 8 * 2 + j : j * 2 + row / 8;",
        "row / 8 * 2 + j;",
    ),
    fault(
        PRECISION,
        ROOT_TF32,
        "half of k left out in tf32",
        "for (int k = 0; k < 2; ++k) {\n      mma_tf32",
        "for (int k = 0; k < 1; ++k) {\n      mma_tf32",
    ),
    fault(
        PRECISION,
        ROOT_FP32,
        "rows g for g + 8 in fp32",
        "a.pair(lane.group + 8, k)}",
        "a.pair(lane.group, k)}",
    ),
    fault(
        PRECISION,
        ROOT_FP32,
        "odd k left out in fp32",
        "fmaf(rows[i / 2].y, col.y, fmaf(rows[i / 2].x, col.x, c[half][i]));",
        "fmaf(rows[i / 2].x, col.x, c[half][i]);",
    ),
    fault(
        PRECISION,
        ROOT_FP32,
        "transposed tiles read along rows in fp32",
        "transposed = kOrder == Order::kTransposed;",
        "transposed = false;",
    ),
    fault(
        "tile.cuh",
        ROOT,
        "transposed tiles in plain order",
        "{address + (k * columns + row) * kTileBytes};",
        "{address + (row * columns + k) * kTileBytes};",
    ),
    fault(
        "tile.cuh",
        ROOT,
        "upper tiles not from their mirror images",
        "return {place(k, row)};",
        "return {place(row, k)};",
    ),
]

SEGMENTS = [
    product(ROOT, "every segment turns a rank too early", "kSegment <= kRank", "kSegment < kRank"),
    product(
        ROOT,
        "a segment ends a tile too late",
        "min(depth, (cols[j()] | 1))",
        "min(depth, (cols[j()] | 1) + 1)",
    ),
    product(
        ROOT,
        "a segment ends a tile too early",
        "min(depth, (cols[j()] | 1))",
        "min(depth, (cols[j()] | 1) - 1)",
    ),
    product(
        ROOT,
        "rows' segment ends a tile too late",
        "min(depth, (rows[i()] | 1))",
        "min(depth, (rows[i()] | 1) + 1)",
    ),
    product(
        ROOT,
        "rows' segment ends a tile too early",
        "min(depth, (rows[i()] | 1))",
        "min(depth, (rows[i()] | 1) - 1)",
    ),
    product(ROOT, "segments begin at the first k again", "    begin = end;\n", ""),
    product(
        ROOT,
        "rows of a plain operand end a segment",
        "if (A::kSymmetric && Shape::rank_a",
        "if (Shape::rank_a",
    ),
    product(
        ROOT,
        "the last segment left out",
        "B::kSymmetric ? Shape::kRanks + 1 : 1",
        "B::kSymmetric ? Shape::kRanks : 1",
    ),
    product(
        ROOT,
        "k beyond the matrix",
        "int end = depth;",
        "int end = kSegment + 1 < kSegments ? depth : depth - 1;",
    ),
]

RECTANGLES = [
    product(
        PRECONDITION_96,
        "a rectangle's slots column after column",
        "{s / kCols, s % kCols}",
        "{s % kRows, s / kRows}",
    ),
    product(ROOT, "a rectangle's columns change one after another", "return j / kTogether;", "return j;"),
    product(
        PRECONDITION, "a rectangle's rows change one after another", "return i / kTogether;", "return i;"
    ),
    product(ROOT_96, "a rectangle's odd columns change at once", "kChanging % 2 == 0 ? 2 : 1;", "2;"),
    product(PRECONDITION_96, "a rectangle's odd rows change at once", "kChanging % 2 == 0 ? 2 : 1;", "2;"),
    product(
        PRECONDITION_128,
        "a rectangle's rows change as its columns would",
        "Rectangle<kRows, kCols, A::kSymmetric>",
        "Rectangle<kRows, kCols, false>",
    ),
    product(
        PRECONDITION_128, "a rectangle's rows never change", "kRanks = kChanging / kTogether;", "kRanks = 0;"
    ),
    product(
        ROOT_128,
        "half of a rectangle's rows left out",
        "if constexpr (kEnd == kFirst + Shape::kAtOnce) {",
        "if constexpr (kEnd == Shape::kAtOnce) {",
    ),
    product(
        PRECONDITION_128,
        "the second half of a rectangle's rows alone",
        "if constexpr (kEnd == kFirst + Shape::kAtOnce) {",
        "if constexpr (kEnd == Shape::kA) {",
    ),
    product(
        UPDATE_128,
        "half of a rectangle's rows counted twice",
        "Multiply::template add<Shape, kFirst, kEnd>",
        "Multiply::template add<Shape, 0, kEnd>",
    ),
    product(
        ROOT_128,
        "rows of a rectangle multiplied one at a time, every second",
        "kAtOnce * Shape::kAtOnce, kEnd = i() + 1;",
        "kAtOnce * Shape::kAtOnce + 1, kEnd = i() + 1;",
    ),
    fault(
        PRECISION,
        PRECONDITION_128,
        "the rows before those at once multiplied again",
        "if (Shape::slot(s).a < kFirst || Shape::slot(s).a >= kEnd) continue;\n#pragma",
        "if (Shape::slot(s).a >= kEnd) continue;\n#pragma",
    ),
    product(
        PRECONDITION,
        "a warp's rows are another's",
        "return warp % 2 * kRows + i;",
        "return warp / 2 % 2 * kRows + i;",
        "values",
    ),
    product(
        PRECONDITION,
        "a warp's columns are another's",
        "return warp / 2 * kCols + j;",
        "return warp % 2 * kCols + j;",
        "values",
    ),
    product(
        PRECONDITION,
        "a warp with half of its rows inside idles",
        "if (row(0) >= rows || col(0)",
        "if (row(1) >= rows || col(0)",
    ),
    product(
        PRECONDITION,
        "a warp with half of its columns inside idles",
        "|| col(0) >= cols) return;",
        "|| col(1) >= cols) return;",
    ),
    product(
        PRECONDITION,
        "tiles of a product at mirrored places",
        "row(s / kCols) * kTiles + col(s % kCols)",
        "col(s % kCols) * kTiles + row(s / kCols)",
    ),
    product(
        PRECONDITION,
        "rows of a tile written from its other half",
        "[i / 2 % 2][r % 2 * 2 + i % 2];",
        "[r % 2][i / 2 % 2 * 2 + i % 2];",
    ),
    product(
        PRECONDITION,
        "pairs from the next tile's columns",
        "c[r / 2 * kCols + i / 4]",
        "c[r / 2 * kCols + (i / 4 ^ 1)]",
    ),
    product(
        PRECONDITION,
        "rows g and g + 8 at each other's place",
        "tile_row * kTile + lane.group + i % 2 * 8",
        "tile_row * kTile + lane.group + (1 - i % 2) * 8",
    ),
    product(
        ROOT,
        "a product scaled in part",
        "e < 8 * kSlots; ++e) use(c[e / 8]",
        "e < 8 * kSlots - 1; ++e) use(c[e / 8]",
    ),
]

SHAPES = [
    product(
        ROOT,
        "Diagonal: (p, q) for (q, p)",
        "return s < 3 ? Slot{s > 0, s > 1} : Slot{s - 3, 2}; }",
        "return s < 3 ? Slot{s > 1, s > 0} : Slot{s - 3, 2}; }",
        "uninitialised",
    ),
    product(ROOT_128, "Diagonal: the column of q", "Slot{s - 3, 2}", "Slot{s - 3, 1}", "uninitialised"),
    product(ROOT_96, "Diagonal: p's row twice", "Slot{s - 3, 2}", "Slot{0, 2}", "uninitialised"),
    product(
        ROOT_128,
        "Diagonal: rows change with the column",
        "rank_a(int) { return kColumns; }",
        "rank_a(int) { return 0; }",
    ),
    product(ROOT_128, "Diagonal: p and q change with the column", "j < 2 ? kColumns : 0", "0"),
    product(ROOT_96, "Diagonal: the column changes with p and q", "j < 2 ? kColumns : 0", "kColumns"),
    product(ROOT_128, "Corner: tiles below (p, p)", "Slot{s - 1, 1}", "Slot{s - 1, 0}", "uninitialised"),
    product(ROOT_96, "Corner: a row too high", "Slot{s - 1, 1}", "Slot{s - 2, 1}", "uninitialised"),
    product(
        ROOT_128,
        "Corner: all rows change at once",
        "rank_a(int i) { return i / 2; }",
        "rank_a(int) { return 0; }",
    ),
    product(
        ROOT_96,
        "Corner: columns change with the lower rows",
        "rank_b(int) { return 0; }",
        "rank_b(int) { return 1; }",
    ),
    product(
        ROOT_128,
        "Below: one column twice",
        "Slot slot(int s) { return {s % kRows, s / kRows}; }",
        "Slot slot(int s) { return {s % kRows, 0}; }",
        "uninitialised",
    ),
    product(
        ROOT,
        "Below: one row twice",
        "Slot slot(int s) { return {s % kRows, s / kRows}; }",
        "Slot slot(int s) { return {0, s / kRows}; }",
        "uninitialised",
    ),
    product(
        ROOT_128,
        "Below: rows change with the columns",
        "return kColumnRanks + i / 2;",
        "return kColumnRanks - 1;",
    ),
    product(
        ROOT_96, "Below: rows change before the columns", "return kColumnRanks + i / 2;", "return i / 2;"
    ),
    product(ROOT_96, "Below: three columns as if from an even one", "j / 2 : (j + 1) / 2", "j / 2 : j / 2"),
    product(ROOT_96, "Below: three columns change at once", "kCols % 2 == 0 ? j / 2 : (j + 1) / 2", "0"),
]

CORNER_8 = """if constexpr (kTiles == 8) {
      if (warp == 0) {
        use(Corner{}, Ints<4>{0, 1, 2, 3}, Ints<2>{0, 1});"""
CORNER_6 = CORNER_8.replace("kTiles == 8", "kTiles == 6")


def table(name: str, old: str, new: str, layer: str = "uninitialised") -> Fault:
    """Return a fault in the tiles of each warp; `name` begins with kTiles."""
    kernel = {"8": ROOT_128, "6": ROOT_96, "4": ROOT}[name[0]]
    return Fault(f"tiles of {name}", SHARED, old, new, kernel, layer)


TABLES = [
    table("8: a row of the corner twice", CORNER_8, CORNER_8.replace("1, 2, 3}", "1, 2, 2}")),
    table("8: the corner's second column twice", CORNER_8, CORNER_8.replace("{0, 1})", "{1, 1})")),
    table(
        "8: the first column twice",
        "Ints<3>{first, first + 1, warp == 1 ? 0 : 2}",
        "Ints<3>{first, first + 1, 0}",
    ),
    table(
        "8: the third column for the first",
        "Ints<3>{first, first + 1, warp == 1 ? 0 : 2}",
        "Ints<3>{first, first + 1, 2}",
    ),
    table(
        "8: a square two rows too high",
        "const int row = warp == 4 ? 4 : 6,",
        "const int row = warp == 5 ? 6 : 4,",
    ),
    table("8: a square four columns too far left", "col = warp == 6 ? 4 : 0;", "col = 0;"),
    table("8: a pair of columns too far right", "Ints<2>{col, col + 1});", "Ints<2>{col + 1, col + 2});"),
    table(
        "8: the last warp's column is another's",
        "Ints<4>{4, 5, 6, 7}, Ints<1>{3}",
        "Ints<4>{4, 5, 6, 7}, Ints<1>{2}",
    ),
    table("8: the last row never", "Ints<4>{4, 5, 6, 7}, Ints<1>{3}", "Ints<4>{4, 5, 6, 6}, Ints<1>{3}"),
    table("8: a warp takes another's shape", "} else if (warp < 7) {", "} else if (warp < 8) {"),
    table("6: a row of the corner twice", CORNER_6, CORNER_6.replace("1, 2, 3}", "1, 2, 2}")),
    table(
        "6: the second column for the first",
        "Ints<3>{first, first + 1, 0});",
        "Ints<3>{first, first + 1, 1});",
    ),
    table("6: the last row never", "use(Below<2, 3>{}, Ints<2>{4, 5}", "use(Below<2, 3>{}, Ints<2>{4, 4}"),
    table("6: the first column for the last", "Ints<3>{1, 2, 3}", "Ints<3>{1, 2, 0}"),
    table("4: the last row never", "use(Below<2, 1>{}, Ints<2>{2, 3}", "use(Below<2, 1>{}, Ints<2>{2, 2}"),
    table("4: the first column twice", "Ints<1>{warp - 2}", "Ints<1>{0}"),
    table(
        "4: the first diagonal twice",
        "if (warp < 2) {\n        use(Diagonal<0>{}, Ints<2>{first, first + 1}",
        "if (warp < 2) {\n        use(Diagonal<0>{}, Ints<2>{0, first + 1}",
    ),
    table(
        "8: slots that no warp has are written",
        "kTiles == 8 ? 4 : kTiles == 6 ? 5 : 2;",
        "kTiles == 8 ? 5 : kTiles == 6 ? 5 : 2;",
        "bounds",
    ),
    table(
        "6: slots that no warp has are written",
        "kTiles == 8 ? 4 : kTiles == 6 ? 5 : 2;",
        "kTiles == 8 ? 4 : kTiles == 6 ? 6 : 2;",
        "bounds",
    ),
    table(
        "4: slots that no warp has are written",
        "kTiles == 8 ? 4 : kTiles == 6 ? 5 : 2;",
        "kTiles == 8 ? 4 : kTiles == 6 ? 5 : 3;",
        "bounds",
    ),
    table(
        "6: the last slot is never written",
        "slot < Share::kLeastSlots || share.row(slot) < kTiles",
        "slot < Share::kLeastSlots",
    ),
]

SYMMETRIC = [
    product(
        ROOT,
        "warps below the first rows idle",
        "if (share.row(0) >= tile_rows) return;",
        "if (share.row(1) >= tile_rows) return;",
    ),
    product(
        ROOT,
        "the second tile of the diagonal without it",
        "for (int s = 0; s < kSlots && s < 3; s += 2) {",
        "for (int s = 0; s < 1; s += 2) {",
    ),
    product(
        ROOT,
        "odd elements of the diagonal left out",
        "if (at.row < size && at.row == at.col + 1) c[s][i / 2][i % 2 * 2 + 1] += value;",
        "",
    ),
    product(
        ROOT,
        "the diagonal's last element left out",
        "if (at.row < size && at.row == at.col) c",
        "if (at.row + 1 < size && at.row == at.col) c",
    ),
    product(
        ROOT, "off-diagonal tiles counted once in a norm", "? squares : 2 * squares;", "? squares : squares;"
    ),
    product(
        ROOT,
        "a written matrix added to the first slot alone",
        "if (has(s)) Format::add(c[s], factor, tile_of(tiles, current, s), current.lane);",
        "if (has(s)) Format::add(c[0], factor, tile_of(tiles, current, s), current.lane);",
    ),
    product(
        ROOT,
        "every tile mirrored as on the diagonal",
        "if (s % 2 == 0 && s < 3 && current.row(s) == current.col(s)) {",
        "if (s % 2 == 0 && s < 3) {",
    ),
]

FAULTS = [*TERMS, *SEGMENTS, *RECTANGLES, *SHAPES, *TABLES, *SYMMETRIC]
