// wide_precondition: V = P_l (D / rms_l) P_r of blocks [m, n] of 129 to 256 a side, and norms = |V|^2, as in
// resident_precondition.cu, with the block's matrices in global memory (wide_block.cuh).
//
// CTAs take blocks in rounds. A CTA has three grids: D; P_r, then P_l; D P_r.
#include "product_item.cuh"
#include "wide_block.cuh"

namespace kradagrad::cuda {
namespace {

class WideProduct {
 public:
  using Product = WideBlock::Product;

  __device__ __forceinline__ WideProduct(const WidePrecondition& in, const ProductItem& item)
      : wide_(in.scratch, WidePrecondition::kMatrices, kWideTiles), item_(item) {}

  // Writes V; returns |V|^2 to every thread.
  __device__ __forceinline__ float run() {
    split(item_.direction(), 0);
    split(item_.right_root(), 1);
    wide_.product({wide_.grid(0), false, item_.direction().bf16},
                  {wide_.grid(1), true, item_.right_root().bf16}, WideBlock::halves_of(m()),
                  WideBlock::halves_of(n()), tiles_of(n()), false,
                  [&](Product& c, int row, int col) { WideBlock::write(c, wide_.grid(2), row, col); });
    split(item_.left_root(), 1);
    float norm = 0;
    wide_.product({wide_.grid(1), false, item_.left_root().bf16}, {wide_.grid(2), true},
                  WideBlock::halves_of(m()), WideBlock::halves_of(n()), tiles_of(m()), false,
                  [&](Product& c, int row, int col) {
                    c.scale(item_.rms > 0 ? 1 / item_.rms : 0);
                    norm += WideBlock::squares(c);
                    write(c, row, col);
                  });
    return WideBlock::sum(norm);
  }

 private:
  __device__ __forceinline__ int m() const { return item_.m; }
  __device__ __forceinline__ int n() const { return item_.n; }

  __device__ __forceinline__ void split(const Matrix& from, int grid) const {
    WideBlock::split(from, wide_.grid(grid), 1, [](float) {});
  }

  // Writes a tile of 128 x 128 of V.
  __device__ __forceinline__ void write(Product& c, int row, int col) const {
    const Matrix out = item_.out().part(row * 128, col * 128, 128, 128);
    c.for_each_pair([&](int i, int j, float (&pair)[2]) { out.write_pair(i, j, {pair[0], pair[1]}); });
  }

  WideBlock wide_;
  const ProductItem& item_;
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kResidentThreads, 1)
    wide_precondition(const WidePrecondition in) {
  __shared__ ProductItem item;
  for (int64_t next = blockIdx.x; find(item, in.precondition, next); next = item.index + gridDim.x) {
    const float norm = WideProduct(in, item).run();
    if (threadIdx.x == 0) *item.norm = norm;
  }
}

}  // namespace kradagrad::cuda
