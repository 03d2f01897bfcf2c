// The two formats of a 16 x 16 tile of 1 KB in shared memory.
//
// PlaneTiles: x = high + low, both bf16, split once, when x is stored. Two planes of 512 bytes, high before
// low, each of four 8 x 8 matrices of 128 bytes, (row half, column half) in the order 00 10 01 11:
//
//   high  | 00 | 10 | 01 | 11 |      ldmatrix reads a fragment of a plane in one instruction, along rows or
//   low   | 00 | 10 | 01 | 11 |      columns, and every 8 x 8 matrix from all 32 banks; the lanes of C's
//                                    fragment write one to all 32 banks, too
//
// FloatTiles: float32, at offset(r, c) = (16 r + c) xor 4 (r & 6). The exclusive or permutes rows so that the
// reads of a fragment use 32 different banks, both if the tile is read along its rows (two floats a lane) and
// if it is read along its columns (one float a lane).
//
// In both formats, four consecutive elements from a column divisible by 4 are contiguous.
#pragma once

#include "tile.cuh"

namespace kradagrad::cuda {

// The first kTerms terms of two floats, each the bf16 number nearest to the remainder.
template <int kTerms>
__device__ __forceinline__ void split_bf16(float2 pair, uint32_t (&terms)[kTerms]) {
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    terms[i] = round_bf16x2(pair.x, pair.y);
    pair.x -= __uint_as_float(terms[i] << 16);
    pair.y -= __uint_as_float(terms[i] & 0xffff0000u);
  }
}

struct PlaneTiles {
  static constexpr int kPlane = kTileBytes / 2;
  static constexpr int kMatrix = 128;  // bytes of an 8 x 8 matrix

  // Reads one plane of a fragment: the 8 x 8 matrices of (row half, k half) 00, 10, 01, 11 for A and 00, 01,
  // 10, 11 for B.
  template <bool kOfB, Order kOrder>
  static __device__ __forceinline__ void read(uint32_t (&words)[4], TileRead<kOrder> tile, int plane,
                                              Lane lane) {
    const int straight = lane.index(), swapped = (straight & 7) | (straight & 8) << 1 | (straight & 16) >> 1;
    if constexpr (kOrder == Order::kPlain) {
      load_matrices(words, tile.address + plane * kPlane + 16 * (kOfB ? swapped : straight));
    } else {
      load_matrices_transposed(words, tile.address + plane * kPlane + 16 * (kOfB ? straight : swapped));
    }
  }

  // Stores the elements (row, col) to (row, col + 3), col divisible by 4. Tiles that are written may be in
  // shared or in global memory.
  template <class Address>
  static __device__ __forceinline__ void store_four(Address tile, int row, int col, const float (&four)[4]) {
    uint32_t left[2], right[2];
    split_bf16({four[0], four[1]}, left);
    split_bf16({four[2], four[3]}, right);
    const Address to = tile + (row / 8 + col / 8 * 2) * kMatrix + row % 8 * 16 + col % 8 * 2;
#pragma unroll
    for (int plane = 0; plane < 2; ++plane) {
      memory_at<uint2>(to + plane * kPlane) = {left[plane], right[plane]};
    }
  }

  template <class Address>
  static __device__ __forceinline__ float element(Address tile, int row, int col) {
    const Address at = tile + (row / 8 + col / 8 * 2) * kMatrix + row % 8 * 16 + col % 8 * 2;
    const uint32_t high = memory_at<const uint16_t>(at), low = memory_at<const uint16_t>(at + kPlane);
    return __uint_as_float(high << 16) + __uint_as_float(low << 16);
  }

  // Writes a lane's part of a tile of C: halves of 8 columns, each {(g, 2t), (g, 2t + 1), (g + 8, 2t),
  // (g + 8, 2t + 1)}.
  template <class Address>
  static __device__ __forceinline__ void write(Address tile, const float (&c)[2][4], Lane lane) {
    Words(c).write(tile, lane);
  }

  // The same for a tile on the diagonal of a symmetric matrix, from the elements on and below its diagonal.
  template <class Address>
  static __device__ __forceinline__ void write_mirrored(Address tile, const float (&c)[2][4], Lane lane) {
    Words words(c);
    words.mirror(lane);
    words.write(tile, lane);
  }

  // The same for a tile below the diagonal of a symmetric matrix, and for its mirror image above.
  template <class Address>
  static __device__ __forceinline__ void write_twice(Address tile, Address mirrored, const float (&c)[2][4],
                                                     Lane lane) {
    const Words words(c);
    words.write(tile, lane);
    words.transposed().write(mirrored, lane);
  }

