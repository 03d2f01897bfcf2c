"""A spec made real on a device: arguments, how backends run it, what it writes, what it should cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kradagrad_ext.backends import resolve
from kradagrad_ext.backends.scalars import sums_of
from kradagrad_ext.cost.elementwise import before_blocks, parameter_step_costs
from kradagrad_ext.cost.gpus import Cost
from kradagrad_ext.cost.parameters import make_config

from . import factors
from .inputs import SIDES, Arguments, Source, copied, make, offsets_of
from .specs import Spec

ERROR_BOUNDS = {"bf16x3": 1e-3, "tf32x3": 1e-4, "fp32": 1e-4}
"""Largest relative Frobenius error against float64: two-term bf16 is good for 2^-16 a product."""
ELEMENTWISE_BOUNDS = {"float32": 1e-5, "bfloat16": 8e-3}

WRITES = {
    "kron_step_": (*SIDES, "out", "norms"),
    "update_factor_": ("factor", "statistics"),
    "polar_roots_": ("roots",),
    "observe_gradients_": ("scalars", "coefficients", "active", "restarts"),
    "scale_updates_": ("coefficients", "scalars"),
    "accumulate_": ("momenta", "second_moments", "directions", "graft_norms"),
    "parameter_step_": ("params", "momenta"),
}
OVERWRITES = {
    "kron_step_": ("out", "norms"),
    "observe_gradients_": ("coefficients",),
    "accumulate_": ("directions", "graft_norms"),
}
"""What is written without being read: NaN in them before a call must be gone after it."""

REWRITTEN = ("coefficients", "active", "restarts")
"""What is written of all matrices, whichever take part."""

MASKS = {"observe_gradients_": "present", "scale_updates_": "preconditioned"}
"""What tells which parameters or matrices take part, where that is not ``active``."""


@dataclass
class Case:
    """An op's call on a device.

    Attributes:
        arguments: the op's keywords; made from the seed where none are given.
    """

    spec: Spec
    device: torch.device
    seed: int = 0
    arguments: Arguments = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arguments = self.arguments or make(self.spec, Source(self.device, self.seed))

    @property
    def bound(self) -> float:
        """On the relative error of each result."""
        spec = self.spec
        if spec.what == "stored":
            return ELEMENTWISE_BOUNDS["bfloat16"]
        return ERROR_BOUNDS[spec.precision] if spec.factored else ELEMENTWISE_BOUNDS[spec.dtype]

    @property
    def count(self) -> int:
        return len(self.arguments["scales"] if self.spec.factored else self.mask)

    @property
    def mask(self) -> Tensor:
        """Which parameters or matrices take part."""
        given: Tensor = self.arguments[MASKS.get(self.spec.op, "active")]
        return given

    @property
    def active(self) -> Tensor:
        """What takes part; compared by the host, since a GPU may compute nothing."""
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
        """The op on the case's own arguments, which it changes."""
        function = self.function(backend)
        return lambda: function(**self.arguments)

    def copy(self, dtype: torch.dtype | None = None) -> Case:
        arguments = {name: copied(value, dtype) for name, value in self.arguments.items()}
        return Case(self.spec, self.device, self.seed, arguments)

    def results(self, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """What the op writes on a copy of its arguments."""
        own = self.copy(dtype)
        own.function(backend, dtype or torch.float32)(**own.arguments)
        return [tensor for tensors in own.written().values() for tensor in tensors]

    def written(self) -> dict[str, list[Tensor]]:
        """Tensors that the op writes, by name; those of blocks as views."""
        found = {}
        for name in WRITES[self.spec.op]:
            value = self.arguments[name]
            if name == "graft_norms":  # which of a parameter's spans has which elements is left open
                value = sums_of(value, offsets_of(self.arguments["params"]))
            found[name] = value if isinstance(value, list) else [value]
        return found

    def masks(self, name: str) -> list[Tensor]:
        """Of each tensor written by this name, which of its rows are active."""
        active = self.active
        value = self.arguments[name]
        if not isinstance(value, list):
            return [active]
        if self.spec.factored:
            sides = self.arguments["roots" if self.spec.op == "polar_roots_" else "left"]
            return list(active.split([len(factor) for factor in sides]))
        return list(active[:, None].unbind()) if value else []

    def costs(self) -> tuple[Cost, ...]:
        """What the roofline makes a prediction of; nothing for one side alone."""
        spec, config = self.spec, make_config()
        dtype: torch.dtype = getattr(torch, spec.dtype)
        if spec.factored:
            return factors.costs(spec, self.arguments)
        shapes = list(spec.blocks)
        if spec.op == "accumulate_":
            return tuple(before_blocks(shapes, [], config, dtype))[-1:]
        if spec.op == "parameter_step_":
            return tuple(parameter_step_costs(shapes, [], config, dtype))[-1:]
        return ()


def rows(tensor: Tensor, mask: Tensor, factored: bool) -> Tensor:
    """A written tensor as one row for every element of its mask: a block, or a parameter's elements."""
    if not factored:
        return tensor.reshape(len(mask), -1)
    blocks = tensor.reshape(-1, *tensor.shape[-2:]) if tensor.ndim > 2 else tensor
    return blocks.reshape(len(mask), -1)
