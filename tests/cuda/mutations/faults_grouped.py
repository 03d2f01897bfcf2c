"""Faults in the grouped products and in the kernels around them."""

from __future__ import annotations

from .source_faults import Fault

PRODUCT = "grouped_product_64_bf16x3"
TILE, STATE = "grouped_product.cuh", "factor_state.cu"

PIPELINE = [
    Fault(
        "no barrier in the pipeline",
        TILE,
        "copy_async_wait<kStages - 2>();\n      __syncthreads();\n",
        "copy_async_wait<kStages - 2>();\n",
        PRODUCT,
        "race",
    ),
    Fault(
        "no barrier before the warps' sums are written",
        "reduce.cuh",
        "  __syncthreads();\n  if (threadIdx.x % 32 == 0)",
        "  if (threadIdx.x % 32 == 0)",
        PRODUCT,
        "race",
    ),
    Fault(
        "no wait in the pipeline", TILE, "      copy_async_wait<kStages - 2>();\n", "", PRODUCT, "in-flight"
    ),
    Fault(
        "wait for one group too few",
        TILE,
        "copy_async_wait<kStages - 2>();",
        "copy_async_wait<kStages - 1>();",
        PRODUCT,
        "in-flight",
    ),
    Fault("no commit in the pipeline", TILE, "      copy_async_commit();\n", "", PRODUCT, "in-flight"),
    Fault(
        "commit only where something is copied",
        TILE,
        "      copy_async_commit();\n",
        "      if (step < steps) copy_async_commit();\n",
        PRODUCT,
        "in-flight",
    ),
    Fault(
        "multiplies from the wrong stage",
        TILE,
        "multiply_stage(shared_ + step % kStages",
        "multiply_stage(shared_ + (step + 1) % kStages",
        PRODUCT,
        "in-flight",
    ),
    Fault(
        "fills the stage that is being read",
        TILE,
        "float* const stage = shared_ + step % kStages * kStageFloats<kTiles>;",
        "float* const stage = shared_ + (step + 1) % kStages * kStageFloats<kTiles>;",
        PRODUCT,
        "race",
    ),
    Fault(
        "fills a stage beyond the last",
        TILE,
        "float* const stage = shared_ + step % kStages * kStageFloats<kTiles>;",
        "float* const stage = shared_ + step % (kStages + 1) * kStageFloats<kTiles>;",
        PRODUCT,
        "bounds",
    ),
    Fault(
        "one step of depth too few",
        TILE,
        "(product_.depth + kDepthTiles * kTile - 1) / (kDepthTiles * kTile)",
        "product_.depth / (kDepthTiles * kTile)",
        PRODUCT,
        "values",
    ),
    Fault(
        "a chunk without its last columns",
        TILE,
        "operand.first_col + (operand.transposed ? rows : depth)",
        "(operand.transposed ? rows : depth)",
        PRODUCT,
        "values",
    ),
]

EPILOGUE = [
    Fault(
        "partials of another tile",
        TILE,
        "product_.partial[int64_t{block_} * product_.tiles + tile_] = sum;",
        "product_.partial[int64_t{block_} * product_.tiles + tile_ / 2] = sum;",
        PRODUCT,
        "race",
    ),
    Fault(
        "partials of the next block",
        TILE,
        "product_.partial[int64_t{block_} * product_.tiles + tile_] = sum;",
        "product_.partial[int64_t{block_ + 1} * product_.tiles + tile_] = sum;",
        PRODUCT,
        "uninitialised",
    ),
    Fault(
        "out of another block",
        TILE,
        "const Matrix out = Matrix(in_.views, product_.out, block_, product_.rows, product_.cols)\n",
        "const Matrix out = Matrix(in_.views, product_.out, block_ ^ 1, product_.rows, product_.cols)\n",
        PRODUCT,
        "uninitialised",
    ),
    Fault(
        "factor updated in another block's place",
        TILE,
        "const Matrix out = Matrix(in_.views, product_.out, block_, product_.rows, product_.cols);",
        "const Matrix out = Matrix(in_.views, product_.out, 0, product_.rows, product_.cols);",
        PRODUCT,
        "uninitialised",
    ),
    Fault(
        "rows of the last tile not masked",
        TILE,
        "if (r >= product_.rows || c > r) return;",
        "if (c > r) return;",
        PRODUCT,
        "race",
    ),
    Fault(
        "symmetric tiles counted once",
        TILE,
        "(product_.symmetric && first_row_ != first_col_ ? 2 : 1) *",
        "1 *",
        PRODUCT,
        "values",
    ),
    Fault(
        "the bound without its second half of partials",
        TILE,
        "i < side.bound_partials; i += 32",
        "i < (side.bound_partials + 1) / 2; i += 32",
        PRODUCT,
        "values",
    ),
    Fault("pending not applied", TILE, "    store(pending);\n", "    store(1);\n", PRODUCT, "values"),
    Fault(
        "the chunk's failure not recorded",
        TILE,
        "      side.failed[block_] = !finite;\n",
        "",
        PRODUCT,
        "uninitialised",
    ),
    Fault(
        "diagonal of the last polynomial missing",
        TILE,
        "combine(-8, 4, 5);",
        "combine(-8, 4, 0);",
        PRODUCT,
        "values",
    ),
    Fault(
        "inactive blocks take part",
        TILE,
        "  if (!in.active[product.first_block + block]) return;\n",
        "",
        PRODUCT,
        "values",
    ),
]

BOOKS = [
    Fault(
        "the mean is not started",
        STATE,
        "if (threadIdx.x == 0) statistics[isfinite(scale) ? 0 : 1] += isfinite(scale) ? scale : 1;",
        "",
        "start_factors",
        "values",
    ),
    Fault(
        "pending of the first chunk alone",
        STATE,
        "chunk <= of.chunks; chunk +=",
        "chunk < 1; chunk +=",
        "start_factors",
        "uninitialised",
    ),
    Fault(
        "the first factor without its last row",
        STATE,
        "for_each_element(factor.rows, factor.cols,",
        "for_each_element(factor.rows - 1, factor.cols,",
        "start_factors",
        "values",
    ),
    Fault(
        "the norm without its last partial",
        STATE,
        "for (int i = lane; i < count; i += 32)",
        "for (int i = lane; i < count - 1; i += 32)",
        "finish_groups",
        "values",
    ),
    Fault(
        "trace of a square without its last row",
        STATE,
        "for_each_element(of.d, of.d,",
        "for_each_element(of.d - 1, of.d,",
        "traces_of_squares",
        "values",
    ),
]

FAULTS = [*PIPELINE, *EPILOGUE, *BOOKS]
