// One side's factor update of a block that lies in shared memory (kradagrad_ext/backends/base.py):
//
//   x = X / decay;   for every chunk A of columns of the unfolding:
//     Y = x A;   N = I + weight A^T Y;   t a bound of N
//     refine = 0:   x -= weight / t  Y Y^T
//     refine > 0:   W = N / t, C = I, then `refine` times  V = 5 I - 8 W + 4 W^2,  C <- C V,  W <- W V
//                   x -= weight / t  (Y C) Y^T
//
// Y is held in units of u (factor_rule.cuh).
//
// The left side's unfolding is G [m, n], the right side's its transpose; G lies in shared memory as it is,
// and the sides differ in which operands are read transposed (tile.cuh). Shared memory, in tiles:
//
//   first    T^2            lower tiles of x   ->   Y
//   second   T (T + 1)      G   ->   W | V or C (lower tiles each)   ->   Y C
//
#pragma once

#include "factor_rule.cuh"
#include "memory.cuh"
#include "reduce.cuh"
#include "resident_products.cuh"
#include "resident_refinement.cuh"

namespace kradagrad::cuda {

__host__ __device__ constexpr int first_tiles(int tiles) { return tiles * tiles; }
__host__ __device__ constexpr int second_tiles(int tiles) { return 2 * lower_tiles(tiles); }

template <int kTiles>
struct SharedTiles {
  float* first;
  float* second;
  float* scratch;  // one float a warp
  float* unit;     // u of the side at hand: here, since registers are short
  __device__ __forceinline__ explicit SharedTiles(float* base)
      : first(base),
        second(base + first_tiles(kTiles) * kTileFloats),
        scratch(second + second_tiles(kTiles) * kTileFloats),
        unit(scratch + kTiles) {}
};

// How G is read as rows of A, which holds d rows, or of A^T, which holds k rows.
template <bool kRight>
struct Unfolding {
  const float* data;
  int columns;  // tiles to a row of G
  __device__ __forceinline__ TileRead at(int row_of_a, int col_of_a) const {
    return kRight ? TransposedTiles{data, columns}.at(row_of_a, col_of_a)
                  : PlainTiles{data, columns}.at(row_of_a, col_of_a);
  }
};

template <bool kRight>
struct UnfoldingTransposed {
  Unfolding<kRight> a;
  __device__ __forceinline__ TileRead at(int row, int k) const {
    const TileRead tile = a.at(k, row);
    return {tile.data, !tile.transposed};
  }
};

template <int kTiles, Precision kPrecision, bool kRight>
class FactorUpdate {
 public:
  using Lower = LowerTiles<kTiles>;
  static constexpr int kThreads = Cta<kTiles>::kThreads;

  // `grad`: G; `d`, `k`: sides of the factor and of the rest.
  __device__ __forceinline__ FactorUpdate(SharedTiles<kTiles> shared, const FactorRule& rule, Matrix grad)
      : shared_(shared),
        rule_(rule),
        grad_(grad),
        d_(kRight ? grad.cols : grad.rows),
        k_(kRight ? grad.rows : grad.cols),
        d_tiles_(tiles_of(d_)) {}

  // Updates X; `energy` = |G|_F^2. `loaded`: G lies in shared memory, on return whether it still does.
  __device__ __forceinline__ void run(Matrix factor, float* statistics, float energy, bool& loaded) {
    const float mean = statistics[0], scale = energy / d_;
    const float new_mean = mean == 0 ? scale : tracked_mean(rule_, mean, scale);
    const bool damped = rule_.damping > 0;
    if (damped && new_mean <= 0) return;
    fresh_ = damped && mean == 0;
    pending_ = 1 / rule_.decay / (fresh_ ? rule_.damping * scale : 1);
    if (threadIdx.x == 0) *shared_.unit = unit_of(rule_, fresh_ ? scale : mean);
    const bool usable = !damped || (isfinite(new_mean) && isfinite(pending_));
    const bool succeeded = usable && update(factor, loaded);
    __syncthreads();  // every thread has read the statistics
    if (threadIdx.x == 0) {
      if (damped && usable) statistics[0] = new_mean;
      if (!succeeded) statistics[1] += 1;
    }
  }

