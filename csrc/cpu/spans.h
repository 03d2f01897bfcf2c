// Threads over the elements of a list of parameters.
//
// Parameters are split into spans of at most `kShare` elements, and consecutive spans form work items of
// about that size, so that many small parameters and a few large ones load the threads evenly. The spans
// depend on the sizes alone: a sum by span, added up in their order, is the same for any number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../scalar_rules.h"

namespace kradagrad::cpu {

// Elements of one parameter, in its memory order.
struct Span {
  int64_t parameter, begin, size;
};

constexpr int64_t kShare = 4 * kSpan;
constexpr int64_t kTile = 1024;  // elements that the passes over a span keep in the first-level cache

inline std::vector<Span> cut_spans(const std::vector<int64_t>& sizes, const bool* active) {
  std::vector<Span> spans;
  for (size_t p = 0; p < sizes.size(); ++p) {
    if (!active[p]) continue;
    for (int64_t begin = 0; begin < sizes[p]; begin += kShare) {
      spans.push_back({static_cast<int64_t>(p), begin, std::min(kShare, sizes[p] - begin)});
    }
  }
  return spans;
}

// Calls `body(span index)` for every span, several in parallel.
template <class Body>
void for_each_span(const std::vector<Span>& spans, const Body& body) {
  std::vector<size_t> items;  // the first span of each work item
  int64_t filled = kShare;
  for (size_t i = 0; i < spans.size(); ++i) {
    if (filled + spans[i].size > kShare) {
      items.push_back(i);
      filled = 0;
    }
    filled += spans[i].size;
  }
  items.push_back(spans.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(items.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    for (size_t i = items[begin]; i < items[end]; ++i) body(i);
  });
}

}  // namespace kradagrad::cpu
