// C += A B^T for one 16 x 16 tile of A and 8 rows of B, float32 operands, in one of four precisions:
//
//   bf16x3   a = ah + al in bf16,  a b ~ ah bh + ah bl + al bh            error about 2^-16 |a| |b|
//   bf16x6   a = ah + am + al,     the six products of at least 2^-16     error about that of float32
//   tf32x3   a = ah + al in tf32,  as bf16x3                              error about 2^-21 |a| |b|
//   fp32     fused multiply-adds, no tensor cores
//
// An operand that came from bf16 is exact in its first term; the products with its others, which are zero,
// are left out where `Exact` says so. Sums are float32 in every case.
#pragma once

#include "ptx.cuh"
#include "table.h"
#include "tile.cuh"

namespace kradagrad::cuda {

// Which operands hold bf16 values.
struct Exact {
  bool a, b;
};

// The first kTerms terms of two floats, each the bf16 nearest to what is left.
template <int kTerms>
__device__ __forceinline__ void split_bf16(float2 pair, uint32_t (&terms)[kTerms]) {
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    terms[i] = round_bf16x2(pair.x, pair.y);
    pair.x -= __uint_as_float(terms[i] << 16);
    pair.y -= __uint_as_float(terms[i] & 0xffff0000u);
  }
}

// Pairs of floats in kTerms bf16 terms.
template <int kTerms, int kPairs>
struct Bf16Terms {
  uint32_t term[kTerms][kPairs];

  __device__ __forceinline__ explicit Bf16Terms(const float2 (&pairs)[kPairs]) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      uint32_t terms[kTerms];
      split_bf16<kTerms>(pairs[i], terms);
#pragma unroll
      for (int j = 0; j < kTerms; ++j) term[j][i] = terms[j];
    }
  }
};

// Pairs of floats in two tf32 terms, pair by pair in the order of the instruction's registers: its k = t and
// t + 4 are the lane's two neighbouring ones, for A and B alike.
template <int kPairs>
struct Tf32Terms {
  float term[2][2][kPairs];  // term, half of k, register

  __device__ __forceinline__ explicit Tf32Terms(const float2 (&pairs)[kPairs]) {
    constexpr int kRows = kPairs / 2;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float value = j ? pairs[i].y : pairs[i].x;
        const float high = round_tf32(value);
        term[0][i / kRows][j * kRows + i % kRows] = high;
        term[1][i / kRows][j * kRows + i % kRows] = round_tf32(value - high);
      }
    }
  }
};

template <int kTerms>
struct Bf16Product {
  static constexpr int kColumns = kTerms < 3 ? 2 : 1;  // tiles of B that registers hold at once
  using A = Bf16Terms<kTerms, 4>;
  using B = Bf16Terms<kTerms, 2>;

  // The products of terms i and j with i + j < kTerms, the smallest first.
  static __device__ __forceinline__ void add(float (&c)[4], const A& a, const B& b, Exact exact) {
#pragma unroll
    for (int sum = kTerms - 1; sum >= 0; --sum) {
#pragma unroll
      for (int i = 0; i <= sum; ++i) {
        const bool zero = (i > 0 && exact.a) || (sum - i > 0 && exact.b);
        if (!zero) mma_bf16(c, a.term[i], b.term[sum - i]);
      }
    }
  }
};

struct Tf32Product {
  static constexpr int kColumns = 1;
  using A = Tf32Terms<4>;
  using B = Tf32Terms<2>;

  static __device__ __forceinline__ void add(float (&c)[4], const A& a, const B& b, Exact exact) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!exact.b) mma_tf32(c, a.term[0][half], b.term[1][half]);
      if (!exact.a) mma_tf32(c, a.term[1][half], b.term[0][half]);
      mma_tf32(c, a.term[0][half], b.term[0][half]);
    }
  }
};

// The fragments of 16 x 16 tiles of both operands, and their product: one lane's part as in write_c.
template <class Split>
struct TensorCores {
  static constexpr int kColumns = Split::kColumns;
  struct A {
    typename Split::A split;
    __device__ __forceinline__ A(TileRead tile, Lane lane) : split(read_a(tile, lane).pair) {}
  };
  struct B {
    typename Split::B low, high;  // rows 0 to 7 and 8 to 15
    __device__ __forceinline__ B(TileRead tile, Lane lane)
        : low(read_b(tile, 0, lane).pair), high(read_b(tile, 8, lane).pair) {}
  };
  static __device__ __forceinline__ void add(float (&c)[2][4], const A& a, const B& b, Lane, Exact exact) {
    Split::add(c[0], a.split, b.low, exact);
    Split::add(c[1], a.split, b.high, exact);
  }
};

// Without tensor cores: every lane reads the whole rows of its elements, two k at a time.
struct FusedMultiplyAdds {
  static constexpr int kColumns = 2;
  struct A {
    TileRead tile;
    __device__ __forceinline__ A(TileRead tile, Lane) : tile(tile) {}
  };
  using B = A;
  static __device__ __forceinline__ void add(float (&c)[2][4], const A& a, const B& b, Lane lane, Exact) {
#pragma unroll 1
    for (int k = 0; k < kTile; k += 2) {
      const float2 rows[2] = {read_pair(a.tile, lane.group, k), read_pair(a.tile, lane.group + 8, k)};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 col = read_pair(b.tile, 8 * half + 2 * lane.member + i % 2, k);
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
  using Type = TensorCores<Bf16Product<2>>;
};
template <>
struct MultiplierOf<Precision::kBf16x6> {
  using Type = TensorCores<Bf16Product<3>>;
};
template <>
struct MultiplierOf<Precision::kTf32x3> {
  using Type = TensorCores<Tf32Product>;
};
template <>
struct MultiplierOf<Precision::kFp32> {
  using Type = FusedMultiplyAdds;
};

template <Precision kPrecision>
using Multiplier = typename MultiplierOf<kPrecision>::Type;

}  // namespace kradagrad::cuda