 private:
  // Chunk after chunk; whether all of them had a finite t.
  __device__ __forceinline__ bool update(Matrix factor, bool& loaded) {
    const int chunk = chunk_columns(d_, k_, rule_.refine);
    bool succeeded = true;
    for (int start = 0; start < k_; start += chunk) {
      columns_ = min(chunk, k_ - start);
      k_tiles_ = tiles_of(columns_);
      __syncthreads();
      if (!loaded || chunk < k_) load(start);
      // The matrices of the refinement, and of Schatten's norm, take the place of G.
      loaded = rule_.refine == 0 && rule_.scale != FactorScale::kSchatten4;
      multiply_by_factor(factor);
      const float t = bound();
      if (isfinite(t)) {
        downdate(factor, t);
        pending_ = 1;
        fresh_ = false;
      } else {
        succeeded = false;
      }
    }
    loaded = loaded && chunk == k_;
    return succeeded;
  }

  __device__ __forceinline__ void load(int start) {
    const Matrix part = kRight ? grad_.part(start, 0, columns_, d_) : grad_.part(0, start, d_, columns_);
    copy_grid<kThreads>(shared_.second, part, tiles_of(part.rows), tiles_of(part.cols));
    finish_copies();
  }

  __device__ __forceinline__ Unfolding<kRight> unfolding() const {
    return {shared_.second, kRight ? d_tiles_ : k_tiles_};
  }
  __device__ __forceinline__ Exact exact_a() const { return {grad_.bf16, false}; }

  // Y / u = x A / u in `first`.
  __device__ __forceinline__ void multiply_by_factor(const Matrix& factor) {
    if (fresh_) {
      fill_identity();
    } else {
      copy_lower<kThreads>(shared_.first, factor, d_tiles_);
    }
    finish_copies();
    FullProduct<kTiles, kPrecision> y;
    const UnfoldingTransposed<kRight> a{unfolding()};
    y.add(SymmetricTiles{shared_.first}, a, d_tiles_, k_tiles_, d_tiles_, {false, grad_.bf16});
    const float factor_scale = pending_ / *shared_.unit;
    y.for_each_pair(d_tiles_, k_tiles_, [&](int, int, float (&pair)[2]) {
      pair[0] *= factor_scale;
      pair[1] *= factor_scale;
    });
    __syncthreads();
    y.write(shared_.first, d_tiles_, k_tiles_);
    __syncthreads();
  }

  __device__ __forceinline__ void fill_identity() {
    for (int i = threadIdx.x; i < lower_tiles(d_tiles_) * kTileFloats; i += kThreads) shared_.first[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < d_; i += kThreads) {
      const int tile = lower_tiles(i / kTile) + i / kTile;
      shared_.first[tile * kTileFloats + tile_offset(i % kTile, i % kTile)] = 1;
    }
  }

  __device__ __forceinline__ PlainTiles y() const { return {shared_.first, k_tiles_}; }
  __device__ __forceinline__ TransposedTiles y_transposed() const { return {shared_.first, k_tiles_}; }

  // t, and N - I in n_ where the refinement or the bound needs it.
  __device__ __forceinline__ float bound() {
    const FactorScale scale = rule_.scale;
    n_ = Lower();
    if (rule_.refine > 0 || scale == FactorScale::kFrobenius || scale == FactorScale::kSchatten4) {
      const UnfoldingTransposed<kRight> a{unfolding()};
      n_.template add<kPrecision>(a, y_transposed(), k_tiles_, d_tiles_, exact_a());
      n_.scale(rule_.weight * *shared_.unit);
    }
    if (scale == FactorScale::kFrobenius) return 1 + sqrtf(sum(n_.sum_of_squares(k_tiles_)));
    if (scale == FactorScale::kSchatten4) return 1 + sqrtf(sqrtf(sum(square_of_n())));
    if (scale == FactorScale::kProduct)
      return 1 + rule_.weight * *shared_.unit * sqrtf(sum(square_of_product()));
    return (scale == FactorScale::kTraceDim ? d_ : 1) * (1 + rule_.weight * *shared_.unit * sum(trace()));
  }

