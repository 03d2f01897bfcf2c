"""The Triton kernels as a backend for CPU tensors: the package's launch plans, run by the PTX executor.

Kernels are compiled ahead of time for an architecture. Every launch must finish in the executor without a
report. Scratch memory counts as uninitialised.
"""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import ptx_executor
import pytest
import torch
from cuda.executor_backend import Device
from cuda.toolchain import ROOT, cache_folder

os.environ.setdefault("TRITON_CACHE_DIR", str(cache_folder("triton") or ROOT / "build/triton-tests"))
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402  (it reads the variables above)
from triton.compiler import ASTSource  # noqa: E402

from kradagrad_ext.backends import reference, square_root_triton  # noqa: E402
from kradagrad_ext.triton_kernels import entry  # noqa: E402
from kradagrad_ext.triton_kernels.plan import launch, tuning  # noqa: E402

__all__ = ["Compiled", "compiled", "launch", "tuning"]  # and names that binaries.py imports from here

PACKAGE = "kradagrad_ext.triton_kernels"

TYPES = {
    "table": "*i64",
    "count": "i32",
    "scratch": "*u8",
    "active": "*i1",
    "scales": "*fp32",
    "norms": "*fp32",
    "coefficients": "*fp32",
    "lr": "*fp32",
}
"""Types of the kernels' arguments; all others are float32 numbers."""


def compiled(item: launch.Launch, architecture: str) -> Any:
    """Return a launch's kernel for an architecture, compiled as Triton's launcher would."""
    constants = tuple((item.constants | item.config.constants).items())
    return _compiled(item.kernel, constants, item.config.warps, item.config.stages, architecture)


