"""A spec on a device: the op's arguments, its call by a backend, its outputs and its predicted cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.gpu.check import factors
from bench.gpu.check.inputs import MASKS, WRITES, Arguments, Source, copied, make, offsets_of
from bench.gpu.check.specs import CaseSpec
from kradagrad_ext.backends import resolve
from kradagrad_ext.backends.scalars import sums_of
from kradagrad_ext.cost.parameters import make_config
from kradagrad_ext.cost.work import Cost, apply_updates_costs, before_blocks

ERROR_BOUNDS = {"bf16x3": 1e-3, "tf32x3": 1e-4, "fp32": 1e-4}
"""Largest relative Frobenius error against float64: two-term bf16 has an error of 2^-16 per product."""
ELEMENTWISE_BOUNDS = {"float32": 1e-5, "bfloat16": 8e-3}

REWRITTEN = ("coefficients", "active", "restarts")
"""Outputs that the op writes for all matrices, active or not."""


@dataclass
class DeviceCase:
    """A call of an op on a device.

    Attributes:
        arguments: the op's keywords; made from the seed if empty.
    """

    spec: CaseSpec
    device: torch.device
    seed: int = 0
    arguments: Arguments = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arguments = self.arguments or make(self.spec, Source(self.device, self.seed))

    @property
    def bound(self) -> float:
        """Bound on the relative error of each result."""
        spec = self.spec
        if spec.what == "stored":
            return ELEMENTWISE_BOUNDS["bfloat16"]
        return ERROR_BOUNDS[spec.precision] if spec.factored else ELEMENTWISE_BOUNDS[spec.dtype]

    @property
    def count(self) -> int:
        return len(self.arguments["scales"] if self.spec.factored else self.mask)

    @property
    def mask(self) -> Tensor:
        """Mask of the active parameters or matrices."""
        mask: Tensor = self.arguments[MASKS.get(self.spec.op, "active")]
        return mask

    @property
    def active(self) -> Tensor:
        """Mask of active blocks, parameters or matrices. The host compares: a fake GPU computes nothing."""
        if not self.spec.factored:
            return self.mask
        scales: Tensor = self.arguments["scales"]
        return (scales.cpu() > 0).to(scales.device)

    def function(self, backend: str, dtype: torch.dtype = torch.float32) -> Callable[..., object]:
        if self.spec.factored:
            return factors.function(self.spec.op, backend, self.device, dtype)
        op: Callable[..., object] = getattr(resolve(backend, self.device, dtype), self.spec.op)
        return op

    def call(self, backend: str) -> Callable[[], object]:
        """Return a call of the op on the arguments of the case, which the call changes."""
        function = self.function(backend)
        return lambda: function(**self.arguments)

    def copy(self, dtype: torch.dtype | None = None) -> DeviceCase:
        arguments = {name: copied(value, dtype) for name, value in self.arguments.items()}
        return DeviceCase(self.spec, self.device, self.seed, arguments)

    def results(self, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Run the op on a copy of the arguments and return the tensors that it writes."""
        copy = self.copy(dtype)
        copy.function(backend, dtype or torch.float32)(**copy.arguments)
        return [tensor for tensors in copy.written().values() for tensor in tensors]

    def written(self) -> dict[str, list[Tensor]]:
        """Return the tensors that the op writes, by name; blocks are views."""
        tensors = {}
        for name in WRITES[self.spec.op]:
            value = self.arguments[name]
            if name == "graft_norms":  # backends may assign a parameter's elements to its spans differently
                value = sums_of(value, offsets_of(self.arguments["params"]))
            tensors[name] = value if isinstance(value, list) else [value]
        return tensors

    def masks(self, name: str) -> list[Tensor]:
        """Return the mask of active rows for each tensor written under this name."""
        active = self.active
        value = self.arguments[name]
        if not isinstance(value, list):
            return [active]
        if self.spec.factored:
            sides = self.arguments["roots" if self.spec.op == "polar_roots_" else "left"]
            return list(active.split([len(factor) for factor in sides]))
        return list(active[:, None].unbind()) if value else []

    def costs(self) -> tuple[Cost, ...]:
        """Return the costs for the roofline's prediction; none for an update of one side alone."""
        spec, config = self.spec, make_config()
        dtype: torch.dtype = getattr(torch, spec.dtype)
        if spec.factored:
            return factors.costs(spec, self.arguments)
        shapes = list(spec.blocks)
        if spec.op == "update_moments_":
            return tuple(before_blocks(shapes, [], config, dtype))[-1:]
        if spec.op == "apply_updates_":
            return tuple(apply_updates_costs(shapes, [], config, dtype))[-1:]
        return ()


def rows(tensor: Tensor, mask: Tensor, factored: bool) -> Tensor:
    """View a written tensor as one row per element of its mask: a block, or a parameter's elements."""
    if not factored:
        return tensor.reshape(len(mask), -1)
    blocks = tensor.reshape(-1, *tensor.shape[-2:]) if tensor.ndim > 2 else tensor
    return blocks.reshape(len(mask), -1)
