"""Checkpoints: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from .errors import UsageError

NAME = "checkpoint.pt"


def save(state: dict[str, Any], folder: Path) -> None:
    """Replace `folder`'s checkpoint: after a crash at any moment either the old or the new one is there."""
    temporary = folder / (NAME + ".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def load(folder: Path) -> dict[str, Any]:
    """The state last saved in `folder`. Raises UsageError if there is none or it cannot be read."""
    path = folder / NAME
    if not path.is_file():
        raise UsageError(f"--resume: no checkpoint in {folder} ({NAME})")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UsageError(f"--resume: cannot read {path}: {error}") from error
    return state
