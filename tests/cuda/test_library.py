"""The library with the CUDA kernels: its registered ops, and that it loads without CUDA."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from kradagrad_ext import build_info
from kradagrad_ext.backends import native, square_root
from kradagrad_ext.backends.base import UpdateRule

from .toolchain import KERNELS, ROOT

BUILD = build_info.read_build_info()
needs_kernels = pytest.mark.skipif(BUILD.native != "cuda", reason=f"this build serves {BUILD.native}")

ONE_SIDED = (("decomposed_roots", "CUDA"), ("polar_roots_", "CPU"))
OPS = re.findall(r'"(\w+)\(Tensor', (ROOT / "csrc/ops.cpp").read_text())


@needs_kernels
@pytest.mark.parametrize(
    ("op", "key"),
    [(op, key) for op in OPS for key in ("CPU", "CUDA") if (op, key) not in ONE_SIDED],
)
def test_every_op_has_both_sides(op: str, key: str) -> None:
    """Every op has a CPU and a CUDA kernel, except those whose other side is torch's."""
    assert native.available(torch.device("cpu")) is None
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"kradagrad_ext::{op}", key)


@needs_kernels
def test_native_serves_cuda_with_float32_factors() -> None:
    device = torch.device("cuda")
    assert native.available(device, torch.float32) is None
    assert native.available(device, torch.float64) == "factors must be float32, not torch.float64"


def test_every_kernel_can_be_launched_by_name() -> None:
    """csrc/cuda/kernels.cpp, with elementwise.h, lists exactly the kernels that the source files define."""
    defined = set()
    for source in KERNELS.glob("*.cu"):
        text = source.read_text()
        defined |= set(re.findall(r"__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(", text))
        stems = re.findall(r"(\w+_)##side##_##name", text)
        variants = re.findall(r"^KRADAGRAD_KERNEL\((\d+), \d+, (\w+),", text, re.MULTILINE)
        defined |= {f"{stem}{side}_{name}" for stem in stems for side, name in variants}
    lists = (ROOT / "csrc/cuda/kernels.cpp").read_text() + (KERNELS / "elementwise.h").read_text()
    listed = re.findall(r"KERNEL\((\w+), \w+\)", lists)
    assert defined == set(listed)
    assert len(listed) == len(set(listed))


def test_an_update_by_cholesky_on_cuda_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels have no Cholesky: the reference's functions run instead, and nothing else does."""
    called = []
    monkeypatch.setattr(square_root, "update_factor_", lambda *_: called.append("update_factor_"))
    monkeypatch.setattr(square_root, "kron_step_", lambda *_, **__: called.append("kron_step_"))
    rule = UpdateRule(decay=0.9, weight=0.1, damping=1e-3, method="cholesky")
    fake: Any = type("OnCuda", (), {"device": torch.device("cuda")})()
    native.update_factor_(fake, fake, [], fake, rule)
    native.kron_step_([], fake, fake, rule, update=True, precondition=True)
    assert called == ["update_factor_", "kron_step_"]
