// Common parts of the kernels of wide blocks: matrices as grids of plane tiles in global memory, partly in
// the L2, and their products.
//
// A product is made in tiles of 128 x 128 of C, 32 of k at a time, from kWideStages buffers in shared memory
// that are filled asynchronously: a tile of a grid is 1 KB of contiguous memory and is copied unchanged.
//
//   wait for buffer i;  barrier;  start filling buffer i + kWideStages - 1;  multiply from buffer i
//
// A tile of C is distributed to warps as in FullProduct<8>. Matrices are padded with zeros to tiles of 128.
#pragma once

#include "largest.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "tile_products.cuh"
#include "wide.h"

namespace kradagrad::cuda {

// A matrix of tiles.
struct Grid {
  char* tiles;
  int columns;
  __device__ __forceinline__ char* tile(int row, int col) const {
    return tiles + (row * columns + col) * kTileBytes;
  }
};

// Finds the CTA's next work item from an index on, by its first warp; returns true if there is one.
template <class Item, class Parameters>
__device__ __forceinline__ bool find(Item& item, const Parameters& in, int64_t from) {
  __syncthreads();  // whoever looks at the last one is done
  if (threadIdx.x < 32) item.find(in, from, gridDim.x, threadIdx.x);
  __syncthreads();
  return item.active;
}

struct WideOperand {
  Grid grid;
  bool transposed;  // k runs along the columns of its tiles
  bool exact;
};

class WideBlock {
 public:
  static constexpr int kWarps = kResidentThreads / 32, kHalf = 8;
  using Multiply = TensorCores<PlaneFragment>;
  using Product = FullProduct<kHalf, Multiply>;

  // A CTA's `matrices` matrices of `tiles` tiles a side.
  __device__ __forceinline__ WideBlock(char* scratch, int matrices, int tiles)
      : scratch_(scratch + blockIdx.x * matrices * wide_bytes(tiles)), tiles_(tiles) {}

  __device__ __forceinline__ Grid grid(int i) const { return {scratch_ + i * wide_bytes(tiles_), tiles_}; }

  static __device__ __forceinline__ float sum(float value) { return team_sum<kWarps>(value); }

