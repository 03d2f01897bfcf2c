// Threads over chunks of consecutive blocks.
//
// The chunks depend on the shapes alone, never on the number of threads, so that a block is always computed
// together with the same other blocks. Each thread takes consecutive chunks, with one worker and its scratch.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace kradagrad::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Number of blocks in a chunk: as many as keep an array of the chunk in a share of the second-level cache,
// but few enough that a small number of blocks is still distributed over several threads.
inline int64_t chunk_size(int64_t blocks, int64_t bytes_per_block) {
  constexpr int64_t kBytesPerChunk = 256 * 1024, kLeastChunks = 16;
  const int64_t fitting = kBytesPerChunk / std::max<int64_t>(bytes_per_block, 1);
  return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(ceil_div(blocks, kLeastChunks), 1));
}

// Calls `worker(first, count)` for every chunk, with a worker from `make_worker()` for each thread. If there
// are fewer chunks than threads, the chunks run sequentially, and products and decompositions use the threads
// inside. Of these, only torch's decompositions may differ in their last bits with the number of threads.
template <class MakeWorker>
void for_each_chunk(int64_t blocks, int64_t chunk, const MakeWorker& make_worker) {
  const int64_t chunks = ceil_div(blocks, chunk);
  const auto run = [&](int64_t begin, int64_t end) {
    auto worker = make_worker();
    for (int64_t i = begin; i < end; ++i) worker(i * chunk, std::min(chunk, blocks - i * chunk));
  };
  if (chunks == 0) return;
  if (chunks < static_cast<int64_t>(torch::stable::get_num_threads())) {
    run(0, chunks);
  } else {
    torch::stable::parallel_for(0, chunks, 1, run);
  }
}

}  // namespace kradagrad::cpu
