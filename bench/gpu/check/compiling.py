"""Compilation of Triton's kernels ahead of their launches, into the cache that the launches read.

The op of a case runs on small CPU tensors, with a launcher that records each specialisation instead of
launching it. `JITFunction.warmup` then compiles the specialisation for an architecture in the same way as a
launch does, so the launch finds it in the cache. This needs no GPU and uses none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from bench.gpu.check import trajectory
from bench.gpu.check.cases import DeviceCase
from bench.gpu.check.specs import TIMES, TRITON, CaseSpec
from bench.gpu.check.words import ExhaustedError
from kradagrad_ext.backends import triton as backend
from kradagrad_ext.triton_kernels.plan import launch, plan_cache, tuning

Key = tuple[str, tuple[tuple[str, Any], ...], launch.KernelConfig]


class _Driver:
    """A stand-in for a GPU's driver that knows only the architecture."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def architecture_of(capability: int) -> str:
    """Return the tuning table's name of an architecture, as `tuning.architecture_of` does for a device."""
    return {9: "sm_90", 10: "sm_100"}.get(capability // 10, "sm_80")


@functools.cache
def specialisations(capability: int) -> list[tuple[launch.Launch, list[Any]]]:
    """Return every specialisation of the check once, with arguments of its types, in order of first use."""
    distinct: dict[Key, tuple[launch.Launch, list[Any]]] = {}

    def note(plan: launch.Plan, table: Any, active: Any, scalars: Mapping[str, Any]) -> None:  # noqa: ANN401
        for item in plan.launches:
            if item.programs == 0:
                continue
            key = (item.kernel.__name__, tuple(item.constants.items()), item.config)
            fixed = [torch.zeros(1, dtype=torch.int64), item.count, torch.zeros(1, dtype=torch.uint8), active]
            distinct.setdefault(key, (item, [*fixed, *(scalars[name] for name in item.scalars)]))

    with (
        mock.patch.object(launch, "run", note),
        mock.patch.object(tuning, "architecture_of", return_value=architecture_of(capability)),
        mock.patch.object(backend, "available", return_value=None),
    ):
        for spec in _specs():
            DeviceCase(spec, torch.device("cpu")).call("triton")()
        _optimizer_steps()
    plan_cache.forget()
    return list(distinct.values())


def _specs() -> Iterator[CaseSpec]:
    """Yield the specs of all cases of Triton's kernels, with the least work that has the same launches."""
    first = [spec for specs in TRITON.values() for spec in specs]
    for spec in dict.fromkeys([*first, *TIMES]):
        yield spec.small() if spec not in first else spec


def _optimizer_steps() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        run = trajectory.Run("triton", torch.device("cpu"), dtype, 0)
        run.step(0)
        run.step(1)


def compile_one(index: int, capability: int) -> str:
    """Compile the specialisation of this index and describe it. Raise ExhaustedError past the last one."""
    known = specialisations(capability)
    if index >= len(known):
        raise ExhaustedError
    chosen, arguments = known[index]
    triton.runtime.driver.set_active(_Driver(capability))
    chosen.kernel.warmup(
        *arguments,
        grid=(1,),
        **chosen.constants,
        **chosen.config.constants,
        num_warps=chosen.config.warps,
        num_stages=chosen.config.stages,
    )
    constants = " ".join(
        f"{name}={value}" for name, value in (chosen.constants | chosen.config.constants).items()
    )
    return f"{chosen.kernel.__name__} {constants}"


class Compiled:
    """A counter of Triton's cache hits and compilations since its creation."""

    def __init__(self) -> None:
        self.hits, self.missed = 0, []
        knobs = getattr(triton, "knobs", None)
        self.known = knobs is not None and hasattr(knobs.compilation, "listener")
        if self.known:
            knobs.compilation.listener = self._note

    def _note(self, *, src: Any, cache_hit: bool, **_: object) -> None:  # noqa: ANN401
        if cache_hit:
            self.hits += 1
        else:
            self.missed.append(src.name)

    def taken(self) -> str:
        """Return the counts in words and reset them."""
        hits, missed = self.hits, self.missed
        self.hits, self.missed = 0, []
        if missed:
            return (
                f"Triton compiled {len(missed)} ({', '.join(dict.fromkeys(missed))}), {hits} from the cache"
            )
        return f"Triton: all {hits} from the cache" if hits else ""
