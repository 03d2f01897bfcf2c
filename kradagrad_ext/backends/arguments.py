"""Argument checks of a backend that is written in Python, with one style of message::

    kron_step_: `left[0]` must be [N, m, m] float32 or bfloat16, got [2, 3, 4] float32

They correspond to those of csrc/checks.h. An op runs all of its checks before it writes anything. A list is
first checked as a whole, and tensor by tensor only to name the tensor that is wrong.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

Dims = Sequence[int | str]
"""Expected shape: sizes, letters that each stand for one size, or ``*`` for any size."""

_KIND = operator.attrgetter("device", "dtype")
_SHAPE = operator.attrgetter("shape")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _fits(shape: Sequence[int], dims: Dims) -> bool:
    letters: dict[str, int] = {}
    if len(shape) != len(dims):
        return False
    for size, dim in zip(shape, dims, strict=True):
        expected = letters.setdefault(dim, size) if isinstance(dim, str) and dim != "*" else dim
        if expected not in ("*", size):
            return False
    return True


@dataclass(frozen=True)
class Checks:
    """The checks of one call of one op. All of its tensors must be on `device`."""

    op: str
    device: torch.device

    def fail(self, name: str, expected: str, got: object) -> NoReturn:
        raise RuntimeError(f"{self.op}: `{name}` must be {expected}, got {got}")

    def tensor(self, name: str, got: Tensor, dims: Dims, dtypes: Sequence[torch.dtype]) -> None:
        """Require a tensor of these dims and of one of the dtypes."""
        if not _fits(got.shape, dims) or got.dtype not in dtypes:
            shape = f"[{', '.join(map(str, dims))}]"
            expected = f"{shape} {_either([_dtype_name(dtype) for dtype in dtypes])}"
            self.fail(name, expected, f"{list(got.shape)} {_dtype_name(got.dtype)}")
        if got.device != self.device:
            self.fail(name, "on the device of the other tensors", "a tensor on another device")

    def contiguous(self, name: str, got: Tensor, dims: Dims, dtypes: Sequence[torch.dtype]) -> None:
        self.tensor(name, got, dims, dtypes)
        if not got.is_contiguous():
            self.fail(name, "contiguous", f"strides {list(got.stride())}")

    def _are(self, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> bool:
        """Return True if all tensors are on the device and each has one of the dtypes."""
        return set(map(_KIND, tensors)) <= {(self.device, dtype) for dtype in dtypes}

    def views(
        self, name: str, views: Sequence[Tensor], rows: int, cols: int | str, dtypes: Sequence[torch.dtype]
    ) -> None:
        """Require a list of block views ``[*, rows, cols]``."""
        if {view.shape[-2:] for view in views} <= {(rows, cols)} and self._are(views, dtypes):
            return
        for i, view in enumerate(views):
            leading = ["*"] * (view.dim() - 2) if view.dim() > 1 else ["*"]
            self.tensor(f"{name}[{i}]", view, [*leading, rows, cols], dtypes)

    def length(self, name: str, tensors: Sequence[Tensor], count: int, may_be_empty: bool = False) -> None:
        """Require a list of `count` tensors, or an empty list if that is allowed."""
        if len(tensors) != count and not (may_be_empty and not tensors):
            self.fail(name, f"a list of {count} tensors{', or empty' if may_be_empty else ''}", len(tensors))

    def like_parameters(
        self,
        name: str,
        tensors: Sequence[Tensor],
        params: Sequence[Tensor],
        dtypes: Sequence[torch.dtype],
        may_be_empty: bool = False,
    ) -> None:
        """Require one tensor for every parameter, of the parameter's shape."""
        self.length(name, tensors, len(params), may_be_empty)
        shapes_match = list(map(_SHAPE, tensors)) == list(map(_SHAPE, params))
        if not tensors or (shapes_match and self._are(tensors, dtypes)):
            return
        for i, tensor in enumerate(tensors):
            self.tensor(f"{name}[{i}]", tensor, list(params[i].shape), dtypes)

    def scalar(self, name: str, holds: bool, expected: str, got: object) -> None:
        if not holds:
            self.fail(name, expected, got)

    def not_negative(self, name: str, got: float) -> None:
        self.scalar(name, 0 <= got < math.inf, ">= 0 and finite", got)
