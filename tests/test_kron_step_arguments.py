"""What `kron_step_` refuses, on every backend: the message, and that nothing is written."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from test_kron_step import SCALARS, inputs, merged


def zeros(*shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    return [torch.zeros(shape) for shape in shapes]


REFUSALS = [
    ("grad", zeros((4, 5, 7), (1, 3, 2)), "views of 3 blocks for group 0, got 4 blocks"),
    ("direction", zeros((2, 5, 7), (2, 5, 7), (1, 3, 2)), "views of 3 blocks for group 0, got 4 blocks"),
    ("direction", zeros((3, 5, 7), (1, 3, 2)), "views of 2 blocks for group 1, got 1 blocks"),
    ("out", zeros((3, 5, 7)), "views of 2 blocks for group 1, got 0 blocks"),
    ("out", zeros((3, 5, 7), (2, 3, 2), (1, 3, 2)), "views of the groups' blocks, got 1 more"),
    ("precision", "half", "bf16x3, tf32x3, bf16x6 or fp32, got half"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSALS)
def test_views_of_two_groups_and_unknown_precisions_are_refused(
    name: str, value: Any, message: str, backend: str
) -> None:
    """The message names the list, the group and the counts; nothing is written."""
    ops = cases.ops(backend, torch.float32)
    given = merged([inputs(3, 5, 7, torch.float32), inputs(2, 3, 2, torch.float32)])
    before = cases.copied(given)
    options = {"precision": value} if name == "precision" else {}
    if not options:
        setattr(given, name, value)
        setattr(before, name, [view.clone() for view in value])
    with pytest.raises(RuntimeError) as caught:
        ops.kron_step_(*vars(given).values(), *(SCALARS | options).values())
    assert str(caught.value) == f"kron_step_: `{name}` must be {message}"
    for tensors, kept in zip(vars(given).values(), vars(before).values(), strict=True):
        for tensor, same in zip(tensors, kept, strict=True):
            assert torch.equal(tensor, same)
