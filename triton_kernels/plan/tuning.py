"""Configurations of the kernels: tile, depth of a stage, warps and stages.

They are in a plain table, tuning.csv, by op, shape class, precision and architecture. There is no autotuning:
it would run kernels that work in place many times, and the first step would take minutes.
bench/tuning/tune_triton.py measures a new table. Shape classes, where "in vectors" means that every row is
whole vectors of 16 bytes:

    large           blocks with a side of 256 or more, read in vectors      (grouped kernels)
    small           all others                                              (grouped kernels)
    16, 32, 64      the padded longest side                                 (square_root_resident)
    elements        any parameter                                           (update_moments, apply_updates)

Blocks without a row of square_root_resident are left to the grouped kernels. `tile` is the side of a tile of
the product, `depth` that of a stage; for the class elements they are the elements of a program (SPAN) and of
its chunks (CHUNK).
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .launch import KernelConfig

TABLE = Path(__file__).with_name("tuning.csv")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942", "interpreter")
"""Architectures of the table; Triton's interpreter takes equally long for small and large tiles."""
LARGE = 256
PADDED = (16, 32, 64)

FIXED = {
    "finish_norms": KernelConfig({}, 1),
    "square_gradients": KernelConfig({"BM": 64, "BN": 64}, 4),
    "track_statistics": KernelConfig({}, 1),
    "finish_sides": KernelConfig({"BM": 64, "BN": 64}, 4),
}
"""Configurations of kernels whose time is negligible."""

ROWS_OF = {"gram": "inverse_root"}
"""Kernels that use another kernel's rows: they have the same loop over the depth, with another epilogue."""


class Key(NamedTuple):
    """The key of a row."""

    op: str
    shape: str
    precision: str
    architecture: str


class Choice(NamedTuple):
    """The values of a row."""

    tile: int
    depth: int
    warps: int
    stages: int


def read(path: Path) -> dict[Key, Choice]:
    """Read a table from its file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        Key(*(row[name] for name in Key._fields)): Choice(*(int(row[name]) for name in Choice._fields))
        for row in rows
    }


@functools.cache
def table() -> dict[Key, Choice]:
    return read(TABLE)


@functools.cache
def architecture_of(device: torch.device) -> str:
    """Return the architecture whose rows apply to a device, sm_80 if there is no better one."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    # Consumer Blackwell (12) has neither sm_100's tensor-core instructions nor its shared memory.
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


def served(precision: str, architecture: str) -> str:
    """Return the precision that an architecture uses for this one: AMD's tensor cores have no tf32."""
    return "fp32" if precision == "tf32x3" and architecture.startswith("gfx") else precision


def shape_class(largest: int, in_vectors: bool) -> str:
    """Return the class for grouped kernels; addresses of single elements take a large tile's registers."""
    return "large" if largest >= LARGE and in_vectors else "small"


def padded(side: int) -> int:
    """Return the size to which square_root_resident pads a side; 0 if the side is too long."""
    return next((size for size in PADDED if side <= size), 0)


def has(kernel: Any, shape: str, precision: str, architecture: str) -> bool:  # noqa: ANN401
    return Key(kernel.__name__, shape, precision, architecture) in table()


@functools.cache
def config(kernel: Any, shape: str, precision: str, architecture: str) -> KernelConfig:  # noqa: ANN401
    """Return a kernel's configuration, with those of the table's constants that the kernel has."""
    name = kernel.__name__
    if name in FIXED:
        return FIXED[name]
    choice = table()[Key(ROWS_OF.get(name, name), shape, precision, architecture)]
    constants = {"BM": choice.tile, "BN": choice.tile, "BK": choice.depth}
    constants |= {"SPAN": choice.tile, "CHUNK": choice.depth}
    constants = {constant: value for constant, value in constants.items() if constant in kernel.arg_names}
    return KernelConfig(constants, choice.warps, choice.stages)
