"""Inputs of every op on a GPU, the products that they stand for as plain torch.bmm, and a copy of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DAMPING = 1e-3
DECAY = 0.95
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How factors are updated, in what precision, and the dtype of gradients and parameters."""

    scale: str = "frobenius"
    refine: int = 2
    precision: str = "bf16x3"
    dtype: str = "float32"

    @property
    def label(self) -> str:
        return f"{self.scale} refine={self.refine} {self.precision}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def scalars(self) -> Arguments:
        return dict(
            decay=DECAY,
            weight=1 - DECAY,
            damping=DAMPING,
            factor_scale=self.scale,
            refine=self.refine,
            precision=self.precision,
        )


class Source:
    """Random tensors on a device, the same for the same seed."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).mul_(scale)

    def spd(self, blocks: int, side: int, largest: float) -> Tensor:
        """Symmetric positive definite, eigenvalues from about `largest` / 100, ``[N, d, d]``."""
        square = self.normal(blocks, side, side)
        product = torch.bmm(square, square.mT).div_(4 * side)
        product.diagonal(dim1=-2, dim2=-1).add_(0.01)
        return product.mul_(largest)


def block_views(matrix: Tensor, rows: int, cols: int) -> list[Tensor]:
    """A matrix's blocks ``[*, rows, cols]`` in place; its sides must be multiples."""
    height, width = matrix.shape
    return [matrix.view(height // rows, rows, width // cols, cols).transpose(1, 2)]


def kron_arguments(
    source: Source, shape: tuple[int, int], blocks: list[tuple[int, int]], recipe: Recipe
) -> Arguments:
    """Of ``kron_step_``: one group for every block shape, each from a parameter of about `shape`."""
    lists: Arguments = {name: [] for name in LISTS}
    scale = 1e-3
    for m, n in blocks:
        height, width = max(shape[0] // m, 1) * m, max(shape[1] // n, 1) * n
        count = height * width // (m * n)
        for name, dtype in (("grad", recipe.torch_dtype), ("direction", torch.float32)):
            matrix = source.normal(height, width, scale=scale).to(dtype)
            lists[name] += block_views(matrix, m, n)
        lists["out"] += block_views(torch.zeros(height, width, device=source.device), m, n)
        for side, d, k in (("left", m, n), ("right", n, m)):
            mean = scale**2 * k
            lists[side].append(source.spd(count, d, 1 / (DAMPING * mean)))
            statistics = torch.tensor([mean, 0.0], device=source.device).repeat(count, 1)
            lists[f"{side}_statistics"].append(statistics)
            lists[f"{side}_root"].append(source.spd(count, d, 1.0))
    count = sum(len(factor) for factor in lists["left"])
    return dict(
        **lists,
        **recipe.scalars(),
        norms=torch.zeros(count, device=source.device),
        active=torch.ones(count, dtype=torch.bool, device=source.device),
        update=True,
    )


SIDES = ("left", "right", "left_statistics", "right_statistics")
LISTS = (*SIDES, "out", "grad", "direction", "left_root", "right_root")
KRON_WRITES = (*SIDES, "out", "norms")


def update_arguments(kron: Arguments) -> Arguments:
    """Of ``update_factor_``: the left side of the first group."""
    scalars = ("decay", "weight", "damping", "factor_scale", "refine", "precision")
    count = len(kron["left"][0])
    return dict(
        factor=kron["left"][0],
        statistics=kron["left_statistics"][0],
        unfolding=kron["grad"][:1],
        active=kron["active"][:count],
        **{name: kron[name] for name in scalars},
    )


def elementwise_arguments(source: Source, shapes: list[tuple[int, ...]], dtype: str) -> dict[str, Arguments]:
    """Of ``accumulate_`` and ``parameter_step_`` with the adam graft and decoupled weight decay."""
    made = {
        name: [source.normal(*shape, scale=1e-3) for shape in shapes]
        for name in ("momenta", "updates", "grads", "params")
    }
    squares = [1e-6 + momentum.square() for momentum in made["momenta"]]
    stored = {
        name: [tensor.to(getattr(torch, dtype)) for tensor in made[name]] for name in ("grads", "params")
    }
    common = dict(
        second_moments=squares,
        params=stored["params"],
        coefficients=torch.tensor([1.4, 9.0, 1e-11, 0.8], device=source.device).repeat(len(shapes), 1),
        active=torch.ones(len(shapes), dtype=torch.bool, device=source.device),
        l2=0.0,
        nesterov=False,
    )
    accumulate = dict(
        momenta=made["momenta"],
        directions=[],
        graft_norms=torch.zeros(len(shapes), device=source.device),
        grads=stored["grads"],
        beta1=0.9,
        beta2=0.99,
        weight2=0.01,
        **common,
    )
    write = dict(
        momenta=[],
        updates=made["updates"],
        directions=made["momenta"],
        lr=torch.tensor(1e-3, device=source.device),
        momentum=0.9,
        decay=0.01,
        **common,
    )
    return {"accumulate_": accumulate, "parameter_step_": write}


def copied(value: object, dtype: torch.dtype | None = None) -> Any:  # noqa: ANN401
    """A copy of an argument; floating tensors in `dtype`, if one is given."""
    if isinstance(value, list):
        return [copied(item, dtype) for item in value]
    if not isinstance(value, Tensor):
        return value
    return value.to(dtype, copy=True) if dtype and value.is_floating_point() else value.clone()


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
    refine, weight = arguments["refine"], arguments["weight"]
    gram = refine > 0 or arguments["factor_scale"] in ("frobenius", "schatten4")
    scratch = [(left.clone(), right.clone()) for left, right, *_ in groups]

    def run() -> None:
        for (left, right, a, b, grad, direction), outs in zip(groups, scratch, strict=True):
            downdate(left, grad, refine, weight, gram, outs[0])
            downdate(right, grad.mT, refine, weight, gram, outs[1])
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
