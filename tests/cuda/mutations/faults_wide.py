"""Faults in the kernels for blocks of 129 to 256 a side."""

from __future__ import annotations

from .source_faults import Fault

UPDATE, PRECONDITION, ROOT = "wide_update", "wide_precondition", "wide_root"
SYNC = "__syncthreads();\n"


def block(kernel: str, name: str, old: str, new: str, layer: str = "values") -> Fault:
    """Return a fault in the header that the kernels share."""
    return Fault(f"{name} (wide)", "wide_block.cuh", old, new, kernel, layer)


def in_kernel(kernel: str, name: str, old: str, new: str, layer: str = "values") -> Fault:
    """Return a fault in the kernel's file."""
    return Fault(f"{name} (wide)", f"{kernel}.cu", old, new, kernel, layer)


def barrier(kernel: str, name: str, before: str, file: str = "") -> Fault:
    """Return a fault that drops the barrier after a piece of text."""
    old = before + SYNC
    return Fault(f"no barrier {name} (wide)", file or f"{kernel}.cu", old, before, kernel, "race")


BARRIERS = [
    block(
        ROOT,
        "no barrier before the stages are filled again",
        "    __syncthreads();  // whoever multiplies from the stages is done\n",
        "",
        "race",
    ),
    barrier(ROOT, "in the pipeline", "copy_async_wait<kWideStages - 2>();\n      ", "wide_block.cuh"),
    *(
        block(
            kernel,
            "no barrier before the next item is found",
            "  __syncthreads();  // whoever looks at the last one is done\n",
            "",
            "race",
        )
        for kernel in (PRECONDITION, ROOT)
    ),
    *(
        block(
            kernel,
            "no barrier after the next item was found",
            "gridDim.x, threadIdx.x);\n  __syncthreads();\n",
            "gridDim.x, threadIdx.x);\n",
            "race",
        )
        for kernel in (UPDATE, PRECONDITION, ROOT)
    ),
    in_kernel(
        UPDATE, "no barrier after the statistics were made", "__syncthreads_or(ready) &&", "true &&", "race"
    ),
    in_kernel(
        UPDATE,
        "only one thread knows that a block is ready",
        "__syncthreads_or(ready) &&",
        "ready &&",
        "StepLimit",
    ),
]

BLOCKS = [
    block(ROOT, "the memory of CTAs is one", " + blockIdx.x * matrices * wide_bytes(tiles)", "", "race"),
    block(
        ROOT,
        "the memory of CTAs overlaps by a matrix",
        "blockIdx.x * matrices *",
        "blockIdx.x * (matrices - 1) *",
        "race",
    ),
    block(ROOT, "no wait in the pipeline", "      copy_async_wait<kWideStages - 2>();\n", "", "in-flight"),
    block(ROOT, "copies not committed", "      copy_async_commit();\n", "", "in-flight"),
    block(
        PRECONDITION,
        "no zeros below the last tile",
        "halves_of(from.rows) * kHalf * cols",
        "tiles_of(from.rows) * cols",
        "uninitialised",
    ),
    block(ROOT, "a matrix out of its scale", "        four[j] *= scale;\n", ""),
    block(ROOT, "an item's step is one", "item.find(in, from, gridDim.x,", "item.find(in, from, 1,", "race"),
    block(
        ROOT,
        "upper tiles of symmetric products computed",
        "if (symmetric && col > row) continue;",
        "",
        "values",
    ),
    block(
        ROOT,
        "the upper half of a symmetric matrix not written",
        "if (i > j) PlaneTiles::write_twice(to.tile(i, j), to.tile(j, i), c.c[s], lane);",
        "if (i > j) PlaneTiles::write(to.tile(i, j), c.c[s], lane);",
        "uninitialised",
    ),
    Fault(
        "the mirror image not transposed (wide)",
        "tile_formats.cuh",
        "words.transposed().write(mirrored, lane);",
        "words.write(mirrored, lane);",
        ROOT,
        "values",
    ),
    Fault(
        "the mirror image's quarters not exchanged (wide)",
        "tile_formats.cuh",
        "transpose_matrix(plane[i / 4][col + 2 * row])",
        "transpose_matrix(plane[i / 4][row + 2 * col])",
        ROOT,
        "values",
    ),
    block(
        ROOT, "the diagonal's tiles not added", "if (i >= j) PlaneTiles::add(", "if (i > j) PlaneTiles::add("
    ),
    block(ROOT, "a diagonal below the diagonal", "    if (row != col) return;\n", ""),
    block(ROOT, "mirrored tiles counted once in a norm", "return twice ? 2 * sum : sum;", "return sum;"),
    block(
        ROOT,
        "transposed rows in the order of k",
        "(from.transposed ? tile % kHalf : tile / kDepth)",
        "(tile / kDepth)",
    ),
    block(
        ROOT,
        "k in the order of transposed rows",
        "(from.transposed ? tile / kHalf : tile % kDepth)",
        "(tile / kHalf)",
    ),
    block(ROOT, "half of a tile copied", "source + i % kChunks * 16, 16);", "source + i % kChunks * 16, 8);"),
    block(
        PRECONDITION,
        "the exact operand is the other one",
        "const Exact exact{a.exact, b.exact};",
        "const Exact exact{b.exact, a.exact};",
    ),
    block(
        PRECONDITION,
        "quadruples right of the edge",
        "row < from.rows && col < from.cols, four",
        "row < from.rows, four",
        "bounds",
    ),
    block(
        PRECONDITION,
        "quadruples of float32 in bfloat16",
        "} else if (from.bf16) {",
        "} else if (false) {",
        "bounds",
    ),
    block(
        PRECONDITION,
        "the last half of the columns left out",
        "return (tiles_of(size) + kHalf - 1) / kHalf;",
        "return tiles_of(size) / kHalf;",
    ),
]

