"""Faults in the kernel that makes roots."""

from __future__ import annotations

from .faults_tiles import ROOT
from .source_faults import Fault

SYNC = "__syncthreads();\n"


def root(name: str, old: str, new: str, layer: str = "values", kernel: str = ROOT) -> Fault:
    return Fault(f"{name} (root)", "resident_root.cu", old, new, kernel, layer)


def item(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (root)", "root_item.cuh", old, new, ROOT, layer)


def barrier(name: str, before: str, after: str = "", layer: str = "race") -> Fault:
    """The barrier between two pieces of text, dropped."""
    return root(f"no barrier {name}", before + SYNC + after, before + after, layer)


BARRIERS = [
    barrier("after the item was found", "own.step = 0;\n  }\n  "),
    barrier("before F is stored where elements passed", "staged.scale(work_.item.unit);\n    "),
    barrier("after F was stored", "staged.template store<Format>(place);\n    "),
    barrier("after G was written", "gram.template write<Format>(gram_place());\n    "),
    barrier(
        "after the polynomial was written", "polynomial.template write<Format>(polynomial_place());\n    "
    ),
    barrier("before Q takes the place of Q", "tiles(), tiles(), tiles());\n    ", "    q.scale"),
    barrier("after Q was written", "++work_.step;\n    "),
    barrier(
        "before P takes the place of Q",
        "PlainTiles{first(), kTiles}, tiles(), tiles());\n    ",
        "    root.template",
    ),
]

SCALES = [
    item(
        "unit without the weight",
        "sqrtf(known[kWeight] * static_cast<float>(side.k))",
        "sqrtf(static_cast<float>(side.k))",
    ),
    item("unit without the gradients' rms", " * known[kRms];", ";"),
    root("F without its unit", "    staged.scale(work_.item.unit);\n", ""),
    root("Q without its scale", "    q.scale(work_.scale);\n", ""),
    root("G in Q's scale", "gram.scale(scale * scale);", "gram.scale(scale);"),
    root("a scale in every step", "work_.step == 0 ? rsqrtf", "true ? rsqrtf"),
    root(
        "the square of the scale",
        "rsqrtf(sqrtf(sum(gram.sum_of_squares(1))))",
        "rsqrtf(sum(gram.sum_of_squares(1)))",
    ),
]

STEPS = [
    root("coefficients of the first step", "const int step = work_.step;", "const int step = 0;"),
    root("one step too few", "work_.step < in_.rule.steps)", "work_.step < in_.rule.steps - 1)"),
    root("no multiple of I", "    polynomial.add_diagonal(work_.item.d, in_.rule.a[step]);\n", ""),
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
    item("refusals not counted", "    if (!good) statistics[kRefusals] += 1;\n", ""),
    item(
        "every root counted",
        "if (!good) statistics[kRefusals] += 1;",
        "statistics[kRefusals] += 1;",
    ),
    item("a residual that is not a number", "isfinite(residual) ? residual : INFINITY", "residual"),
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
    item("statistics of blocks without a root", "    if (d == 0) return;\n", "", "race"),
]

TURNS = [
    item("turns do not go round", "% side.blocks;", ";", "bounds"),
    item("the counter ignored", "in.counter ? *in.counter : in.turn;", "in.turn;"),
    item("turns are all the first", "(turn * side.due + index", "(index"),
    item("blocks counted from the first side's", "index - side.first_item) %", "index) %"),
    item("inactive blocks take part", "exists && side.active[block] && unit", "exists && unit"),
    item("blocks without a gradient take part", " && unit > 0 ? side.d : 0;", " ? side.d : 0;"),
    item("a team without an item takes part", "d = exists && side.active", "d = side.active", "race"),
    item("statistics of the first block", "side.statistics + block * kColumns;", "side.statistics;"),
    item(
        "all blocks' refusals in one place",
        "side.root_statistics + block * kRootColumns;",
        "side.root_statistics;",
        "race",
    ),
    root("the last row of the root stays", "row < to.rows; row +=", "row < to.rows - 1; row +="),
    root("the last columns of the root stay", "col < to.cols; col += 32", "col + 4 < to.cols; col += 32"),
    root(
        "roots from above the diagonal",
        "const int row = max(i, j), col = min(i, j), tile",
        "const int row = i, col = j, tile",
    ),
]

FAULTS = [*BARRIERS, *SCALES, *STEPS, *CHECKS, *TURNS]
