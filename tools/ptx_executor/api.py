"""Kernels in PTX, executed on the CPU on NumPy arrays."""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import build

_executor = build.load()

ParseError = _executor.ParseError
ExecutionError = _executor.ExecutionError
StepLimit = _executor.StepLimit

MAX_SHARED = 227 * 1024
STEP_LIMIT = 200_000_000


@dataclass(frozen=True)
class Report:
    """Faults of one kind at one instruction."""

    kind: str
    ptx_line: int
    source_file: str
    source_line: int
    count: int
    example: str
    instruction: str

    def __str__(self) -> str:
        source = f" ({self.source_file}:{self.source_line})" if self.source_file else ""
        return (
            f"{self.kind}, {self.count} times, PTX line {self.ptx_line}{source}: "
            f"`{self.instruction}`; first {self.example}"
        )


class Counters(dict[str, Any]):
    """The counted work of a launch; counters.mma is counters["mma"]."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (numbers, and tables of them)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Launch:
    """Reports of a launch's checks, and its counted work."""

    reports: list[Report]
    counters: Counters

    def assert_clean(self) -> None:
        if self.reports:
            raise AssertionError("\n".join(map(str, self.reports)))


class Memory:
    """Device memory: arrays at invented addresses, 2**36 apart."""

    def __init__(self) -> None:
        self._memory = _executor.Memory()
        self._arrays: list[np.ndarray] = []

    def place(
        self, array: np.ndarray, name: str = "", writable: bool = True, uninitialised: bool = False
    ) -> int:
        """Return the address of the array, which is used in place, not copied."""
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise ValueError("expected a C-contiguous NumPy array")
        if writable and not array.flags.writeable:
            raise ValueError("a writable buffer needs a writeable array")
        name = name or f"buffer {len(self._arrays)}"
        self._arrays.append(array)
        address: int = self._memory.place(array.ctypes.data, array.nbytes, name, writable, uninitialised)
        return address


def _dimensions(value: int | Sequence[int]) -> list[int]:
    numbers = [value] if isinstance(value, (int, np.integer)) else list(value)
    numbers = [int(number) for number in numbers]
    if not 1 <= len(numbers) <= 3 or min(numbers) < 1 or max(numbers) >= 2**31:
        raise ValueError(f"bad dimensions {value}")
    return numbers + [1] * (3 - len(numbers))


def _encode(value: object, size: int, name: str) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        data = bytes(value)
    elif isinstance(value, (bool, int)):
        if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
            raise ValueError(f"{value} does not fit the {size} bytes of parameter {name}")
        data = (int(value) % (1 << 8 * size)).to_bytes(size, "little")
    elif isinstance(value, np.generic):
        data = value.tobytes()
    elif isinstance(value, float):
        data = struct.pack("<f", value)
    else:
        raise ValueError(f"parameter {name}: unsupported value {value!r}")
    if len(data) != size:
        raise ValueError(f"parameter {name} has {size} bytes, the value {len(data)}")
    return data


class Kernel:
    """One kernel of a PTX module; `entry` is part of its name."""

    def __init__(self, text: str, entry: str = "") -> None:
        self.text = text
        self._kernel = _executor.Kernel(text, entry)
        self._layout = self._kernel.parameters
        self.name: str = self._kernel.name
        self.max_threads: int = self._kernel.max_threads
        self.static_shared: int = self._kernel.static_shared
        self.parameters: list[tuple[str, int]] = [(name, size) for name, _, size in self._layout]

    def _parameter_block(self, values: Sequence[Any]) -> bytes:
        if len(values) != len(self._layout):
            raise ValueError(f"{self.name} has {len(self._layout)} parameters, not {len(values)}")
        block = bytearray(self._kernel.parameter_bytes)
        for value, (name, offset, size) in zip(values, self._layout, strict=True):
            block[offset : offset + size] = _encode(value, size, name)
        return bytes(block)

    def launch(
        self,
        memory: Memory,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        parameters: Sequence[Any] = (),
        dynamic_shared: int = 0,
        seed: int = 0,
        races: bool = True,
        counters: bool = True,
        step_limit: int = STEP_LIMIT,
    ) -> Launch:
        """Run all blocks; a seed other than 0 shuffles the order of blocks and of warps between barriers."""
        grid, block = _dimensions(grid), _dimensions(block)
        if block[0] * block[1] * block[2] > self.max_threads:
            raise ValueError(f"a block of {self.name} has at most {self.max_threads} threads")
        if not 0 <= dynamic_shared <= MAX_SHARED - self.static_shared:
            raise ValueError(f"a block has at most {MAX_SHARED} bytes of shared memory")
        options = _executor.Options(
            grid, block, self._parameter_block(parameters), dynamic_shared, seed, races, counters, step_limit
        )
        result = self._kernel.launch(memory._memory, options)
        return Launch([Report(**report) for report in result["reports"]], Counters(result["counters"]))


def isolate(text: str, entry: str) -> str:
    """Return the module without its other kernels: parsing a large module repeatedly takes long."""
    starts = [match.start() for match in re.finditer(r"^\.(?:visible|weak) \.entry", text, re.MULTILINE)]
    parts = [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    chosen = [part for part in parts if entry in part.partition("(")[0]]
    if len(chosen) != 1:
        raise ParseError(f"entry {entry!r} matches {len(chosen)} kernels")
    tail = re.search(r"^\s*\.(?:file|section)\b", parts[-1], re.MULTILINE)
    rest = parts[-1][tail.start() :] if tail and chosen[0] is not parts[-1] else ""
    return text[: starts[0]] + chosen[0] + rest


def opcodes() -> list[str]:
    """Return the canonical spellings that the executor knows."""
    return sorted(_executor.opcodes())


def canonical(spelling: str) -> str:
    """Return the spelling under which an opcode is known."""
    known: str = _executor.canonical(spelling)
    return known
