"""How kernels are cut and compiled: tile, warps and stages, by kernel, shape and precision.

A plain table and no autotuning: kernels that work in place would be run many times over, and the first step
would take minutes. Nothing in it was measured on a GPU.
"""

from __future__ import annotations

from typing import Any

from .launch import Config

LARGE = 256
"""Blocks with a side from here on take the larger tiles."""

# (shape class, precision) -> tile, depth of a stage, warps, stages
PRODUCTS = {
    ("small", "bf16x3"): (64, 32, 4, 3),
    ("small", "tf32x3"): (64, 32, 4, 3),
    ("small", "bf16x6"): (64, 32, 4, 3),
    ("small", "fp32"): (64, 32, 4, 3),
    ("large", "bf16x3"): (128, 32, 8, 3),
    ("large", "tf32x3"): (64, 32, 4, 3),
    ("large", "bf16x6"): (64, 32, 4, 3),
    ("large", "fp32"): (64, 32, 4, 3),
}


def tile_of(largest: int, precision: str) -> tuple[int, int, int, int]:
    """Tile, depth of a stage, warps and stages for blocks whose largest side is `largest`."""
    return PRODUCTS["large" if largest >= LARGE else "small", precision]


def config(kernel: Any, largest: int, precision: str) -> Config:  # noqa: ANN401
    """Of a kernel, by its name."""
    fixed = FIXED.get(kernel.__name__)
    if fixed is not None:
        return fixed
    tile, depth, warps, stages = tile_of(largest, precision)
    tiles = {name: tile for name in ("BM", "BN") if name in kernel.arg_names}
    return Config({**tiles, "BK": depth}, warps, stages)


FIXED = {
    "start_factors": Config({"BM": 32, "BN": 128}, 4),
    "trace_of_square": Config({"BM": 32}, 4),
    "finish_factors": Config({}, 1),
    "finish_norms": Config({}, 1),
}