UPDATES = [
    in_kernel(
        UPDATE,
        "every CTA begins with the first item",
        "int64_t next = blockIdx.x;",
        "int64_t next = 0;",
        "race",
    ),
    in_kernel(
        UPDATE,
        "the next item is the neighbour",
        "next = item.index + gridDim.x)",
        "next = item.index + 1)",
        "race",
    ),
    in_kernel(
        UPDATE,
        "G of NaN alone passes for zeros",
        "squares = fmaf(value, value, squares); });",
        "squares += isfinite(value) ? value * value : 0; });",
    ),
    in_kernel(UPDATE, "G of zeros counted", "{squares, squares == 0 ? 0 : unit};", "{squares, unit};"),
    in_kernel(UPDATE, "G in no unit", "wide_.grid(0), inverse_power_of_two(unit),", "wide_.grid(0), 1,"),
    in_kernel(
        UPDATE, "B over U while U is read", "wide_.grid(in_.rule.coupled ? 0 : 2)", "wide_.grid(2)", "values"
    ),
    in_kernel(UPDATE, "M without its damping's scale", "        c.scale(factor);\n", ""),
    in_kernel(
        UPDATE,
        "Z without its diagonal",
        "      WideBlock::add_diagonal(c, item_.d, first.a1, row, col);\n",
        "",
    ),
    in_kernel(UPDATE, "S and T^2 in one place", "square = wide_.grid(2)", "square = wide_.grid(0)"),
    in_kernel(
        UPDATE,
        "T^2 from S alone",
        "      WideBlock::add_symmetric(c, first.a1, t, row, col);\n",
        "",
    ),
    in_kernel(
        UPDATE, "Z from S T^2 alone", "      WideBlock::add_symmetric(c, second.a, t, row, col);\n", ""
    ),
    in_kernel(
        UPDATE, "the next Z over T", "const int other = t == z ? 2 : t;", "const int other = y;", "values"
    ),
    in_kernel(
        UPDATE,
        "coefficients of the previous step",
        "it(in_.rule, norm, step);",
        "it(in_.rule, norm, step - 1);",
    ),
    in_kernel(
        UPDATE,
        "a factor that is not finite is stored",
        "    if (!(WideBlock::sum(failed) == 0)) return false;\n",
        "    WideBlock::sum(failed);\n",
    ),
    in_kernel(UPDATE, "F' kept in one place", "++s, place += kResidentThreads)", "++s)", "values"),
]

OTHERS = [
    in_kernel(
        PRECONDITION, "division by an rms of zero", "item_.rms > 0 ? 1 / item_.rms : 0", "1 / item_.rms"
    ),
    in_kernel(
        PRECONDITION,
        "the norm before its division",
        "c.scale(item_.rms > 0 ? 1 / item_.rms : 0);\n                    norm += WideBlock::squares(c);",
        "norm += WideBlock::squares(c);\n                    c.scale(item_.rms > 0 ? 1 / item_.rms : 0);",
    ),
    in_kernel(
        PRECONDITION,
        "V by rows of another tile",
        "row * 128, col * 128, 128, 128",
        "col * 128, row * 128, 128, 128",
        "values",
    ),
    Fault(
        "inactive blocks take part (wide)",
        "product_item.cuh",
        "if (in.scales[number] != 0)",
        "if (true)",
        PRECONDITION,
        "values",
    ),
    in_kernel(
        ROOT,
        "the square of the scale left out",
        "make_polynomial(step, scale * scale);",
        "make_polynomial(step, scale);",
    ),
    in_kernel(ROOT, "P without its check", "    if (good) write_root();", "    write_root();"),
    in_kernel(ROOT, "residual of F alone", "      wide_.multiply(c, p, p, row, col, tiles());\n", ""),
    in_kernel(
        ROOT, "the last rows of the root stay", "i < to.rows * fours; i +=", "i < (to.rows - 1) * fours; i +="
    ),
]

FAULTS = [*BARRIERS, *BLOCKS, *UPDATES, *OTHERS]
