// The schemas of all ops. kradagrad_ext/backends/base.py specifies shapes and formulas.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(kradagrad_ext, m) {
  // Both factor updates of order-2 blocks, and the two-sided product, for several groups in one call.
  m.def(
      "kron_step_(Tensor(a!)[] left, Tensor(b!)[] right, Tensor(c!)[] left_statistics, "
      "Tensor(d!)[] right_statistics, Tensor(e!)[] out, Tensor(f!) norms, Tensor[] grad, "
      "Tensor[] direction, Tensor[] left_root, Tensor[] right_root, Tensor scales, float decay, "
      "float weight, float damping, float prior, float damped_updates, str method, int refine, "
      "str precision, bool coupled, bool update, bool precondition) -> ()");
  // The factor update of one mode, for blocks of any order.
  m.def(
      "update_factor_(Tensor(a!) factor, Tensor(b!) statistics, Tensor[] unfolding, Tensor scales, "
      "float decay, float weight, float damping, float prior, float damped_updates, str method, int refine, "
      "str precision, bool coupled) -> ()");
  // The guard of M matrices' gradients, and the coefficients of their updates.
  m.def(
      "guard_gradients_(Tensor(a!) scalars, Tensor(b!) coefficients, Tensor(c!) active, "
      "Tensor(d!) restarts, Tensor norms, Tensor numel, Tensor present, Tensor weight_decay, "
      "float spike_limit, float beta1, bool averaged, bool nesterov, float bias2, float decay2, "
      "float weight2, float eps, int decayed, bool by_chance, str length) -> ()");
  // The lengths of M matrices' updates.
  m.def(
      "scale_updates_(Tensor(a!) coefficients, Tensor(b!) scalars, Tensor graft_norms, "
      "Tensor graft_offsets, Tensor update_norms, Tensor update_order, Tensor update_offsets, Tensor numel, "
      "Tensor preconditioned, float beta1, bool averaged, str length) -> ()");
  // Momentum, second moment and the norms of the grafting update, before the preconditioning.
  m.def(
      "update_moments_(Tensor(a!)[] momenta, Tensor(b!)[] second_moments, Tensor(c!)[] directions, "
      "Tensor(d!) graft_norms, Tensor[] grads, Tensor[] params, Tensor coefficients, "
      "Tensor active, float beta1, float beta2, float weight2, bool nesterov) -> ()");
  // Graft, weight decay, momentum and the write of every parameter.
  m.def(
      "apply_updates_(Tensor(a!)[] params, Tensor(b!)[] momenta, Tensor(c!)[] residuals, Tensor[] updates, "
      "Tensor[] directions, Tensor[] second_moments, Tensor coefficients, Tensor active, "
      "Tensor lr, float momentum, bool nesterov) -> ()");
  // Roots of F F^T and their residuals, one matrix per core.
  m.def("decomposed_roots(Tensor factors, int p) -> (Tensor, Tensor)");
  // Square roots of F F^T by products alone, for the due blocks of several sides.
  m.def(
      "polar_roots_(Tensor(a!)[] roots, Tensor(b!)[] root_statistics, Tensor[] factors, "
      "Tensor[] factor_statistics, Tensor[] active, int[] columns, Tensor? counter, int turn, int turns, "
      "float[] polynomials, float bound, str precision) -> ()");
}
