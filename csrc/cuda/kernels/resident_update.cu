// resident_update: the update of both factors of blocks [m, n] of up to 16 kTiles a side, on chip from the
// reading of G and F to the writing of F (kradagrad_ext/backends/base.py):
//
//   U = G, or coupled  |G| / |G P_r| G P_r  and  |G| / |P_l G| (P_l G)^T
//   B = s sqrt(weight) F^T U, s the scale of the block's gradient
//   M = B B^T + C^T C,  C = rms' sqrt(damped_updates weight damping k) F
//   Y = (M + decay I) / t,  Z = T = a I - b Y;   from the second step on
//     Y <- Y T;   T = a I - b Y Z;   Z <- T Z                          (square_root_rule.cuh)
//   F <- restored F Z
//
// One CTA a block and side, kTiles warps (tile_products.cuh); a CTA finds its group by binary search over
// the groups' first CTAs. G is held in units of a power of two below its largest element and F in one below
// 1 / (rms' sqrt(damping k)), so that no square overflows for gradients of any scale; scaling by
// powers of two rounds nothing. Shared memory, in tiles (T = 8: 136 KB):
//
//             first, T^2                    second, T (T + 1)
//   read      P of the other side           G
//   coupled   P                             U
//   whiten    F                             U, then B
//   iterate   F                             two of Y, T and Z: lower tiles, 36 each; the third waits in
//                                           registers
//
// Traffic: G, F and for a coupled update P once, F written once. The sides' CTAs are neighbours: what the
// second one reads of G is in the L2. Per element of a square block of b^2: both sides 2 G + 2 P + 4 F.
#include "largest.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "square_root_resident.h"
#include "square_root_rule.cuh"
#include "tile_products.cuh"

namespace kradagrad::cuda {
namespace {

// A grid of tiles, read along its rows or its columns.
struct Tiles {
  const float* data;
  int columns;
  bool transposed;
  __device__ __forceinline__ TileRead at(int row, int k) const {
    return {data + (transposed ? k * columns + row : row * columns + k) * kTileFloats, transposed};
  }
};

// Elements (row, col) and (row, col + 1) of a factor, col even, where they lie within.
__device__ __forceinline__ void write_factor_pair(const Matrix& factor, int row, int col,
                                                  const float (&pair)[2]) {
  if (!factor.bf16) return factor.write_pair(row, col, {pair[0], pair[1]});
  if (row >= factor.rows) return;
  auto* const to = static_cast<__nv_bfloat16*>(factor.data) + factor.offset(row, col);
  if (factor.aligned && col + 1 < factor.cols) {
    *reinterpret_cast<uint32_t*>(to) = round_bf16x2(pair[0], pair[1]);
  } else {
    if (col < factor.cols) to[0] = __float2bfloat16_rn(pair[0]);
    if (col + 1 < factor.cols) to[1] = __float2bfloat16_rn(pair[1]);
  }
}

template <int kTiles, Precision kPrecision>
class ResidentSideUpdate {
 public:
  using Full = FullProduct<kTiles, kPrecision>;
  using Lower = LowerTiles<kTiles>;
  static constexpr int kThreads = Cta<kTiles>::kThreads;

  __device__ __forceinline__ ResidentSideUpdate(const ResidentUpdate& in, const ResidentUpdateGroup& group,
                                                const ResidentSide& side, int64_t block, float scale,
                                                float* shared)
      : in_(in),
        group_(group),
        side_(side),
        block_(block),
        scale_(scale),
        first_(shared),
        second_(shared + first_place(kTiles) * kTileFloats),
        scratch_(second_ + second_place(kTiles) * kTileFloats) {}

  __device__ __forceinline__ void run() {
    const GradientNorm norm = load_gradient();
    const bool usable = norm.unit > 0 && isfinite(norm.sum);
    const float stretch = usable && in_.rule.coupled ? couple() / norm.sum : 1;
    float* const statistics = side_.statistics + block_ * kColumns;
    const BlockUpdate update = next_statistics(in_.rule, statistics, norm, scale_, stretch, d(), k());
    if (update.readiness == Readiness::kNone) return;
    float whitened = 0;
    const bool succeeded =
        update.readiness == Readiness::kReady && update_factor(update, norm.unit, whitened);
    if (threadIdx.x > 0) return;
    if (succeeded) {
      statistics[kRms] = update.rms;
      statistics[kWeight] = update.weight;
      statistics[kWhitened] = update.whitened * whitened;
    } else {
      statistics[kFallbacks] += 1;
    }
  }

 private:
  __device__ __forceinline__ int d() const { return side_.right ? group_.n : group_.m; }
  __device__ __forceinline__ int k() const { return side_.right ? group_.m : group_.n; }
  __device__ __forceinline__ int d_tiles() const { return tiles_of(d()); }
  __device__ __forceinline__ int k_tiles() const { return tiles_of(k()); }
  __device__ __forceinline__ int n_tiles() const { return tiles_of(group_.n); }

  __device__ __forceinline__ float sum(float value) const {
    return cta_sum<Cta<kTiles>::kWarps>(value, scratch_);
  }