@functools.cache
def _compiled(
    kernel: Any, constants: tuple[tuple[str, Any], ...], warps: int, stages: int, architecture: str
) -> Any:
    named = dict(constants)
    signature = {name: "constexpr" if name in named else TYPES.get(name, "fp32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=named)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=target_of(architecture), options=options)


def target_of(architecture: str) -> GPUTarget:
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


class Placed:
    """A tensor at an address of the executor, with the methods that plans use."""

    def __init__(self, tensor: torch.Tensor, device: Device) -> None:
        self.tensor = tensor
        self.address = device.address(tensor)
        self.shape, self.dtype, self.ndim = tensor.shape, tensor.dtype, tensor.ndim

    def data_ptr(self) -> int:
        return self.address

    def stride(self, dim: int | None = None) -> Any:
        return self.tensor.stride() if dim is None else self.tensor.stride(dim)

    def element_size(self) -> int:
        return self.tensor.element_size()

    def numel(self) -> int:
        return self.tensor.numel()


class Compiled:
    """The backend; `launches` has the latest call's launches with their counters.

    Args:
        seed: seed of the order of blocks and warps.  package: the kernels' package, or a copy with an edit.
        scratch_bytes: scratch memory of one slice, if it differs from the package's default.
    """

    name = "compiled"

    def __init__(
        self, architecture: str, seed: int = 0, package: str = PACKAGE, scratch_bytes: int | None = None
    ) -> None:
        self.architecture, self.seed, self.package = architecture, seed, package
        self.scratch = {} if scratch_bytes is None else {"scratch_bytes": scratch_bytes}
        self.elements = importlib.import_module(f"{package}.plan.elements")
        self.launches: list[tuple[str, ptx_executor.Launch]] = []

    def __getattr__(self, name: str) -> Any:
        """Return the reference's op where Triton has no kernel."""
        return getattr(reference, name)

    def run(self, plan: launch.Plan, device: Device, taking_part: int, scalars: dict[str, Any]) -> None:
        table, memory = device.allocate(8 * len(plan.entries) * entry.WIDTH.value)
        if plan.entries:
            memory[:] = np.array(plan.entries, np.int64).reshape(-1).view(np.uint8)
        scratch, _ = device.allocate(plan.scratch, uninitialised=True)
        self.launches = []
        for item in plan.launches:
            made = compiled(item, self.architecture)
            first = table + 8 * item.first * entry.WIDTH.value
            values = [first, item.count, scratch, taking_part, *(scalars[name] for name in item.scalars)]
            kernel = ptx_executor.Kernel(made.asm["ptx"], item.kernel.__name__)
            unused = len(kernel.parameters) - len(values)  # for Triton's scratch memory
            result = kernel.launch(
                device.memory,
                item.programs,
                32 * item.config.warps,
                [*values, *[0] * unused],
                dynamic_shared=made.metadata.shared,
                seed=self.seed,
            )
            result.assert_clean()
            self.launches.append((item.kernel.__name__, result))

    def update_factor_(self, *args: Any) -> None:
        with mock.patch.object(square_root_triton, "kernel_module", self._module):
            square_root_triton.update_factor_(*args)

    def kron_step_(self, *args: Any, **options: Any) -> None:
        with mock.patch.object(square_root_triton, "kernel_module", self._module):
            square_root_triton.kron_step_(*args, **options)

    def _module(self, name: str) -> Any:
        """Return a kernel module as the backend imports it, with this architecture and the executor."""
        if name == "plan.tuning":
            served = importlib.import_module(f"{self.package}.{name}").served
            return SimpleNamespace(architecture_of=lambda _: self.architecture, served=served)
        module = importlib.import_module(f"{self.package}.{name}")
        if name != "plan.square_root_step":
            return module
        return SimpleNamespace(run=functools.partial(self._run_step, module.plan_groups))

    def _run_step(
        self, plan_groups: Any, groups: list[Any], rule: Any, scales: torch.Tensor, scalars: dict[str, Any]
    ) -> None:
        device = Device()

        def placed(tensor: torch.Tensor | None) -> Placed | None:
            return None if tensor is None else Placed(tensor, device)

        placed_groups = [
            replace(
                group,
                **{name: list(map(placed, getattr(group, name))) for name in ("grad", "direction", "out")},
                **{name: placed(getattr(group, name)) for name in ("left_root", "right_root")},
                left=group.left and tuple(map(placed, group.left)),
                right=group.right and tuple(map(placed, group.right)),
            )
            for group in groups
        ]
        norms = scalars["norms"]
        numbers = scalars | {"norms": 0 if norms is None else device.address(norms)}
        self.run(plan_groups(placed_groups, rule, **self.scratch), device, device.address(scales), numbers)

    def _lists(self, device: Device, lists: dict[str, list[torch.Tensor]]) -> list[Any]:
        placed = {name: [Placed(tensor, device) for tensor in tensors] for name, tensors in lists.items()}
        return self.elements.parameters_of("", placed.pop("param"), placed)

    def update_moments_(
        self,
        momenta,
        second_moments,
        directions,
        graft_norms,
        grads,
        params,
        coefficients,
        active,
        beta1,
        beta2,
        weight2,
        nesterov,
    ) -> None:
        device = Device()
        lists = {"param": params, "grad": grads, "momentum": momenta}
        lists |= {"second_moment": second_moments, "direction": directions}
        constants = {"NESTEROV": nesterov, "HAS_NORMS": bool(len(graft_norms))}
        plan = self.elements.plan_update_moments(self._lists(device, lists), constants, self.architecture)
        scalars = {"beta1": beta1, "rest1": 1 - beta1, "beta2": beta2, "weight2": weight2}
        scalars |= {"coefficients": device.address(coefficients), "norms": device.address(graft_norms)}
        self.run(plan, device, device.address(active), scalars)

    def apply_updates_(
        self,
        params,
        momenta,
        residuals,
        updates,
        directions,
        second_moments,
        coefficients,
        active,
        lr,
        momentum,
        nesterov,
    ) -> None:
        device = Device()
        lists = {"param": params, "momentum": momenta, "residual": residuals, "update": updates}
        lists |= {"direction": directions, "second_moment": second_moments}
        parameters, constants = self._lists(device, lists), {"NESTEROV": nesterov}
        plan = self.elements.plan_apply_updates(parameters, constants, self.architecture)
        scalars = {"momentum": momentum, "coefficients": device.address(coefficients)}
        scalars["lr"] = device.address(lr)
        self.run(plan, device, device.address(active), scalars)
