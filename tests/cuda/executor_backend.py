"""The CUDA kernels as a backend for CPU tensors: the library's launch plans, run by the PTX executor.

Every launch must finish in the executor without a report: no race, no access out of bounds, no read of memory
that was not written. Scratch memory counts as uninitialised.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import inputs
import numpy as np
import ptx_executor
import torch
from torch import Tensor

from kradagrad_ext.backends import reference, square_root
from kradagrad_ext.backends.base import Backend

from . import toolchain

name = "executor"

PRECISION = "bf16x3"


@functools.cache
def kernel(name: str) -> ptx_executor.Kernel:
    """Return a kernel by the name that a plan launches."""
    return ptx_executor.Kernel(toolchain.ptx(inputs.kernels()[name].source), name)


class Device:
    """The memory of one call of an op; each storage is placed once, and a tensor has its offset in it."""

    def __init__(self) -> None:
        self.memory = ptx_executor.Memory()
        self._addresses: dict[int, int] = {}

    def address(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return 0
        if storage.data_ptr() not in self._addresses:
            data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            self._addresses[storage.data_ptr()] = self.memory.place(data)
        return self._addresses[storage.data_ptr()] + tensor.storage_offset() * tensor.element_size()

    def describe(self, tensor: Tensor) -> tuple[int, bool, list[int], list[int]]:
        bf16 = tensor.dtype in (torch.bfloat16, torch.int16)
        return self.address(tensor), bf16, list(tensor.shape), list(tensor.stride())

    def describe_all(self, tensors: list[Tensor]) -> list[tuple[int, bool, list[int], list[int]]]:
        return [self.describe(tensor) for tensor in tensors]

    def allocate(self, size: int, uninitialised: bool = False) -> tuple[int, np.ndarray]:
        array = np.full(max(size, 1), 0xFF, np.uint8)
        return self.memory.place(array, uninitialised=uninitialised), array


class Executor:
    """The backend; torch serves updates by Cholesky, which the kernels lack.

    `launches` has the latest call's launches with their counters, `planned` the same as they were planned.

    Args:
        seed: if not 0, shuffles the order of blocks and warps.
        scratch_bytes: scratch memory of one slice of the grouped products.
        races: True to look for races, which takes several times the buffers' size in address space.
    """

    name = "executor"
    shared_limit = 163 << 10  # bytes of shared memory that a CTA may have
    multiprocessors = 3  # few, so that CTAs of wide blocks take more than one

    def __init__(self, seed: int = 0, scratch_bytes: int = 1 << 28, races: bool = True) -> None:
        self.seed = seed
        self.races = races
        self.scratch_bytes = scratch_bytes
        self.launches: list[tuple[str, ptx_executor.Launch]] = []
        self.planned: list[tuple[str, list[int], list[int], int, bytes]] = []

    def run(self, device: Device, plan) -> None:
        """Allocate a plan's memory, bind the plan to it, and launch."""
        table, bytes_of_table = device.allocate(len(plan.table))
        scratch, _ = device.allocate(plan.scratch, uninitialised=True)
        plan.bind(table, scratch)
        bytes_of_table[: len(plan.table)] = np.frombuffer(plan.table, np.uint8)
        self.launches, self.planned = [], plan.launches
        for name, grid, block, shared, parameters in plan.launches:
            launch = kernel(name).launch(
                device.memory,
                grid,
                block,
                [parameters],
                dynamic_shared=shared,
                seed=self.seed,
                races=self.races,
            )
            launch.assert_clean()
            self.launches.append((name, launch))

    def update_factor_(self, factor, statistics, unfolding, scales, rule) -> None:
        if rule.method == "cholesky":
            square_root.update_factor_(factor, statistics, unfolding, scales, rule)
            return
        device = Device()
        group = {"blocks": len(factor), "m": factor.shape[1], "n": unfolding[0].shape[-1] if unfolding else 0}
        group |= {"grad": device.describe_all(unfolding), "direction": [], "out": []}
        group |= {"left": (device.describe(factor), device.address(statistics)), "right": None}
        group |= {"left_root": None, "right_root": None}
        self._run_step(device, [group], replace(rule, coupled=False), True, False, scales, None)

    def kron_step_(self, groups, scales, norms, rule, *, update, precondition) -> None:
        if rule.method == "cholesky" and update:
            square_root.kron_step_(groups, scales, norms, rule, update=update, precondition=precondition)
            return
        device = Device()
        described = [self._describe(device, group, rule, update, precondition) for group in groups]
        self._run_step(device, described, rule, update, precondition, scales, norms)

    def _describe(self, device, group, rule, update, precondition) -> dict:
        m, n = group.left.factor.shape[-1], group.right.factor.shape[-1]
        rooted = precondition or (update and rule.coupled)
        return {
            "blocks": len(group.left.factor),
            "m": m,
            "n": n,
            "grad": device.describe_all(group.grads) if update else [],
            "direction": device.describe_all(group.directions) if precondition else [],
            "out": device.describe_all(group.out) if precondition else [],
            "left": (device.describe(group.left.factor), device.address(group.left.statistics)),
            "right": (device.describe(group.right.factor), device.address(group.right.statistics)),
            "left_root": device.describe(group.left.root) if rooted else None,
            "right_root": device.describe(group.right.root) if rooted else None,
        }

    def _run_step(self, device, groups, rule, update, precondition, scales, norms) -> None:
        scalars = (rule.decay, rule.weight, rule.damping, rule.prior, rule.damped_updates)
        plan = toolchain.plans().square_root_step(
            groups,
            *scalars,
            rule.refine,
            rule.precision,
            rule.coupled,
            update,
            precondition,
            device.address(scales),
            0 if norms is None else device.address(norms),
            self.scratch_bytes,
            self.shared_limit,
            self.multiprocessors,
        )
        self.run(device, plan)

    def guard_gradients_(
        self, scalars, coefficients, active, restarts, norms, numel, present, weight_decay, rule
    ) -> None:
        device = Device()
        tensors = (scalars, coefficients, active, restarts, norms, numel, present, weight_decay)
        addresses = [device.address(tensor) for tensor in tensors]
        self.run(device, toolchain.plans().guard_gradients(addresses, len(scalars), *rule.values))

    def scale_updates_(
        self,
        coefficients,
        scalars,
        graft_norms,
        graft_offsets,
        update_norms,
        update_order,
        update_offsets,
        numel,
        preconditioned,
        rule,
    ) -> None:
        device = Device()
        spans, blocks = (graft_norms, graft_offsets), (update_norms, update_order, update_offsets)
        tensors = (coefficients, scalars, *spans, *blocks, numel, preconditioned)
        addresses = [device.address(tensor) for tensor in tensors]
        numbers = (rule.beta1, rule.averaged, rule.length)
        self.run(device, toolchain.plans().scale_updates(addresses, len(scalars), *numbers))

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name in inputs.elementwise():
            return functools.partial(self._elementwise, name)
        raise AttributeError(name)

    def _elementwise(self, op: str, *args: Any, **options: Any) -> None:
        """Run an elementwise op, whose plan takes its arguments by their names."""
        device, kinds = Device(), ({}, {}, {})
        lists, tensors, scalars = kinds
        contract = inspect.signature(getattr(Backend, op))
        arguments = contract.bind(self, *args, **options).arguments
        for name, value in list(arguments.items())[1:]:
            if isinstance(value, Tensor):
                tensors[name] = device.address(value)
            elif isinstance(value, (list, tuple)):
                lists[name] = device.describe_all(value)
            else:
                scalars[name] = float(value)
        self.run(device, toolchain.plans().elementwise(op, *kinds, self.multiprocessors))

    def polar_roots_(self, sides, rule, turn) -> None:
        device = Device()
        described = [
            {
                "blocks": len(side.side.factor),
                "d": side.side.factor.shape[-1],
                "k": side.columns,
                "factor": device.describe(side.side.factor),
                "root": device.describe(side.side.root),
                "statistics": device.address(side.side.statistics),
                "root_statistics": device.address(side.root_stats),
                "active": device.address(side.active),
            }
            for side in sides
        ]
        counter = 0 if turn.counter is None else device.address(turn.counter)
        scalars = (rule.polynomials, rule.bound, rule.precision, turn.number, turn.turns, counter)
        plan = toolchain.plans().roots(described, *scalars, self.shared_limit, self.multiprocessors)
        self.run(device, plan)

    def decomposed_roots(self, factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
        return reference.decomposed_roots(factors, p)


class GroupedExecutor(Executor):
    """The backend on a GPU that lacks the shared memory for the resident kernels."""

    shared_limit = 0


class _Plans:
    """Mixin that makes plans and launches nothing; `planned` has the latest plan's launches."""

    def run(self, device: Device, plan) -> None:
        self.planned = plan.launches


class Planner(_Plans, Executor):
    """Planner of all ops."""


class GroupedPlanner(_Plans, GroupedExecutor):
    """Planner that uses grouped products alone."""
