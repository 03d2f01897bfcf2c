// C = A B^T for batches of blocks of any shape in an update of factors in the square-root form, and the
// epilogues that use C while it is in registers (square_root.h).
//
// One CTA of kTiles warps makes a tile of 16 kTiles x 16 kTiles of one block's C. A CTA finds its product by
// binary search over the products' first CTAs, then its block and tile by division. k is processed 32 at a
// time through kStages buffers that are filled asynchronously:
//
//   wait for buffer i;  barrier;  start filling buffer i + kStages - 1;  multiply from buffer i
//
// An operand has the same layout in a buffer as in memory; a transposed one is read along its columns.
//
// The iteration for R (square_root_rule.cuh) never stores Y0: its first two steps use products with M.
#pragma once

#include "memory.cuh"
#include "reduce.cuh"
#include "square_root_rule.cuh"
#include "tile_products.cuh"

namespace kradagrad::cuda {

constexpr int kDepthTiles = kProductDepth / kTile;
constexpr int kStages = kProductStages;

template <int kTiles>
constexpr int kStageBytes = 2 * kTiles * kDepthTiles * kTileBytes;

// The rows of an operand that one CTA reads, stage by stage.
template <int kTiles>
struct Source {
  Matrix matrix;
  int first, count;  // rows
  int depth;
  bool transposed;

  __device__ __forceinline__ Source(const View* views, const Operand& operand, int64_t block, int rows,
                                    int depth, int first)
      : matrix(views, operand.of, block, operand.transposed ? depth : rows,
               operand.transposed ? rows : depth),
        first(first),
        count(min(kTiles * kTile, rows - first)),
        depth(depth),
        transposed(operand.transposed) {}

  __device__ __forceinline__ void copy(Shared tiles, int stage) const {
    const int k = stage * kDepthTiles * kTile;
    constexpr int kThreads = Team<kTiles>::kThreads;
    if (transposed) {
      copy_grid<kThreads>(tiles, matrix.part(k, first, depth - k, count), kDepthTiles, kTiles);
    } else {
      copy_grid<kThreads>(tiles, matrix.part(first, k, count, depth - k), kTiles, kDepthTiles);
    }
  }
};

// bf16x3 splits the float32 values of a stage as it reads them.
template <Precision kPrecision>
struct ProductMultiplierOf {
  using Type = Multiplier<kPrecision>;
};
template <>
struct ProductMultiplierOf<Precision::kBf16x3> {
  using Type = TensorCores<SplitFragment>;
};
template <Precision kPrecision>
using ProductMultiplier = typename ProductMultiplierOf<kPrecision>::Type;

struct Weights {
  float product, held, diagonal;  // alpha, beta, gamma of square_root.h
};

__device__ __forceinline__ Weights weights_of(Combination combination, const Iteration& it, float decay) {
  const float low = decay / it.t;  // the multiple of I in Y0
  switch (combination) {
    case Combination::kFirstY: {
      const float scale = it.b1 / it.t;
      return {-scale / it.t, (it.a1 - 2 * it.b1 * low) / it.t, (it.a1 - it.b1 * low) * low};
    }
    case Combination::kSecondT:
      return {it.b * it.b1 / it.t, it.b * (it.b1 * low - it.a1), it.a};
    case Combination::kSecondZ:
      return {-it.b1 / it.t, it.a1 - it.b1 * low, 0};
    case Combination::kPolynomial:
      return {-it.b, 0, it.a};
    case Combination::kOneStep:
      return {-it.restored * it.b1 / it.t, it.restored * (it.a1 - it.b1 * low), 0};
    case Combination::kRestored:
      return {it.restored, 0, 0};
    default:
      return {1, 0, 0};
  }
}

template <int kTiles, Precision kPrecision>
class SquareRootTile {
 public:
  __device__ __forceinline__ SquareRootTile(const SquareRootProducts& in, const SquareRootProduct& product,
                                            int block, int tile, Shared shared)
      : in_(in), product_(product), block_(block), tile_(tile), shared_(shared) {
    int row = tile / product.tile_cols, col = tile % product.tile_cols;
    if (product.symmetric) {
      for (row = 0; lower_tiles(row + 1) <= tile;) ++row;
      col = tile - lower_tiles(row);
    }
    first_row_ = row * kTiles * kTile;
    first_col_ = col * kTiles * kTile;
    rows_ = min(kTiles * kTile, product.rows - first_row_);
    cols_ = min(kTiles * kTile, product.cols - first_col_);
  }

