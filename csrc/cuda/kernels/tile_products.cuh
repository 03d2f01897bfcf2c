// Products of matrices that lie in shared memory, and how a CTA of kTiles warps shares them out. A matrix has
// up to kTiles x kTiles tiles.
//
// Full products: warps in a 2 x kTiles/2 grid, each kTiles/2 rows x 2 columns of tiles.
// Symmetric products: only the lower tiles. Rows kTiles-1-p and p of the triangle hold kTiles + 1 tiles
// together; warp 2p takes the first kTiles/2 + 1 of the longer row, warp 2p + 1 the rest of it and the
// shorter row, so that no two warps differ by more than one tile:
//
//   kTiles = 4    row 3   0 0 0 1        (the digit: which warp)
//                 row 2   2 2 2
//                 row 1   3 3
//                 row 0   1
#pragma once

#include "precision.cuh"
#include "tile.cuh"

namespace kradagrad::cuda {

// What every thread knows about its CTA.
template <int kTiles>
struct Cta {
  static constexpr int kWarps = kTiles;
  static constexpr int kThreads = 32 * kWarps;
  int warp;
  Lane lane;
  __device__ __forceinline__ Cta() : Cta(forget(threadIdx.x)) {}

 private:
  __device__ __forceinline__ explicit Cta(int thread) : warp(thread / 32), lane(thread) {}
};

// Calls use(row, col, pair) for the pairs that a lane holds of the tile at (tile_row, tile_col).
template <class Use>
__device__ __forceinline__ void for_each_pair_of(float (&c)[2][4], int tile_row, int tile_col, Lane lane,
                                                 const Use& use) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    use(tile_row * kTile + lane.group + e % 2 * 8, tile_col * kTile + e / 2 * 8 + lane.member * 2,
        reinterpret_cast<float (&)[2]>(c[e / 2][e % 2 * 2]));
  }
}

// One warp's part of a full product: C [rows, cols] = A B^T with k tiles of k, in tiles.
template <int kTiles, Precision kPrecision>
struct FullProduct {
  static constexpr int kRows = kTiles / 2, kCols = 2;
  Cta<kTiles> cta;
  float c[kRows][kCols][2][4] = {};

  __device__ __forceinline__ int row(int i) const { return cta.warp % 2 * kRows + i; }
  __device__ __forceinline__ int col(int j) const { return cta.warp / 2 * kCols + j; }

  template <class A, class B>
  __device__ __forceinline__ void add(A a, B b, int rows, int cols, int depth, Exact exact = {}) {
    using Multiply = Multiplier<kPrecision>;
#pragma unroll
    for (int first = 0; first < kCols; first += Multiply::kColumns) {
      add_columns<Multiply>(a, b, first, rows, cols, depth, exact);
    }
  }

  // Tiles beyond the matrix repeat its last ones: cheaper than branches around every product.
  template <class Multiply, class A, class B>
  __device__ __forceinline__ void add_columns(A a, B b, int first, int rows, int cols, int depth,
                                              Exact exact) {
    const Lane lane(forget(threadIdx.x));  // anew: addresses of the loop stay within it
#pragma unroll 1
    for (int k = 0; k < depth; ++k) {
      const auto read = [&](int j) {
        return typename Multiply::B(b.at(min(col(first + j), cols - 1), k), lane);
      };
      const typename Multiply::B left = read(0), right = read(Multiply::kColumns - 1);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const typename Multiply::A from(a.at(min(row(i), rows - 1), k), lane);
#pragma unroll
        for (int j = 0; j < Multiply::kColumns; ++j) {
          Multiply::add(c[i][first + j], from, j == 0 ? left : right, lane, exact);
        }
      }
    }
  }

  // Writes a grid of tiles, `columns` to a row.
  __device__ __forceinline__ void write(float* tiles, int rows, int cols) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        if (row(i) < rows && col(j) < cols) {
          write_c(tiles + (row(i) * cols + col(j)) * kTileFloats, c[i][j], cta.lane);
        }
      }
    }
  }

  // Calls use(row, col, float (&)[2]) for the pairs (row, col), (row, col + 1) of the rows x cols tiles held.
  template <class Use>
  __device__ __forceinline__ void for_each_pair(int rows, int cols, const Use& use) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        if (row(i) < rows && col(j) < cols) for_each_pair_of(c[i][j], row(i), col(j), cta.lane, use);
      }
    }
  }
};

