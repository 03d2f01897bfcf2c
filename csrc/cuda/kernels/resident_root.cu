// resident_root: P = (F F^T)^(1/2) of factors F [d, d] of up to 16 kTiles, on chip from the read of F to the
// write of P (kradagrad_ext/polar.py). F is multiplied by sqrt(w k) rms, so that P is independent of the
// gradients' unit.
//
//   Q = F / s,  s^2 = |F^T F|_F
//   Q <- Q (a I + b G + c G^2),  G = Q^T Q               steps times
//   P = F Q^T,  only its lower triangle
//   residual = |P P - F F^T|_F / |F F^T|_F;  P is written if the residual is at most the bound
//
// Teams take the due factors in rounds (resident_block.cuh). Shared memory of a team, in tiles (T = 8: 136
// KB):
//
//             first, T^2                  second, T (T + 1)
//   step      Q                           lower tiles of G, and of a I + b G + c G^2
//   root      Q, then lower tiles of P    F
//
// Traffic: F is read and P is written; F is read once more, from the L2, when P is made. The next factor
// arrives in registers while the residual is computed.
#include "root_item.cuh"
#include "staged_matrix.cuh"

namespace kradagrad::cuda {
namespace {

template <int kTiles, Precision kPrecision>
class ResidentRoot {
 public:
  using Here = Worker<kTiles>;
  using Multiply = Multiplier<kPrecision>;
  using Format = FormatOf<Multiply>;
  using Full = FullProduct<kTiles, Multiply>;
  using Lower = LowerTiles<kTiles>;

  using Staged = StagedMatrix<kTiles>;
  using Factors = Items<kTiles, RootItem>;

  __device__ __forceinline__ ResidentRoot(const ResidentRoots& in, const Factors& factors)
      : in_(in), factors_(factors) {}

  __device__ __forceinline__ void run() {
    Staged factor;
    bool more = factors_.start(in_);
    factor.start(item().factor());
#pragma unroll 1
    for (; more; more = factors_.advance()) {
      load(factor, first());
      iterate();
      make_root();
      factor.start(factors_.next().factor());
      const float residual = find_residual();
      const bool good = residual <= in_.rule.bound;
      if (good) write_root();
      if (Here::thread() == 0) item().finish(good, residual);
    }
  }

 private:
  __device__ __forceinline__ Shared first() const { return Here::place(in_.places, 0); }
  __device__ __forceinline__ Shared second() const { return Here::place(in_.places, first_place(kTiles)); }

  __device__ __forceinline__ RootItem& item() const { return factors_.current(); }
  __device__ __forceinline__ int tiles() const { return tiles_of(item().d); }

  __device__ __forceinline__ float sum(float value) const { return team_sum<Here::kWarps>(value); }

  __device__ __forceinline__ Lower lower() const { return Lower(Here::share()); }

  // Stores the requested F, in its unit, in a free place.
  __device__ __forceinline__ void load(Staged& factor, Shared place) const {
    factor.finish(item().factor(), place);
    factor.scale(item().unit);
    __syncthreads();
    factor.template store<Format>(place);
    __syncthreads();
  }

  // Runs all steps of Q.
  __device__ __forceinline__ void iterate() const {
#pragma unroll 1
    for (int step = 0; step < in_.rule.steps; ++step) {
      const float scale = make_gram(step);
      make_polynomial(step);
      multiply_polynomial(scale);
    }
  }

  __device__ __forceinline__ Shared gram_place() const { return second(); }
  __device__ __forceinline__ Shared polynomial_place() const {
    return second() + symmetric_tiles(kTiles) * kTileBytes;
  }

  // Makes G = Q^T Q; returns the scale of Q, 1 / s in the first step.
  __device__ __forceinline__ float make_gram(int step) const {
    Lower gram = lower();
    const TransposedTiles q{first(), kTiles};
    gram.template add<Multiply>(q, q, tiles(), tiles());
    const float scale = step == 0 ? rsqrtf(sqrtf(sum(gram.sum_of_squares(1)))) : 1;
    gram.scale(scale * scale);
    gram.template write<Format>(gram_place());
    __syncthreads();
    return scale;
  }

