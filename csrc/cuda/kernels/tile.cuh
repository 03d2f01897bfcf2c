// Matrices in shared memory are grids of 16 x 16 float32 tiles of 1 KB, and this is their layout:
//
//   offset(r, c) = (16 r + c) xor 4 (r & 6)          in floats, within a tile
//
// The exclusive or moves rows so that the reads of a fragment of the tensor cores fall on 32 different banks
// whether the tile is read along its rows (two floats a lane) or along its columns (one float a lane). Four
// consecutive floats from a column divisible by 4 stay together: a 16-byte copy fills them.
//
// A product C [i, j] += sum_k A[i, k] B[j, k] has the k index last on both sides. An operand is *plain* where
// its tiles hold k along their rows, *transposed* where they hold k along their columns.
//
// Lane 4 g + t of a warp holds (PTX ISA, mma.m16n8k16)
//   of A  rows g, g + 8;  k = 2t, 2t + 1, 2t + 8, 2t + 9      of B  row g;  the same k
//   of C  rows g, g + 8;  columns 2t, 2t + 1
#pragma once

namespace kradagrad::cuda {

constexpr int kTile = 16;
constexpr int kTileFloats = kTile * kTile;

__host__ __device__ constexpr int tiles_of(int size) { return (size + kTile - 1) / kTile; }
// Tiles of the lower triangle of an n x n grid, diagonal included.
__host__ __device__ constexpr int lower_tiles(int n) { return n * (n + 1) / 2; }

__device__ __forceinline__ int tile_offset(int row, int col) {
  return (row * kTile + col) ^ ((row & 6) << 2);
}

// Where a tile is and how it is to be read.
struct TileRead {
  const float* data;
  bool transposed;
};

// A grid of tiles whose rows are the operand's rows.
struct PlainTiles {
  const float* data;
  int columns;
  __device__ __forceinline__ TileRead at(int row, int k) const {
    return {data + (row * columns + k) * kTileFloats, false};
  }
};

// A grid of tiles whose columns are the operand's rows.
struct TransposedTiles {
  const float* data;
  int columns;
  __device__ __forceinline__ TileRead at(int row, int k) const {
    return {data + (k * columns + row) * kTileFloats, true};
  }
};

// A symmetric matrix of which the lower tiles are held, row after row.
struct SymmetricTiles {
  const float* data;
  __device__ __forceinline__ TileRead at(int row, int k) const {
    const bool lower = row >= k;
    const int index = lower ? lower_tiles(row) + k : lower_tiles(k) + row;
    return {data + index * kTileFloats, !lower};
  }
};

// The pair (row, k), (row, k + 1) of an operand's tile, k even.
__device__ __forceinline__ float2 read_pair(TileRead tile, int row, int k) {
  if (tile.transposed) {
    return {tile.data[tile_offset(k, row)], tile.data[tile_offset(k + 1, row)]};
  }
  return *reinterpret_cast<const float2*>(tile.data + tile_offset(row, k));
}

struct Lane {
  int group;   // g
  int member;  // t
  __device__ __forceinline__ explicit Lane(int thread) : group(thread % 32 / 4), member(thread % 4) {}
};

// A lane's part of a 16 x 16 tile of A: pairs (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8).
struct FragmentA {
  float2 pair[4];
};

// A lane's part of 8 rows of B from `first_row` on: pairs (g, 2t), (g, 2t + 8).
struct FragmentB {
  float2 pair[2];
};

__device__ __forceinline__ FragmentA read_a(TileRead tile, Lane lane) {
  FragmentA a;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a.pair[i] = read_pair(tile, lane.group + 8 * (i % 2), 2 * lane.member + 8 * (i / 2));
  }
  return a;
}

__device__ __forceinline__ FragmentB read_b(TileRead tile, int first_row, Lane lane) {
  FragmentB b;
#pragma unroll
  for (int i = 0; i < 2; ++i) b.pair[i] = read_pair(tile, first_row + lane.group, 2 * lane.member + 8 * i);
  return b;
}

// Writes a lane's part of a 16 x 16 tile of C: halves of 8 columns, each {(g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1)}.
__device__ __forceinline__ void write_c(float* tile, const float (&c)[2][4], Lane lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* const to = tile + tile_offset(lane.group + 8 * i, 2 * lane.member + 8 * half);
      *reinterpret_cast<float2*>(to) = {c[half][2 * i], c[half][2 * i + 1]};
    }
  }
}

// The same for a symmetric tile: elements below the diagonal and their mirror images.
__device__ __forceinline__ void write_mirrored(float* tile, const float (&c)[2][4], Lane lane) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int row = lane.group + e % 4 / 2 * 8, col = 2 * lane.member + e / 4 * 8 + e % 2;
    if (col > row) continue;
    tile[tile_offset(row, col)] = c[e / 4][e % 4];
    if (col < row) tile[tile_offset(col, row)] = c[e / 4][e % 4];
  }
}

}  // namespace kradagrad::cuda
