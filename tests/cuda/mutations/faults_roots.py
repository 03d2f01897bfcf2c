"""Faults in the kernel that makes roots."""

from __future__ import annotations

from .faults_tiles import ROOT
from .source_faults import Fault

SYNC = "__syncthreads();\n"
START = "factor.start(item().factor());\n#pragma"


def root(name: str, old: str, new: str, layer: str = "values", kernel: str = ROOT) -> Fault:
    return Fault(f"{name} (root)", "resident_root.cu", old, new, kernel, layer)


def barrier(name: str, before: str, after: str = "", layer: str = "race") -> Fault:
    """Return a fault that drops the barrier between two pieces of text."""
    return root(f"no barrier {name}", before + SYNC + after, before + after, layer)


BARRIERS = [
    barrier("before F is stored where elements passed", "factor.scale(item().unit);\n    "),
    barrier("after F was stored", "factor.template store<Format>(place);\n    "),
    barrier("after G was written", "gram.template write<Format>(gram_place());\n    "),
    barrier(
        "after the polynomial was written", "polynomial.template write<Format>(polynomial_place());\n    "
    ),
    barrier("before Q takes the place of Q", "tiles(), tiles(), tiles());\n    ", "    q.scale"),
    barrier("after Q was written", "q.write(first());\n    "),
    barrier(
        "before P takes the place of Q",
        "PlainTiles{first(), kTiles}, tiles(), tiles());\n    ",
        "    root.template",
    ),
]

TURNS = [
    root(
        "the first factor not requested", START, START.replace("item()", "factors_.next()"), "uninitialised"
    ),
    root(
        "the next factor requested before it is found",
        "      make_root();\n      factor.start(factors_.next().factor());\n",
        "      factor.start(factors_.next().factor());\n      make_root();\n",
        "uninitialised",
    ),
    root(
        "the same factor requested again",
        "factor.start(factors_.next().factor());",
        "factor.start(item().factor());",
        "budget",
    ),
    root("the next factor not found", "    factors_.find_next(in_);\n", "", "StepLimit"),
    root(
        "the root of the previous factor",
        "    factor.start(item().factor());\n    load(factor, second());",
        "    factor.start(factors_.next().factor());\n    load(factor, second());",
        "uninitialised",
    ),
    root(
        "the first team's statistics alone",
        "if (Here::thread() == 0) item().finish",
        "if (threadIdx.x == 0) item().finish",
    ),
]

SCALES = [
    root("F without its unit", "    factor.scale(item().unit);\n", ""),
    root("Q without its scale", "    q.scale(scale);\n", ""),
    root("G in Q's scale", "gram.scale(scale * scale);", "gram.scale(scale);"),
    root("a scale in every step", "step == 0 ? rsqrtf", "true ? rsqrtf"),
    root(
        "the square of the scale",
        "rsqrtf(sqrtf(sum(gram.sum_of_squares(1))))",
        "rsqrtf(sum(gram.sum_of_squares(1)))",
    ),
]

STEPS = [
    root("coefficients of the first step", "make_polynomial(step);", "make_polynomial(0);"),
    root("one step too few", "step < in_.rule.steps;", "step < in_.rule.steps - 1;"),
    root("no multiple of I", "    polynomial.add_diagonal(item().d, in_.rule.a[step]);\n", ""),
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
        "return second() + symmetric_tiles(kTiles) * kTileBytes;",
        "return second();",
        "race",
    ),
    root(
        "the polynomial a tile too far",
        "return second() + symmetric_tiles(kTiles) * kTileBytes;",
        "return second() + (symmetric_tiles(kTiles) + 1) * kTileBytes;",
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
]

RESULTS = [
    root("the last row of the root stays", "row < to.rows; row +=", "row < to.rows - 1; row +="),
    root("the last columns of the root stay", "col < to.cols; col += 32", "col + 4 < to.cols; col += 32"),
    root(
        "roots from above the diagonal",
        "const int row = max(i, j), col = min(i, j), tile",
        "const int row = i, col = j, tile",
    ),
]

FAULTS = [*BARRIERS, *TURNS, *SCALES, *STEPS, *CHECKS, *RESULTS]
