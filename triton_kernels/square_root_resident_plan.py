"""square_root_resident as a work of a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from . import entry as fields
from . import square_root_resident as kernel
from . import tuning
from .blocks import Matrices, matrices_of
from .groups import Group, Rule
from .launch import TYPES, Work
from .product_plan import in_vectors

TENSORS = {
    "GRAD": kernel.GRAD,
    "LEFT": kernel.LEFT,
    "RIGHT": kernel.RIGHT,
    "OUT": kernel.OUT,
    "DIRECTION": kernel.DIRECTION,
    "LEFT_ROOT": kernel.LEFT_ROOT,
    "RIGHT_ROOT": kernel.RIGHT_ROOT,
}
"""Matrices of a block by the names that the kernel's constants have, with their numbers in an entry."""
TYPED = ("GRAD", "DIRECTION", "LEFT", "RIGHT", "LEFT_ROOT", "RIGHT_ROOT")
ORDERED = ("GRAD", "DIRECTION", "OUT")
ANY = 32
"""The largest side of blocks of any shape, whose rows may start anywhere."""


def is_resident(group: Group, rule: Rule) -> bool:
    """Whether the whole step of a group is one launch.

    Blocks of the largest class have both sides in it and are read in vectors: registers do not suffice for
    the addresses of single elements, nor for products of unlike shapes among 8 warps.
    """
    if not tuning.has(kernel.square_root_resident, *_key(group, rule)):
        return False
    if max(group.shape) <= ANY:
        return True
    return min(group.shape) > ANY and is_in_vectors(group)


def is_in_vectors(group: Group) -> bool:
    """Whether a step reads and writes all of the blocks' matrices in vectors, and those in scratch memory."""
    return in_vectors(group.shape, _matrices(group))


def _key(group: Group, rule: Rule) -> tuple[str, str, str]:
    """Of the table's row."""
    return str(tuning.padded(max(group.shape))), rule.precision, rule.architecture


def resident_work(group: Group, rule: Rule) -> Work:
    """The step of all of a group's blocks."""
    rows, cols = group.shape
    held = _matrices(group)
    words = {
        fields.FIRST_BLOCK.value: group.first_block,
        fields.ROWS.value: rows,
        fields.COLS.value: cols,
        fields.STATISTICS.value: group.left[1].data_ptr() if group.left else 0,
        fields.RIGHT_STATISTICS.value: group.right[1].data_ptr() if group.right else 0,
    }
    matrices = {TENSORS[name].value: own for name, own in held.items()}
    constants = {
        **{f"{name}_TYPE": TYPES[held[name].dtype if name in held else torch.float32] for name in TYPED},
        **{f"{name}_ORDER": held[name].order if name in held else "any" for name in ORDERED},
        "UPDATE": bool(group.grad),
        "HAS_RIGHT": bool(group.grad) and group.right is not None,
        "HAS_OUT": bool(group.out),
        "COUPLED": rule.coupled,
        "DAMPED": rule.damped,
        "REFINE": rule.refine,
        "PRECISION": rule.precision,
        "VECTOR": in_vectors((rows, cols), held),
        "M": tuning.padded(rows),
        "N": tuning.padded(cols),
    }
    config = tuning.config(kernel.square_root_resident, *_key(group, rule))
    return Work(kernel.square_root_resident, config, constants, words, matrices, 0, group.blocks)


def _matrices(group: Group) -> dict[str, Matrices]:
    """Those that the step reads or writes."""
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
