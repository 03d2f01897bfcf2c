"""How kernels are cut and compiled: tile, depth of a stage, warps and stages.

A plain table, tuning.csv, by op, shape class, precision and architecture, and no autotuning: kernels that
work in place would be run many times over, and the first step would take minutes. bench/tune_triton.py
measures a new one. Shape classes, where in vectors means that every row is whole vectors of 16 bytes:

    large           blocks with a side of 256 and more, read in vectors     (grouped kernels)
    small           all others                                              (grouped kernels)
    16, 32, 64      what the longest side is padded to                      (square_root_resident)
    elements        any parameter                                           (accumulate, parameter_step)

Blocks without a row of square_root_resident are left to the grouped kernels. `tile` is the side of a tile of
the product, `depth` of a stage; of elements they are those of a program, and of its chunks.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .launch import Config

TABLE = Path(__file__).with_name("tuning.csv")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942", "interpreter")
"""Triton's interpreter takes as long for a small tile as for a large one."""
LARGE = 256
PADDED = (16, 32, 64)

FIXED = {
    "finish_norms": Config({}, 1),
    "square_gradients": Config({"BM": 64, "BN": 64}, 4),
    "track_statistics": Config({}, 1),
    "finish_sides": Config({"BM": 64, "BN": 64}, 4),
}
"""Of kernels that take no time."""

ROWS_OF = {"gram": "inverse_root"}
"""Kernels that take another one's rows: the same loop over the depth, with another epilogue."""


class Key(NamedTuple):
    """Of a row."""

    op: str
    shape: str
    precision: str
    architecture: str


class Choice(NamedTuple):
    """What a row says."""

    tile: int
    depth: int
    warps: int
    stages: int


def read(path: Path) -> dict[Key, Choice]:
    """A table from its file."""
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
    """The architecture whose rows serve a device; those of sm_80 where there is no better one."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    # The consumers' Blackwell (12) has neither its tensor cores' instructions nor its shared memory.
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


def served(precision: str, architecture: str) -> str:
    """What a precision amounts to: AMD's tensor cores have no tf32."""
    return "fp32" if precision == "tf32x3" and architecture.startswith("gfx") else precision


def shape_class(largest: int, in_vectors: bool) -> str:
    """Of grouped kernels. The addresses of single elements take the registers that a large tile needs."""
    return "large" if largest >= LARGE and in_vectors else "small"


def padded(side: int) -> int:
    """To what square_root_resident pads a side; 0 where it is too long."""
    return next((size for size in PADDED if side <= size), 0)


def has(kernel: Any, shape: str, precision: str, architecture: str) -> bool:  # noqa: ANN401
    return Key(kernel.__name__, shape, precision, architecture) in table()


@functools.cache
def config(kernel: Any, shape: str, precision: str, architecture: str) -> Config:  # noqa: ANN401
    """How to launch a kernel; its constants are those of these names that it has."""
    name = kernel.__name__
    if name in FIXED:
        return FIXED[name]
    choice = table()[Key(ROWS_OF.get(name, name), shape, precision, architecture)]
    constants = {"BM": choice.tile, "BN": choice.tile, "BK": choice.depth}
    constants |= {"SPAN": choice.tile, "CHUNK": choice.depth}
    own = {constant: value for constant, value in constants.items() if constant in kernel.arg_names}
    return Config(own, choice.warps, choice.stages)
