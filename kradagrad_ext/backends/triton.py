"""The ops as Triton kernels (``triton_kernels/``): portable, and on tensor cores that CUDA C++ does not reach here.

Triton is imported when the backend is first asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kradagrad_ext.triton_kernels import kron_step as kernels

from . import reference

name = "triton"


def kron_step_(left, right, left_statistics, right_statistics, out, norms, grad, direction, left_root, right_root, active, decay, weight, damping, factor_scale, refine, precision, update):
    sizes = [len(f) for f in left]
    grads = reference._by_group("grad", grad, sizes) if update else [[]] * len(sizes)
    directions = reference._by_group("direction", direction, sizes) if out else [[]] * len(sizes)
    outs = reference._by_group("out", out, sizes) if out else [[]] * len(sizes)
    groups, first = [], 0
    for i, size in enumerate(sizes):
        groups.append(kernels.Group(size, first, grads[i], (left[i], left_statistics[i]) if update else None, (right[i], right_statistics[i]) if update else None, directions[i], outs[i], left_root[i] if out else None, right_root[i] if out else None))
        first += size
    rule = kernels.Rule(factor_scale, refine, precision)
    kernels.run_groups(groups, rule, active, decay=decay, weight=weight, damping=damping, norms=norms)


def update_factor_(factor, statistics, unfolding, active, decay, weight, damping, factor_scale, refine, precision):
    group = kernels.Group(len(factor), 0, unfolding, (factor, statistics), None, [], [], None, None)
    rule = kernels.Rule(factor_scale, refine, precision)
    kernels.run_groups([group], rule, active, decay=decay, weight=weight, damping=damping)
