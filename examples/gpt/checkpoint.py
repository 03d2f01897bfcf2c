"""Checkpoints: written atomically, read without running code from the file.

A run in one process has one file, ranks that torchrun started have a folder (`sharded`). Files of both kinds
are read and verified here before use.
"""

from __future__ import annotations

import lzma
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch

from .errors import UsageError
from .trainer import Trainer

NAME = "checkpoint.pt"
FOLDER = 0x10
"""Attribute of a folder in a ZIP file."""
POINTER = "checkpoint.current"
"""File with the name of the ranks' last checkpoint folder."""

PROGRESS = ("text", "log", "schedulers", "batches")
EVERYTHING = (*PROGRESS, "model", "optimizers")
"""Parts of a state except its options, in the order in which they are restored."""

FOLDERS = "checkpoint-*"
PARTIAL_FOLDERS = "checkpoint.tmp-*"

MISFITS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
UNREADABLE = (
    *MISFITS, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""Errors of restoring values that do not fit (MISFITS), and of reading a damaged file."""


def save(state: dict[str, Any], folder: Path) -> None:
    """Replace `folder`'s checkpoint: after a crash at any moment, either the old or the new one exists."""
    replace(folder / NAME, lambda file: torch.save(state, file))


def load(folder: Path) -> dict[str, Any]:
    """Return the last state saved in `folder`. Raise UsageError if it is missing or cannot be read."""
    path = folder / NAME
    if not path.is_file():
        hint = "; several ranks saved it: go on with torchrun" if (folder / POINTER).exists() else ""
        raise UsageError(f"--resume: no checkpoint in {folder} ({NAME}){hint}")
    return read(path)


def restore(trainer: Trainer, path: Path, state: dict[str, Any], keys: Iterable[str] = EVERYTHING) -> None:
    """Restore parts of a state that was read from `path`. Raise UsageError if a part does not fit."""
    for key in keys:
        try:
            trainer.loaders[key](state[key])
        except MISFITS as error:
            raise misfit(path, key, error) from error


def misfit(path: Path, key: str, error: object) -> UsageError:
    return UsageError(f"--resume: `{key}` of {path} does not fit this run: {error}")


def exists(folder: Path) -> bool:
    return any((folder / name).exists() for name in (NAME, POINTER))


def clear(folder: Path) -> None:
    """Remove the checkpoints of a run, to replace it by another run."""
    for name in (POINTER, NAME):
        (folder / name).unlink(missing_ok=True)
    remove(folder, (FOLDERS, PARTIAL_FOLDERS))


def remove(folder: Path, patterns: Iterable[str], but: str | None = None) -> None:
    """Remove the folders that match the patterns, except the one named `but`."""
    for path in [path for pattern in patterns for path in folder.glob(pattern) if path.name != but]:
        shutil.rmtree(path)


def read(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save`. Raise UsageError if it is damaged or does not contain a dict."""
    try:
        with path.open("rb") as file:
            verify(file)
            state = torch.load(file, weights_only=True)
    except UNREADABLE as error:
        raise UsageError(f"--resume: cannot read {path}: {error}") from error
    if not isinstance(state, dict):
        raise UsageError(f"--resume: {path} must hold a dict, got {type(state).__name__}")
    return state


def verify(file: IO[bytes]) -> None:
    """Compare a file of `torch.save` with its checksums, which `torch.load` does not check.

    Raise zipfile.BadZipFile if they differ.
    """
    with zipfile.ZipFile(file) as parts:
        # If a part is marked as a folder, torch leaves its tensor's memory uninitialised, without an error.
        folders = (part.filename for part in parts.infolist() if part.external_attr & FOLDER)
        damaged = parts.testzip() or next(folders, None)
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")
    file.seek(0)


def require(state: dict[str, Any], keys: Iterable[str], path: Path) -> None:
    """Raise UsageError unless a state that was read from `path` has these keys."""
    for key in keys:
        if key not in state:
            raise UsageError(f"--resume: {path} is no checkpoint of this program: it lacks `{key}`")


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file, sync it to disk, then rename it to `path`."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Sync the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