  // Calls use(four) for every four floats of `count` tiles.
  template <class Use>
  static __device__ __forceinline__ void for_each_four(float* tiles, int count, const Use& use) {
    for (int i = threadIdx.x; i < count * kTileFloats / 4; i += kThreads) {
      use(reinterpret_cast<float (&)[4]>(reinterpret_cast<float4*>(tiles)[i]));
    }
  }

  // G in `second`, in the unit that is given back with its norm.
  __device__ __forceinline__ GradientNorm load_gradient() const {
    const int m_tiles = tiles_of(group_.m), count = m_tiles * n_tiles();
    copy_grid<kThreads>(second_, Matrix(in_.views, group_.grad, block_, group_.m, group_.n), m_tiles,
                        n_tiles());
    finish_copies();
    float most = 0;
    for_each_four(second_, count, [&](const float (&four)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) most = fmaxf(most, isfinite(four[i]) ? fabsf(four[i]) : INFINITY);
    });
    most = cta_max<Cta<kTiles>::kWarps>(most, scratch_);
    if (most == 0) return {0, 0};
    if (!isfinite(most)) return {most, 1};
    const float unit = power_of_two_below(most);
    float squares = 0;
    for_each_four(second_, count, [&](float (&four)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four[i] *= 1 / unit;
        squares += four[i] * four[i];
      }
    });
    return {sum(squares), unit};
  }

  // G P_r, or P_l G, in the place of G; its squared norm.
  __device__ __forceinline__ float couple() const {
    const Matrix root(in_.views, side_.other_root, block_, k(), k());
    copy_grid<kThreads>(first_, root, k_tiles(), k_tiles());
    finish_copies();
    const bool grad_bf16 = group_.grad.bf16;
    const float* const a = side_.right ? first_ : second_;
    const float* const b = side_.right ? second_ : first_;
    const Exact exact = side_.right ? Exact{root.bf16, grad_bf16} : Exact{grad_bf16, root.bf16};
    const int rows = tiles_of(group_.m), cols = n_tiles();
    Full u;
    u.add(PlainTiles{a, k_tiles()}, TransposedTiles{b, cols}, rows, cols, k_tiles(), exact);
    __syncthreads();
    u.write(second_, rows, cols);
    return sum(squares_of(u, rows, cols, 1));
  }

  // The product times `scale`, and this thread's part of its squared norm.
  static __device__ __forceinline__ float squares_of(Full& product, int rows, int cols, float scale) {
    float squares = 0;
    product.for_each_pair(rows, cols, [&](int, int, float (&pair)[2]) {
      pair[0] *= scale;
      pair[1] *= scale;
      squares += pair[0] * pair[0] + pair[1] * pair[1];
    });
    return squares;
  }

  // F <- F R where that is finite; whether it is. `unit`: of U; `whitened`: |B|^2.
  __device__ __forceinline__ bool update_factor(const BlockUpdate& update, float unit,
                                                float& whitened) const {
    const Matrix factor(in_.views, side_.factor, block_, d(), d());
    const bool is_new = side_.statistics[block_ * kColumns + kWeight] == 0;
    const float root = update.rms * damping_root(in_.rule, k());
    const float own_unit = power_of_two_below(root);  // F is held times this
    const Exact exact{factor.bf16 && !is_new, false};
    load_factor(factor, is_new ? own_unit * start_of(in_.rule, update.rms, k()) : 0, own_unit);
    whitened = whiten(update.scale * (unit / own_unit), exact);
    Lower m = gram(root / own_unit, exact);
    const float norm = norm_of(m, fmaxf(1, power_of_two_below(whitened)));
    iterate(m, norm);
    return write_factor(factor, Iteration(in_.rule, norm, 0).restored / own_unit, exact);
  }

  // |M|_F without squares that overflow where M / unit is near 1 or below.
  __device__ __forceinline__ float norm_of(const Lower& m, float unit) const {
    Lower scaled = m;
    scaled.scale(1 / unit);
    return unit * sqrtf(sum(scaled.sum_of_squares(d_tiles())));
  }

