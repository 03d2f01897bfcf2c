// Refinement of an approximate inverse in shared memory (kradagrad_ext/backends/base.py): from W, and C = I,
//
//   `refine` times   V = 5 I - 8 W + 4 W^2;   C <- C V;   W <- W V
//
// All matrices are symmetric and commute; only their lower tiles are held and made. There is room for two: W
// and, after it, V or C. From the third iterate on the lower tiles of C or W wait in registers.
#pragma once

#include "resident_products.cuh"

namespace kradagrad::cuda {

template <int kTiles, Precision kPrecision>
class Refinement {
 public:
  using Lower = LowerTiles<kTiles>;

  // `place`: room for twice the lower tiles; `size`: of the matrices, `tiles` tiles.
  __device__ __forceinline__ Refinement(float* place, int tiles, int size)
      : place_(place), k_tiles_(tiles), columns_(size) {}

  // The lower tiles of C. What lay in `place` is no longer read once the threads have met.
  __device__ __forceinline__ const float* run(const Lower& start, int refine) {
    __syncthreads();
    start.write(w_tiles(), k_tiles_);
    __syncthreads();
    for (int i = 1; i <= refine; ++i) {
      const bool first = i == 1, last = i == refine;
      const Lower v = polynomial();
      if (first) {
        v.write(v_tiles(), k_tiles_);
        __syncthreads();
        if (!last) replace(w_tiles(), product());
      } else if (last) {
        replace(w_tiles(), v);
        replace(v_tiles(), product());
      } else {
        advance(v);
      }
    }
    return v_tiles();
  }

 private:
  __device__ __forceinline__ float* w_tiles() const { return place_; }
  __device__ __forceinline__ float* v_tiles() const { return place_ + lower_tiles(kTiles) * kTileFloats; }

  // V = 5 I - 8 W + 4 W^2.
  __device__ __forceinline__ Lower polynomial() const {
    Lower square, v;
    const SymmetricTiles w{w_tiles()};
    square.template add<kPrecision>(w, w, k_tiles_, k_tiles_);
    v.read(w_tiles(), k_tiles_);
#pragma unroll
    for (int s = 0; s < Lower::kSlots; ++s) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        v.c[s][e / 4][e % 4] = 4 * square.c[s][e / 4][e % 4] - 8 * v.c[s][e / 4][e % 4];
      }
    }
    v.add_diagonal(k_tiles_, columns_, 5);
    return v;
  }

  // The symmetric product of the two matrices held.
  __device__ __forceinline__ Lower product() const {
    Lower result;
    result.template add<kPrecision>(SymmetricTiles{w_tiles()}, SymmetricTiles{v_tiles()}, k_tiles_, k_tiles_);
    return result;
  }

  __device__ __forceinline__ void replace(float* tiles, const Lower& by) {
    __syncthreads();
    by.write(tiles, k_tiles_);
    __syncthreads();
  }

  // W <- W V and C <- C V with two matrices' room: while one product is made, the other factor waits in
  // registers.
  __device__ __forceinline__ void advance(const Lower& v) {
    Lower c;
    c.read(v_tiles(), k_tiles_);
    replace(v_tiles(), v);
    const Lower w = product();
    replace(w_tiles(), c);
    c = product();
    __syncthreads();
    w.write(w_tiles(), k_tiles_);
    c.write(v_tiles(), k_tiles_);
    __syncthreads();
  }

  float* place_;
  int k_tiles_, columns_;
};

}  // namespace kradagrad::cuda