  __device__ __forceinline__ void multiply() {
    const Source<kTiles> a(in_.views, product_.a, block_, product_.rows, product_.depth, first_row_);
    const Source<kTiles> b(in_.views, product_.b, block_, product_.cols, product_.depth, first_col_);
    const Exact exact{a.matrix.bf16, b.matrix.bf16};
    const int steps = (product_.depth + kDepthTiles * kTile - 1) / (kDepthTiles * kTile);
    const auto fill = [&](int step) {
      const Shared stage = shared_ + step % kStages * kStageBytes<kTiles>;
      if (step < steps) {
        a.copy(stage, step);
        b.copy(stage + kStageBytes<kTiles> / 2, step);
      }
      copy_async_commit();
    };
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) fill(step);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<kStages - 2>();
      __syncthreads();
      fill(step + kStages - 1);
      multiply_stage(shared_ + step % kStages * kStageBytes<kTiles>, exact);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void finish() {
    switch (product_.epilogue) {
      case SquareRootEpilogue::kStore:
        return store(1);
      case SquareRootEpilogue::kCoupled: {
        store(1);
        const float unit = product_.gradient[block_].unit;
        return add_partial(unit > 0 ? sum_of_squares(1 / unit) : 0);
      }
      case SquareRootEpilogue::kWhiten: {
        const float scale = side().updates[block_].scale;
        store(scale);
        return add_partial(sum_of_squares(scale));
      }
      case SquareRootEpilogue::kGram:
        combine({1, 0, 0});
        return add_partial(sum_of_squares(1));
      case SquareRootEpilogue::kCombine:
        return combine(weights_of(product_.combination, iteration(), side().rule.decay));
      case SquareRootEpilogue::kFactor:
        return factor(weights_of(product_.combination, iteration(), side().rule.decay));
      case SquareRootEpilogue::kOut: {
        const float rms = product_.rms[int64_t{block_} * 4];
        const float scale = rms > 0 ? 1 / rms : 0;
        store(scale);
        return add_partial(sum_of_squares(scale));
      }
    }
  }

 private:
  __device__ __forceinline__ const SquareRootSide& side() const { return in_.sides[product_.side]; }

  __device__ __forceinline__ Iteration iteration() const {
    const SquareRootSide& of = side();
    float size = 0;
    for (int i = threadIdx.x % 32; i < of.size_partials; i += 32) {
      size += of.sizes[int64_t{block_} * of.size_partials + i];
    }
    return {of.rule, sqrtf(warp_sum(size)), product_.step};
  }

  __device__ __forceinline__ void multiply_stage(Shared stage, Exact exact) {
    const Shared a = stage, b = stage + kStageBytes<kTiles> / 2;
    const int rows = tiles_of(rows_), cols = tiles_of(cols_);
    if (product_.a.transposed) {
      if (product_.b.transposed) {
        c_.add(TransposedTiles{a, kTiles}, TransposedTiles{b, kTiles}, rows, cols, kDepthTiles, exact);
      } else {
        c_.add(TransposedTiles{a, kTiles}, PlainTiles{b, kDepthTiles}, rows, cols, kDepthTiles, exact);
      }
    } else if (product_.b.transposed) {
      c_.add(PlainTiles{a, kDepthTiles}, TransposedTiles{b, kTiles}, rows, cols, kDepthTiles, exact);
    } else {
      c_.add(PlainTiles{a, kDepthTiles}, PlainTiles{b, kDepthTiles}, rows, cols, kDepthTiles, exact);
    }
  }

  template <class Use>
  __device__ __forceinline__ void for_each_pair(const Use& use) {
    c_.for_each_pair(use);
  }

