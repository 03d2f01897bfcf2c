"""Faults in the resident kernels of the square-root form."""

from __future__ import annotations

from .source_faults import Fault

UPDATE, PRECONDITION = "resident_update_64_bf16x3", "resident_precondition_64_bf16x3"
SYNC = "__syncthreads();\n"


def update(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (resident)", "resident_update.cu", old, new, UPDATE, layer)


def precondition(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (resident)", "resident_precondition.cu", old, new, PRECONDITION, layer)


def barrier(name: str, before: str, after: str) -> Fault:
    """The barrier between two pieces of text, dropped."""
    return update(f"no barrier {name}", before + SYNC + after, before + after, "race")


BARRIERS = [
    barrier("before U takes the place of G", "    ", "    u.write("),
    barrier("before a new F's diagonal", "four[i] = 0;\n      });\n      ", ""),
    barrier("after F was read", "      });\n    }\n    ", "  }\n\n  // B in the place of U"),
    barrier("before B takes the place of U", "    ", "    b.write("),
    barrier("before the first product", "    m.write(right_place(), tiles);\n    ", ""),
    barrier("before a product takes a factor's place", "      }\n      ", "      if (turn < 2)"),
    barrier("before the next product", "waiting = product;\n      }\n      ", "    }\n"),
    precondition(
        "no barrier before P_l takes the place of P_r",
        "      __syncthreads();\n      copy_grid",
        "      copy_grid",
        "race",
    ),
]

MEMORY = [
    Fault(
        "shared memory one tile short (resident)",
        "square_root_resident.h",
        "second_place(int tiles) { return tiles * (tiles + 1); }",
        "second_place(int tiles) { return tiles * (tiles + 1) + 1; }",
        UPDATE,
        "bounds",
    ),
    update("rows beyond a factor in bfloat16", "  if (row >= factor.rows) return;\n", "", "bounds"),
    update(
        "columns beyond a factor in bfloat16",
        "if (col < factor.cols) to[0] =",
        "to[0] =",
        "race",
    ),
    update(
        "the odd columns beyond a factor in bfloat16",
        "if (col + 1 < factor.cols) to[1] =",
        "to[1] =",
        "race",
    ),
    update("inactive blocks take part", "  if (scale == 0) return;\n", ""),
    update("the sides share a CTA's place", "group.side[index % group.sides]", "group.side[0]", "race"),
    precondition(
        "V of another block",
        "Matrix out(in.views, group.out, block,",
        "Matrix out(in.views, group.out, 0,",
        "race",
    ),
    precondition("inactive blocks have norms", "in.scales[index] == 0 || ", ""),
]

GRADIENTS = [
    update(
        "a gradient that is not finite", "isfinite(four[i]) ? fabsf(four[i]) : INFINITY", "fabsf(four[i])"
    ),
    update(
        "no unit of the gradient", "const float unit = power_of_two_below(most);", "const float unit = 1;"
    ),
    update(
        "the last tile of G in no unit",
        "for_each_four(second_, count, [&](float (&four)",
        "for_each_four(second_, count - 1, [&](float (&four)",
    ),
    update(
        "coupled with the own side's operands",
        "const float* const a = side_.right ? first_ : second_;",
        "const float* const a = second_;",
        "uninitialised",
    ),
    update(
        "P of the other side taken for exact",
        "side_.right ? Exact{root.bf16, grad_bf16} : Exact{grad_bf16, root.bf16}",
        "side_.right ? Exact{true, grad_bf16} : Exact{grad_bf16, true}",
    ),
    update("G taken for exact", "const bool grad_bf16 = group_.grad.bf16;", "const bool grad_bf16 = true;"),
]

FACTORS = [
    update("the gradient's scale left out", "        scale_(scale),", "        scale_(1),"),
    update("B not in the gradient's unit", "update.scale * (unit / own_unit)", "update.scale / own_unit"),
    update("a new factor is not started", "is_new ? own_unit * start_of(in_.rule, update.rms, k()) : 0", "0"),
    update("a factor is started anew", "is_new ? own_unit * start", "true ? own_unit * start"),
    update("F not in its unit", "four[i] *= unit;", "four[i] *= 1;"),
    update("F' in the unit of F", ".restored / own_unit", ".restored"),
    update("F' is not restored", "Iteration(in_.rule, norm, 0).restored / own_unit", "1 / own_unit"),
    update("F taken for exact", "factor.bf16 && !is_new", "true"),
    update("U taken for exact", "exact.b = group_.grad.bf16 && !in_.rule.coupled;", "exact.b = true;"),
    update("G^T for G on the right side", "n_tiles(), !side_.right}", "n_tiles(), true}", "uninitialised"),
    update("no damping", "damped > 0 ? 0 : 1", "1"),
    update("damping without its unit", "damping * damping * damped", "damped"),
    update("damping by F F^T", "d_tiles(), term == 0};", "d_tiles(), false};"),
    update("a norm of M that overflows", "fmaxf(1, power_of_two_below(whitened))", "1"),
    update("no decay in H", "m.add_diagonal(tiles, d(), in_.rule.decay);\n", ""),
    update("Z without its diagonal", "m.add_diagonal(tiles, d(), first.a1);\n", ""),
    update("coefficients of the step before", "i / 3 + 1);", "i / 3);"),
    update("T in the wrong turn", "if (turn == 1) {", "if (turn == 2) {"),
    update("T without its diagonal", "product.add_diagonal(tiles, d(), it.a);\n", ""),
    update("the last Z waits for ever", "      if (i + 1 == products) waiting = product;\n", ""),
    update("Z is lost after the first turn", "if (turn != 1) {", "if (turn == 2) {"),
    update("what is not finite is stored", "    if (sum(failed) > 0) return false;\n", ""),
    update("nothing is counted", "      statistics[kFallbacks] += 1;\n", ""),
    update("the weight stays", "      statistics[kWeight] = update.weight;\n", ""),
    update("the whitened norm without the old weight", "update.whitened * whitened;", "whitened;"),
]

PRODUCTS = [
    precondition("division by an rms of zero", "rms > 0 ? float2{pair[0]", "true ? float2{pair[0]"),
    precondition("half of the norm", "norm += v.x * v.x + v.y * v.y;", "norm += v.x * v.x;"),
    precondition("P_l taken for exact", "Exact{group.left_root.bf16 != 0, false}", "Exact{true, false}"),
    precondition("D taken for exact", "Exact{group.direction.bf16 != 0, group", "Exact{true, group"),
    precondition("the depth of the other product", "whole ? m_tiles : n_tiles;", "n_tiles;", "uninitialised"),
]

FAULTS = [*BARRIERS, *MEMORY, *GRADIENTS, *FACTORS, *PRODUCTS]
