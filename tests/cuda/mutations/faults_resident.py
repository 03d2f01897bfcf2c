"""Faults in how the resident kernel's threads share memory: barriers, copies, masks, places."""

from __future__ import annotations

from .source_faults import Fault

SMALL = "kron_step_resident_64_bf16x3"
LARGE = "kron_step_resident_128_bf16x3"

KERNEL, FACTOR = "kron_step_resident.cu", "resident_factor.cuh"
REFINEMENT = "resident_refinement.cuh"

SYNC = "    __syncthreads();\n"


def barrier(name: str, file: str, before: str, after: str, layer: str = "race", kernel: str = SMALL) -> Fault:
    """The barrier between two pieces of text, dropped."""
    return Fault(f"no barrier {name}", file, before + SYNC + after, before + after, kernel, layer)


BARRIERS = [
    Fault(
        "no barrier between the chunks of an unfolding",
        FACTOR,
        "k_tiles_ = tiles_of(columns_);\n      __syncthreads();\n",
        "k_tiles_ = tiles_of(columns_);\n",
        LARGE,
        "race",
    ),
    barrier(
        "before Y takes the factor's place", FACTOR, "", "    y.write(shared_.first, d_tiles_, k_tiles_);\n"
    ),
    barrier(
        "after Y took the factor's place", FACTOR, "    y.write(shared_.first, d_tiles_, k_tiles_);\n", "  }"
    ),
    barrier(
        "within the identity", FACTOR, "shared_.first[i] = 0;\n", "    for (int i = threadIdx.x; i < d_;"
    ),
    Fault(
        "no barrier before N takes G's place",
        FACTOR,
        "    __syncthreads();  // G is no longer read\n",
        "",
        SMALL,
        "race",
    ),
    barrier("after N took G's place", FACTOR, "    n_.write(shared_.second, k_tiles_);\n", ""),
    Fault(
        "no barrier before Y C takes the place of C",
        FACTOR,
        "      __syncthreads();\n      yc.write(",
        "      yc.write(",
        SMALL,
        "race",
    ),
    Fault(
        "no barrier after Y C took the place of C",
        FACTOR,
        "yc.write(shared_.second, d_tiles_, k_tiles_);\n      __syncthreads();\n",
        "yc.write(shared_.second, d_tiles_, k_tiles_);\n",
        SMALL,
        "race",
    ),
    barrier("after W took G's place", REFINEMENT, "    start.write(w_tiles(), k_tiles_);\n", ""),
    Fault(
        "no barrier after the first V",
        REFINEMENT,
        "        v.write(v_tiles(), k_tiles_);\n        __syncthreads();\n",
        "        v.write(v_tiles(), k_tiles_);\n",
        SMALL,
        "race",
    ),
    barrier("before a matrix is replaced", REFINEMENT, "", "    by.write("),
    barrier("after a matrix was replaced", REFINEMENT, "    by.write(tiles, k_tiles_);\n", ""),
    barrier("before an iterate's W and C are written", REFINEMENT, "", "    w.write("),
    barrier("after an iterate's W and C were written", REFINEMENT, "    c.write(v_tiles(), k_tiles_);\n", ""),
    Fault(
        "no barrier between the two sides of the product",
        KERNEL,
        "  __syncthreads();\n  copy_lower<kThreads>(shared.second, right",
        "  copy_lower<kThreads>(shared.second, right",
        SMALL,
        "race",
    ),
    Fault(
        "no barrier before the warps' sums are read",
        "reduce.cuh",
        "= value;\n  __syncthreads();\n",
        "= value;\n",
        SMALL,
        "race",
    ),
    Fault(
        "no barrier after copies",
        "memory.cuh",
        "  copy_async_wait<0>();\n  __syncthreads();\n",
        "  copy_async_wait<0>();\n",
        SMALL,
        "race",
    ),
]

MEMORY = [
    Fault("no wait for copies", "memory.cuh", "  copy_async_wait<0>();\n", "", SMALL, "in-flight"),
    Fault("copies not committed", "memory.cuh", "  copy_async_commit();\n", "", SMALL, "in-flight"),
    Fault(
        "shared memory one tile short",
        FACTOR,
        "return 2 * lower_tiles(tiles); }",
        "return 2 * lower_tiles(tiles) + 1; }",
        SMALL,
        "bounds",
    ),
    Fault(
        "G read beyond its columns",
        "memory.cuh",
        "const bool exists = inside && col + i < from.cols;",
        "const bool exists = inside;",
        SMALL,
        "values",
    ),
    Fault(
        "G read beyond its rows",
        "memory.cuh",
        "const bool inside = row < from.rows;",
        "const bool inside = true;",
        SMALL,
        "bounds",
    ),
    Fault(
        "aligned copies of whole chunks",
        "memory.cuh",
        "const int count = inside ? max(0, min(4, from.cols - col)) : 0;",
        "const int count = inside && col < from.cols ? 4 : 0;",
        SMALL,
        "values",
    ),
    Fault(
        "bfloat16 copies of whole chunks",
        "memory.cuh",
        "from.aligned && inside && col + 4 <= from.cols",
        "from.aligned && inside",
        SMALL,
        "bounds",
    ),
    Fault(
        "out written beyond its columns",
        "memory.cuh",
        "if (col < cols) at(row, col) = pair.x;",
        "at(row, col) = pair.x;",
        SMALL,
        "race",
    ),
    Fault(
        "out written beyond its rows",
        "memory.cuh",
        "    if (row >= rows) return;\n",
        "",
        SMALL,
        "bounds",
    ),
    Fault(
        "out of another block",
        KERNEL,
        "const Matrix out(in.views, group.out, block, m, n);",
        "const Matrix out(in.views, group.out, block ^ 1, m, n);",
        SMALL,
        "values",
    ),
    Fault(
        "statistics of another block",
        KERNEL,
        "group.left_statistics + 2 * block",
        "group.left_statistics + 2 * (block / 2)",
        SMALL,
        "race",
    ),
    Fault(
        "G taken for loaded after the refinement",
        FACTOR,
        "loaded = rule_.refine == 0 && rule_.scale != FactorScale::kSchatten4;",
        "loaded = true;",
        SMALL,
        "values",
    ),
]

FAULTS = [*BARRIERS, *MEMORY]