  __device__ __forceinline__ Matrix matrix(const Matrices& of) const {
    return Matrix(in_.views, of, block_, product_.rows, product_.cols);
  }

  __device__ __forceinline__ void store(float scale) {
    const Matrix out = matrix(product_.out).part(first_row_, first_col_, rows_, cols_);
    for_each_pair([&](int row, int col, float (&pair)[2]) {
      out.write_pair(row, col, {scale * pair[0], scale * pair[1]});
    });
  }

  // This thread's part of |scale C|^2; the tiles of a symmetric C below the diagonal count twice.
  __device__ __forceinline__ float sum_of_squares(float scale) {
    float sum = 0;
    for_each_pair([&](int, int, float (&pair)[2]) {
      sum += scale * pair[0] * (scale * pair[0]) + scale * pair[1] * (scale * pair[1]);
    });
    return (product_.symmetric && first_row_ != first_col_ ? 2 : 1) * sum;
  }

  __device__ __forceinline__ void add_partial(float value) {
    const float sum = team_sum<Team<kTiles>::kWarps>(value);
    if (threadIdx.x == 0) product_.partial[int64_t{block_} * product_.tiles + tile_] = sum;
  }

  // Writes out = the combination, on and below the diagonal, and its mirror image.
  __device__ __forceinline__ void combine(Weights w) {
    const Matrix out = matrix(product_.out);
    const bool holds = product_.x.of.views > 0 && w.held != 0;
    const Matrix x = matrix(holds ? product_.x.of : product_.out);
    for_each_pair([&](int row, int col, float (&pair)[2]) {
      const int r = first_row_ + row, c = first_col_ + col;
      if (r >= product_.rows || c > r) return;
      float2 value = {w.product * pair[0] + (r == c ? w.diagonal : 0),
                      w.product * pair[1] + (r == c + 1 ? w.diagonal : 0)};
      if (holds) {
        const float2 held = x.read_symmetric(r, c);
        value.x += w.held * held.x;
        value.y += w.held * held.y;
      }
      out.write_symmetric(r, c, value);
    });
  }

  // Writes out = F' as rounded to the dtype of F, and the number of its elements that are not finite.
  __device__ __forceinline__ void factor(Weights w) {
    const Matrix out = matrix(product_.out).part(first_row_, first_col_, rows_, cols_);
    const Matrix x = matrix(product_.x.of).part(first_row_, first_col_, rows_, cols_);
    float failed = 0;
    for_each_pair([&](int row, int col, float (&pair)[2]) {
      float2 value = {w.product * pair[0], w.product * pair[1]};
      if (w.held != 0) {
        const float2 held = x.read_pair(row, col);
        value.x += w.held * held.x;
        value.y += w.held * held.y;
      }
      if (x.bf16) value = {rounded_bf16(value.x), rounded_bf16(value.y)};
      out.write_pair(row, col, value);
      if (row < rows_ && col < cols_) failed += !isfinite(value.x);
      if (row < rows_ && col + 1 < cols_) failed += !isfinite(value.y);
    });
    add_partial(failed);
  }

  const SquareRootProducts& in_;
  const SquareRootProduct& product_;
  int block_, tile_;
  Shared shared_;
  int first_row_, first_col_, rows_, cols_;
  FullProduct<kTiles, ProductMultiplier<kPrecision>> c_{static_cast<int>(threadIdx.x / 32),
                                                        Lane(threadIdx.x)};
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void square_root_product(const SquareRootProducts& in) {
  extern __shared__ float4 memory[];
  const int64_t cta = blockIdx.x;
  const int number = search(in.count, cta, [&](int i) { return in.products[i].first_cta; });
  const SquareRootProduct& product = in.products[number];
  const int block = product.start + (cta - product.first_cta) / product.tiles;
  const int tile = (cta - product.first_cta) % product.tiles;
  if (in.scales[product.first_block + block] == 0) return;
  if (product.side >= 0 && in.sides[product.side].updates[block].readiness != Readiness::kReady) return;
  SquareRootTile<kTiles, kPrecision> result(in, product, block, tile, shared_address(memory));
  result.multiply();
  result.finish();
}

}  // namespace kradagrad::cuda
