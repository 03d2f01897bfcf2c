// update_moments_: momentum, second moment and the norms of the grafting update, for P parameters of any
// shapes:
//
//   g = c3 (grad + c7 p)
//   m = beta1 c4 m + (1 - beta1) g
//   d = m, or beta1 m + (1 - beta1) g (nesterov), or g (no momenta)
//   v = beta2 c4^2 v + weight2 g^2
//   graft = c0 d / (sqrt(c1 v) + c2) or c0 d;   graft_norms = |graft|^2 of every kSpan elements
//
// Threads take spans of elements (spans.h). A span is processed in tiles, which stay in the cache for all
// passes.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "../elementwise_arguments.h"
#include "dtypes.h"
#include "operand.h"
#include "spans.h"
#include "vector_loops.h"

namespace kradagrad::cpu {
namespace {

struct MomentOperands {
  Operand grad, param;
  std::optional<Operand> momentum, second_moment, direction;
};

std::vector<MomentOperands> list_operands(const UpdateMomentsArguments& in) {
  std::vector<MomentOperands> operands;
  for (size_t p = 0; p < in.params.size(); ++p) {
    const auto order = memory_order(in.params[p]);
    const auto optional = [&](const Tensors& list) {
      return list.empty() ? std::nullopt : std::optional<Operand>(Operand(list[p], order));
    };
    operands.push_back({Operand(in.grads[p], order), Operand(in.params[p], order), optional(in.momenta),
                        optional(in.second_moments), optional(in.directions)});
  }
  return operands;
}

// Processes one tile and returns its share of the graft's squared norm. `c`: the parameter's coefficients.
template <class T>
double update_moments_tile(const MomentOperands& in, const UpdateMomentsScalars& scalars, const T* c,
                           int64_t begin, int64_t size) {
  alignas(64) T g_scratch[kTile], m_scratch[kTile], v_scratch[kTile], scratch[kTile];
  const T beta1 = static_cast<T>(scalars.beta1), rest1 = static_cast<T>(1 - scalars.beta1);
  const T* g = in.grad.read(begin, size, g_scratch);
  if (c[7] != 0) {
    weighted_sum(g_scratch, c[3], g, c[3] * c[7], in.param.read(begin, size, scratch), size);
    g = g_scratch;
  } else if (c[3] != 1) {
    scale(g_scratch, c[3], g, size);
    g = g_scratch;
  }
  const T* d = g;
  if (in.momentum) {
    T* const m = in.momentum->read(begin, size, m_scratch);
    weighted_sum(m, beta1 * c[4], m, rest1, g, size);
    in.momentum->write(begin, size, m);
    d = m;
    if (scalars.nesterov) {
      weighted_sum(scratch, beta1, m, rest1, g, size);
      d = scratch;
    }
  }
  double norm;
  if (in.second_moment) {
    T* const v = in.second_moment->read(begin, size, v_scratch);
    const T beta2 = static_cast<T>(scalars.beta2) * c[4] * c[4];
    norm = average_squares(v, beta2, static_cast<T>(scalars.weight2), g, d, c, size);
    in.second_moment->write(begin, size, v);
  } else {
    norm = dot(d, d, size) * c[0] * c[0];
  }
  if (in.direction) in.direction->write(begin, size, d);
  return norm;
}

template <class T>
void run(const UpdateMomentsArguments& in, const UpdateMomentsScalars& scalars) {
  const std::vector<MomentOperands> operands = list_operands(in);
  std::vector<int64_t> sizes;
  for (const Tensor& param : in.params) sizes.push_back(param.numel());
  const std::vector<Span> spans = cut_spans(sizes, static_cast<const bool*>(in.active.data_ptr()));
  const T* const coefficients = static_cast<const T*>(in.coefficients.data_ptr());
  std::vector<int64_t> first_norms(sizes.size());  // by parameter
  int64_t count = 0;
  for (size_t p = 0; p < sizes.size(); ++p) {
    first_norms[p] = count;
    count += (sizes[p] + kSpan - 1) / kSpan;
  }
  std::vector<double> norms(count);
  for_each_span(spans, [&](size_t i) {
    const Span& span = spans[i];
    for (int64_t done = 0; done < span.size; done += kTile) {
      norms[first_norms[span.parameter] + (span.begin + done) / kSpan] += update_moments_tile(
          operands[span.parameter], scalars, coefficients + kCoefficients * span.parameter, span.begin + done,
          std::min(kTile, span.size - done));
    }
  });
  if (in.graft_norms.numel() > 0) {
    std::copy(norms.begin(), norms.end(), static_cast<T*>(in.graft_norms.data_ptr()));
  }
}

void update_moments(const Tensors momenta, const Tensors second_moments, const Tensors directions,
                    const Tensor graft_norms, const Tensors grads, const Tensors params,
                    const Tensor coefficients, const Tensor active, double beta1, double beta2,
                    double weight2, bool nesterov) {
  const UpdateMomentsArguments in{momenta, second_moments, directions,   graft_norms,
                                  grads,   params,         coefficients, active};
  const UpdateMomentsScalars scalars{beta1, beta2, weight2, nesterov};
  check_update_moments(Checks("update_moments_", coefficients), in, scalars, kFactorDTypes, kViewDTypes);
  with_compute_type(coefficients.scalar_type(), [&](auto type) { run<decltype(type)>(in, scalars); });
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("update_moments_", TORCH_BOX(&kradagrad::cpu::update_moments));
}
