// resident_root: P = (F F^T)^(1/2) of factors F [d, d] of up to 16 kTiles, on chip from the reading of F to
// the writing of P (kradagrad_ext/polar.py), in units without the gradients': F is taken times sqrt(w k) rms.
//
//   Q = F / s,  s^2 = |F^T F|_F
//   Q <- Q (a I + b G + c G^2),  G = Q^T Q               steps times
//   P = F Q^T,  of which the lower triangle is made
//   residual = |P P - F F^T|_F / |F F^T|_F;  P is written where that is small enough
//
// One team a block whose turn it is (resident_block.cuh). Shared memory of a team, in tiles (T = 8: 136 KB):
//
//             first, T^2                  second, T (T + 1)
//   step      Q                           lower tiles of G, and of a I + b G + c G^2
//   root      Q, then lower tiles of P    F
//
// Traffic: F read, P written; F is read once more when P is made, from the L2.
#include "resident_block.cuh"
#include "root_item.cuh"

namespace kradagrad::cuda {
namespace {

// An item, and where its iteration stands.
struct RootWork {
  RootItem item;
  float scale;  // of Q: 1 / s in the first step, then 1
  int32_t step;
};

template <int kTiles, Precision kPrecision>
class ResidentRoot {
 public:
  using Here = Worker<kTiles>;
  using Multiply = Multiplier<kPrecision>;
  using Format = FormatOf<Multiply>;
  using Full = FullProduct<kTiles, Multiply>;
  using Lower = LowerTiles<kTiles>;

  __device__ __forceinline__ ResidentRoot(const ResidentRoots& in, RootWork& work) : in_(in), work_(work) {}

  __device__ __forceinline__ void run() {
    load(first());
#pragma unroll 1
    while (work_.step < in_.rule.steps) {
      make_gram();
      make_polynomial();
      multiply_polynomial();
    }
    make_root();
    const float residual = find_residual();
    const bool good = residual <= in_.rule.bound;
    if (good) write_root();
    if (Here::thread() == 0) work_.item.finish(good, residual);
  }

 private:
  __device__ __forceinline__ Shared first() const { return Here::place(in_.places, 0); }
  __device__ __forceinline__ Shared second() const { return Here::place(in_.places, first_place(kTiles)); }

  __device__ __forceinline__ int tiles() const { return tiles_of(work_.item.d); }

  __device__ __forceinline__ float sum(float value) const { return team_sum<Here::kWarps>(value); }

  __device__ __forceinline__ Lower lower() const { return Lower(Here::share()); }

  // F in its unit to a place that nobody reads any more.
  __device__ __forceinline__ void load(Shared place) const {
    StagedMatrix<kTiles> staged;
    staged.start(work_.item.factor_matrix(in_.views));
    staged.finish(work_.item.factor_matrix(in_.views), place);
    staged.scale(work_.item.unit);
    __syncthreads();
    staged.template store<Format>(place);
    __syncthreads();
  }

  __device__ __forceinline__ Shared gram_place() const { return second(); }
  __device__ __forceinline__ Shared polynomial_place() const {
    return second() + lower_tiles(kTiles) * kTileBytes;
  }

  // G = Q^T Q, of which the first finds the scale.
  __device__ __forceinline__ void make_gram() const {
    Lower gram = lower();
    const TransposedTiles q{first(), kTiles};
    gram.template add<Multiply>(q, q, tiles(), tiles());
    const float scale = work_.step == 0 ? rsqrtf(sqrtf(sum(gram.sum_of_squares(1)))) : 1;
    if (Here::thread() == 0) work_.scale = scale;
    gram.scale(scale * scale);
    gram.template write<Format>(gram_place());
    __syncthreads();
  }

  // a I + b G + c G^2 in its place.
  __device__ __forceinline__ void make_polynomial() const {
    const int step = work_.step;
    Lower polynomial = lower();
    const SymmetricTiles g{gram_place()};
    polynomial.template add<Multiply>(g, g, tiles(), tiles());
    polynomial.scale(in_.rule.c[step]);
    polynomial.template add_written<Format>(gram_place(), in_.rule.b[step]);
    polynomial.add_diagonal(work_.item.d, in_.rule.a[step]);
    polynomial.template write<Format>(polynomial_place());
    __syncthreads();
  }

  // Q times the polynomial and the scale, in the place of Q.
  __device__ __forceinline__ void multiply_polynomial() const {
    Full q(Here::warp(), Here::lane());
    q.add(PlainTiles{first(), kTiles}, SymmetricTiles{polynomial_place()}, tiles(), tiles(), tiles());
    __syncthreads();
    q.scale(work_.scale);
    q.write(first());
    if (Here::thread() == 0) ++work_.step;
    __syncthreads();
  }

  // P in the place of Q, F in the other.
  __device__ __forceinline__ void make_root() const {
    load(second());
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

  // Of P, row and column.
  __device__ __forceinline__ float root_at(int i, int j) const {
    const int row = max(i, j), col = min(i, j), tile = lower_tiles(row / kTile) + col / kTile;
    return Format::element(first() + tile * kTileBytes, row % kTile, col % kTile);
  }

  // Four neighbours of a row a thread, and eight threads a row.
  __device__ __forceinline__ void write_root() const {
    const Matrix to = work_.item.root_matrix(in_.views);
    for (int row = Here::thread() / 8; row < to.rows; row += Here::kTeamThreads / 8) {
      for (int col = Here::thread() % 8 * 4; col < to.cols; col += 32) {
        const float four[4] = {root_at(row, col), root_at(row, col + 1), root_at(row, col + 2),
                               root_at(row, col + 3)};
        to.write_four(row, col, four);
      }
    }
  }

  const ResidentRoots& in_;
  RootWork& work_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void resident_root(const ResidentRoots& in) {
  __shared__ RootWork works[Worker<kTiles>::kTeams];
  const WorkItem<kTiles> work(in.items);
  RootWork& own = works[Worker<kTiles>::team()];
  if (Worker<kTiles>::thread() == 0) {
    own.item.find(in, work.index, work.exists);
    own.step = 0;
  }
  __syncthreads();
  if (!__syncthreads_or(own.item.d > 0)) return;
  ResidentRoot<kTiles, kPrecision>(in, own).run();
}

}  // namespace

// One kernel for each side and precision; `ctas` of them are to fit an SM's registers.
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
