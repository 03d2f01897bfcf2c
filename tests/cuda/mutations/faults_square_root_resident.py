"""Faults in the resident kernels of the square-root form."""

from __future__ import annotations

from .faults_tiles import PRECONDITION, UPDATE
from .source_faults import Fault

UPDATE_128 = "resident_update_128_bf16x3"
SYNC = "__syncthreads();\n"


def update(name: str, old: str, new: str, layer: str = "values", kernel: str = UPDATE) -> Fault:
    return Fault(f"{name} (resident)", "resident_update.cu", old, new, kernel, layer)


def item(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (resident)", "side_item.cuh", old, new, UPDATE, layer)


def product(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (resident)", "product_item.cuh", old, new, PRECONDITION, layer)


def precondition(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (resident)", "resident_precondition.cu", old, new, PRECONDITION, layer)


def barrier(name: str, before: str, after: str = "") -> Fault:
    """The barrier between two pieces of text, dropped."""
    return update(f"no barrier {name}", before + SYNC + after, before + after, "race")


def precondition_barrier(name: str, before: str, after: str = "") -> Fault:
    return precondition(f"no barrier {name}", before + SYNC + after, before + after, "race")


BARRIERS = [
    barrier("after the item was found", "item.find(in, work.index, work.exists);\n  "),
    barrier(
        "after the statistics were made", "if (Here::thread() == 0) item_.prepare(in_.rule, coupled);\n    "
    ),
    barrier(
        "before P is stored where its elements passed",
        "root.finish(item_.other_root(in_.views), first());\n    ",
    ),
    barrier("after P was stored", "root.template store<Format>(first());\n    "),
    barrier("before U takes the place of G", "    ", "    u.write("),
    barrier("before F is stored where its elements passed", "factor.scale(unit);\n    }\n    "),
    barrier("after F was stored", "factor.template store<Format>(first());\n    "),
    barrier("before B takes the place of U", "    ", "    b.write("),
    barrier("before the first product", "    m.template write<Format>(symmetric_place(1));\n    "),
    barrier("before a product takes a factor's place", "it.a);\n      }\n      "),
    barrier("before the next product", "turn == 1 ? t : z);\n      "),
    barrier(
        "before S takes the place of Y", "(left, right, d_tiles(), d_tiles());\n      ", "      if (i == 0)"
    ),
    barrier("before S times T^2", "product.template write<Format>(z);\n      "),
    precondition_barrier(
        "before a matrix is stored where its elements passed",
        "staged.finish(of, place);\n    ",
    ),
    precondition_barrier("before the first product", "left_root.start(item_.left_root(in_.views));\n    "),
    precondition_barrier("before D P_r takes the place of D", "    ", "    half.write("),
    precondition_barrier("before the second product", "    ", "    Full whole"),
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
        "i * lower_tiles(kTiles) * kTileBytes;",
        "i * (lower_tiles(kTiles) - 1) * kTileBytes;",
        "race",
    ),
    update(
        "Z over Y",
        "m.template write<Format>(symmetric_place(1));",
        "m.template write<Format>(symmetric_place(0));",
        "uninitialised",
    ),
    item("inactive blocks take part", "exists && scale != 0;", "exists;"),
    item("a team without an item takes part", "exists && scale != 0;", "scale != 0;", "race"),
    item("the sides share an item's place", "group.side[index % group.sides]", "group.side[0]", "race"),
    item(
        "the sides' blocks one after another",
        "block = index / group.sides;",
        "block = index / 2;",
        "values",
    ),
    item("blocks counted from the first group's", "    index -= group.first_item;\n", "", "bounds"),
    item(
        "the scale of another group's block",
        "in.scales[group.first_block + block]",
        "in.scales[block]",
    ),
    update("a factor that is not ready is written", "if (item_.ready) write_product", "write_product"),
    product("V of another block", "group.out, block, m, n", "group.out, 0, m, n", "race"),
    product("inactive blocks have norms", "exists && in.scales[group.first_block + block] != 0;", "exists;"),
    product("a team without an item takes part", "exists && in.scales", "in.scales", "budget"),
    product("a norm of a team without an item", "if (exists) in.norms", "in.norms", "race"),
    precondition(
        "one norm for all teams",
        "if (Worker<kTiles>::thread() == 0) item.set_norm",
        "if (threadIdx.x == 0) item.set_norm",
    ),
    precondition(
        "no barrier after the block was found", "work.exists);\n  " + SYNC, "work.exists);\n", "race"
    ),
]

GRADIENTS = [
    update("a gradient that is not finite", "isfinite(value) ? fabsf(value) : INFINITY", "fabsf(value)"),
    update("no unit of the gradient", "usable ? power_of_two_below(most) : 1;", "1;"),
    update("G in no unit", "    grad.scale(1 / unit);\n", ""),
    update("G of zeros counted", "most > 0 ? 1.0f : 0.0f", "1.0f"),
    update(
        "coupled with the own side's operands",
        "const Shared a = right ? first() : second();",
        "const Shared a = right ? second() : first();",
    ),
    update(
        "P of the other side taken for exact",
        "right ? Exact{root_bf16, grad_bf16} : Exact{grad_bf16, root_bf16}",
        "right ? Exact{true, grad_bf16} : Exact{grad_bf16, true}",
    ),
    update("G taken for exact", "grad_bf16 = item_.grad.bf16,", "grad_bf16 = true,"),
    update(
        "coupled over the depth of the other side",
        "m_tiles(), n_tiles(), k_tiles(), exact);",
        "m_tiles(), n_tiles(), d_tiles(), exact);",
    ),
    update(
        "|U|^2 of the first team's item for both",
        "return sum(squares_of(u, 1));",
        "return sum(squares_of(u, Here::team() == 0 ? 1 : 0));",
    ),
]

FACTORS = [
    item("the gradient's scale left out", "norm, scale, stretch", "norm, 1, stretch"),
    update(
        "B not in the gradient's unit",
        "item_.update.scale * (item_.norm.unit / unit)",
        "item_.update.scale / unit",
    ),
    update("a new factor is not started", "unit * start_of(in_.rule, item_.update.rms, item_.k)", "0"),
    update(
        "a factor is started anew",
        "    if (item_.is_new) {\n      factor.set",
        "    if (true) {\n      factor.set",
    ),
    update("F not in its unit", "      factor.scale(unit);\n", ""),
    update("F' in the unit of F", "write_factor(iterate(m, norm) / unit)", "write_factor(iterate(m, norm))"),
    update("F' is not restored", "return first.restored;", "return 1;"),
    item("F taken for exact", "side.factor.bf16 && !is_new;", "true;"),
    update("U taken for exact", "item_.grad.bf16 && !in_.rule.coupled}", "true}"),
    update("G^T for G on the right side", "if (item_.side.right) {", "if (!item_.side.right) {"),
    update(
        "F for F^T in B",
        "const TransposedTiles f{first(), kTiles};\n    if (item_",
        "const PlainTiles f{first(), kTiles};\n    if (item_",
    ),
    update("no damping", "if (damped > 0) {", "if (false) {"),
    update("damping without its unit", "m.scale(damping * damping * damped);", "m.scale(damped);"),
    update(
        "damping by F F^T",
        "const TransposedTiles f{first(), kTiles};\n      m.",
        "const PlainTiles f{first(), kTiles};\n      m.",
    ),
    update("a norm of M that overflows", "fmaxf(1, power_of_two_below(whitened))", "1"),
    update("no decay in H", "    m.add_diagonal(item_.d, in_.rule.decay);\n", ""),
    update("H in no unit", "    m.scale(1 / first.t);\n", ""),
    update("Z without its diagonal", "    m.add_diagonal(item_.d, first.a1);\n", ""),
    update("S is not kept", "      if (i == 0) product.template write<Format>(y);\n", ""),
    update("T^2 from S without its coefficient", "i == 0 ? -first.b1 : -second.b", "-second.b"),
    update("T^2 from T without its coefficient", "i == 0 ? first.a1 : second.a", "second.a"),
    update("coefficients of the step before", "i / 3 + 1);", "i / 3);"),
    update("T in the wrong turn", "if (turn == 1) {", "if (turn == 2) {"),
    update("T without its diagonal", "        product.add_diagonal(item_.d, it.a);\n", ""),
    update("Y by Z after the first turn", "turn == 0 && i > 0 ? t : z", "z"),
    update("one round too few", "3 * (in_.rule.refine - 1);", "3 * (in_.rule.refine - 1) - 3;"),
    update(
        "F Y for F Z",
        "SymmetricTiles{symmetric_place(1)}, tiles",
        "SymmetricTiles{symmetric_place(0)}, tiles",
    ),
    update(
        "what is not finite is stored", "    if (!(sum(failed) == 0)) return false;\n", "    sum(failed);\n"
    ),
    update(
        "what is not finite in bfloat16 is stored",
        "if (item_.side.factor.bf16) pair[i] = __bfloat162float(__float2bfloat16_rn(pair[i]));",
        "",
    ),
    item("nothing is counted", "      statistics()[kFallbacks] += 1;\n", ""),
    item("the weight stays", "      statistics()[kWeight] = update.weight;\n", ""),
    update(
        "the whitened norm without the old weight",
        "item_.update.whitened *= whitened;",
        "item_.update.whitened = whitened;",
    ),
    update(
        "the first team's whitened norm alone",
        "if (Here::thread() == 0) item_.update.whitened",
        "if (threadIdx.x == 0) item_.update.whitened",
    ),
    update(
        "the first team's statistics alone",
        "if (Here::thread() == 0) item_.finish(succeeded);",
        "if (threadIdx.x == 0) item_.finish(succeeded);",
    ),
    update(
        "a team's success is the other's",
        "update_factor(factor) && ready;",
        "__syncthreads_or(update_factor(factor) && ready);",
    ),
]

PRODUCTS = [
    precondition("division by an rms of zero", "rms > 0 ? pair[i] / rms : 0;", "pair[i] / rms;"),
    product("the rms of the first block", "statistics[block * kColumns + kRms]", "statistics[kRms]"),
    precondition(
        "half of the norm",
        "norm = fmaf(pair[i], pair[i], norm);",
        "norm = i ? norm : fmaf(pair[i], pair[i], norm);",
    ),
    precondition("P_l taken for exact", "{bf16(item_.group.left_root), false}", "{true, false}"),
    precondition(
        "D P_r taken for exact", "bf16(item_.group.left_root), false", "bf16(item_.group.left_root), true"
    ),
    precondition("D taken for exact", "{bf16(item_.group.direction),", "{true,"),
    precondition("P_r taken for exact", "bf16(item_.group.right_root)}", "true}"),
    precondition(
        "the depth of the other product", "product(second(), first(), m(),", "product(second(), first(), n(),"
    ),
    precondition("P_r for P_l", "    store(left_root, item_.left_root(in_.views), second());\n", ""),
    precondition("D P_l for P_l D", "product(second(), first(), m(),", "product(first(), second(), m(),"),
]

FAULTS = [*BARRIERS, *MEMORY, *GRADIENTS, *FACTORS, *PRODUCTS]
