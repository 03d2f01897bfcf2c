// C = A B^T for batches of blocks of any shape, and what is done with C while it is still in registers.
//
// One CTA a tile of 16 kTiles x 16 kTiles of one block's C, kTiles warps (resident_products.cuh); a CTA finds
// its product by binary search over their first CTAs, then its block and tile by division. k is worked off 32
// at a time through kStages buffers that are filled asynchronously:
//
//   wait for buffer i;  barrier;  start filling buffer i + kStages - 1;  multiply from buffer i
//
// An operand lies in a buffer as it lies in memory, so that a transposed one is read along its columns.
#pragma once

#include "factor_rule.cuh"
#include "grouped_product.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "resident_products.cuh"

namespace kradagrad::cuda {

constexpr int kDepthTiles = kProductDepth / kTile;
constexpr int kStages = kProductStages;

template <int kTiles>
constexpr int kStageFloats = 2 * kTiles * kDepthTiles * kTileFloats;

// An operand's rows of one CTA, stage by stage.
template <int kTiles>
struct Source {
  Matrix matrix;
  int first, count;  // rows
  int depth;
  bool transposed;

  __device__ __forceinline__ Source(const View* views, const Operand& operand, int64_t block, int rows,
                                    int depth, int first)
      : matrix(views, operand.of, block, operand.first_row + (operand.transposed ? depth : rows),
               operand.first_col + (operand.transposed ? rows : depth)),
        first(first),
        count(min(kTiles * kTile, rows - first)),
        depth(depth),
        transposed(operand.transposed) {
    matrix = matrix.part(operand.first_row, operand.first_col, matrix.rows, matrix.cols);
  }

  __device__ __forceinline__ void copy(float* tiles, int stage) const {
    const int k = stage * kDepthTiles * kTile;
    constexpr int kThreads = Cta<kTiles>::kThreads;
    if (transposed) {
      copy_grid<kThreads>(tiles, matrix.part(k, first, depth - k, count), kDepthTiles, kTiles);
    } else {
      copy_grid<kThreads>(tiles, matrix.part(first, k, count, depth - k), kTiles, kDepthTiles);
    }
  }
};

template <int kTiles, Precision kPrecision>
class ProductTile {
 public:
  __device__ __forceinline__ ProductTile(const GroupedProduct& in, const Product& product, int block,
                                         int tile, float* shared)
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
      float* const stage = shared_ + step % kStages * kStageFloats<kTiles>;
      if (step < steps) {
        a.copy(stage, step);
        b.copy(stage + kStageFloats<kTiles> / 2, step);
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
      multiply_stage(shared_ + step % kStages * kStageFloats<kTiles>, exact);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void finish() {
    const Side* const side = product_.side < 0 ? nullptr : in_.sides + product_.side;
    switch (product_.epilogue) {
      case Epilogue::kStore:
        store(1);
        break;
      case Epilogue::kUpdate:
        store(1);
        add_partial(sum_of_squares(1));
        break;
      case Epilogue::kFactor:
        factor_product(*side);
        break;
      case Epilogue::kGram:
        gram(*side);
        break;
      case Epilogue::kStart: {
        const float s = inverse(*side);
        combine(8 * s * (s - 1), 4 * s * s, 5 - 8 * s + 4 * s * s);
        break;
      }
      case Epilogue::kPolynomial:
        combine(-8, 4, 5);
        break;
      case Epilogue::kScaled: {
        const float s = inverse(*side);
        combine(product_.x.of.views ? s : 0, s, 0);
        break;
      }
      case Epilogue::kDowndate:
        downdate(*side);
        break;
    }
  }

 private:
  __device__ __forceinline__ void multiply_stage(const float* stage, Exact exact) {
    const float* const a = stage;
    const float* const b = stage + kStageFloats<kTiles> / 2;
    const int rows = tiles_of(rows_), cols = tiles_of(cols_);
    if (product_.a.transposed) {
      c_.add(TransposedTiles{a, kTiles}, TransposedTiles{b, kTiles}, rows, cols, kDepthTiles, exact);
    } else if (product_.b.transposed) {
      c_.add(PlainTiles{a, kDepthTiles}, TransposedTiles{b, kTiles}, rows, cols, kDepthTiles, exact);
    } else {
      c_.add(PlainTiles{a, kDepthTiles}, PlainTiles{b, kDepthTiles}, rows, cols, kDepthTiles, exact);
    }
  }

  template <class Use>
  __device__ __forceinline__ void for_each_pair(const Use& use) {
    c_.for_each_pair(tiles_of(rows_), tiles_of(cols_), use);
  }

  __device__ __forceinline__ void store(float factor) {
    if (product_.out.views == 0) return;
    const Matrix out = Matrix(in_.views, product_.out, block_, product_.rows, product_.cols)
                           .part(first_row_, first_col_, rows_, cols_);
    for_each_pair([&](int row, int col, float (&pair)[2]) {
      out.write_pair(row, col, {factor * pair[0], factor * pair[1]});
    });
  }

  // This thread's part of |factor C|^2; the tiles of a symmetric C below the diagonal count twice.
  __device__ __forceinline__ float sum_of_squares(float factor) {
    float sum = 0;
    for_each_pair([&](int, int, float (&pair)[2]) { sum += pair[0] * pair[0] + pair[1] * pair[1]; });
    return (product_.symmetric && first_row_ != first_col_ ? 2 : 1) * factor * factor * sum;
  }

  __device__ __forceinline__ float cta_total(float value) {
    return cta_sum<Cta<kTiles>::kWarps>(value, shared_);
  }

  __device__ __forceinline__ void add_partial(float value) {
    const float sum = cta_total(value);
    if (threadIdx.x == 0) product_.partial[int64_t{block_} * product_.tiles + tile_] = sum;
  }

  __device__ __forceinline__ float unit(const Side& side) const {
    return unit_of(side.rule, side.rule.damping > 0 ? side.statistics[int64_t{block_} * 2] : 0);
  }

  // out = pending a / u, and its product with the unfolding x.
  __device__ __forceinline__ void factor_product(const Side& side) {
    const float pending = side.pending[block_];
    store(pending / unit(side));
    if (!product_.partial && !product_.energy) return;
    const Operand& x = product_.x;
    Source<kTiles> source(in_.views, x, block_, product_.rows, product_.cols, 0);
    float trace = 0, energy = 0;
    for_each_pair([&](int row, int col, float (&pair)[2]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = first_row_ + row, c = first_col_ + col + i;
        const float value = x.transposed ? source.matrix.read(c, r) : source.matrix.read(r, c);
        trace += value * pair[i];
        energy += value * value;
      }
    });
    if (product_.partial) add_partial(side.rule.weight * pending * trace);
    if (product_.energy) {
      const float sum = cta_total(energy);
      if (threadIdx.x == 0) product_.energy[int64_t{block_} * product_.energy_partials + tile_] = sum;
    }
  }

