// Common parts of the kernels that keep whole blocks on chip: the teams of a CTA, their work items, and the
// writing of a product.
//
// A CTA has 256 threads: one team for sides of up to 128, two teams for smaller ones, which do the same steps
// at the same time, each on one work item. Barriers apply to the CTA, so a team without work takes part with
// a matrix of no rows. As many CTAs as fit the GPU at once take all work items in rounds.
#pragma once

#include "memory.cuh"
#include "reduce.cuh"
#include "square_root_resident.h"
#include "tile_products.cuh"

namespace kradagrad::cuda {

// A thread's position, computed again at every use, so that it takes no registers from products.
template <int kTiles>
struct Worker {
  static constexpr int kWarps = Team<kTiles>::kWarps;
  static constexpr int kTeamThreads = Team<kTiles>::kThreads;
  static constexpr int kTeams = teams_of(kTiles);
  static_assert(kTeams * kTeamThreads == kResidentThreads);

  static __device__ __forceinline__ int team() {
    return kTeams == 1 ? 0 : forget(threadIdx.x) / kTeamThreads;
  }
  static __device__ __forceinline__ int thread() {
    return forget(threadIdx.x) % kTeamThreads;
  }  // within the team
  static __device__ __forceinline__ int warp() { return thread() / 32; }
  static __device__ __forceinline__ Lane lane() { return Lane(thread()); }

  // The address of a tile of the team's shared memory, which has `places` tiles.
  static __device__ __forceinline__ Shared place(int places, int tile) {
    extern __shared__ float4 memory[];
    return shared_address(memory) + (team() * places + tile) * kTileBytes;
  }

  // The second team numbers its warps in reverse: schedulers with fewer tiles of the first team get more.
  static __device__ __forceinline__ LowerShare<kTiles> share() {
    return {team() % 2 == 0 ? warp() : kWarps - 1 - warp(), lane()};
  }
};

// Writes a product to a matrix. `place`: shared memory of kTiles^2 tiles that is free; pairs that cannot be
// written as 8 bytes of float32 pass through it.
template <int kTiles, class Product>
__device__ __forceinline__ void write_product(Product& product, const Matrix& to, Shared place) {
  if (!to.bf16 && to.aligned && to.cols % 2 == 0) {
    const Position first = product.position(0);
    float* data = to.at<float>(first.row, first.col);
    product.for_each_row([&](int row, int first_col, const float (&pairs)[Product::kRowPairs][2]) {
#pragma unroll
      for (int i = 0; i < Product::kRowPairs; ++i) {
        const bool inside = row < to.rows && first_col + 8 * i < to.cols;
        if (inside) *reinterpret_cast<float2*>(data + 8 * i) = {pairs[i][0], pairs[i][1]};
      }
      data += 8 * to.row_stride;
    });
    return;
  }
  constexpr int kStep = Team<kTiles>::kThreads * sizeof(float2);
  const Shared first = place + Worker<kTiles>::thread() * sizeof(float2);
  Shared slot = first;
  product.for_each_pair([&](int, int, float (&pair)[2]) {
    memory_at<float2>(slot) = {pair[0], pair[1]};
    slot += kStep;
  });
#pragma unroll 1
  for (int i = 0; i < Product::kPairs; ++i) {
    const Position at = product.position(i);
    to.write(at.row, at.col, memory_at<const float2>(first + i * kStep));
  }
}

// The work items of a team, in shared memory: the current one and the next. A team takes items i, i + step,
// ...; one of its warps finds the next item while the others multiply, so that its matrices can be requested
// before the current item ends.
template <int kTiles, class Item>
class Items {
 public:
  using Here = Worker<kTiles>;
  static constexpr int kCount = 2 * Here::kTeams;

  __device__ __forceinline__ explicit Items(Item (&items)[kCount]) : items_(items) {}

  __device__ __forceinline__ Item& current() const { return items_[turn_ * Here::kTeams + Here::team()]; }
  __device__ __forceinline__ Item& next() const { return items_[(1 - turn_) * Here::kTeams + Here::team()]; }

  // Finds the first item; returns true if any team of the CTA has one.
  template <class Parameters>
  __device__ __forceinline__ bool start(const Parameters& in) const {
    find(current(), in, int64_t{blockIdx.x} * Here::kTeams + Here::team());
    __syncthreads();
    return __syncthreads_or(current().active);
  }

  // Finds the next item, which all threads see after a barrier.
  template <class Parameters>
  __device__ __forceinline__ void find_next(const Parameters& in) const {
    find(next(), in, current().index + step());
  }

  // Advances to the next item; returns true if any team has one.
  __device__ __forceinline__ bool advance() {
    turn_ = 1 - turn_;
    return __syncthreads_or(current().active);
  }

 private:
  static __device__ __forceinline__ int64_t step() { return int64_t{gridDim.x} * Here::kTeams; }

  template <class Parameters>
  static __device__ __forceinline__ void find(Item& item, const Parameters& in, int64_t from) {
    if (Here::warp() == Here::kWarps - 1) item.find(in, from, step(), Here::thread() % 32);
  }

  Item (&items_)[kCount];
  int turn_ = 0;
};

}  // namespace kradagrad::cuda
