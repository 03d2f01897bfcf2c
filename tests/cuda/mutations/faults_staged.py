"""Faults in the staging of matrices to shared memory, through registers or by asynchronous copies."""

from __future__ import annotations

from .faults_products import PRECONDITION_96, ROOT_96
from .faults_tiles import PRECONDITION, UPDATE
from .source_faults import Fault

UPDATE_96 = "resident_update_96_bf16x3"
SHARED = "staged_matrix.cuh"


def staged(kernel: str, name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (staged)", SHARED, old, new, kernel, layer)


def memory(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (staged)", "memory.cuh", old, new, PRECONDITION, layer)


INSIDE = "at.row * kTile + within.row < from.rows && at.col * kTile + within.col < from.cols;"
FULL = "if (from.rows == kTiles * kTile && from.cols == kTiles * kTile && kFillsGrid) {"
REGISTERS = "    } else if (from.bf16) {\n      read_aligned"
UNPACKED = "    } else if (from.bf16) {\n#pragma"
COPIED = "      if (from.bf16) {\n        copy_aligned"
BF16 = "    } else if (from.bf16) {\n"
ENDED = f"{BF16}      read_groups<uint2>(place);\n    }} else {{\n      read_groups<float4>(place);\n"

EDGES = [
    memory("quadruples beyond the columns", "return aligned && cols % 4 == 0;", "return aligned;"),
    memory(
        "quadruples that are not aligned",
        "return aligned && cols % 4 == 0;",
        "return cols % 4 == 0;",
        "bounds",
    ),
    staged(
        PRECONDITION,
        "quadruples beyond the rows",
        INSIDE,
        INSIDE.replace("at.row * kTile + within.row < from.rows && ", ""),
        "bounds",
    ),
    staged(PRECONDITION, "quadruples right of the edge", INSIDE, INSIDE[: INSIDE.index(" &&")] + ";"),
    staged(
        PRECONDITION,
        "ragged rows treated as full ones",
        FULL,
        FULL.replace("from.rows == kTiles * kTile && ", ""),
        "bounds",
    ),
    staged(
        PRECONDITION,
        "ragged columns treated as full ones",
        FULL,
        FULL.replace(" && from.cols == kTiles * kTile", ""),
        "bounds",
    ),
    staged(UPDATE, "ragged matrices treated as full ones", FULL, "if (kFillsGrid) {", "bounds"),
    staged(
        PRECONDITION_96,
        "a place below the grid is in a full matrix",
        FULL,
        FULL.replace(" && kFillsGrid", ""),
        "bounds",
    ),
    staged(
        PRECONDITION,
        "zeros around a matrix are its first elements",
        "inside ? kSize : 0);",
        "kSize);",
        "bounds",
    ),
    staged(
        PRECONDITION,
        "no part of a copy is zeros",
        "inside ? at : from.data, inside ? kSize : 0);",
        "at, kSize);",
        "bounds",
    ),
    staged(PRECONDITION, "half of each four is zeros", "inside ? kSize : 0);", "inside ? kSize / 2 : 0);"),
]

GRIDS = [
    staged(
        UPDATE,
        "all rows of tiles are the first",
        "first + at.row * rows + at.col * kTile",
        "first + at.col * kTile",
    ),
    staged(
        ROOT_96,
        "all tiles of a row are the first",
        "first + at.row * rows + at.col * kTile",
        "first + at.row * rows",
    ),
    staged(
        UPDATE, "rows of tiles a tile's columns apart", "rows = kTile * from.row_stride;", "rows = kTile;"
    ),
    staged(UPDATE, "a team's tiles at once are one", "kFirst % kTiles + i};", "kFirst % kTiles};"),
    staged(
        UPDATE,
        "rows and columns of tiles swapped",
        "{kFirst / kTiles, kFirst % kTiles + i};",
        "{kFirst % kTiles + i, kFirst / kTiles};",
    ),
    staged(
        UPDATE,
        "rows and columns of tiles swapped, by elements",
        "{place / kTiles, place % kTiles};",
        "{place % kTiles, place / kTiles};",
    ),
    staged(
        PRECONDITION,
        "the upper triangle of a root for the lower",
        "{static_cast<int>(kRows >> 8 * i & 255), static_cast<int>(kCols >> 8 * i & 255)};",
        "{static_cast<int>(kCols >> 8 * i & 255), static_cast<int>(kRows >> 8 * i & 255)};",
    ),
    staged(
        PRECONDITION,
        "the upper triangle of a root for the lower, by elements",
        "return {row, place - lower_tiles(row)};",
        "return {place - lower_tiles(row), row};",
    ),
    staged(
        PRECONDITION,
        "a root's rows end a tile too early",
        "(lower_tiles(row + 1) <= first + i)",
        "(lower_tiles(row + 1) < first + i)",
    ),
    staged(
        PRECONDITION,
        "a root's rows end a tile too early, by elements",
        "(lower_tiles(row + 1) <= place)",
        "(lower_tiles(row + 1) < place)",
    ),
    staged(
        PRECONDITION,
        "rows and columns of neighbours in one place",
        "first + i - lower_tiles(row)) << 8 * i;",
        "first + i - lower_tiles(row));",
    ),
    staged(
        PRECONDITION,
        "a root's columns by its rows",
        "packed(kFirst, kNumber, false);",
        "packed(kFirst, kNumber, true);",
    ),
    staged(
        PRECONDITION,
        "columns of neighbours are one",
        "first + i - lower_tiles(row)) <<",
        "first - lower_tiles(row)) <<",
    ),
    staged(
        UPDATE,
        "a root's last tiles not read",
        "kCount = lower_tiles(kTiles);",
        "kCount = lower_tiles(kTiles) - 2;",
        "values",
    ),
    staged(
        PRECONDITION_96,
        "an odd last tile left out",
        "(Grid::kCount + kTilesAtOnce - 1) / kTilesAtOnce;",
        "Grid::kCount / kTilesAtOnce;",
        "uninitialised",
    ),
    Fault(
        "a root's last tile of two over the next place (staged)",
        "square_root_resident.h",
        "(tiles * (tiles + 1) / 2 + 1) / 2 * 2;",
        "tiles * (tiles + 1) / 2;",
        PRECONDITION_96,
        "race",
    ),
    staged(
        PRECONDITION,
        "elements of another tile",
        "Grid::tile(i * kTilesAtOnce + of_thread.tile)",
        "Grid::tile(i + of_thread.tile)",
    ),
    staged(
        PRECONDITION,
        "elements of the first tile of two",
        "Grid::tile(i * kTilesAtOnce + of_thread.tile)",
        "Grid::tile(i * kTilesAtOnce)",
    ),
]

REGISTER_FAULTS = [
    staged(UPDATE, "bfloat16 read as float32", REGISTERS, REGISTERS.replace("from.bf16", "false"), "race"),
    staged(PRECONDITION, "bfloat16 not unpacked", UNPACKED, UNPACKED.replace("from.bf16", "false")),
    staged(UPDATE, "float32 unpacked as bfloat16", UNPACKED, UNPACKED.replace("from.bf16", "true")),
    staged(
        PRECONDITION,
        "the first two of four twice",
        "__float_as_uint(four[i][1])}",
        "__float_as_uint(four[i][0])}",
    ),
    staged(
        PRECONDITION,
        "the last two of four not kept",
        "__uint_as_float(packed.y)",
        "__uint_as_float(packed.x)",
    ),
    memory(
        "bf16 halves swapped",
        "to[0] = __uint_as_float(four.x << 16), to[1] = __uint_as_float(four.x & 0xffff0000u);",
        "to[1] = __uint_as_float(four.x << 16), to[0] = __uint_as_float(four.x & 0xffff0000u);",
    ),
    memory(
        "the second pair of bf16 is the first",
        "to[2] = __uint_as_float(four.y << 16), to[3] = __uint_as_float(four.y &",
        "to[2] = __uint_as_float(four.x << 16), to[3] = __uint_as_float(four.x &",
    ),
    staged(
        UPDATE,
        "a matrix that is not in fours is not read",
        "    if (!from.in_fours()) {\n      read_elements(from, place);\n" + UNPACKED,
        UNPACKED.replace("} else ", ""),
    ),
]

COPIES = [
    staged(
        UPDATE, "copies of unaligned matrices", "    if (from.in_fours()) {\n", "    if (true) {\n", "bounds"
    ),
    staged(
        PRECONDITION, "bfloat16 copied as float32", COPIED, COPIED.replace("from.bf16", "false"), "bounds"
    ),
    staged(PRECONDITION, "copies not committed", "    copy_async_commit();\n", "", "in-flight"),
    staged(UPDATE, "copies not awaited", "    copy_async_wait<0>();\n", "", "in-flight"),
    staged(
        PRECONDITION,
        "a group of copies left under way",
        "copy_async_wait<0>();",
        "copy_async_wait<1>();",
        "in-flight",
    ),
    staged(
        PRECONDITION,
        "copied bfloat16 read as float32",
        ENDED,
        ENDED.replace("uint2", "float4"),
        "values",
    ),
    staged(UPDATE, "copied float32 read as bfloat16", ENDED, ENDED.replace("float4", "uint2")),
    staged(
        UPDATE,
        "a matrix that is not copied is not read",
        "    if (!from.in_fours()) {\n      read_elements(from, place);\n" + BF16 + "      read_groups",
        "    if (false) {\n      read_elements(from, place);\n" + BF16 + "      read_groups",
        "uninitialised",
    ),
    staged(
        PRECONDITION, "16 bytes of four bfloat16", "kSize = 4 * sizeof(Element);", "kSize = 16;", "bounds"
    ),
    staged(
        PRECONDITION,
        "copies of a thread to one place",
        "copy_async<kSize>(to + i() * kGroupStep,",
        "copy_async<kSize>(to,",
        "in-flight",
    ),
    staged(
        PRECONDITION,
        "copies half as far apart",
        "copy_async<kSize>(to + i() * kGroupStep,",
        "copy_async<kSize>(to + i() * kGroupStep / 2,",
        "race",
    ),
]

PLACES = [
    staged(
        PRECONDITION,
        "threads read elements through one place",
        "return place + Here::thread() * sizeof(float4);",
        "return place;",
        "race",
    ),
    staged(
        PRECONDITION, "the last element of four twice", "from.read(row, col + 3)", "from.read(row, col + 2)"
    ),
    staged(
        PRECONDITION,
        "elements kept in one place",
        "unpack(memory_at<const Four>(from + i * kGroupStep), four[i]);",
        "unpack(memory_at<const Four>(from), four[i]);",
    ),
    staged(PRECONDITION, "lanes of one row for another", "lane % 16 / 2;", "lane % 16 / 4;", "values"),
    staged(
        PRECONDITION,
        "quadruples stored against the banks",
        "lane % 16 / 2;\n      within.col = lane / 16 * 8 + lane % 2 * 4;",
        "lane / 4;\n      within.col = lane % 4 * 4;",
        "budget",
    ),
    staged(
        PRECONDITION,
        "half of a tile in the other's place",
        "thread % kTileFours / 32 * 8 +",
        "(1 - thread % kTileFours / 32) * 8 -",
        "bounds",
    ),
    staged(
        PRECONDITION,
        "a tile's places of two threads are one",
        "tile = thread / kTileFours;",
        "tile = 0;",
        "values",
    ),
    staged(
        PRECONDITION,
        "tiles of a place one after another at half the distance",
        "tile + i * kTilesAtOnce * kTileBytes,",
        "tile + i * kTileBytes,",
        "race",
    ),
    staged(
        PRECONDITION,
        "the tiles of a team at once in one place",
        "tiles + place.tile * kTileBytes;",
        "tiles;",
        "race",
    ),
]

VALUES = [
    staged(
        UPDATE,
        "a new factor beyond the matrix",
        "at.row == at.col + j && at.row < size ?",
        "at.row == at.col + j ?",
    ),
    staged(
        UPDATE,
        "a new factor on every fourth diagonal",
        "at.row == at.col + j && at.row",
        "at.row == at.col && at.row",
    ),
    staged(
        UPDATE,
        "the last quadruple out of scale",
        "for (int i = 0; i < 4 * kCount; ++i) four[i / 4][i % 4] *= factor;",
        "for (int i = 0; i < 4 * kCount - 4; ++i) four[i / 4][i % 4] *= factor;",
    ),
    staged(
        UPDATE,
        "the first quadruple not looked at",
        "for (int i = 0; i < 4 * kCount; ++i) use(",
        "for (int i = 4; i < 4 * kCount; ++i) use(",
    ),
]

FAULTS = [*EDGES, *GRIDS, *REGISTER_FAULTS, *COPIES, *PLACES, *VALUES]
