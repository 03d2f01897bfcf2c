// C += A B^T for the 16 x 16 tiles of a warp, float32 operands, in one of three precisions:
//
//   bf16x3   a = ah + al in bf16,  a b ~ ah bl + al bh + ah bh            error about 2^-16 |a| |b|
//   tf32x3   a = ah + al in tf32,  the same                               error about 2^-21 |a| |b|
//   fp32     fused multiply-adds, no tensor cores
//
// An operand that was converted from bf16 equals its first term. Products with its second term, which is
// zero, are left out if `Exact` is set. Sums are float32 in every case.
//
// A shape describes a warp's tiles: kA row tiles of A, kB of B, and the pair of them that makes each slot of
// C. Row tiles [kFirst, kEnd) of A have been read. One term of all their slots is added before the next term,
// so that the tensor cores never wait for a sum.
#pragma once

#include "table.h"
#include "tile_formats.cuh"

namespace kradagrad::cuda {

// States which operands have bf16 values.
struct Exact {
  bool a, b;
};

// Slot s of a warp's C is row tile `a` of A times row tile `b` of B, numbered among the tiles that the warp
// reads.
struct Slot {
  int a, b;
};

// A lane's part of a tile: four pairs of neighbouring k. The order of (row half, k half) is 00, 10, 01, 11
// for A and 00, 01, 10, 11 for B, because one instruction takes 8 rows of B.
constexpr __device__ int row_of_pair(int pair, bool of_b) { return 8 * (of_b ? pair / 2 : pair % 2); }
constexpr __device__ int k_of_pair(int pair, bool of_b) { return 8 * (of_b ? pair % 2 : pair / 2); }

// A fragment as two terms of bf16.
struct Bf16Terms {
  uint32_t term[2][4];

  // c += (term i of a) times (term j of 8 rows of b).
  static __device__ __forceinline__ void multiply(float (&c)[4], const Bf16Terms& a, const Bf16Terms& b,
                                                  int i, int j, int half) {
    mma_bf16(c, a.term[i], {b.term[j][2 * half], b.term[j][2 * half + 1]});
  }
};

// Of tiles that store both terms: they are read as they are.
struct PlaneFragment : Bf16Terms {
  using Format = PlaneTiles;

  template <bool kOfB, Order kOrder>
  __device__ __forceinline__ void read(TileRead<kOrder> tile, Lane lane) {
    Format::read<kOfB>(term[0], tile, 0, lane);
    Format::read<kOfB>(term[1], tile, 1, lane);
  }
};

// Terms that are split as they are read.
struct SplitFragment : Bf16Terms {
  using Format = FloatTiles;

  template <bool kOfB, Order kOrder>
  __device__ __forceinline__ void read(TileRead<kOrder> tile, Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t terms[2];
      split_bf16(
          Format::read_pair(tile, lane.group + row_of_pair(i, kOfB), lane.member * 2 + k_of_pair(i, kOfB)),
          terms);
      term[0][i] = terms[0];
      term[1][i] = terms[1];
    }
  }
};

// A fragment as two terms of tf32. The first of a pair is k = t of an instruction, the second is k = t + 4,
// for both A and B.
struct Tf32Fragment {
  using Format = FloatTiles;
  // [term][half of k][value]; values of A: rows g, g + 8 of each k; of B: both k of row g, then of g + 8.
  float term[2][2][4];

  template <bool kOfB, Order kOrder>
  __device__ __forceinline__ void read(TileRead<kOrder> tile, Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row_of_pair(i, kOfB), k = k_of_pair(i, kOfB);
      const float2 pair = Format::read_pair(tile, lane.group + row, lane.member * 2 + k);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float value = j ? pair.y : pair.x, high = round_tf32(value);
        const int at = kOfB ? row / 8 * 2 + j : j * 2 + row / 8;
        term[0][k / 8][at] = high;
        term[1][k / 8][at] = round_tf32(value - high);
      }
    }
  }

  static __device__ __forceinline__ void multiply(float (&c)[4], const Tf32Fragment& a, const Tf32Fragment& b,
                                                  int i, int j, int half) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      mma_tf32(c, a.term[i][k], {b.term[j][k][2 * half], b.term[j][k][2 * half + 1]});
    }
  }
};