  // out = weight u a, and its norm.
  __device__ __forceinline__ void gram(const Side& side) {
    const float scale = side.rule.weight * unit(side);
    if (product_.partial) add_partial(sum_of_squares(scale));
    if (product_.out.views == 0) return;
    product_.symmetric ? combine(0, scale, 0) : store(scale);
  }

  // A block's partial sums, added up by every warp.
  __device__ __forceinline__ float total(const float* partials, int count) const {
    float sum = 0;
    for (int i = threadIdx.x % 32; i < count; i += 32) sum += partials[int64_t{block_} * count + i];
    return warp_sum(sum);
  }

  // t of the side's bound, from its partial sums.
  __device__ __forceinline__ float bound(const Side& side) const {
    const float sum = total(side.bound, side.bound_partials);
    switch (side.rule.scale) {
      case FactorScale::kTraceDim:
        return side.d * (1 + sum);
      case FactorScale::kTrace:
        return 1 + sum;
      case FactorScale::kSchatten4:
        return 1 + sqrtf(sqrtf(sum));
      default:
        return 1 + sqrtf(sum);
    }
  }

  __device__ __forceinline__ float inverse(const Side& side) const {
    return product_.divide ? 1 / bound(side) : 1;
  }

  // out = scale_x x + scale_a a + diagonal I, below the diagonal and mirrored.
  __device__ __forceinline__ void combine(float scale_x, float scale_a, float diagonal) {
    const Matrix out = Matrix(in_.views, product_.out, block_, product_.rows, product_.cols);
    const Matrices& held_in = product_.x.of.views == 0 ? product_.out : product_.x.of;
    const Matrix x(in_.views, held_in, block_, product_.rows, product_.cols);
    for_each_pair([&](int row, int col, float (&pair)[2]) {
      const int r = first_row_ + row, c = first_col_ + col;
      if (r >= product_.rows || c > r) return;
      float2 value = {scale_a * pair[0] + (r == c ? diagonal : 0),
                      scale_a * pair[1] + (r == c + 1 ? diagonal : 0)};
      if (scale_x != 0) {
        const float2 held = x.read_symmetric(r, c);
        value.x += scale_x * held.x;
        value.y += scale_x * held.y;
      }
      out.write_symmetric(r, c, value);
    });
  }

  __device__ __forceinline__ void downdate(const Side& side) {
    const float t = bound(side), pending = side.pending[block_], u = unit(side);
    const bool finite = isfinite(t) && mean_is_finite(side);
    if (tile_ == 0 && threadIdx.x == 0) {
      side.next_pending[block_] = finite ? 1 : pending;
      side.failed[block_] = !finite;
    }
    if (finite) combine(pending, -side.rule.weight / t * u * u, 0);  // out and x are the factor
  }

  __device__ __forceinline__ bool mean_is_finite(const Side& side) const {
    if (side.rule.damping == 0) return true;
    const float energy = total(side.energy, side.energy_partials);
    return isfinite(tracked_mean(side.rule, side.statistics[int64_t{block_} * 2], energy / side.d));
  }

  const GroupedProduct& in_;
  const Product& product_;
  int block_, tile_;
  float* shared_;
  int first_row_, first_col_, rows_, cols_;
  FullProduct<kTiles, kPrecision> c_;
};

template <int kTiles, Precision kPrecision>
__device__ __forceinline__ void grouped_product(const GroupedProduct& in) {
  extern __shared__ float4 memory[];
  const int64_t cta = blockIdx.x;
  const int found = search(in.count, cta, [&](int i) { return in.products[i].first_cta; });
  const Product& product = in.products[found];
  const int block = product.start + (cta - product.first_cta) / product.tiles;
  const int tile = (cta - product.first_cta) % product.tiles;
  if (!in.active[product.first_block + block]) return;
  if (product.side >= 0 && in.sides[product.side].pending[block] == 0) return;
  ProductTile<kTiles, kPrecision> own(in, product, block, tile, reinterpret_cast<float*>(memory));
  own.multiply();
  own.finish();
}

}  // namespace kradagrad::cuda