  // F times `unit` in `first`, or `start` I where `start` is not 0.
  __device__ __forceinline__ void load_factor(const Matrix& factor, float start, float unit) const {
    const int count = d_tiles() * d_tiles();
    if (start > 0) {
      for_each_four(first_, count, [&](float (&four)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] = 0;
      });
      __syncthreads();
      for (int i = threadIdx.x; i < d(); i += kThreads) {
        const int tile = i / kTile * (d_tiles() + 1);
        first_[tile * kTileFloats + tile_offset(i % kTile, i % kTile)] = start;
      }
    } else {
      copy_grid<kThreads>(first_, factor, d_tiles(), d_tiles());
      finish_copies();
      for_each_four(first_, count, [&](float (&four)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] *= unit;
      });
    }
    __syncthreads();
  }

  // B in the place of U; its squared norm.
  __device__ __forceinline__ float whiten(float scale, Exact exact) const {
    exact.b = group_.grad.bf16 && !in_.rule.coupled;
    const int rows = d_tiles(), cols = k_tiles();
    Full b;
    b.add(TransposedTiles{first_, rows}, Tiles{second_, n_tiles(), !side_.right}, rows, cols, rows, exact);
    const float squares = squares_of(b, rows, cols, scale);
    __syncthreads();
    b.write(second_, rows, cols);
    return sum(squares);
  }

  // M = B B^T + damping^2 F^T F, its lower tiles.
  __device__ __forceinline__ Lower gram(float damping, Exact exact) const {
    Lower m;
    const float damped = in_.rule.damped_updates * in_.rule.weight;
#pragma unroll 1
    for (int term = damped > 0 ? 0 : 1; term < 2; ++term) {
      const Tiles operand{term ? second_ : first_, term ? k_tiles() : d_tiles(), term == 0};
      const Exact both{term == 0 && exact.a, term == 0 && exact.a};
      m.template add<kPrecision>(operand, operand, d_tiles(), term ? k_tiles() : d_tiles(), both);
      if (term == 0) m.scale(damping * damping * damped);
    }
    return m;
  }

  __device__ __forceinline__ float* left_place() const { return second_; }
  __device__ __forceinline__ float* right_place() const {
    return second_ + lower_tiles(kTiles) * kTileFloats;
  }

  // Z in the right place, from M. Of Y, T and Z two lie in shared memory, and one product of the two after
  // the other gives, in turns, Y from Y and T (Z waits), T from Y and Z (Y waits), Z from T and Z (Y waits).
  __device__ __forceinline__ void iterate(Lower& m, float norm) const {
    const int tiles = d_tiles(), products = 3 * (in_.rule.refine - 1);
    const Iteration first(in_.rule, norm, 0);
    m.add_diagonal(tiles, d(), in_.rule.decay);
    m.scale(1 / first.t);
    m.write(left_place(), tiles);
    m.scale(-first.b1);
    m.add_diagonal(tiles, d(), first.a1);
    m.write(right_place(), tiles);
    __syncthreads();
    Lower waiting = m;
#pragma unroll 1
    for (int i = 0; i < products; ++i) {
      Lower product;
      const SymmetricTiles left{left_place()}, right{right_place()};
      product.template add<kPrecision>(left, right, tiles, tiles);
      const int turn = i % 3;
      if (turn == 1) {
        const Iteration it(in_.rule, norm, i / 3 + 1);
        product.scale(-it.b);
        product.add_diagonal(tiles, d(), it.a);
      }
      __syncthreads();
      if (turn < 2) product.write(left_place(), tiles);
      if (i + 1 == products) waiting = product;
      if (turn != 1) {
        waiting.write(right_place(), tiles);
        waiting = product;
      }
      __syncthreads();
    }
  }

  // F' = scale F Z to the factor, if all of it is finite as it is stored.
  __device__ __forceinline__ bool write_factor(const Matrix& factor, float scale, Exact exact) const {
    const int tiles = d_tiles();
    Full updated;
    updated.add(PlainTiles{first_, tiles}, SymmetricTiles{right_place()}, tiles, tiles, tiles, exact);
    float failed = 0;
    updated.for_each_pair(tiles, tiles, [&](int, int, float (&pair)[2]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        pair[i] *= scale;
        if (factor.bf16) pair[i] = __bfloat162float(__float2bfloat16_rn(pair[i]));
        failed += !isfinite(pair[i]);
      }
    });
    if (sum(failed) > 0) return false;
    updated.for_each_pair(
        tiles, tiles, [&](int row, int col, float (&pair)[2]) { write_factor_pair(factor, row, col, pair); });
    return true;
  }

  const ResidentUpdate& in_;
  const ResidentUpdateGroup& group_;
  const ResidentSide& side_;
  int64_t block_;
  float scale_;
  float *first_, *second_, *scratch_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_update(const ResidentUpdate& in) {
  extern __shared__ float4 memory[];
  const int64_t cta = blockIdx.x;
  const ResidentUpdateGroup& group =
      in.groups[search(in.count, cta, [&](int i) { return in.groups[i].first_cta; })];
  const int64_t index = cta - group.first_cta, block = index / group.sides;
  const float scale = in.scales[group.first_block + block];
  if (scale == 0) return;
  const ResidentSide& side = group.side[index % group.sides];
  ResidentSideUpdate<kTiles, kPrecision>(in, group, side, block, scale, reinterpret_cast<float*>(memory))
      .run();
}

}  // namespace

// One kernel for each side and precision; `ctas` of them are to fit an SM's registers.
#define KRADAGRAD_KERNEL(side, ctas, name, precision)            \
  extern "C" __global__ void __launch_bounds__(2 * side, ctas)   \
      resident_update_##side##_##name(const ResidentUpdate in) { \
    resident_update<side / kTile, Precision::precision>(in);     \
  }

KRADAGRAD_KERNEL(64, 3, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(64, 3, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(64, 3, bf16x6, kBf16x6)
KRADAGRAD_KERNEL(64, 3, fp32, kFp32)
KRADAGRAD_KERNEL(128, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(128, 1, bf16x6, kBf16x6)
KRADAGRAD_KERNEL(128, 1, fp32, kFp32)

}  // namespace kradagrad::cuda