// Products on tensor cores, the smallest terms first.
template <class AnyFragment>
struct TensorCores {
  using Fragment = AnyFragment;

  template <class Shape, int kFirst, int kEnd, int kSlots>
  static __device__ __forceinline__ void add(float (&c)[kSlots][2][4], const Fragment (&a)[Shape::kA],
                                             const Fragment (&b)[Shape::kB], Lane, Exact exact) {
    if (!exact.b) add_terms<Shape, kFirst, kEnd>(c, a, b, 0, 1);
    if (!exact.a) add_terms<Shape, kFirst, kEnd>(c, a, b, 1, 0);
    add_terms<Shape, kFirst, kEnd>(c, a, b, 0, 0);
  }

 private:
  template <class Shape, int kFirst, int kEnd, int kSlots>
  static __device__ __forceinline__ void add_terms(float (&c)[kSlots][2][4], const Fragment (&a)[Shape::kA],
                                                   const Fragment (&b)[Shape::kB], int i, int j) {
#pragma unroll
    for (int s = 0; s < Shape::kSlots; ++s) {
      if (Shape::slot(s).a < kFirst || Shape::slot(s).a >= kEnd) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Fragment::multiply(c[s][half], a[Shape::slot(s).a], b[Shape::slot(s).b], i, j, half);
      }
    }
  }
};

// Products without tensor cores: every lane reads the whole rows of its elements, two k at a time.
struct FusedMultiplyAdds {
  struct Fragment {
    using Format = FloatTiles;
    Shared address;
    bool transposed;

    template <bool kOfB, Order kOrder>
    __device__ __forceinline__ void read(TileRead<kOrder> tile, Lane) {
      address = tile.address;
      transposed = kOrder == Order::kTransposed;
    }

    __device__ __forceinline__ float2 pair(int row, int k) const {
      return transposed ? Format::read_pair(TileRead<Order::kTransposed>{address}, row, k)
                        : Format::read_pair(TileRead<Order::kPlain>{address}, row, k);
    }
  };

  template <class Shape, int kFirst, int kEnd, int kSlots>
  static __device__ __forceinline__ void add(float (&c)[kSlots][2][4], const Fragment (&a)[Shape::kA],
                                             const Fragment (&b)[Shape::kB], Lane lane, Exact) {
#pragma unroll
    for (int s = 0; s < Shape::kSlots; ++s) {
      if (Shape::slot(s).a < kFirst || Shape::slot(s).a >= kEnd) continue;
      add_tile(c[s], a[Shape::slot(s).a], b[Shape::slot(s).b], lane);
    }
  }

 private:
  static __device__ __forceinline__ void add_tile(float (&c)[2][4], const Fragment& a, const Fragment& b,
                                                  Lane lane) {
#pragma unroll 1
    for (int k = 0; k < kTile; k += 2) {
      const float2 rows[2] = {a.pair(lane.group, k), a.pair(lane.group + 8, k)};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 col = b.pair(8 * half + 2 * lane.member + i % 2, k);
          c[half][i] = fmaf(rows[i / 2].y, col.y, fmaf(rows[i / 2].x, col.x, c[half][i]));
        }
      }
    }
  }
};

template <Precision kPrecision>
struct MultiplierOf;
template <>
struct MultiplierOf<Precision::kBf16x3> {
  using Type = TensorCores<PlaneFragment>;
};
template <>
struct MultiplierOf<Precision::kTf32x3> {
  using Type = TensorCores<Tf32Fragment>;
};
template <>
struct MultiplierOf<Precision::kFp32> {
  using Type = FusedMultiplyAdds;
};

// The multiplier for matrices that are stored in the format of the precision's fragments.
template <Precision kPrecision>
using Multiplier = typename MultiplierOf<kPrecision>::Type;

template <class Multiply>
using FormatOf = typename Multiply::Fragment::Format;

}  // namespace kradagrad::cuda
