"""The work of a plan that runs square_root_resident."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import entry
from .. import square_root_resident as kernel
from . import tuning
from .groups import KernelGroup, StepRule
from .launch import TYPES, BlockWork
from .product import in_vectors
from .views import Matrices, matrices_of

TENSORS = {
    "GRAD": kernel.GRAD,
    "LEFT": kernel.LEFT,
    "RIGHT": kernel.RIGHT,
    "OUT": kernel.OUT,
    "DIRECTION": kernel.DIRECTION,
    "LEFT_ROOT": kernel.LEFT_ROOT,
    "RIGHT_ROOT": kernel.RIGHT_ROOT,
}
"""Numbers of a block's matrices in an entry, by the names in the kernel's constants."""
TYPED = ("GRAD", "DIRECTION", "LEFT", "RIGHT", "LEFT_ROOT", "RIGHT_ROOT")
ORDERED = ("GRAD", "DIRECTION", "OUT")
ANY = 32
"""Largest side of blocks of any shape and alignment."""


def is_resident(group: KernelGroup, rule: StepRule) -> bool:
    """Return True if the whole step of a group is one launch.

    Blocks with a side above ANY must have both sides above ANY and be read in vectors: the registers do not
    suffice for addresses of single elements, nor for products of unlike shapes among 8 warps.
    """
    if not tuning.has(kernel.square_root_resident, *_key(group, rule)):
        return False
    if max(group.shape) <= ANY:
        return True
    return min(group.shape) > ANY and is_in_vectors(group)


def is_in_vectors(group: KernelGroup) -> bool:
    """Return True if a step can access the blocks' matrices, and those in scratch memory, in vectors."""
    return in_vectors(group.shape, _matrices(group))


def _key(group: KernelGroup, rule: StepRule) -> tuple[str, str, str]:
    """Return the key of the group's row in the table, without the op."""
    return str(tuning.padded(max(group.shape))), rule.precision, rule.architecture


def resident_work(group: KernelGroup, rule: StepRule) -> BlockWork:
    """Return the work that is the step of all of a group's blocks."""
    rows, cols = group.shape
    by_name = _matrices(group)
    fields = {
        entry.FIRST_BLOCK.value: group.first_block,
        entry.ROWS.value: rows,
        entry.COLS.value: cols,
        entry.STATISTICS.value: group.left[1].data_ptr() if group.left else 0,
        entry.RIGHT_STATISTICS.value: group.right[1].data_ptr() if group.right else 0,
    }
    matrices = {TENSORS[name].value: matrix for name, matrix in by_name.items()}
    constants = {
        **{f"{n}_TYPE": TYPES[by_name[n].dtype if n in by_name else torch.float32] for n in TYPED},
        **{f"{n}_ORDER": by_name[n].order if n in by_name else "any" for n in ORDERED},
        "UPDATE": bool(group.grad),
        "HAS_RIGHT": bool(group.grad) and group.right is not None,
        "HAS_OUT": bool(group.out),
        "COUPLED": rule.coupled,
        "DAMPED": rule.damped,
        "REFINE": rule.refine,
        "PRECISION": rule.precision,
        "VECTOR": in_vectors((rows, cols), by_name),
        "M": tuning.padded(rows),
        "N": tuning.padded(cols),
    }
    config = tuning.config(kernel.square_root_resident, *_key(group, rule))
    return BlockWork(kernel.square_root_resident, config, constants, fields, matrices, 0, group.blocks)


def _matrices(group: KernelGroup) -> dict[str, Matrices]:
    """Return the matrices that the step reads or writes, by name."""
    tensors: dict[str, list[Tensor]] = {
        "GRAD": list(group.grad),
        "OUT": list(group.out),
        "DIRECTION": list(group.direction),
    }
    if group.grad:
        tensors["LEFT"] = [group.left[0]] if group.left else []
        tensors["RIGHT"] = [group.right[0]] if group.right else []
    tensors["LEFT_ROOT"] = [] if group.left_root is None else [group.left_root]
    tensors["RIGHT_ROOT"] = [] if group.right_root is None else [group.right_root]
    return {name: matrices_of(views) for name, views in tensors.items() if views}
