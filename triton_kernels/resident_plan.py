"""kron_step_resident as a work of a plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import entry as fields
from . import kron_step_resident as kernel
from . import tuning
from .blocks import Matrices, matrices_of
from .groups import Group, Rule
from .launch import TYPES, Work
from .product_plan import in_vectors


def is_resident(group: Group, rule: Rule) -> bool:
    """Whether the whole step of a group is one launch."""
    return tuning.has(kernel.kron_step_resident, *_key(group, rule))


def _key(group: Group, rule: Rule) -> tuple[str, str, str]:
    """Of the table's row."""
    return str(tuning.padded(max(group.shape))), rule.precision, rule.architecture


def resident_work(group: Group, rule: Rule) -> Work:
    """The step of all of a group's blocks."""
    rows, cols = group.shape
    matrices = _matrices(group)
    words = {
        fields.FIRST_BLOCK.value: group.first_block,
        fields.ROWS.value: rows,
        fields.COLS.value: cols,
        fields.STATISTICS.value: group.left[1].data_ptr() if group.left else 0,
        fields.RIGHT_STATISTICS.value: group.right[1].data_ptr() if group.right else 0,
    }
    constants = {
        **_layout("GRAD", matrices.get(kernel.GRAD.value)),
        **_layout("DIRECTION", matrices.get(kernel.DIRECTION.value)),
        "LEFT_ROOT_TYPE": _type(group.left_root),
        "RIGHT_ROOT_TYPE": _type(group.right_root),
        "OUT_ORDER": matrices[kernel.OUT.value].order if group.out else "any",
        "HAS_LEFT": group.left is not None,
        "HAS_RIGHT": group.right is not None,
        "HAS_OUT": bool(group.out),
        "SCALE": rule.factor_scale,
        "REFINE": rule.refine,
        "PRECISION": rule.precision,
        "VECTOR": in_vectors((rows, cols), matrices),
        "M": tuning.padded(rows),
        "N": tuning.padded(cols),
    }
    config = tuning.config(kernel.kron_step_resident, *_key(group, rule))
    return Work(kernel.kron_step_resident, config, constants, words, matrices, 0, group.blocks)


def _matrices(group: Group) -> dict[int, Matrices]:
    """By their numbers in the kernel."""
    tensors: dict[int, list[Tensor]] = {
        kernel.DIRECTION.value: list(group.direction),
        kernel.OUT.value: list(group.out),
        kernel.LEFT_ROOT.value: [group.left_root] if group.left_root is not None else [],
        kernel.RIGHT_ROOT.value: [group.right_root] if group.right_root is not None else [],
    }
    if group.left or group.right:
        tensors[kernel.GRAD.value] = list(group.grad)
    for index, side in ((kernel.LEFT, group.left), (kernel.RIGHT, group.right)):
        tensors[index.value] = [side[0]] if side else []
    return {index: matrices_of(own) for index, own in sorted(tensors.items()) if own}


def _layout(name: str, matrices: Matrices | None) -> dict[str, Any]:
    dtype, order = (matrices.dtype, matrices.order) if matrices else (torch.float32, "any")
    return {f"{name}_TYPE": TYPES[dtype], f"{name}_ORDER": order}


def _type(root: Tensor | None) -> Any:  # noqa: ANN401
    return TYPES[torch.float32 if root is None else root.dtype]
