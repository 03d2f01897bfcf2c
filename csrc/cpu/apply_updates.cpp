// apply_updates_: graft, weight decay, momentum and the write, for P parameters of any shapes:
//
//   u = c3 update, or c0 d / (sqrt(c1 v) + c2) or c0 d if there is no update or c3 is not finite
//   bits(q) = bits(p) + residual;   u = u + c8 q;   b = momentum b + u, u = b (nesterov: u + momentum b)
//   q = (1 - lr c9) q - lr min(max(u, -c5), c5);   p = q in its storage dtype
//
// If p is bfloat16, c6 > 0 and there are no residuals, q is rounded by chance (vector_loops.h). Threads take
// spans of elements (spans.h). A span is processed in tiles, which stay in the cache for all passes.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <vector>

#include "../elementwise_arguments.h"
#include "dtypes.h"
#include "operand.h"
#include "spans.h"
#include "vector_loops.h"

namespace kradagrad::cpu {
namespace {

struct WriteOperands {
  Operand param, direction;
  std::optional<Operand> momentum, residual, update, second_moment;
  bool is_bf16;
};

std::vector<WriteOperands> list_operands(const ParameterArguments& in) {
  std::vector<WriteOperands> operands;
  for (size_t p = 0; p < in.params.size(); ++p) {
    const auto order = memory_order(in.params[p]);
    const auto optional = [&](const Tensors& list) {
      return list.empty() || list[p].numel() == 0 ? std::nullopt
                                                  : std::optional<Operand>(Operand(list[p], order));
    };
    operands.push_back({Operand(in.params[p], order), Operand(in.directions[p], order), optional(in.momenta),
                        optional(in.residuals), optional(in.updates), optional(in.second_moments),
                        in.params[p].scalar_type() == ScalarType::BFloat16});
  }
  return operands;
}

// Writes the parameter, and the residual of its rounding. `q`: the tile's new values, which may be changed;
// `chances`: null if q is not rounded by chance.
template <class T>
void write_rounded(const WriteOperands& in, T* q, const uint32_t* chances, int64_t begin, int64_t size) {
  if (in.residual) {
    alignas(64) T residuals[kTile];
    split_residuals(q, residuals, size);
    in.residual->write(begin, size, residuals);
  } else if (chances) {
    round_by_chance(q, chances, size);
  }
  in.param.write(begin, size, q);
}

// Steps one tile; `c`: the parameter's coefficients.
template <class T>
void step_tile(const WriteOperands& in, const ParameterScalars& scalars, const T* c, T lr, int64_t begin,
               int64_t size) {
  alignas(64) T p_scratch[kTile], u[kTile], scratch[kTile], v_scratch[kTile];
  alignas(64) uint32_t chance_scratch[kTile];
  T* p = in.param.read(begin, size, p_scratch);
  uint32_t* const chances = in.is_bf16 && !in.residual && c[6] > 0 ? chance_scratch : nullptr;
  const bool usable = in.update && std::isfinite(c[3]);
  const T* const made_of = (usable ? *in.update : in.direction).read(begin, size, scratch);
  if (chances) {
    start_chances(chances, static_cast<uint32_t>(c[6]), p, size);
    add_chances(chances, made_of, size);
  }
  if (in.residual) {
    add_residuals(p, in.residual->read(begin, size, v_scratch), size);
  }
  const T keep = 1 - lr * c[9];
  if (usable && c[8] == 0 && !in.momentum) {  // the common case, in one pass
    bounded_step(p, keep, lr, c[3], c[5], made_of, size);
    return write_rounded(in, p, chances, begin, size);
  }
  if (usable) {
    scale(u, c[3], made_of, size);
  } else if (in.second_moment) {
    adaptive_update(u, made_of, in.second_moment->read(begin, size, v_scratch), c, size);
  } else {
    scale(u, c[0], made_of, size);
  }
  if (c[8] != 0) weighted_sum(u, T(1), u, c[8], p, size);
  const T* step = u;
  if (in.momentum) {
    const T momentum = static_cast<T>(scalars.momentum);
    T* const b = in.momentum->read(begin, size, scratch);
    weighted_sum(b, momentum, b, T(1), u, size);
    in.momentum->write(begin, size, b);
    if (scalars.nesterov) {
      weighted_sum(u, T(1), u, momentum, b, size);
    } else {
      step = b;
    }
  }
  bounded_step(p, keep, lr, T(1), c[5], step, size);
  write_rounded(in, p, chances, begin, size);
}

template <class T>
void run(const ParameterArguments& in, const ParameterScalars& scalars) {
  const std::vector<WriteOperands> operands = list_operands(in);
  std::vector<int64_t> sizes;
  for (const Tensor& param : in.params) sizes.push_back(param.numel());
  const std::vector<Span> spans = cut_spans(sizes, static_cast<const bool*>(in.active.data_ptr()));
  const T* const coefficients = static_cast<const T*>(in.coefficients.data_ptr());
  const T lr = *static_cast<const T*>(in.lr.data_ptr());
  for_each_span(spans, [&](size_t i) {
    const Span& span = spans[i];
    for (int64_t done = 0; done < span.size; done += kTile) {
      step_tile(operands[span.parameter], scalars, coefficients + kCoefficients * span.parameter, lr,
                span.begin + done, std::min(kTile, span.size - done));
    }
  });
}

void apply_updates(const Tensors params, const Tensors momenta, const Tensors residuals,
                   const Tensors updates, const Tensors directions, const Tensors second_moments,
                   const Tensor coefficients, const Tensor active, const Tensor lr, double momentum,
                   bool nesterov) {
  const ParameterArguments in{params,         momenta,      residuals, updates, directions,
                              second_moments, coefficients, active,    lr};
  const ParameterScalars scalars{momentum, nesterov};
  check_apply_updates(Checks("apply_updates_", coefficients), in, scalars, kFactorDTypes, kViewDTypes);
  with_compute_type(coefficients.scalar_type(), [&](auto type) { run<decltype(type)>(in, scalars); });
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("apply_updates_", TORCH_BOX(&kradagrad::cpu::apply_updates));
}
