"""Faults in what the resident kernels share: teams, matrices on their way to shared memory, results, sums."""

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
        ROOT_96,
        "places of teams overlap by a tile",
        "(team() * places + tile)",
        "(team() * (places - 1) + tile)",
        "values",
    ),
    block(
        PRECONDITION,
        "a team that does not exist writes a norm",
        "exists(index < count)",
        "exists(true)",
        "budget",
    ),
    block(
        UPDATE,
        "a team that does not exist writes a factor",
        "exists(index < count)",
        "exists(true)",
        "race",
    ),
    block(ROOT, "a team that does not exist writes a root", "exists(index < count)", "exists(true)", "race"),
    block(PRECONDITION, "items beyond the last one", "    index = min(index, count - 1);\n", "", "bounds"),
    block(
        ROOT,
        "the second team's warps count from the first",
        "kWarps - 1 - warp(), lane()",
        "(warp() + 1) % kWarps / 2 * 2, lane()",
        "uninitialised",
    ),
]

STAGED = [
    Fault(
        "quadruples beyond the columns (resident)",
        "memory.cuh",
        "return aligned && cols % 4 == 0;",
        "return aligned;",
        PRECONDITION,
        "values",
    ),
    Fault(
        "quadruples that are not aligned (resident)",
        "memory.cuh",
        "return aligned && cols % 4 == 0;",
        "return cols % 4 == 0;",
        PRECONDITION,
        "bounds",
    ),
    block(
        PRECONDITION,
        "quadruples beyond the rows",
        "at.row < from.rows && at.col < from.cols;\n      read_four",
        "at.col < from.cols;\n      read_four",
        "bounds",
    ),
    block(
        PRECONDITION,
        "quadruples right of the edge",
        "at.row < from.rows && at.col < from.cols;\n      read_four",
        "at.row < from.rows;\n      read_four",
    ),
    block(
        UPDATE,
        "the next row of tiles is this one",
        "      if (i % kSteps == kSteps - 1) data += kTile * from.row_stride;\n",
        "",
    ),
    block(
        ROOT_96,
        "the next tile of a row is this one",
        "read_four(data + i % kSteps * kTilesAtOnce * kTile,",
        "read_four(data,",
    ),
    Fault(
        "bf16 halves swapped (resident)",
        "memory.cuh",
        "to[0] = __uint_as_float(packed.x << 16), to[1] = __uint_as_float(packed.x & 0xffff0000u);",
        "to[1] = __uint_as_float(packed.x << 16), to[0] = __uint_as_float(packed.x & 0xffff0000u);",
        PRECONDITION,
        "values",
    ),
    block(
        PRECONDITION,
        "threads read elements through one place",
        "    place += thread * sizeof(float4);\n",
        "",
        "race",
    ),
    block(
        PRECONDITION, "the last element of four twice", "from.read(row, col + 3)", "from.read(row, col + 2)"
    ),
    block(
        PRECONDITION,
        "elements kept in one place",
        "memory_at<const float4>(place + i * kThreads * sizeof(float4));",
        "memory_at<const float4>(place);",
    ),
    block(PRECONDITION, "lanes of one row for another", "lane % 16 / 2;", "lane % 16 / 4;", "uninitialised"),
    block(
        PRECONDITION,
        "quadruples stored against the banks",
        "lane % 16 / 2;\n    first.col = thread / kTileFours * kTile + lane / 16 * 8 + lane % 2 * 4;",
        "lane / 4;\n    first.col = thread / kTileFours * kTile + lane % 4 * 4;",
        "budget",
    ),
    block(
        PRECONDITION,
        "tiles of a place one after another at half the distance",
        "tile + i * kTilesAtOnce * kTileBytes,",
        "tile + i * kTileBytes,",
        "race",
    ),
    block(
        UPDATE,
        "a new factor beyond the matrix",
        "at.row == at.col + j && at.row < size ?",
        "at.row == at.col + j ?",
    ),
    block(
        UPDATE,
        "a new factor on every fourth diagonal",
        "at.row == at.col + j && at.row",
        "at.row == at.col && at.row",
    ),
    block(
        UPDATE,
        "the last quadruple out of scale",
        "for (int i = 0; i < 4 * kCount; ++i) four[i / 4][i % 4] *= factor;",
        "for (int i = 0; i < 4 * kCount - 4; ++i) four[i / 4][i % 4] *= factor;",
    ),
    block(
        UPDATE,
        "the first quadruple not looked at",
        "for (int i = 0; i < 4 * kCount; ++i) use(",
        "for (int i = 4; i < 4 * kCount; ++i) use(",
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
    block(PRECONDITION, "pairs pass through one place of a thread", "    own += kStep;\n", "", "values"),
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

FAULTS = [*TEAMS, *STAGED, *RESULTS, *SUMS]
