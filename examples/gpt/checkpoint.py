"""Checkpoints: written whole or not at all, read without running code from the file.

A run in one process keeps one file, ranks that torchrun started a folder (`sharded`). Both are read and
checked here before anything is made of them.
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
"""The mark of a folder among a ZIP file's names."""
POINTER = "checkpoint.current"
"""Names the folder that holds the ranks' last checkpoint."""

PROGRESS = ("text", "log", "schedulers", "batches")
EVERYTHING = (*PROGRESS, "model", "optimizers")
"""Parts of a state beside its options, in the order in which they are taken over."""

FOLDERS = "checkpoint-*"
PARTIAL_FOLDERS = "checkpoint.tmp-*"

MISFITS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
UNREADABLE = (
    *MISFITS, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What taking over values raises that are not of this run's kind, and what reading a damaged file does."""


def save(state: dict[str, Any], folder: Path) -> None:
    """Replace `folder`'s checkpoint: after a crash at any moment either the old or the new one is there."""
    replace(folder / NAME, lambda file: torch.save(state, file))


def load(folder: Path) -> dict[str, Any]:
    """The state last saved in `folder`. Raises UsageError if there is none or it cannot be read."""
    path = folder / NAME
    if not path.is_file():
        hint = "; several ranks saved it: go on with torchrun" if (folder / POINTER).exists() else ""
        raise UsageError(f"--resume: no checkpoint in {folder} ({NAME}){hint}")
    return read(path)


def restore(trainer: Trainer, path: Path, state: dict[str, Any], keys: Iterable[str] = EVERYTHING) -> None:
    """Take over parts of a state that was read from `path`. Raises UsageError where one does not fit."""
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
    """Remove the checkpoints of a run that another one takes the place of."""
    for name in (POINTER, NAME):
        (folder / name).unlink(missing_ok=True)
    remove(folder, (FOLDERS, PARTIAL_FOLDERS))


def remove(folder: Path, patterns: Iterable[str], but: str | None = None) -> None:
    """Remove the folders with such names, all but one."""
    for found in [found for pattern in patterns for found in folder.glob(pattern) if found.name != but]:
        shutil.rmtree(found)


def read(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote. Raises UsageError if it is damaged, or no dict."""
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
    """Compare what `torch.save` wrote with the sums that it added, which `torch.load` does not.

    Raises zipfile.BadZipFile.
    """
    with zipfile.ZipFile(file) as parts:
        # Where a part is marked as a folder, torch leaves its tensor's memory as it was, without an error.
        folders = (part.filename for part in parts.infolist() if part.external_attr & FOLDER)
        damaged = parts.testzip() or next(folders, None)
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")
    file.seek(0)


def require(state: dict[str, Any], keys: Iterable[str], path: Path) -> None:
    """Raises UsageError unless a state that was read from `path` has these keys."""
    for key in keys:
        if key not in state:
            raise UsageError(f"--resume: {path} is no checkpoint of this program: it lacks `{key}`")


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file aside, bring it to the disk, and only then give it its name."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
