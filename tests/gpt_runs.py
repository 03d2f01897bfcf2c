"""Tiny runs of examples/train_gpt.py, for its tests: a text, command lines, logs, and damage to files."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TINY = {
    "layers": 1,
    "width": 16,
    "heads": 2,
    "context": 16,
    "batch": 2,
    "eval-every": 5,
    "checkpoint-every": 6,
}
STEPS = 14  # past KrADagrad's second refresh of its roots


def make_text(folder: Path) -> Path:
    """Create a folder of 20 files of words."""
    folder.mkdir()
    draw = random.Random(0)
    for i in range(20):
        words = " ".join(draw.choices(["alpha", "beta", "gamma", "delta", "epsilon"], k=60))
        (folder / f"{i:02}.txt").write_text(f"{i} {words}\n")
    return folder


def arguments(text: Path, out: Path, *options: str, steps: int = STEPS) -> list[str]:
    chosen = {**TINY, "steps": steps, "data": text, "out": out}
    return [*(f"--{name}={value}" for name, value in chosen.items()), *options]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip one bit in the first half of a file: in a tensor if it has tensors."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def put(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def foreign(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def rewrite(key: str, value: Any = None, **changes: Any) -> Callable[[Path], None]:
    """Return a function that replaces a key's value in run.pt or checkpoint.pt, or changes a dict there."""

    def edit(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        torch.save(state | {key: state[key] | changes if changes else value}, path)

    return edit
