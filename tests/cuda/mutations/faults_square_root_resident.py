"""Faults in the resident kernels of the square-root form."""

from __future__ import annotations

from .faults_products import UPDATE_128
from .faults_tiles import PRECONDITION, UPDATE
from .source_faults import Fault

SYNC = "__syncthreads();\n"


def update(name: str, old: str, new: str, layer: str = "values", kernel: str = UPDATE) -> Fault:
    return Fault(f"{name} (resident)", "resident_update.cu", old, new, kernel, layer)


def item(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (resident)", "side_item.cuh", old, new, UPDATE, layer)


def precondition(name: str, old: str, new: str, layer: str = "values", kernel: str = PRECONDITION) -> Fault:
    return Fault(f"{name} (resident)", "resident_precondition.cu", old, new, kernel, layer)


def barrier(name: str, before: str, after: str = "") -> Fault:
    """Return a fault that drops the barrier between two pieces of text."""
    return update(f"no barrier {name}", before + SYNC + after, before + after, "race")


def precondition_barrier(name: str, before: str, after: str = "") -> Fault:
    return precondition(f"no barrier {name}", before + SYNC + after, before + after, "race")


MAXIMUM = "    most = team_max<Here::kWarps>(most);\n"
P_STORED = "    if (in_.rule.coupled) root.template store<Format>(first());\n"
G_STORED = "    grad.template store<Format>(second());\n"
SQUARES = "    squares = sum(squares);\n"

BARRIERS = [
    update("P stored where G's elements pass", MAXIMUM + P_STORED, P_STORED + MAXIMUM, "race"),
    update("G stored where P arrives", MAXIMUM + P_STORED, G_STORED + MAXIMUM + P_STORED, "race"),
    update("no barrier after G was stored", G_STORED + SQUARES, SQUARES + G_STORED, "race"),
    update(
        "no barrier after the statistics were made",
        "update_factor(__syncthreads_or(ready),",
        "update_factor(true,",
        "race",
    ),
    update(
        "only one thread knows that a block is ready",
        "update_factor(__syncthreads_or(ready),",
        "update_factor(ready,",
        "convergence",
    ),
    barrier("before U takes the place of G", "    ", "    u.write("),
    barrier("before F is stored where its elements passed", "factor.scale(unit);\n    }\n    "),
    barrier("after F was stored", "factor.template store<Format>(first());\n    "),
    barrier("before B takes the place of U", "    ", "    b.write("),
    barrier("before the first product", "    m.template write<Format>(symmetric_place(1));\n    "),
    barrier("before a product takes a factor's place", "it.a);\n      }\n      "),
    barrier("before the next product", "phase == 1 ? t : z);\n      "),
    barrier(
        "before S takes the place of Y", "(left, right, d_tiles(), d_tiles());\n      ", "      if (i == 0)"
    ),
    barrier("before S times T^2", "product.template write<Format>(z);\n      "),
    precondition_barrier(
        "before D and P_r are stored where they passed",
        "right_root.finish_copy(item().right_root(), right_place());\n    ",
    ),
    precondition_barrier(
        "before the first product", "right_root.template store<Format>(right_place());\n    "
    ),
    precondition_barrier(
        "before D P_r takes the place of D", "left_root.finish(item().left_root(), left_place());\n    "
    ),
    precondition_barrier(
        "before the second product", "left_root.template store<Format>(left_place());\n    "
    ),
]

LAST = "    const float restored = iterate(m, norm);\n"
NEXT = "    request(sides_.next(), grad);\n"
FOUND = "      sides_.find_next(in_);\n"
NONE_READY = "    if (!any_ready) {\n"

REQUESTS = [
    update("the next side's P over Y", LAST + NEXT, NEXT + LAST, "race"),
    update(
        "the next side's P over M",
        "    Lower m = gram(root / unit);\n",
        NEXT + "    Lower m = gram(root / unit);\n",
        "race",
    ),
    update(
        "this side's matrices requested again", LAST + NEXT, LAST + NEXT.replace("sides_.next()", "item()")
    ),
    update("the next side not found", FOUND, "", "StepLimit"),
    update("the next side found when it is requested", LAST, LAST + FOUND, "race"),
    update("no matrices where no block is ready", NONE_READY + "  " + NEXT, NONE_READY),
    update("no matrices where no block is ready", NONE_READY + "  " + NEXT, NONE_READY, "values", UPDATE_128),
    update("no matrices of the first side", "    request(item(), grad);\n", NEXT, "uninitialised"),
    update(
        "the next side's P over Z",
        "start_copy(of.root(), symmetric_place(0));",
        "start_copy(of.root(), symmetric_place(1));",
        "race",
    ),
    update(
        "P from the place of Z",
        "finish_copy(item().root(), symmetric_place(0));",
        "finish_copy(item().root(), symmetric_place(1));",
        "uninitialised",
    ),
    update("F for the next side's G", "    grad.start(of.grad());\n", "    grad.start(of.factor());\n"),
    update("F not requested", "        factor.start(item().factor());\n", "        factor.clear();\n"),
    update(
        "a new factor is requested",
        "      if (item().is_new) {\n        factor.clear();",
        "      if (false) {\n        factor.clear();",
        "budget",
    ),
    precondition(
        "the next block's P_r over this one's",
        "      multiply_right(left_root);\n      request(blocks_.next(), direction);\n",
        "      request(blocks_.next(), direction);\n      multiply_right(left_root);\n",
        "race",
    ),
    precondition(
        "this block's matrices requested again",
        "request(blocks_.next(), direction);",
        "request(item(), direction);",
    ),
    precondition("the next block not found", "      blocks_.find_next(in_);\n", "", "StepLimit"),
    precondition(
        "no matrices of the first block",
        "    request(item(), direction);\n",
        "    request(blocks_.next(), direction);\n",
        "uninitialised",
    ),
    precondition(
        "the next block's P_r over P_l",
        "start_copy(of.right_root(), right_place());",
        "start_copy(of.right_root(), left_place());",
        "race",
    ),
    precondition(
        "the next block's P_r over D P_r",
        "start_copy(of.right_root(), right_place());",
        "start_copy(of.right_root(), first());",
        "race",
    ),
    precondition(
        "P_r from the place of P_l",
        "finish_copy(item().right_root(), right_place());",
        "finish_copy(item().right_root(), left_place());",
        "uninitialised",
    ),
    precondition(
        "V passes where the next P_r arrives",
        "item().out(), first());",
        "item().out(), right_place());",
        "in-flight",
    ),
    precondition(
        "P_r requested as P_l",
        "left_root.start(item().left_root());",
        "left_root.start(item().right_root());",
        "budget",
    ),
    precondition(
        "P_l requested as the next block's",
        "left_root.start(item().left_root());",
        "left_root.start(blocks_.next().left_root());",
        "uninitialised",
    ),
]

MEMORY = [
    Fault(
        "shared memory one tile short (resident)",
        "square_root_resident.h",
        "first_place(int tiles) { return tiles * tiles; }",
        "first_place(int tiles) { return tiles * tiles + 1; }",
        UPDATE_128,
        "bounds",
    ),
    update("T in a fourth place", "symmetric_place(2);", "symmetric_place(3);", "bounds"),
    update("T over Y where Y is still read", "t = symmetric_place(2);", "t = y;"),
    update(
        "symmetric places overlap by a tile",
        "i * symmetric_tiles(kTiles) * kTileBytes;",
        "i * (symmetric_tiles(kTiles) - 1) * kTileBytes;",
        "race",
    ),
    update(
        "Z over Y",
        "m.template write<Format>(symmetric_place(1));",
        "m.template write<Format>(symmetric_place(0));",
        "uninitialised",
    ),
    update("a factor that is not ready is written", " || !item().ready) return false;", ") return false;"),
    precondition(
        "one norm for all teams",
        "if (Here::thread() == 0 && item().active)",
        "if (threadIdx.x == 0 && item().active)",
    ),
    precondition(
        "a norm of a team without an item",
        "if (Here::thread() == 0 && item().active)",
        "if (Here::thread() == 0)",
        "uninitialised",
    ),
    precondition(
        "P_l over P_r",
        "first_place(kTiles) + symmetric_tiles(kTiles));",
        "first_place(kTiles));",
        "race",
    ),
]

COUPLED_RIGHT = "u.add(TransposedTiles{second(), kTiles}, p, d_tiles(), k_tiles(), k_tiles(), exact);"
COUPLED_LEFT = "u.add(PlainTiles{second(), kTiles}, p, d_tiles(), k_tiles(), k_tiles(), exact);"

GRADIENTS = [
    Fault(
        "half of a power of two's reciprocal (resident)",
        "square_root_rule.cuh",
        "(254 << 23) - __float_as_int(power)",
        "(253 << 23) - __float_as_int(power)",
        UPDATE,
        "values",
    ),
    update(
        "G of NaN alone passes for zeros",
        "squares = fmaf(value, value, squares); });",
        "squares += isfinite(value) ? value * value : 0; });",
    ),
    update("no unit of the gradient", "? power_of_two_below(most) : 1;", "? 1.0f : 1;"),
    update("G in no unit", "    grad.scale(inverse_power_of_two(unit));\n", ""),
    update("G of zeros counted", "{squares, squares == 0 ? 0 : unit};", "{squares, unit};"),
    update(
        "the first team's norm for both",
        "if (Here::thread() == 0) item().norm",
        "if (threadIdx.x == 0) item().norm",
        "uninitialised",
    ),
    update(
        "coupled as the other side", "if (item().right) {\n      u.add", "if (!item().right) {\n      u.add"
    ),
    update("G for G^T on the right side", COUPLED_RIGHT, COUPLED_RIGHT.replace("Transposed", "Plain")),
    update("G^T for G on the left side", COUPLED_LEFT, COUPLED_LEFT.replace("Plain", "Transposed")),
    update(
        "P treated as exact",
        "exact{item().grad().bf16, item().root().bf16};",
        "exact{item().grad().bf16, true};",
    ),
    update(
        "G treated as exact",
        "exact{item().grad().bf16, item().root().bf16};",
        "exact{true, item().root().bf16};",
    ),
    update(
        "coupled over the depth of the other side",
        COUPLED_RIGHT,
        COUPLED_RIGHT.replace("k_tiles(), exact", "d_tiles(), exact"),
    ),
    update(
        "coupled over the depth of the other side, left",
        COUPLED_LEFT,
        COUPLED_LEFT.replace("k_tiles(), exact", "d_tiles(), exact"),
    ),
    update(
        "|U|^2 of the first team's item for both",
        "return sum(squares_of(u, 1));",
        "return sum(squares_of(u, Here::team() == 0 ? 1 : 0));",
    ),
]

FACTORS = [
    update(
        "B not in the gradient's unit",
        "item().update.scale * (item().norm.unit / unit)",
        "item().update.scale / unit",
    ),
    update("a new factor is not started", "unit * start_of(in_.rule, item().update.rms, item().k)", "0"),
    update(
        "an old factor is started again",
        "    if (item().is_new) {\n      factor.set",
        "    if (true) {\n      factor.set",
    ),
    update("F not in its unit", "      factor.scale(unit);\n", ""),
    update("F' in the unit of F", "write_factor(restored / unit)", "write_factor(restored)"),
    update("F' is not restored", "return first.restored;", "return 1;"),
    item("F treated as exact", "factor().bf16 && !is_new;", "true;"),
    update("U treated as exact", "item().grad().bf16 && !in_.rule.coupled}", "true}"),
    update("coupled U treated as exact", "item().grad().bf16 && !in_.rule.coupled}", "item().grad().bf16}"),
    update("G^T for G on the right side", "if (item().right && !in_.rule", "if (!item().right && !in_.rule"),
    update(
        "coupled U transposed on the right side",
        "if (item().right && !in_.rule.coupled) {",
        "if (item().right) {",
    ),
    update(
        "F for F^T in B",
        "const TransposedTiles f{first(), kTiles};\n    if (item()",
        "const PlainTiles f{first(), kTiles};\n    if (item()",
    ),
    update("no damping", "if (damped > 0) {", "if (false) {"),
    update("damping without its unit", "m.scale(damping * damping * damped);", "m.scale(damped);"),
    update(
        "damping by F F^T",
        "const TransposedTiles f{first(), kTiles};\n      m.",
        "const PlainTiles f{first(), kTiles};\n      m.",
    ),
    update(
        "M over the depth of F",
        "m.template add<Multiply>(b, b, d_tiles(), k_tiles());",
        "m.template add<Multiply>(b, b, d_tiles(), d_tiles());",
    ),
    update("a norm of M that overflows", "fmaxf(1, power_of_two_below(whitened))", "1"),
    update("no decay in H", "    m.add_diagonal(item().d, in_.rule.decay);\n", ""),
    update("H in no unit", "    m.scale(1 / first.t);\n", ""),
    update("Z without its diagonal", "    m.add_diagonal(item().d, first.a1);\n", ""),
    update("S is not kept", "      if (i == 0) product.template write<Format>(y);\n", ""),
    update("T^2 from S without its coefficient", "i == 0 ? -first.b1 : -second.b", "-second.b"),
    update("T^2 from T without its coefficient", "i == 0 ? first.a1 : second.a", "second.a"),
    update("coefficients of the previous step", "i / 3 + 1);", "i / 3);"),
    update("T in the wrong phase", "if (phase == 1) {", "if (phase == 2) {"),
    update("T without its diagonal", "        product.add_diagonal(item().d, it.a);\n", ""),
    update("Y by Z after the first phase", "phase == 0 && i > 0 ? t : z", "z"),
    update("one round too few", "3 * (in_.rule.refine - 1);", "3 * (in_.rule.refine - 1) - 3;"),
    update(
        "F Y for F Z",
        "SymmetricTiles{symmetric_place(1)}, tiles",
        "SymmetricTiles{symmetric_place(0)}, tiles",
        "in-flight",
    ),
    update("F' without its scale", "    updated.scale(scale);\n", ""),
    update(
        "a factor that is not finite is stored", "if (!(sum(failed) == 0) || !", "sum(failed);\n    if (!"
    ),
    update(
        "a factor that is not finite in bfloat16 is stored",
        "    if (item().factor().bf16) updated.for_each(",
        "    if (false) updated.for_each(",
    ),
    item("nothing is counted", "      statistics[kFallbacks] += 1;\n", ""),
    item("the weight stays", "      statistics[kWeight] = update.weight;\n", ""),
    update(
        "the whitened norm without the old weight",
        "item().update.whitened *= whitened;",
        "item().update.whitened = whitened;",
    ),
    update(
        "the first team's whitened norm alone",
        "if (Here::thread() == 0) item().update.whitened",
        "if (threadIdx.x == 0) item().update.whitened",
    ),
    update(
        "the first team's statistics alone",
        "if (Here::thread() == 0) item().finish(succeeded);",
        "if (threadIdx.x == 0) item().finish(succeeded);",
    ),
    update(
        "the first team's block alone is prepared",
        "Here::thread() == 0 && item().prepare",
        "threadIdx.x == 0 && item().prepare",
        "uninitialised",
    ),
    update(
        "a block succeeds with the other team's",
        "const bool succeeded = update_factor(__syncthreads_or(ready), factor, grad);",
        "const bool succeeded = __syncthreads_or(update_factor(__syncthreads_or(ready), factor, grad));",
    ),
]

PRODUCTS = [
    precondition("division by an rms of zero", "rms > 0 ? pair[i] / rms : 0;", "pair[i] / rms;"),
    precondition(
        "half of the norm",
        "norm = fmaf(pair[i], pair[i], norm);",
        "norm = i ? norm : fmaf(pair[i], pair[i], norm);",
    ),
    precondition("P_l treated as exact", "{item().left_root().bf16, false}", "{true, false}"),
    precondition(
        "D P_r treated as exact", "{item().left_root().bf16, false}", "{item().left_root().bf16, true}"
    ),
    precondition("D treated as exact", "{item().direction().bf16, item()", "{true, item()"),
    precondition("P_r treated as exact", ".bf16, item().right_root().bf16}", ".bf16, true}"),
    precondition(
        "the depth of the second product in the first", "n_tiles(), n_tiles(),\n", "n_tiles(), m_tiles(),\n"
    ),
    precondition(
        "the depth of the first product in the second",
        "m_tiles(), n_tiles(), m_tiles(),",
        "m_tiles(), n_tiles(), n_tiles(),",
    ),
    precondition(
        "D P_r not transposed",
        "TransposedTiles{first(), kTiles}, m_tiles()",
        "PlainTiles{first(), kTiles}, m_tiles()",
    ),
    precondition("P_r for P_l", "SymmetricTiles{left_place()}", "SymmetricTiles{right_place()}", "in-flight"),
]

FAULTS = [*BARRIERS, *REQUESTS, *MEMORY, *GRADIENTS, *FACTORS, *PRODUCTS]