  __device__ __forceinline__ float sum(float value) {
    return cta_sum<Cta<kTiles>::kWarps>(value, shared_.scratch);
  }

  // This thread's part of tr(A^T Y) / u, tile by tile, by the lanes of a fragment.
  __device__ __forceinline__ float trace() const {
    const Cta<kTiles> cta;
    float sum = 0;
    for (int i = cta.warp; i < d_tiles_ * k_tiles_; i += Cta<kTiles>::kWarps) {
      const int row = i / k_tiles_, col = i % k_tiles_;
      const FragmentA a = read_a(unfolding().at(row, col), cta.lane);
      const FragmentA b = read_a(y().at(row, col), cta.lane);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum += a.pair[e].x * b.pair[e].x + a.pair[e].y * b.pair[e].y;
    }
    return sum;
  }

  // This thread's part of |(N - I)^2|_F^2.
  __device__ __forceinline__ float square_of_n() {
    __syncthreads();  // G is no longer read
    n_.write(shared_.second, k_tiles_);
    __syncthreads();
    Lower square;
    const SymmetricTiles n{shared_.second};
    square.template add<kPrecision>(n, n, k_tiles_, k_tiles_);
    return square.sum_of_squares(k_tiles_);
  }

  // This thread's part of |Y A^T|_F^2 / u^2.
  __device__ __forceinline__ float square_of_product() {
    FullProduct<kTiles, kPrecision> product;
    product.add(y(), unfolding(), d_tiles_, d_tiles_, k_tiles_, {false, grad_.bf16});
    float sum = 0;
    product.for_each_pair(d_tiles_, d_tiles_,
                          [&](int, int, float (&pair)[2]) { sum += pair[0] * pair[0] + pair[1] * pair[1]; });
    return sum;
  }

  // The lower triangle of x - weight / t (Y C) Y^T to X, and its mirror image.
  __device__ __forceinline__ void downdate(const Matrix& factor, float t) {
    Lower difference;
    if (rule_.refine == 0) {
      difference.template add<kPrecision>(y(), y(), d_tiles_, k_tiles_);
    } else {
      n_.add_diagonal(k_tiles_, columns_, 1);
      n_.scale(1 / t);
      Refinement<kTiles, kPrecision> refinement(shared_.second, k_tiles_, columns_);
      const float* const c = refinement.run(n_, rule_.refine);
      FullProduct<kTiles, kPrecision> yc;
      yc.add(y(), SymmetricTiles{c}, d_tiles_, k_tiles_, k_tiles_);
      __syncthreads();
      yc.write(shared_.second, d_tiles_, k_tiles_);
      __syncthreads();
      difference.template add<kPrecision>(PlainTiles{shared_.second, k_tiles_}, y(), d_tiles_, k_tiles_);
    }
    const float u = *shared_.unit, share = rule_.weight / t * u * u;
    difference.for_each_pair(d_tiles_, [&](int row, int col, float (&pair)[2]) {
      if (row >= d_ || col > row) return;
      const float2 x =
          fresh_ ? float2{row == col ? 1.0f : 0, row == col + 1 ? 1.0f : 0} : factor.read_symmetric(row, col);
      factor.write_symmetric(row, col, {pending_ * x.x - share * pair[0], pending_ * x.y - share * pair[1]});
    });
  }

  SharedTiles<kTiles> shared_;
  const FactorRule& rule_;
  Matrix grad_;
  int d_, k_, d_tiles_;
  int columns_, k_tiles_;  // of the chunk at hand
  bool fresh_ = false;     // x is pending_ I, else pending_ X
  float pending_ = 1;
  Lower n_;
};

}  // namespace kradagrad::cuda