// One warp's share of the lower tiles of a symmetric matrix, in registers.
template <int kTiles>
struct LowerTiles {
  static constexpr int kSlots = kTiles / 2 + 1;
  Cta<kTiles> cta;
  float c[kSlots][2][4] = {};

  __device__ __forceinline__ int row(int slot) const {
    const int pair = cta.warp / 2, longer = kTiles - 1 - pair;
    return cta.warp % 2 == 0 || slot < longer - kTiles / 2 ? longer : pair;
  }

  __device__ __forceinline__ int col(int slot) const {
    if (cta.warp % 2 == 0) return slot;
    const int rest = kTiles / 2 - 1 - cta.warp / 2;  // tiles of the longer row that are left to this warp
    return slot < rest ? kTiles / 2 + 1 + slot : slot - rest;
  }

  // Warps of odd number hold one tile less.
  __device__ __forceinline__ bool has(int slot, int tile_rows) const {
    return row(slot) < tile_rows && (slot + 1 < kSlots || cta.warp % 2 == 0);
  }

  __device__ __forceinline__ float* tile(float* tiles, int slot) const {
    return tiles + (lower_tiles(row(slot)) + col(slot)) * kTileFloats;
  }

  // What lies above the diagonal is the mirror image of what lies below: differences of rounding between the
  // two would grow from one refinement to the next.
  __device__ __forceinline__ void write(float* tiles, int tile_rows) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (!has(s, tile_rows)) continue;
      if (row(s) == col(s)) {
        write_mirrored(tile(tiles, s), c[s], cta.lane);
      } else {
        write_c(tile(tiles, s), c[s], cta.lane);
      }
    }
  }

  // Calls use(row, col, float (&)[2]) for the pairs (row, col), (row, col + 1) that are held.
  template <class Use>
  __device__ __forceinline__ void for_each_pair(int tile_rows, const Use& use) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (has(s, tile_rows)) for_each_pair_of(c[s], row(s), col(s), cta.lane, use);
    }
  }

  // Adds `value` to the diagonal's elements up to `size`.
  __device__ __forceinline__ void add_diagonal(int tile_rows, int size, float value) {
    for_each_pair(tile_rows, [&](int row, int col, float (&pair)[2]) {
      if (row < size && row == col) pair[0] += value;
      if (row < size && row == col + 1) pair[1] += value;
    });
  }

  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int e = 0; e < 8; ++e) c[s][e / 4][e % 4] *= factor;
    }
  }

  // C += A B^T, of which these are the lower tiles.
  template <Precision kPrecision, class A, class B>
  __device__ __forceinline__ void add(A a, B b, int tile_rows, int depth, Exact exact = {}) {
    using Multiply = Multiplier<kPrecision>;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (!has(s, tile_rows)) continue;
#pragma unroll 1
      for (int k = 0; k < depth; ++k) {
        const typename Multiply::A own(a.at(row(s), k), cta.lane);
        Multiply::add(c[s], own, {b.at(col(s), k), cta.lane}, cta.lane, exact);
      }
    }
  }

  // Sum of value^2 over the whole symmetric matrix.
  __device__ __forceinline__ float sum_of_squares(int tile_rows) {
    float sum = 0;
    for_each_pair(tile_rows, [&](int row, int col, float (&pair)[2]) {
      sum += (row / kTile == col / kTile ? 1 : 2) * (pair[0] * pair[0] + pair[1] * pair[1]);
    });
    return sum;
  }
};

}  // namespace kradagrad::cuda
