"""Faults in the kernels of the square-root form."""

from __future__ import annotations

from .source_faults import Fault

PRODUCT = "square_root_product_64_tf32x3"
TILE, STATE, RULES = "square_root_product.cuh", "square_root_state.cu", "square_root_rule.cuh"


def product(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (square root)", TILE, old, new, PRODUCT, layer)


def state(kernel: str, name: str, old: str, new: str, layer: str = "values", file: str = STATE) -> Fault:
    return Fault(f"{name} (square root)", file, old, new, kernel, layer)


def rule(kernel: str, name: str, old: str, new: str) -> Fault:
    return state(kernel, name, old, new, file=RULES)


PRODUCTS = [
    product(
        "no barrier in the pipeline",
        "copy_async_wait<kStages - 2>();\n      __syncthreads();\n",
        "copy_async_wait<kStages - 2>();\n",
        "race",
    ),
    product("no wait in the pipeline", "      copy_async_wait<kStages - 2>();\n", "", "in-flight"),
    product(
        "inactive blocks take part",
        "  if (in.scales[product.first_block + block] == 0) return;\n",
        "",
        "uninitialised",
    ),
    product(
        "blocks that are not ready take part",
        "in.sides[product.side].updates[block].readiness != Readiness::kReady",
        "false",
        "uninitialised",
    ),
    product("tiles below the diagonal count once", "first_row_ != first_col_ ? 2 : 1", "false ? 2 : 1"),
    product("no diagonal in the second of a pair", "(r == c + 1 ? w.diagonal : 0)", "0.0f"),
    product("Y1 without the square's cross term", "it.a1 - 2 * it.b1 * low", "it.a1 - it.b1 * low"),
    rule(PRODUCT, "only the last step is restored", "at_decay *= shrunk;", "at_decay = shrunk;"),
    rule(
        PRODUCT, "coefficients of the first step alone", "if (i == step) a = step_a", "if (i == 0) a = step_a"
    ),
    product("F' is never found not finite", "add_partial(failed);", "add_partial(0);"),
    product(
        "norms of coupled products not in the unit of the gradient",
        "sum_of_squares(1 / unit)",
        "sum_of_squares(1)",
    ),
    product("division by an rms of zero", "rms > 0 ? 1 / rms : 0", "1 / rms"),
    product(
        "the whitened norm without its scale",
        "sum_of_squares(scale));\n      }\n      case SquareRootEpilogue::kGram",
        "sum_of_squares(1));\n      }\n      case SquareRootEpilogue::kGram",
    ),
]

STATES = [
    state("gradient_norms", "no unit of the gradient", "power_of_two_below(most) : 0", "1.0f : 0"),
    state(
        "gradient_norms",
        "the last row left out",
        "for_each_element(group.m, group.n, [&](int row, int col) {\n    const float value = unit",
        "for_each_element(group.m - 1, group.n, [&](int row, int col) {\n    const float value = unit",
    ),
    state("start_sides", "a new factor is not started", "  if (is_new) {", "  if (false) {"),
    state("start_sides", "an old factor is started again", "  if (is_new) {", "  if (true) {"),
    state(
        "start_sides", "damping by F, not its transpose", "damping.store(col, row,", "damping.store(row, col,"
    ),
    state(
        "start_sides",
        "the scale of damping for its root",
        "update.rms * root * sqrtf(in.rule.damped_updates * in.rule.weight)",
        "update.rms * root * root * sqrtf(in.rule.damped_updates * in.rule.weight)",
    ),
    rule(
        "start_sides", "coupling feeds the scale back", "sqrtf(rule.weight / stretch)", "sqrtf(rule.weight)"
    ),
    rule("start_sides", "the gradient's scale left out of its rms", "scale * norm.unit *", "norm.unit *"),
    rule("start_sides", "the gradient's scale left out of B", "= scale * sqrtf(rule", "= sqrtf(rule"),
    rule(
        "start_sides",
        "gradients that are not finite are not counted",
        "update.readiness = Readiness::kCounted;\n  if",
        "if",
    ),
    rule(
        "start_sides",
        "the mean forgets nothing",
        "const float held = rule.decay * old[kWeight];",
        "const float held = old[kWeight];",
    ),
    state(
        "finish_sides",
        "the last row of F stays",
        "for_each_element(side.d, side.d, [&](int row, int col) { factor.store(row, col, updated",
        "for_each_element(side.d - 1, side.d, [&](int row, int col) { factor.store(row, col, updated",
    ),
    state("finish_sides", "nothing is counted", "if (threadIdx.x == 0) statistics[kFallbacks] += 1;", ""),
    state("finish_sides", "the weight stays", "    statistics[kWeight] = update.weight;\n", ""),
    state(
        "finish_sides",
        "the whitened norm without the old weight",
        "statistics[kWhitened] = update.whitened * whitened;",
        "statistics[kWhitened] = whitened;",
    ),
    state("finish_sides", "a factor that is not finite is stored", " || !succeeded(side, block)", ""),
    state(
        "finish_norms",
        "the norm of an inactive block",
        "in.scales[index] != 0 && sum.partials",
        "sum.partials",
        "uninitialised",
    ),
    state(
        "finish_norms",
        "the last partial sum left out",
        "for (int i = threadIdx.x % 32; i < count; i += 32)",
        "for (int i = threadIdx.x % 32; i < count - 1; i += 32)",
    ),
]

FAULTS = PRODUCTS + STATES
