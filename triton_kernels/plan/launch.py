"""Launches as data: a kernel, its entries of the plan's table, and its constants.

A plan depends only on dtypes, shapes, strides and addresses (plan_cache.py). `run` launches it through
Triton; tests launch the same plan in other ways.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from .. import entry
from .views import Matrices

ALIGNMENT = 64

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True)
class KernelConfig:
    """Tile sizes of a kernel, and the options of its compilation (tuning.py)."""

    constants: Mapping[str, int]
    warps: int
    stages: int = 1

    def __hash__(self) -> int:
        return hash((tuple(self.constants.items()), self.warps, self.stages))


@dataclass(frozen=True)
class BlockWork:
    """The work of one kernel on blocks `start` to before `end` of a group.

    Args:
        kernel: the Triton function.  constants: its specialisation, besides the configuration's constants.
        fields: values of its entries by index (entry.py).
        matrices: matrices by their number in the entry.
        tiles: number of programs of one block.
    """

    kernel: Any
    config: KernelConfig
    constants: Mapping[str, Any]
    fields: Mapping[int, int]
    matrices: Mapping[int, Matrices]
    start: int
    end: int
    tiles: int = 1

    def pieces(self) -> Iterable[tuple[int, int]]:
        """Return the ranges of blocks between the beginnings of the matrices' views."""
        cuts = {self.start}.union(*(matrices.cuts() for matrices in self.matrices.values()))
        inner = sorted(cut for cut in cuts if self.start <= cut < self.end)
        return zip(inner, [*inner[1:], self.end], strict=True)

    def entries(self) -> Iterable[tuple[list[int], int]]:
        """Yield the entries and their numbers of programs."""
        for start, end in self.pieces():
            values = [0] * entry.WIDTH.value
            values[entry.STATE.value] = -1
            for field, value in self.fields.items():
                values[field] = value
            values[entry.START.value], values[entry.TILES.value] = start, self.tiles
            for index, matrices in self.matrices.items():
                at = entry.MATRICES.value + index * entry.MATRIX_WIDTH.value
                values[at : at + entry.MATRIX_WIDTH.value] = matrices.at(start).fields(matrices.scratch)
            yield values, (end - start) * self.tiles


@dataclass(frozen=True)
class Launch:
    """A kernel over `count` entries from `first` on."""

    kernel: Any
    config: KernelConfig
    constants: Mapping[str, Any]
    programs: int
    first: int
    count: int

    @property
    def scalars(self) -> list[str]:
        """Names of the kernel's arguments after the common ones; the caller passes them by name."""
        names = self.kernel.arg_names[COMMON:]
        return [name for name in names if name not in self.constants and name not in self.config.constants]


COMMON = 4
"""Number of the arguments that all kernels have: `table`, `count`, `scratch`, and `active` or `scales`."""


@dataclass
class Plan:
    """Launches in order, their table, and the bytes of scratch memory that they share."""

    launches: list[Launch] = dataclasses.field(default_factory=list)
    entries: list[list[int]] = dataclasses.field(default_factory=list)
    scratch: int = 0
    _used: int = 0

    def floats(self, count: int) -> int:
        """Reserve scratch memory for `count` float32, and return its offset in bytes."""
        offset = self._used
        self._used += -(-4 * count // ALIGNMENT) * ALIGNMENT
        self.scratch = max(self.scratch, self._used)
        return offset

    def doubles(self, count: int) -> int:
        """Reserve scratch memory for `count` float64, and return its offset in bytes."""
        return self.floats(2 * count)

    def mark(self) -> int:
        return self._used

    def release(self, mark: int) -> None:
        """Release the scratch memory reserved since `mark`, for reuse by later launches."""
        self._used = mark

    def step(self, works: Iterable[BlockWork]) -> None:
        """Add works that do not depend on each other: one launch for each specialisation."""
        by_launch: dict[Any, list[BlockWork]] = {}
        for work in works:
            if work.end > work.start and work.tiles > 0:
                key = (work.kernel.__name__, work.config, tuple(work.constants.items()))
                by_launch.setdefault(key, []).append(work)
        for same in by_launch.values():
            first, programs = len(self.entries), 0
            for work in same:
                for values, programs_of_entry in work.entries():
                    values[entry.FIRST_PROGRAM.value] = programs
                    self.entries.append(values)
                    programs += programs_of_entry
            work = same[0]
            count = len(self.entries) - first
            self.launches.append(Launch(work.kernel, work.config, work.constants, programs, first, count))


def run(plan: Plan, table: torch.Tensor, taking_part: torch.Tensor, scalars: Mapping[str, Any]) -> None:
    """Launch a plan on the current stream of its device; `scalars`: the kernels' other arguments by name."""
    device = taking_part.device
    scratch = torch.empty(max(plan.scratch, 1), dtype=torch.uint8, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for launch in plan.launches:
            if launch.programs == 0:
                continue
            launch.kernel[(launch.programs,)](
                table[launch.first :],
                launch.count,
                scratch,
                taking_part,
                *(scalars[name] for name in launch.scalars),
                **launch.constants,
                **launch.config.constants,
                num_warps=launch.config.warps,
                num_stages=launch.config.stages,
            )
