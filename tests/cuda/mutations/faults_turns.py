"""Faults in the search of teams for work items, and in the turns in which they take them."""

from __future__ import annotations

from .faults_products import PRECONDITION_128, ROOT_128, UPDATE_128
from .faults_tiles import PRECONDITION, ROOT, UPDATE
from .source_faults import Fault

LANES = "    if (lane >= kMatrices) return;\n"
NONE = "    matrices[lane] = Matrix::empty();\n    if (lane > 0) return;\n"


def turns(kernel: str, name: str, old: str, new: str, layer: str = "race") -> Fault:
    return Fault(f"{name} (turns)", "resident_block.cuh", old, new, kernel, layer)


def side(name: str, old: str, new: str, layer: str = "values", kernel: str = UPDATE) -> Fault:
    return Fault(f"{name} (side)", "side_item.cuh", old, new, kernel, layer)


def product(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (product)", "product_item.cuh", old, new, PRECONDITION, layer)


def root(name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (root)", "root_item.cuh", old, new, ROOT, layer)


ORDER = [
    turns(UPDATE, "teams start at one item", "* Here::kTeams + Here::team());\n", "* Here::kTeams);\n"),
    turns(
        PRECONDITION,
        "CTAs start at neighbours",
        "int64_t{blockIdx.x} * Here::kTeams",
        "int64_t{blockIdx.x}",
        "values",
    ),
    turns(
        UPDATE,
        "a step of CTAs, not of teams",
        "return int64_t{gridDim.x} * Here::kTeams;",
        "return gridDim.x;",
    ),
    turns(
        PRECONDITION,
        "a step of two turns",
        "return int64_t{gridDim.x} * Here::kTeams;",
        "return int64_t{gridDim.x} * Here::kTeams * 2;",
        "values",
    ),
    turns(ROOT, "the next item is the neighbour", "current().index + step());", "current().index + 1);"),
    turns(
        UPDATE,
        "the next item is that after the last next",
        "current().index + step());",
        "next().index + step());",
        "uninitialised",
    ),
    turns(UPDATE, "the next item in the place of this one", "find(next(), in,", "find(current(), in,"),
    turns(
        PRECONDITION,
        "the current item is the next one",
        "items_[turn_ * Here::kTeams + Here::team()]",
        "items_[(1 - turn_) * Here::kTeams + Here::team()]",
    ),
    turns(
        PRECONDITION,
        "teams' current items are the first's",
        "items_[turn_ * Here::kTeams + Here::team()]",
        "items_[turn_ * Here::kTeams]",
    ),
    turns(
        PRECONDITION,
        "teams' next items are the first's",
        "items_[(1 - turn_) * Here::kTeams + Here::team()]",
        "items_[(1 - turn_) * Here::kTeams]",
        "StepLimit",
    ),
    turns(
        ROOT,
        "places of items of turns overlap by one",
        "items_[(1 - turn_) * Here::kTeams + Here::team()]",
        "items_[(1 - turn_) * (Here::kTeams - 1) + Here::team()]",
    ),
    turns(
        PRECONDITION_128,
        "the first item for good",
        "    turn_ = 1 - turn_;\n",
        "",
        "StepLimit",
    ),
    turns(
        UPDATE,
        "no barrier after the first item was found",
        "* Here::kTeams + Here::team());\n    __syncthreads();\n",
        "* Here::kTeams + Here::team());\n",
    ),
    *(
        turns(
            kernel,
            "no barrier between two items",
            "turn_ = 1 - turn_;\n    return __syncthreads_or(current().active);",
            "turn_ = 1 - turn_;\n    return current().active;",
        )
        for kernel in (UPDATE_128, PRECONDITION_128, ROOT_128)
    ),
    turns(
        PRECONDITION,
        "a team ends before the other",
        "turn_ = 1 - turn_;\n    return __syncthreads_or(current().active);",
        "turn_ = 1 - turn_;\n    __syncthreads();\n    return current().active;",
        "convergence",
    ),
    turns(
        UPDATE,
        "a team does not begin with the other",
        "    __syncthreads();\n    return __syncthreads_or(current().active);",
        "    __syncthreads();\n    return current().active;",
        "convergence",
    ),
    turns(UPDATE, "all warps find the next item", "Here::warp() == Here::kWarps - 1", "true", "budget"),
    turns(
        ROOT,
        "the finding warp's lanes counted in the team",
        "step(), Here::thread() % 32);",
        "step(), Here::thread());",
        "StepLimit",
    ),
]

SIDES = [
    side("lanes without a matrix find one", LANES, "", "StepLimit"),
    side("an item beyond the last one", "from < in.items;", "from <= in.items;", "bounds"),
    side("the item after an inactive one is the neighbour", "from += step) {", "++from) {", "race"),
    side(
        "items counted from the first group's",
        "within = from - group.first_item,",
        "within = from,",
        "bounds",
    ),
    side("one side's items for both", "within >> (group.sides - 1);", "within;", "bounds"),
    side(
        "the sides share an item's place", "group.side[within & (group.sides - 1)]", "group.side[0]", "race"
    ),
    side("one side's blocks of two", "within >> (group.sides - 1);", "within >> 1;"),
    side("the scale of another group's block", "in.scales[group.first_block + block]", "in.scales[block]"),
    side("inactive blocks take part", "      if (block_scale == 0) continue;\n", ""),
    side("the gradient's scale left out", "scale = block_scale;", "scale = 1;"),
    side("an item without its number", "      index = from;\n", "", "StepLimit"),
    side(
        "an item that is not active",
        "      index = from;\n      active = true;\n",
        "      index = from;\n",
        "uninitialised",
    ),
    side("no item, with the last one's matrices", NONE, "    if (lane > 0) return;\n", "budget"),
    side("no item, without a number", "    index = in.items;\n", "", "uninitialised"),
    side("no item, and active", "right = is_new = active = false;", "right = is_new = false;", "StepLimit"),
    side(
        "d and k swapped",
        "is_right ? group.n : group.m, side_k = is_right",
        "is_right ? group.m : group.n, side_k = !is_right",
        "bounds",
    ),
    side(
        "every side is the left one",
        "const bool is_right = side.right != 0;",
        "const bool is_right = false;",
        "bounds",
    ),
    side(
        "P for F and F for P",
        "? side.other_root : side.factor;",
        "? side.factor : side.other_root;",
        "bounds",
    ),
    side(
        "P for G and G for P",
        "lane == kGrad ? group.grad : lane == kRoot ? side",
        "lane == kRoot ? group.grad : lane == kGrad ? side",
        "bounds",
    ),
    side("P of this side's shape", "lane == kRoot ? side_k : side_d;", "side_d;", "bounds"),
    side("G of as many columns as rows", "lane == kGrad ? group.n : rows;", "rows;", "bounds"),
    side("statistics of the first block", "side.statistics + block * kColumns;", "side.statistics;", "race"),
    side("no block's gradient is its first", "statistics[kWeight] == 0;", "false;"),
    side("every block's gradient is its first", "statistics[kWeight] == 0;", "true;"),
]

PRODUCTS = [
    product("lanes without a matrix find one", LANES, "", "StepLimit"),
    product("an item beyond the last one", "from < in.items;", "from <= in.items;", "bounds"),
    product("the item after an inactive one is the neighbour", "from += step) {", "++from) {", "values"),
    product(
        "blocks counted from the first group's", "block = from - group.first_item,", "block = from,", "bounds"
    ),
    product(
        "the scale of another group's block", "if (in.scales[number] != 0)", "if (in.scales[block] != 0)"
    ),
    product("inactive blocks take part", "if (in.scales[number] != 0)", "if (true)"),
    product("the norms of inactive blocks stay", "      if (lane == 0) in.norms[number] = 0;\n", ""),
    product(
        "norms of another group's blocks are zero", "in.norms[number] = 0;", "in.norms[block] = 0;", "values"
    ),
    product("an item without its number", "        if (lane == 0) index = from;\n", "", "StepLimit"),
    product("no item, with the last one's matrices", NONE, "    if (lane > 0) return;\n", "uninitialised"),
    product("no item, without a number", "    index = in.items;\n", "", "StepLimit"),
    product("no item, of some size", "    m = n = 0;\n", "", "uninitialised"),
    product("no item, of some size of gradients", "    rms = 0;\n", "", "uninitialised"),
    product("no item, and active", "    rms = 0;\n    active = false;\n", "    rms = 0;\n", "StepLimit"),
    product("P_r of the rows' size", "lane == kRightRoot ? group.n : group.m,", "group.m,", "bounds"),
    product("P_l of the columns' size", "lane == kLeftRoot ? group.m : group.n);", "group.n);", "bounds"),
    product(
        "P_l for P_r and P_r for P_l",
        "lane == kRightRoot ? group.right_root\n                         : lane == kLeftRoot ",
        "lane == kLeftRoot ? group.right_root\n                         : lane == kRightRoot ",
        "bounds",
    ),
    product(
        "D for V and V for D",
        "lane == kDirection   ? group.direction",
        "lane == kOut ? group.direction",
        "values",
    ),
    product(
        "V of another block",
        "of, block, lane == kRightRoot",
        "of, lane == kOut ? 0 : block, lane == kRightRoot",
        "race",
    ),
    product("the rms of the first block", "statistics[block * kColumns + kRms]", "statistics[kRms]"),
    product(
        "norms of groups in one place",
        "norm = in.norms + group.first_block + block;",
        "norm = in.norms + block;",
        "race",
    ),
    product("an item that is not active", "    active = true;\n", "", "uninitialised"),
]

ROOTS = [
    root("lanes without a matrix find one", "if (lane < kMatrices) become", "become", "race"),
    root("an item beyond the last one", "mine < in.items &&", "mine <= in.items &&", "race"),
    root("lanes look at neighbours", "from + lane * step;", "from + lane;", "race"),
    root("the first item that is looked at, active or not", "__clz(__brev(taken)) * step", "0"),
    root("the last item that is taken", "__clz(__brev(taken))", "(31 - __clz(taken))"),
    root("only one look at items", "from += 32 * step) {", "from += in.items) {"),
    root("turns do not go round", "% side->blocks;", ";", "bounds"),
    root("the counter ignored", "(in.counter ? *in.counter : in.turn)", "in.turn"),
    root("turns are all the first", "* side->due + place)", "* 0 + place)"),
    root("blocks counted from the first side's", "item - first(number) +", "item +", "race"),
    root("inactive blocks take part", "side->active[block] && unit > 0", "unit > 0"),
    root("blocks without a gradient take part", "side->active[block] && unit > 0", "side->active[block]"),
    root("blocks that have a root are due on every turn", "(is_due || is_new)", "true"),
    root("blocks without a root wait for their turn", "(is_due || is_new)", "is_due"),
    root("the others begin with those that are due", "(is_due ? 0 : side->due)", "0", "race"),
    root(
        "the first block's residual for every block's",
        "side->root_statistics[block * kRootColumns + kResidual]",
        "side->root_statistics[kResidual]",
        "race",
    ),
    root("a residual of zero kept", "fmaxf(residual, kLeastResidual)", "residual"),
    root("statistics of the first block", "side->statistics + block * kColumns;", "side->statistics;"),
    root(
        "F for P and P for F",
        "lane == kFactor ? side.factor : side.root",
        "lane == kFactor ? side.root : side.factor",
    ),
    root(
        "all blocks' refusals in one place",
        "side.root_statistics + found.block * kRootColumns;",
        "side.root_statistics;",
        "race",
    ),
    root("an item without its number", "    index = item;\n", "", "uninitialised"),
    root("an item without its size", "    d = side.d;\n", "", "uninitialised"),
    root("an item that is not active", "    active = true;\n", "", "uninitialised"),
    root("no item, with the last one's matrices", NONE, "    if (lane > 0) return;\n", "uninitialised"),
    root("no item, without a number", "    index = in.items;\n", "", "uninitialised"),
    root("no item, of some size", "    d = 0;\n", "", "uninitialised"),
    root("no item, and active", "    unit = 0;\n    active = false;\n", "    unit = 0;\n", "StepLimit"),
    root("statistics of no item", "    if (!active) return;\n", "", "uninitialised"),
    root(
        "unit without the weight",
        "sqrtf(known[kWeight] * static_cast<float>(side->k))",
        "sqrtf(static_cast<float>(side->k))",
    ),
    root("unit without the gradients' rms", " * known[kRms];", ";"),
    root("refusals not counted", "    if (!good) statistics[kRefusals] += 1;\n", ""),
    root("every root counted", "if (!good) statistics[kRefusals] += 1;", "statistics[kRefusals] += 1;"),
    root(
        "a residual that is not a number",
        "isfinite(residual) ? fmaxf(residual, kLeastResidual) : INFINITY",
        "fmaxf(residual, kLeastResidual)",
    ),
]

FAULTS = [*ORDER, *SIDES, *PRODUCTS, *ROOTS]
