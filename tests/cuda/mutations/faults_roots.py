"""Faults in the kernel that makes roots."""

from __future__ import annotations

from .faults_tiles import ROOT
from .source_faults import Fault

SYNC = "__syncthreads();\n"


def root(name: str, old: str, new: str, layer: str = "values", kernel: str = ROOT) -> Fault:
    return Fault(f"{name} (root)", "resident_root.cu", old, new, kernel, layer)


def barrier(name: str, before: str, after: str = "", layer: str = "race") -> Fault:
    """The barrier between two pieces of text, dropped."""
    return root(f"no barrier {name}", before + SYNC + after, before + after, layer)


BARRIERS = [
    barrier("after the item was found", "find(in, work.index, work.exists, item);\n  "),
    barrier("before F is stored where elements passed", "staged.scale(item_.unit);\n    "),
    barrier("after F was stored", "staged.template store<Format>(place);\n    "),
    barrier("after G was written", "gram.template write<Format>(gram_place());\n    "),
    barrier(
        "after the polynomial was written", "polynomial.template write<Format>(polynomial_place());\n    "
    ),
    barrier("before Q takes the place of Q", "tiles(), tiles(), tiles());\n    ", "    q.scale"),
    barrier("after Q was written", "++item_.step;\n    "),
    barrier(
        "before P takes the place of Q",
        "PlainTiles{first(), kTiles}, tiles(), tiles());\n    ",
        "    root.template",
    ),
]

SCALES = [
    root(
        "unit without the weight",
        "sqrtf(statistics[kWeight] * static_cast<float>(side.k))",
        "sqrtf(static_cast<float>(side.k))",
    ),
    root("unit without the gradients' rms", " * statistics[kRms];", ";"),
    root("F without its unit", "    staged.scale(item_.unit);\n", ""),
    root("Q without its scale", "    q.scale(item_.scale);\n", ""),
    root("G in Q's scale", "gram.scale(scale * scale);", "gram.scale(scale);"),
    root("a scale in every step", "item_.step == 0 ? rsqrtf", "true ? rsqrtf"),
    root(
        "the square of the scale",
        "rsqrtf(sqrtf(sum(gram.sum_of_squares(1))))",
        "rsqrtf(sum(gram.sum_of_squares(1)))",
    ),
]

STEPS = [
    root("coefficients of the first step", "const int step = item_.step;", "const int step = 0;"),
    root("one step too few", "item_.step < in_.rule.steps)", "item_.step < in_.rule.steps - 1)"),
    root("no multiple of I", "    polynomial.add_diagonal(item_.d, in_.rule.a[step]);\n", ""),
    root(
        "no multiple of G",
        "    polynomial.template add_written<Format>(gram_place(), in_.rule.b[step]);\n",
        "",
    ),
    root("no factor of G^2", "    polynomial.scale(in_.rule.c[step]);\n", ""),
    root(
        "G of rows, not of columns",
        "const TransposedTiles q{first(), kTiles};",
        "const PlainTiles q{first(), kTiles};",
    ),
    root("Q times G", "SymmetricTiles{polynomial_place()}", "SymmetricTiles{gram_place()}"),
    root(
        "the polynomial in the place of G",
        "return second() + lower_tiles(kTiles) * kTileBytes;",
        "return second();",
        "race",
    ),
    root(
        "the polynomial a tile too far",
        "return second() + lower_tiles(kTiles) * kTileBytes;",
        "return second() + (lower_tiles(kTiles) + 1) * kTileBytes;",
        "bounds",
    ),
    root(
        "depth of one tile less",
        "polynomial.template add<Multiply>(g, g, tiles(), tiles());",
        "polynomial.template add<Multiply>(g, g, tiles(), tiles() - 1);",
    ),
]

CHECKS = [
    root("P without its check", "    if (good) write_root();", "    write_root();"),
    root("no root is refused", "const bool good = residual <= in_.rule.bound;", "const bool good = true;"),
    root(
        "roots that are not finite pass",
        "const bool good = residual <= in_.rule.bound;",
        "const bool good = !(residual > in_.rule.bound);",
    ),
    root("refusals not counted", "    if (!good) item_.statistics[kRefusals] += 1;\n", ""),
    root(
        "every root counted",
        "if (!good) item_.statistics[kRefusals] += 1;",
        "item_.statistics[kRefusals] += 1;",
    ),
    root("a residual that is not a number", "isfinite(residual) ? residual : INFINITY", "residual"),
    root(
        "residual of P alone",
        "difference.template add<Multiply>(f, f, tiles(), tiles());",
        "difference.template add<Multiply>(p, p, tiles(), tiles());",
    ),
    root("residual of F alone", "    difference.template add<Multiply>(p, p, tiles(), tiles());\n", ""),
    root(
        "residual of F^T F",
        "const PlainTiles f{second(), kTiles};",
        "const TransposedTiles f{second(), kTiles};",
    ),
    root("the sum for the difference", "    difference.scale(-1);\n", ""),
    root(
        "residual without the size of X",
        "sqrtf(sum(difference.sum_of_squares(1)) / size)",
        "sqrtf(sum(difference.sum_of_squares(1)))",
    ),
    root("statistics of blocks without a root", "|| item_.d == 0) return;", ") return;", "race"),
]

TURNS = [
    root("turns do not go round", "% side.blocks;", ";", "bounds"),
    root("the counter ignored", "in.counter ? *in.counter : in.turn;", "in.turn;"),
    root("turns are all the first", "(turn * side.due + index", "(index"),
    root("blocks counted from the first side's", "index - side.first_item) %", "index) %"),
    root(
        "inactive blocks take part", "exists && side.active[item.block] && item.unit", "exists && item.unit"
    ),
    root("blocks without a gradient take part", " && item.unit > 0 ? side.d : 0;", " ? side.d : 0;"),
    root(
        "a team without an item takes part", "item.d = exists && side.active", "item.d = side.active", "race"
    ),
    root("statistics of the first block", "side.statistics + item.block * kColumns;", "side.statistics;"),
    root(
        "all blocks' refusals in one place",
        "side.root_statistics + item.block * kRootColumns;",
        "side.root_statistics;",
        "race",
    ),
    root("the last row of the root stays", "row < to.rows; row +=", "row < to.rows - 1; row +="),
    root("the last columns of the root stay", "col < to.cols; col += 32", "col + 4 < to.cols; col += 32"),
    root(
        "quadruples of float32 in bfloat16",
        "const bool in_fours = to.aligned && !to.bf16 && to.cols % 4 == 0;",
        "const bool in_fours = to.aligned && to.cols % 4 == 0;",
        "bounds",
    ),
    root(
        "the second pair of four twice",
        "to.write(row, col + 2, {four.z, four.w});",
        "to.write(row, col + 2, {four.x, four.y});",
    ),
    root(
        "roots from above the diagonal",
        "const int row = max(i, j), col = min(i, j), tile",
        "const int row = i, col = j, tile",
    ),
]

FAULTS = [*BARRIERS, *SCALES, *STEPS, *CHECKS, *TURNS]
