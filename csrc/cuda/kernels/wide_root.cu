// wide_root: P = (F F^T)^(1/2) of factors F [d, d] of 129 to 1024 a side by the polar iteration, as in
// resident_root.cu, with the factor's matrices in global memory (wide_block.cuh).
//
// CTAs take the due factors in rounds. A CTA has four grids: Q; G; a I + b G + c G^2; the next Q; and at the
// end F, Q and P.
#include "root_item.cuh"
#include "wide_block.cuh"

namespace kradagrad::cuda {
namespace {

class WideRoot {
 public:
  using Product = WideBlock::Product;

  __device__ __forceinline__ WideRoot(const WideRoots& in, RootItem& item)
      : in_(in.roots), wide_(in.scratch, WideRoots::kMatrices, in.tiles), item_(item) {}

  __device__ __forceinline__ void run() {
    int q = 0, next = 3;
    load(q);
#pragma unroll 1
    for (int step = 0; step < in_.rule.steps; ++step) {
      const float scale = make_gram(q, step == 0);
      make_polynomial(step, scale * scale);
      multiply_polynomial(q, next, scale);
      const int old = q;
      q = next, next = old;
    }
    load(kFactor);
    make_root(q);
    const float residual = find_residual();
    const bool good = residual <= in_.rule.bound;
    if (good) write_root();
    if (threadIdx.x == 0) item_.finish(good, residual);
  }

 private:
  static constexpr int kGram = 1, kPolynomial = 2, kFactor = 1, kRoot = 2;

  __device__ __forceinline__ int halves() const { return WideBlock::halves_of(item_.d); }
  __device__ __forceinline__ int tiles() const { return tiles_of(item_.d); }

  // Loads F, in its unit.
  __device__ __forceinline__ void load(int grid) const {
    WideBlock::split(item_.factor(), wide_.grid(grid), item_.unit, [](float) {});
    __syncthreads();
  }

  // Makes G = Q^T Q; returns the scale of Q, 1 / s in the first step.
  __device__ __forceinline__ float make_gram(int q, bool is_first) const {
    const WideOperand operand{wide_.grid(q), true};
    float squares = 0;
    wide_.product(operand, operand, halves(), halves(), tiles(), true, [&](Product& c, int row, int col) {
      if (is_first) squares += WideBlock::squares(c, row > col);
      WideBlock::write_symmetric(c, wide_.grid(kGram), row, col);
    });
    return is_first ? rsqrtf(sqrtf(WideBlock::sum(squares))) : 1;
  }

  // Makes a I + b scale G + c scale^2 G^2.
  __device__ __forceinline__ void make_polynomial(int step, float scale) const {
    const WideOperand gram{wide_.grid(kGram)};
    wide_.product(gram, gram, halves(), halves(), tiles(), true, [&](Product& c, int row, int col) {
      c.scale(in_.rule.c[step] * scale * scale);
      WideBlock::add_symmetric(c, in_.rule.b[step] * scale, wide_.grid(kGram), row, col);
      WideBlock::add_diagonal(c, item_.d, in_.rule.a[step], row, col);
      WideBlock::write_symmetric(c, wide_.grid(kPolynomial), row, col);
    });
  }

  // Makes the next Q: Q times the polynomial and the scale.
  __device__ __forceinline__ void multiply_polynomial(int q, int next, float scale) const {
    wide_.product({wide_.grid(q)}, {wide_.grid(kPolynomial)}, halves(), halves(), tiles(), false,
                  [&](Product& c, int row, int col) {
                    c.scale(scale);
                    WideBlock::write(c, wide_.grid(next), row, col);
                  });
  }

  __device__ __forceinline__ void make_root(int q) const {
    wide_.product(
        {wide_.grid(kFactor)}, {wide_.grid(q)}, halves(), halves(), tiles(), true,
        [&](Product& c, int row, int col) { WideBlock::write_symmetric(c, wide_.grid(kRoot), row, col); });
  }

  __device__ __forceinline__ float find_residual() const {
    const WideOperand f{wide_.grid(kFactor)}, p{wide_.grid(kRoot)};
    float size = 0, difference = 0;
    wide_.product(f, f, halves(), halves(), tiles(), true, [&](Product& c, int row, int col) {
      size += WideBlock::squares(c, row > col);
      c.scale(-1);
      wide_.multiply(c, p, p, row, col, tiles());
      difference += WideBlock::squares(c, row > col);
    });
    size = WideBlock::sum(size);
    return sqrtf(WideBlock::sum(difference) / size);
  }

  // Each thread writes four neighbours of a row.
  __device__ __forceinline__ void write_root() const {
    const Matrix to = item_.root();
    const int fours = (to.cols + 3) / 4;
    for (int i = threadIdx.x; i < to.rows * fours; i += kResidentThreads) {
      const int row = i / fours, col = i % fours * 4;
      char* const tile = wide_.grid(kRoot).tile(row / kTile, col / kTile);
      float four[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) four[j] = PlaneTiles::element(tile, row % kTile, col % kTile + j);
      to.write_four(row, col, four);
    }
  }

  const ResidentRoots& in_;
  WideBlock wide_;
  RootItem& item_;
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kResidentThreads, 1) wide_root(const WideRoots in) {
  __shared__ RootItem item;
  for (int64_t next = blockIdx.x; find(item, in.roots, next); next = item.index + gridDim.x) {
    WideRoot(in, item).run();
  }
}

}  // namespace kradagrad::cuda