  // Fills a grid from a matrix times `scale`, padded with zeros to multiples of 128, and calls use(value) for
  // every scaled value.
  template <class Use>
  static __device__ __forceinline__ void split(const Matrix& from, Grid to, float scale, const Use& use) {
    for_each_four(from, [&](const Four& at, float (&four)[4]) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        four[j] *= scale;
        use(four[j]);
      }
      PlaneTiles::store_four(to.tile(at.tile_row, at.tile_col), at.row, at.col, four);
    });
  }

  // The largest magnitude in a matrix; NaN is ignored.
  static __device__ __forceinline__ float largest(const Matrix& from) {
    float most = 0;
    for_each_four(from, [&](const Four&, const float (&four)[4]) {
#pragma unroll
      for (int j = 0; j < 4; ++j) most = fmaxf(most, fabsf(four[j]));
    });
    return team_max<kWarps>(most);
  }

  // Calls use(c, row, col) for each of the rows x cols tiles of 128 x 128 of C = A B^T; for a symmetric C,
  // only for those on and below the diagonal. Writes of `use` are visible to all threads after the product.
  template <class Use>
  __device__ __forceinline__ void product(WideOperand a, WideOperand b, int rows, int cols, int depth,
                                          bool symmetric, const Use& use) const {
#pragma unroll 1
    for (int tile = 0; tile < rows * cols; ++tile) {
      const int row = tile / cols, col = tile % cols;
      if (symmetric && col > row) continue;
      Product c(threadIdx.x / 32, Lane(threadIdx.x));
      multiply(c, a, b, row, col, depth);
      use(c, row, col);
    }
    __syncthreads();
  }

  // c += A B^T for the tile (row, col) of C, `depth` tiles of k.
  __device__ __forceinline__ void multiply(Product& c, WideOperand a, WideOperand b, int row, int col,
                                           int depth) const {
    const int steps = (depth + kDepth - 1) / kDepth;
    const auto fill = [&](int step) {
      const Shared stage = stage_at(step);
      if (step < steps) {
        copy(stage, a, row, step);
        copy(stage + kStage / 2, b, col, step);
      }
      copy_async_commit();
    };
    __syncthreads();  // whoever multiplies from the stages is done
#pragma unroll
    for (int step = 0; step < kWideStages - 1; ++step) fill(step);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<kWideStages - 2>();
      __syncthreads();
      fill(step + kWideStages - 1);
      multiply_stage(c, stage_at(step), a, b);
    }
  }

  // Writes a tile of C to a grid.
  static __device__ __forceinline__ void write(const Product& c, Grid to, int row, int col) {
    const Lane lane(forget(threadIdx.x));
#pragma unroll
    for (int s = 0; s < Product::kSlots; ++s) {
      PlaneTiles::write(to.tile(tile_row(c, s, row), tile_col(c, s, col)), c.c[s], lane);
    }
  }

  // The same for a symmetric matrix, from the tiles on and below the diagonal.
  static __device__ __forceinline__ void write_symmetric(const Product& c, Grid to, int row, int col) {
    const Lane lane(forget(threadIdx.x));
#pragma unroll
    for (int s = 0; s < Product::kSlots; ++s) {
      const int i = tile_row(c, s, row), j = tile_col(c, s, col);
      if (i == j) PlaneTiles::write_mirrored(to.tile(i, j), c.c[s], lane);
      if (i > j) PlaneTiles::write_twice(to.tile(i, j), to.tile(j, i), c.c[s], lane);
    }
  }

  // Adds `factor` times a symmetric matrix, on and below the diagonal.
  static __device__ __forceinline__ void add_symmetric(Product& c, float factor, Grid from, int row,
                                                       int col) {
    const Lane lane(forget(threadIdx.x));
#pragma unroll
    for (int s = 0; s < Product::kSlots; ++s) {
      const int i = tile_row(c, s, row), j = tile_col(c, s, col);
      if (i >= j) PlaneTiles::add(c.c[s], factor, from.tile(i, j), lane);
    }
  }

  // Adds `value` to the diagonal's elements up to `size`.
  static __device__ __forceinline__ void add_diagonal(Product& c, int size, float value, int row, int col) {
    if (row != col) return;
    c.for_each_pair([&](int i, int j, float (&pair)[2]) {
      if (row * kHalf * kTile + i >= size) return;
      if (i == j) pair[0] += value;
      if (i == j + 1) pair[1] += value;
    });
  }

  // This thread's part of the sum of squares of a tile; `twice`: of the tile and of its mirror image.
  static __device__ __forceinline__ float squares(Product& c, bool twice = false) {
    float sum = 0;
    c.for_each_pair([&](int, int, float (&pair)[2]) { sum += pair[0] * pair[0] + pair[1] * pair[1]; });
    return twice ? 2 * sum : sum;
  }

  // Number of tiles of 128 that cover `size` elements.
  static __device__ __forceinline__ int halves_of(int size) { return (tiles_of(size) + kHalf - 1) / kHalf; }

 private:
  static constexpr int kDepth = 2, kStage = 2 * kHalf * kDepth * kTileBytes;
  static constexpr int kFours = kTileFloats / 4, kChunks = kTileBytes / 16;

  static __device__ __forceinline__ int tile_row(const Product& c, int slot, int row) {
    return row * kHalf + c.row(slot / Product::kCols);
  }
  static __device__ __forceinline__ int tile_col(const Product& c, int slot, int col) {
    return col * kHalf + c.col(slot % Product::kCols);
  }

  static __device__ __forceinline__ Shared stage_at(int step) {
    extern __shared__ float4 memory[];
    return shared_address(memory) + step % kWideStages * kStage;
  }

  // The position of four neighbours in a row of a tile.
  struct Four {
    int tile_row, tile_col, row, col;
    __device__ __forceinline__ Four(int i, int tile_cols)
        : tile_row(i / kFours / tile_cols),
          tile_col(i / kFours % tile_cols),
          row(i % kFours / 32 * 8 + i % 16 / 2),
          col(i % 32 / 16 * 8 + i % 2 * 4) {}
    __device__ __forceinline__ int matrix_row() const { return tile_row * kTile + row; }
    __device__ __forceinline__ int matrix_col() const { return tile_col * kTile + col; }
  };

  // Calls use(at, four) for a matrix and the zeros that pad it to multiples of 128.
  template <class Use>
  static __device__ __forceinline__ void for_each_four(const Matrix& from, const Use& use) {
    if (!from.in_fours()) {
      visit<1>(from, use, [&](const Four& at, float (&four)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] = from.read(at.matrix_row(), at.matrix_col() + j);
      });
    } else if (from.bf16) {
      visit_aligned(from, static_cast<const __nv_bfloat16*>(from.data), use);
    } else {
      visit_aligned(from, static_cast<const float*>(from.data), use);
    }
  }

  // The same for whole aligned groups of four; a thread has eight loads in flight at once.
  template <class Element, class Use>
  static __device__ __forceinline__ void visit_aligned(const Matrix& from, const Element* data,
                                                       const Use& use) {
    __builtin_assume(__isGlobal(data));
    visit<8>(from, use, [&](const Four& at, float (&four)[4]) {
      const int row = at.matrix_row(), col = at.matrix_col();
      read_four(data + row * from.row_stride + col, row < from.rows && col < from.cols, four);
    });
  }

  // Repeatedly calls read(at, four) for kAtOnce groups of four, then use(at, four) for each of them.
  template <int kAtOnce, class Use, class Read>
  static __device__ __forceinline__ void visit(const Matrix& from, const Use& use, const Read& read) {
    const int cols = halves_of(from.cols) * kHalf, count = halves_of(from.rows) * kHalf * cols * kFours;
    static_assert(kHalf * kHalf * kFours % (kAtOnce * kResidentThreads) == 0);
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kAtOnce * kResidentThreads) {
      float fours[kAtOnce][4];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) read(Four(i + j * kResidentThreads, cols), fours[j]);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) use(Four(i + j * kResidentThreads, cols), fours[j]);
    }
  }

  // Copies an operand's rows for a tile of C to half of a stage: [row][k] or, transposed, [k][row].
  static __device__ __forceinline__ void copy(Shared stage, const WideOperand& from, int half, int step) {
#pragma unroll
    for (int i = threadIdx.x; i < kHalf * kDepth * kChunks; i += kResidentThreads) {
      const int tile = i / kChunks;
      const int row = half * kHalf + (from.transposed ? tile % kHalf : tile / kDepth);
      const int k = step * kDepth + (from.transposed ? tile / kHalf : tile % kDepth);
      const char* const source = from.transposed ? from.grid.tile(k, row) : from.grid.tile(row, k);
      copy_async<16>(stage + i * 16, source + i % kChunks * 16, 16);
    }
  }

  static __device__ __forceinline__ void multiply_stage(Product& c, Shared stage, const WideOperand& a,
                                                        const WideOperand& b) {
    const Exact exact{a.exact, b.exact};
    const Shared other = stage + kStage / 2;
    if (a.transposed) {
      if (b.transposed) {
        c.add(TransposedTiles{stage, kHalf}, TransposedTiles{other, kHalf}, kHalf, kHalf, kDepth, exact);
      } else {
        c.add(TransposedTiles{stage, kHalf}, PlainTiles{other, kDepth}, kHalf, kHalf, kDepth, exact);
      }
    } else if (b.transposed) {
      c.add(PlainTiles{stage, kDepth}, TransposedTiles{other, kHalf}, kHalf, kHalf, kDepth, exact);
    } else {
      c.add(PlainTiles{stage, kDepth}, PlainTiles{other, kDepth}, kHalf, kHalf, kDepth, exact);
    }
  }

  char* scratch_;
  int tiles_;
};

}  // namespace kradagrad::cuda
