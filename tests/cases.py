"""Random inputs of the ops, shared by tests and opcheck."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tolerances import backend_atol
from torch import Tensor

from kradagrad_ext.backends import native, reference, resolve, triton
from kradagrad_ext.backends.base import UpdateRule


def ops(backend: str, dtype: torch.dtype) -> Any:
    """Return the ops of a backend; skip the test if the backend does not serve the dtype."""
    reason = importlib.import_module(f"kradagrad_ext.backends.{backend}").available(
        torch.device("cpu"), dtype
    )
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return resolve(backend, torch.device("cpu"), dtype)


SQUARE_ROOT_BACKENDS = {"reference": reference, "native": native, "triton": triton}
"""Every backend by name, with the module that has its square-root ops."""


def square_root_ops(backend: str) -> Any:
    """Return the square-root ops of a backend; skip the test if this machine does not have the backend."""
    ops(backend, torch.float32)
    return SQUARE_ROOT_BACKENDS[backend]


def square_root_backend(ops: Any) -> str:
    """Return the name of the backend that has these ops."""
    return next(name for name, known in SQUARE_ROOT_BACKENDS.items() if known is ops)


def square_root_atol(ops: Any, rule: UpdateRule) -> float | None:
    """Return the absolute share of tolerances.py that the ops' products need under a rule."""
    served = rule.method == "products"
    return backend_atol(square_root_backend(ops), rule.refine, rule.precision) if served else None


def thousands(backend: str) -> int:
    """Return 3000 blocks; 40 for Triton, whose interpreter takes a tenth of a second for each block."""
    return 40 if backend == "triton" else 3000


def spd(n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Return random symmetric positive definite matrices ``[n, d, d]`` with eigenvalues from 1 to 100."""
    q = torch.linalg.qr(torch.randn(n, d, d, dtype=torch.float64))[0]
    values = torch.logspace(0, 2, d, dtype=torch.float64)
    x = q * values @ q.mT
    return ((x + x.mT) / 2).to(dtype).contiguous()


def strided(blocks: Tensor) -> list[Tensor]:
    """Return the blocks ``[N, m, n]`` as two row-major parameters cut into block grids, padded with NaN."""
    n, rows, columns = blocks.shape
    views = []
    for part in (blocks[: n // 2], blocks[n // 2 :]):
        padded = blocks.new_full((rows + 1, len(part) * columns + 3), math.nan)
        view = padded[:rows, : len(part) * columns].unflatten(1, (len(part), columns)).permute(1, 0, 2)[None]
        view.copy_(part.reshape(view.shape))
        views.append(view)
    return views


def padded(matrix: Tensor, transposed: bool) -> Tensor:
    """Return the matrix as a row-major or column-major view, padded with NaN, or with 77 for integers."""
    rows, columns = matrix.shape
    if transposed:
        return padded(matrix.mT, False).mT
    filling = math.nan if matrix.is_floating_point() else 77
    return matrix.new_full((rows + 1, columns + 3), filling)[:rows, :columns].copy_(matrix)


def whole(view: Tensor) -> Tensor:
    """Return all of a view's storage, the padding included."""
    return view.new_empty(0).set_(view.untyped_storage())


def copied(inputs: SimpleNamespace, dtype: torch.dtype | None = None) -> SimpleNamespace:
    """Copy an op's tensors and lists of tensors with their layouts; cast those of floats to `dtype`."""

    def copy(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(value, list):
            return [copy(tensor) for tensor in value]
        storage = whole(value).to(dtype if dtype and value.is_floating_point() else value.dtype, copy=True)
        return storage.as_strided(value.shape, value.stride(), value.storage_offset())

    return SimpleNamespace(**{name: copy(value) for name, value in vars(inputs).items()})


def assert_same_padding(views: list[Tensor], before: list[Tensor]) -> None:
    """Assert that no op has written into the padding around the views."""
    for view, old in zip(views, before, strict=True):
        assert torch.equal(_padding(view), _padding(old))


def _padding(view: Tensor) -> Tensor:
    """Return where a float storage is NaN; of an integer storage, a copy with zeros in the view's place."""
    if view.is_floating_point():
        return whole(view).isnan()
    storage = whole(view).clone()
    storage.as_strided(view.shape, view.stride(), view.storage_offset()).zero_()
    return storage


def factors(n: int, d: int, condition: float) -> Tensor:
    """Return F in float64, with singular values from 1 to the square root of `condition` of F F^T."""
    left, right = torch.linalg.qr(torch.randn(2, n, d, d, dtype=torch.float64))[0]
    return left * torch.logspace(0, math.log10(condition) / 2, d, dtype=torch.float64) @ right.mT


def exact_root(f: Tensor, p: int) -> Tensor:
    vectors, values, _ = torch.linalg.svd(f.double())
    return vectors * values[:, None, :] ** (2 / p) @ vectors.mT


def tensors_of(result: object, name: str) -> list[torch.Tensor]:
    value = getattr(result, name)
    return value if isinstance(value, list) else [value]
