"""Faults in the code that the resident kernels share: teams, results, sums."""

from __future__ import annotations

from .faults_square_root import PRODUCT
from .faults_tiles import PRECONDITION, ROOT, UPDATE
from .source_faults import Fault

ROOT_96, ROOT_128 = "resident_root_96_bf16x3", "resident_root_128_bf16x3"
SHARED = "resident_block.cuh"


def block(kernel: str, name: str, old: str, new: str, layer: str = "values") -> Fault:
    return Fault(f"{name} (resident)", SHARED, old, new, kernel, layer)


TEAMS = [
    block(
        PRECONDITION,
        "both teams are the first",
        "forget(threadIdx.x) / kTeamThreads;",
        "0;",
        "race",
    ),
    block(PRECONDITION, "places of teams are one", "(team() * places + tile)", "tile", "race"),
    block(
        ROOT,
        "places of teams overlap by a tile",
        "(team() * places + tile)",
        "(team() * (places - 1) + tile)",
        "values",
    ),
    block(
        ROOT_96,
        "places of teams overlap by a tile, where the last one is not used",
        "(team() * places + tile)",
        "(team() * (places - 2) + tile)",
        "values",
    ),
    block(
        ROOT,
        "the second team's warps count from the first",
        "kWarps - 1 - warp(), lane()",
        "(warp() + 1) % kWarps / 2 * 2, lane()",
        "uninitialised",
    ),
]

RESULTS = [
    block(
        PRECONDITION,
        "pairs beyond the rows",
        "row < to.rows && first_col + 8 * i < to.cols;",
        "first_col + 8 * i < to.cols;",
        "bounds",
    ),
    block(
        PRECONDITION,
        "pairs beyond the columns",
        "row < to.rows && first_col + 8 * i < to.cols;",
        "row < to.rows;",
        "race",
    ),
    block(
        UPDATE,
        "pairs of float32 in bfloat16",
        "if (!to.bf16 && to.aligned && to.cols",
        "if (to.aligned && to.cols",
        "bounds",
    ),
    block(
        PRECONDITION,
        "pairs that are not aligned",
        "to.aligned && to.cols % 2 == 0",
        "to.cols % 2 == 0",
        "bounds",
    ),
    block(PRECONDITION, "pairs across the edge", "to.aligned && to.cols % 2 == 0", "to.aligned", "values"),
    block(PRECONDITION, "every row is the first", "      data += 8 * to.row_stride;\n", "", "values"),
    block(
        PRECONDITION,
        "threads pass pairs through one place",
        "const Shared first = place + Worker<kTiles>::thread() * sizeof(float2);",
        "const Shared first = place;",
        "race",
    ),
    block(PRECONDITION, "pairs pass through one place of a thread", "    slot += kStep;\n", "", "values"),
    Fault(
        "quadruples of float32 in bfloat16",
        "memory.cuh",
        "if (aligned && !bf16 && cols % 4 == 0) {",
        "if (aligned && cols % 4 == 0) {",
        ROOT,
        "bounds",
    ),
    Fault(
        "the second pair of four twice",
        "memory.cuh",
        "write(row, col + 2, {four[2], four[3]});",
        "write(row, col + 2, {four[0], four[1]});",
        ROOT,
        "values",
    ),
    Fault(
        "rows beyond a matrix (elements)",
        "memory.cuh",
        "float2 pair) const {\n    if (row >= rows) return;\n    if (col < cols) store(",
        "float2 pair) const {\n    if (col < cols) store(",
        UPDATE,
        "bounds",
    ),
    Fault(
        "columns beyond a matrix (elements)",
        "memory.cuh",
        "    if (col < cols) store(row, col, pair.x);",
        "    store(row, col, pair.x);",
        PRECONDITION,
        "race",
    ),
    Fault(
        "odd columns beyond a matrix (elements)",
        "memory.cuh",
        "    if (col + 1 < cols) store(row",
        "    if (col < cols) store(row",
        PRECONDITION,
        "race",
    ),
    Fault(
        "read beyond a matrix (elements)",
        "memory.cuh",
        "if (row >= rows || col >= cols) return 0;",
        "if (row >= rows) return 0;",
        PRECONDITION,
        "bounds",
    ),
]


def sums(kernel: str, file: str, name: str, old: str, new: str, layer: str = "race") -> Fault:
    return Fault(name, file, old, new, kernel, layer)


SUMS = [
    sums(
        UPDATE,
        "reduce.cuh",
        "no barrier before the warps' sums are read",
        "= value;\n  __syncthreads();\n",
        "= value;\n",
    ),
    sums(
        ROOT,
        "reduce.cuh",
        "no barrier after the last sum was read",
        "value = warp_sum(value);\n  __syncthreads();",
        "value = warp_sum(value);\n",
    ),
    sums(
        UPDATE, "reduce.cuh", "sums of the first team for both", "warp / kWarps * kWarps + i]", "i]", "values"
    ),
    sums(
        ROOT_128,
        "reduce.cuh",
        "a warp left out of a sum",
        "for (int i = 0; i < kWarps; ++i)",
        "for (int i = 0; i < kWarps - 1; ++i)",
        "values",
    ),
    sums(
        ROOT,
        "reduce.cuh",
        "a lane left out of a sum",
        "int distance = 16; distance > 0;",
        "int distance = 16; distance > 1;",
        "values",
    ),
    sums(
        UPDATE,
        "largest.cuh",
        "no barrier before the warps' maxima are read",
        "= value;\n  __syncthreads();\n",
        "= value;\n",
    ),
    sums(
        UPDATE,
        "largest.cuh",
        "maximum of the first team for both",
        "warp / kWarps * kWarps + i]",
        "i]",
        "values",
    ),
    sums(
        PRODUCT,
        "memory.cuh",
        "views searched from the second on",
        "if (first(low + half) <= value) low += half;",
        "if (first(low + half) < value) low += half;",
        "bounds",
    ),
]

FAULTS = [*TEAMS, *RESULTS, *SUMS]
