"""Argument checks of a backend that is written in Python, in one style of message::

    kron_step_: `left[0]` must be [N, m, m] float32, got [2, 3, 3] bfloat16

They are those of csrc/checks.h. An op runs all of them before it writes anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from .base import FACTOR_SCALES, PRECISIONS

Dims = Sequence[int | str]
"""Of an expected shape: sizes, or letters, each of which stands for one size; ``*`` for any."""


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
    """The checks of one call of one op, whose tensors must all be on `device`."""

    op: str
    device: torch.device

    def fail(self, name: str, expected: str, got: object) -> NoReturn:
        raise RuntimeError(f"{self.op}: `{name}` must be {expected}, got {got}")

    def tensor(self, name: str, got: Tensor, dims: Dims, dtypes: Sequence[torch.dtype]) -> None:
        """A tensor of these dims, of one of the dtypes."""
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

    def views(
        self, name: str, views: Sequence[Tensor], rows: int, cols: int | str, dtypes: Sequence[torch.dtype]
    ) -> None:
        """A list of block views ``[*, rows, cols]``."""
        for i, view in enumerate(views):
            leading = ["*"] * (view.dim() - 2) if view.dim() > 1 else ["*"]
            self.tensor(f"{name}[{i}]", view, [*leading, rows, cols], dtypes)

    def length(self, name: str, given: Sequence[Tensor], count: int, may_be_empty: bool = False) -> None:
        """A list of `count` tensors, or an empty one where that is allowed."""
        if len(given) != count and not (may_be_empty and not given):
            self.fail(name, f"a list of {count} tensors{', or empty' if may_be_empty else ''}", len(given))

    def like_parameters(
        self,
        name: str,
        given: Sequence[Tensor],
        params: Sequence[Tensor],
        dtypes: Sequence[torch.dtype],
        may_be_empty: bool = False,
    ) -> None:
        """One tensor of its shape for every parameter."""
        self.length(name, given, len(params), may_be_empty)
        for i, tensor in enumerate(given):
            self.tensor(f"{name}[{i}]", tensor, list(params[i].shape), dtypes)

    def scalar(self, name: str, holds: bool, expected: str, got: object) -> None:
        if not holds:
            self.fail(name, expected, got)

    def not_negative(self, name: str, got: float) -> None:
        self.scalar(name, 0 <= got < math.inf, ">= 0 and finite", got)

    def rule(
        self, decay: float, weight: float, damping: float, factor_scale: str, refine: int, precision: str
    ) -> None:
        """The scalars of a factor update."""
        self.scalar("decay", 0 < decay <= 1, "in (0, 1]", decay)
        self.scalar("weight", 0 < weight < math.inf, "> 0 and finite", weight)
        self.not_negative("damping", damping)
        self.scalar("refine", refine >= 0, ">= 0", refine)
        self.scalar("factor_scale", factor_scale in FACTOR_SCALES, _either(FACTOR_SCALES), factor_scale)
        self.scalar("precision", precision in PRECISIONS, _either(PRECISIONS), precision)

    def factor(self, suffix: str, side: str, factor: Tensor, statistics: Tensor, count: int | str) -> None:
        """A group's factors ``[N, d, d]`` and statistics ``[N, 2]``, float32; `suffix`: of the names."""
        dtypes = [torch.float32]
        letter = {"left": "m", "right": "n"}.get(side, "d")
        self.contiguous(f"{side}{suffix}", factor, [count, letter, letter], dtypes)
        prefix = f"{side}_" if suffix else ""
        self.contiguous(f"{prefix}statistics{suffix}", statistics, [len(factor), 2], dtypes)

    def factors(
        self,
        left: list[Tensor],
        right: list[Tensor],
        left_statistics: list[Tensor],
        right_statistics: list[Tensor],
    ) -> None:
        """Both sides of every group."""
        lists = {"right": right, "left_statistics": left_statistics, "right_statistics": right_statistics}
        for name, given in lists.items():
            self.length(name, given, len(left))
        for i, x in enumerate(left):
            self.factor(f"[{i}]", "left", x, left_statistics[i], "N")
            self.factor(f"[{i}]", "right", right[i], right_statistics[i], len(x))

    def roots(
        self,
        left: list[Tensor],
        right: list[Tensor],
        left_root: list[Tensor],
        right_root: list[Tensor],
        direction: list[Tensor],
        precondition: bool,
    ) -> None:
        """The roots of every group, if there is a product."""
        groups = len(left) if precondition else 0
        for name, roots, factors in (("left_root", left_root, left), ("right_root", right_root, right)):
            self.length(name, roots, groups)
            for i, root in enumerate(roots):
                self.contiguous(f"{name}[{i}]", root, list(factors[i].shape), (torch.float32, torch.bfloat16))
        if not precondition:
            self.length("direction", direction, 0)
