// Matrices in shared memory are grids of 16 x 16 tiles of 1 KB. tile_formats.cuh defines the layout inside a
// tile; this file defines the addresses of tiles, and how the tensor cores distribute a tile to the lanes of
// a warp.
//
// A product C [i, j] += sum_k A[i, k] B[j, k] has the k index last on both sides. An operand is *plain* if k
// runs along the rows of its tiles, *transposed* if k runs along their columns.
//
// Lane 4 g + t of a warp has (PTX ISA, mma.m16n8k16)
//   of A  rows g, g + 8;  k = 2t, 2t + 1, 2t + 8, 2t + 9      of B  row g;  the same k
//   of C  rows g, g + 8;  columns 2t, 2t + 1
#pragma once

#include "ptx.cuh"

namespace kradagrad::cuda {

constexpr int kTile = 16;
constexpr int kTileFloats = kTile * kTile;
constexpr int kTileBytes = 4 * kTileFloats;

// Divisions are unsigned: signed ones take three more instructions.
__host__ __device__ constexpr int tiles_of(uint32_t size) { return (size + kTile - 1) / kTile; }
// Number of tiles in the lower triangle of an n x n grid, with the diagonal.
__host__ __device__ constexpr int lower_tiles(uint32_t n) { return n * (n + 1) / 2; }

struct Lane {
  int group;   // g
  int member;  // t
  __device__ __forceinline__ explicit Lane(uint32_t thread) : group(thread % 32 / 4), member(thread % 4) {}
  __device__ __forceinline__ int index() const { return group * 4 + member; }
};

enum class Order { kPlain, kTransposed };

// The address of a tile and the order in which it is read.
template <Order kOrder>
struct TileRead {
  Shared address;
};

// A grid of tiles whose rows are the operand's rows.
struct PlainTiles {
  static constexpr bool kSymmetric = false;
  Shared address;
  int columns;
  __device__ __forceinline__ TileRead<Order::kPlain> at(int row, int k) const {
    return {address + (row * columns + k) * kTileBytes};
  }
};

// A grid of tiles whose columns are the operand's rows.
struct TransposedTiles {
  static constexpr bool kSymmetric = false;
  Shared address;
  int columns;
  __device__ __forceinline__ TileRead<Order::kTransposed> at(int row, int k) const {
    return {address + (k * columns + row) * kTileBytes};
  }
};

// A symmetric matrix that is stored as its lower tiles, row by row.
struct SymmetricTiles {
  static constexpr bool kSymmetric = true;
  Shared address;
  __device__ __forceinline__ Shared place(int row, int col) const {
    return address + (lower_tiles(row) + col) * kTileBytes;
  }
  // The tile for k up to `row`, and for k from `row` on.
  __device__ __forceinline__ TileRead<Order::kPlain> lower(int row, int k) const { return {place(row, k)}; }
  __device__ __forceinline__ TileRead<Order::kTransposed> upper(int row, int k) const {
    return {place(k, row)};
  }
};

}  // namespace kradagrad::cuda
