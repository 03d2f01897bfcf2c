"""Launches as data: which kernel, over which entries of one table, with which constants.

A plan is made from dtypes, shapes, strides and addresses alone. `run` launches it through Triton; tests
launch the same plan in other ways.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton.language as tl

from . import entry as fields
from .blocks import Matrices

ALIGNMENT = 64
SIZE_MULTIPLE = 8
"""What `entry.size` promises of rows, columns and depth where matrices are read in vectors."""

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True)
class Config:
    """How a kernel is cut and compiled (tuning.py)."""

    constants: Mapping[str, int]
    warps: int
    stages: int = 1

    def __hash__(self) -> int:
        return hash((tuple(self.constants.items()), self.warps, self.stages))


@dataclass(frozen=True)
class Work:
    """What one kernel does to blocks `start` to `end` of a group.

    Args:
        kernel: the Triton function.  constants: of its specialisation, besides the configuration's.
        fields: of its entries, by their place (entry.py).
        matrices: by their number in the entry.
        tiles: programs of one block.
    """

    kernel: Any
    config: Config
    constants: Mapping[str, Any]
    fields: Mapping[int, int]
    matrices: Mapping[int, Matrices]
    start: int
    end: int
    tiles: int = 1

    def pieces(self) -> Iterable[tuple[int, int]]:
        """The blocks, cut where a view of a matrix begins."""
        cuts = {self.start}.union(*(matrices.cuts() for matrices in self.matrices.values()))
        inner = sorted(cut for cut in cuts if self.start <= cut < self.end)
        return zip(inner, [*inner[1:], self.end], strict=True)

    def entries(self) -> Iterable[tuple[list[int], int]]:
        """Entries and their numbers of programs."""
        for start, end in self.pieces():
            words = [0] * fields.WIDTH.value
            for place in (fields.PENDING, fields.NEXT_PENDING, fields.FAILED):
                words[place.value] = -1
            for place, value in self.fields.items():
                words[place] = value
            words[fields.START.value], words[fields.TILES.value] = start, self.tiles
            for index, matrices in self.matrices.items():
                at = fields.MATRICES.value + index * fields.MATRIX_WIDTH.value
                words[at : at + fields.MATRIX_WIDTH.value] = matrices.at(start).words(matrices.scratch)
            yield words, (end - start) * self.tiles


@dataclass(frozen=True)
class Launch:
    """A kernel over `count` entries from `first` on."""

    kernel: Any
    config: Config
    constants: Mapping[str, Any]
    programs: int
    first: int
    count: int

    @property
    def scalars(self) -> list[str]:
        """Names of the kernel's arguments after `active`, which the caller gives by name."""
        names = self.kernel.arg_names[len(COMMON) :]
        return [name for name in names if name not in self.constants and name not in self.config.constants]


COMMON = ("table", "count", "scratch", "active")


@dataclass
class Plan:
    """Launches in their order, their table, and the bytes of scratch memory that they share."""

    launches: list[Launch] = field(default_factory=list)
    words: list[list[int]] = field(default_factory=list)
    scratch: int = 0
    _used: int = 0

    def floats(self, count: int) -> int:
        """Room for float32 in scratch memory, as an offset in bytes."""
        place = self._used
        self._used += -(-4 * count // ALIGNMENT) * ALIGNMENT
        self.scratch = max(self.scratch, self._used)
        return place

    def mark(self) -> int:
        return self._used

    def release(self, mark: int) -> None:
        """Give back all that was taken since `mark`: launches that come later may take it again."""
        self._used = mark

    def step(self, works: Iterable[Work]) -> None:
        """Works that do not depend on each other: one launch for each specialisation."""
        by_launch: dict[Any, list[Work]] = {}
        for work in works:
            if work.end > work.start and work.tiles > 0:
                key = (work.kernel.__name__, work.config, tuple(work.constants.items()))
                by_launch.setdefault(key, []).append(work)
        for same in by_launch.values():
            first, programs = len(self.words), 0
            for work in same:
                for words, own in work.entries():
                    words[fields.FIRST_PROGRAM.value] = programs
                    self.words.append(words)
                    programs += own
            work = same[0]
            count = len(self.words) - first
            self.launches.append(Launch(work.kernel, work.config, work.constants, programs, first, count))


class Planned(NamedTuple):
    """A plan and its table on a device."""

    plan: Plan
    table: torch.Tensor
    pinned: torch.Tensor  # the host's memory that it is copied from, which a captured graph copies again


_KEPT: OrderedDict[Hashable, Planned] = OrderedDict()
_CAPTURED: list[Planned] = []
"""What CUDA graphs use: for ever, since a graph may be replayed at any time."""
_LOCK = threading.Lock()
MOST_KEPT = 128
"""Plans that are kept: as long as tensors stay where they are, nothing is made or uploaded."""


def key_of(tensors: Iterable[torch.Tensor | None]) -> Hashable:
    """All that a plan knows of tensors."""
    return tuple(None if t is None else (t.data_ptr(), t.dtype, tuple(t.shape), t.stride()) for t in tensors)


def planned(key: Hashable, device: torch.device, make: Callable[[], Plan]) -> Planned:
    """The plan of this key on a device's current stream, made and uploaded if it is not kept."""
    stream, capturing = 0, False
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
        capturing = torch.cuda.is_current_stream_capturing()
    key = (key, device, stream)
    with _LOCK:
        kept = _KEPT.pop(key, None)
        made = kept or _uploaded(make(), device)
        if capturing:
            _CAPTURED.append(made)
        if kept or not capturing:  # an upload that is captured happens when the graph runs, not before
            _KEPT[key] = made
        if len(_KEPT) > MOST_KEPT:
            _KEPT.popitem(last=False)
    return made


def _uploaded(plan: Plan, device: torch.device) -> Planned:
    words = torch.tensor(plan.words, dtype=torch.int64)
    pinned = words.pin_memory() if device.type == "cuda" else words
    return Planned(plan, pinned.to(device, non_blocking=True), pinned)


def forget_plans() -> None:
    """Make all plans anew: what they were made from has changed."""
    _KEPT.clear()


def run(made: Planned, active: torch.Tensor, scalars: Mapping[str, Any]) -> None:
    """Launch a plan on the current stream of its device; `scalars`: the arguments that kernels name."""
    device = active.device
    scratch = torch.empty(max(made.plan.scratch, 1), dtype=torch.uint8, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for launch in made.plan.launches:
            if launch.programs == 0:
                continue
            launch.kernel[(launch.programs,)](
                made.table[launch.first :],
                launch.count,
                scratch,
                active,
                *(scalars[name] for name in launch.scalars),
                **launch.constants,
                **launch.config.constants,
                num_warps=launch.config.warps,
                num_stages=launch.config.stages,
            )