  // Writes a I + b G + c G^2 to its place.
  __device__ __forceinline__ void make_polynomial(int step) const {
    Lower polynomial = lower();
    const SymmetricTiles g{gram_place()};
    polynomial.template add<Multiply>(g, g, tiles(), tiles());
    polynomial.scale(in_.rule.c[step]);
    polynomial.template add_written<Format>(gram_place(), in_.rule.b[step]);
    polynomial.add_diagonal(item().d, in_.rule.a[step]);
    polynomial.template write<Format>(polynomial_place());
    __syncthreads();
  }

  // Writes Q times the polynomial and the scale to the place of Q.
  __device__ __forceinline__ void multiply_polynomial(float scale) const {
    Full q(Here::warp(), Here::lane());
    q.add(PlainTiles{first(), kTiles}, SymmetricTiles{polynomial_place()}, tiles(), tiles(), tiles());
    __syncthreads();
    q.scale(scale);
    q.write(first());
    __syncthreads();
  }

  // Writes P to the place of Q, and F to the other.
  __device__ __forceinline__ void make_root() const {
    Staged factor;
    factor.start(item().factor());
    load(factor, second());
    factors_.find_next(in_);
    Lower root = lower();
    root.template add<Multiply>(PlainTiles{second(), kTiles}, PlainTiles{first(), kTiles}, tiles(), tiles());
    __syncthreads();
    root.template write<Format>(first());
    __syncthreads();
  }

  __device__ __forceinline__ float find_residual() const {
    Lower difference = lower();
    const PlainTiles f{second(), kTiles};
    const SymmetricTiles p{first()};
    difference.template add<Multiply>(f, f, tiles(), tiles());
    const float size = sum(difference.sum_of_squares(1));
    difference.scale(-1);
    difference.template add<Multiply>(p, p, tiles(), tiles());
    return sqrtf(sum(difference.sum_of_squares(1)) / size);
  }

  // The element (i, j) of P.
  __device__ __forceinline__ float root_at(int i, int j) const {
    const int row = max(i, j), col = min(i, j), tile = lower_tiles(row / kTile) + col / kTile;
    return Format::element(first() + tile * kTileBytes, row % kTile, col % kTile);
  }

  // Each thread writes four neighbours of a row; eight threads write a row.
  __device__ __forceinline__ void write_root() const {
    const Matrix to = item().root();
    for (int row = Here::thread() / 8; row < to.rows; row += Here::kTeamThreads / 8) {
      for (int col = Here::thread() % 8 * 4; col < to.cols; col += 32) {
        const float four[4] = {root_at(row, col), root_at(row, col + 1), root_at(row, col + 2),
                               root_at(row, col + 3)};
        to.write_four(row, col, four);
      }
    }
  }

  const ResidentRoots& in_;
  Factors factors_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_root(const ResidentRoots& in) {
  using Root = ResidentRoot<kTiles, kPrecision>;
  __shared__ RootItem items[Root::Factors::kCount];
  Root(in, typename Root::Factors(items)).run();
}

}  // namespace

// One kernel for each side and precision; `ctas` CTAs must fit the registers of an SM.
#define KRADAGRAD_KERNEL(side, ctas, name, precision)                  \
  extern "C" __global__ void __launch_bounds__(kResidentThreads, ctas) \
      resident_root_##side##_##name(const ResidentRoots in) {          \
    resident_root<side / kTile, Precision::precision>(in);             \
  }

KRADAGRAD_KERNEL(64, 2, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(64, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(64, 2, fp32, kFp32)
KRADAGRAD_KERNEL(96, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, bf16x3, kBf16x3)
KRADAGRAD_KERNEL(128, 1, tf32x3, kTf32x3)
KRADAGRAD_KERNEL(128, 1, fp32, kFp32)

}  // namespace kradagrad::cuda