  // Adds `factor` times a tile that `write` has written.
  template <class Address>
  static __device__ __forceinline__ void add(float (&c)[2][4], float factor, Address tile, Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Address from = tile + 4 * lane.index() + i * kMatrix;
      const uint32_t high = memory_at<const uint32_t>(from), low = memory_at<const uint32_t>(from + kPlane);
      c[i / 2][i % 2 * 2] += factor * (__uint_as_float(high << 16) + __uint_as_float(low << 16));
      c[i / 2][i % 2 * 2 + 1] +=
          factor * (__uint_as_float(high & 0xffff0000u) + __uint_as_float(low & 0xffff0000u));
    }
  }

 private:
  // A lane's pairs of a tile, by plane and 8 x 8 matrix.
  struct Words {
    uint32_t plane[2][4];

    __device__ __forceinline__ explicit Words(const float (&c)[2][4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t terms[2];
        split_bf16({c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]}, terms);
        plane[0][i] = terms[0];
        plane[1][i] = terms[1];
      }
    }

    // Replaces the elements above the diagonal with the mirror image of those below.
    __device__ __forceinline__ void mirror(Lane lane) {
      const int above = 2 * lane.member - lane.group;  // column - row of a pair's first element
      const uint32_t kept = (above <= 0 ? 0xffffu : 0) | (above < 0 ? 0xffff0000u : 0);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        uint32_t (&words)[4] = plane[p];
        words[2] = transpose_matrix(words[1]);
#pragma unroll
        for (int i = 0; i < 4; i += 3) words[i] = (words[i] & kept) | (transpose_matrix(words[i]) & ~kept);
      }
    }

    __device__ __forceinline__ Words transposed() const {
      Words result(*this);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = i % 2, col = i / 2 % 2;
        result.plane[i / 4][row + 2 * col] = transpose_matrix(plane[i / 4][col + 2 * row]);
      }
      return result;
    }

    template <class Address>
    __device__ __forceinline__ void write(Address tile, Lane lane) const {
      const Address to = tile + 4 * lane.index();
#pragma unroll
      for (int p = 0; p < 2; ++p) {
#pragma unroll
        for (int i = 0; i < 4; ++i) memory_at<uint32_t>(to + p * kPlane + i * kMatrix) = plane[p][i];
      }
    }
  };
};

struct FloatTiles {
  static __device__ __forceinline__ int offset(int row, int col) {
    return (row * kTile + col) ^ ((row & 6) << 2);
  }

  // The pair (row, k), (row, k + 1) of an operand's tile, k even.
  template <Order kOrder>
  static __device__ __forceinline__ float2 read_pair(TileRead<kOrder> tile, int row, int k) {
    if constexpr (kOrder == Order::kTransposed) {
      return {element(tile.address, k, row), element(tile.address, k + 1, row)};
    } else {
      return memory_at<const float2>(tile.address + 4 * offset(row, k));
    }
  }

  // As in PlaneTiles.
  static __device__ __forceinline__ float element(Shared tile, int row, int col) {
    return memory_at<const float>(tile + 4 * offset(row, col));
  }

  static __device__ __forceinline__ void store_four(Shared tile, int row, int col, const float (&four)[4]) {
    memory_at<float4>(tile + 4 * offset(row, col)) = {four[0], four[1], four[2], four[3]};
  }

  static __device__ __forceinline__ void write(Shared tile, const float (&c)[2][4], Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = offset(lane.group + 8 * (i % 2), 2 * lane.member + 8 * (i / 2));
      memory_at<float2>(tile + 4 * at) = {c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]};
    }
  }

  static __device__ __forceinline__ void add(float (&c)[2][4], float factor, Shared tile, Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = offset(lane.group + 8 * (i % 2), 2 * lane.member + 8 * (i / 2));
      const float2 pair = memory_at<const float2>(tile + 4 * at);
      c[i / 2][i % 2 * 2] += factor * pair.x;
      c[i / 2][i % 2 * 2 + 1] += factor * pair.y;
    }
  }

  static __device__ __forceinline__ void write_mirrored(Shared tile, const float (&c)[2][4], Lane lane) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int row = lane.group + e % 4 / 2 * 8, col = 2 * lane.member + e / 4 * 8 + e % 2;
      if (col > row) continue;
      memory_at<float>(tile + 4 * offset(row, col)) = c[e / 4][e % 4];
      if (col < row) memory_at<float>(tile + 4 * offset(col, row)) = c[e / 4][e % 4];
    }
  }
};

}  // namespace kradagrad::cuda
