"""The products that ``kron_step_`` stands for as plain torch.bmm: what the kernels are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .inputs import Arguments


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether torch's float32 products may use TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def bmm_products(arguments: Arguments) -> Callable[[], None]:
    """The products of ``kron_step_`` by torch on contiguous blocks: without bound, guard or gather.

    Symmetric products are whole ones here: there is no batched symmetric product in cuBLAS.
    """
    groups = [
        (left, right, a, b, flat(grad), flat(direction))
        for left, right, a, b, grad, direction in zip(
            *(arguments[name] for name in ("left", "right", "left_root", "right_root", "grad", "direction")),
            strict=True,
        )
    ]
    refine, weight, update = arguments["refine"], arguments["weight"], arguments["update"]
    gram = refine > 0 or arguments["factor_scale"] in ("frobenius", "schatten4")
    scratch = [(left.clone(), right.clone()) for left, right, *_ in groups] if update else []

    def run() -> None:
        for (left, right, *_, grad, _), outs in zip(groups, scratch, strict=False):
            downdate(left, grad, refine, weight, gram, outs[0])
            downdate(right, grad.mT, refine, weight, gram, outs[1])
        for _, _, a, b, _, direction in groups:
            torch.bmm(torch.bmm(a, direction), b)

    return run


def flat(view: Tensor) -> Tensor:
    """Block views as one contiguous float32 batch."""
    return view.reshape(-1, *view.shape[-2:]).float().contiguous()


def downdate(factor: Tensor, a: Tensor, refine: int, weight: float, gram: bool, out: Tensor) -> None:
    """The products of one side's update; `out` is written. Values are not looked at: t = 1."""
    y = torch.bmm(factor, a)
    c = w = torch.bmm(a.mT, y) if gram else y
    for i in range(refine):
        v = torch.baddbmm(w, w, w, beta=-8, alpha=4)
        c = v if i == 0 else torch.bmm(c, v)
        w = torch.bmm(w, v) if i + 1 < refine else w
    yc = torch.bmm(y, c) if refine else y
    torch.baddbmm(factor, yc, y.mT, alpha=-weight, out=out)
