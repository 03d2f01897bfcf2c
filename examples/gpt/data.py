"""The text: by default the sources of the standard library, else any file or folder."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from .errors import UsageError

MAX_MEGABYTES = 16
"""Maximum size of the text; the standard library has about 10 MB."""

VALIDATION_WINDOWS = 256
VALIDATION_EVERY = 10
"""One file in ten is for validation, or the last tenth of a single file."""

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
"""Folders of the standard library without ordinary code: other people's packages, tests, tables."""


@dataclass(frozen=True)
class Text:
    """Train and validation bytes, uint8 ``[length]`` each, and a digest that identifies the text."""

    train: Tensor
    validation: Tensor
    digest: str


def load_text(data: str | None, context: int) -> Text:
    """Read `data` (a file, a folder, or None for the standard library) and split it.

    Raise UsageError if there is no text, or too little for windows of `context` + 1 bytes.
    """
    contents = _read(_files(data))
    if len(contents) == 1:
        cut = len(contents[0]) - len(contents[0]) // VALIDATION_EVERY
        train, validation = contents[0][:cut], contents[0][cut:]
    else:
        # Split by whole files: two halves of one file have too much in common.
        held_out = contents[VALIDATION_EVERY - 1 :: VALIDATION_EVERY] or contents[-1:]
        train = b"\n".join(content for content in contents if content not in set(held_out))
        validation = b"\n".join(held_out)
    for name, part in (("training", train), ("validation", validation)):
        if len(part) < context + 1:
            raise UsageError(
                f"too little text in {data or 'the standard library'}: --context {context} needs "
                f"{context + 1} bytes for {name}, got {len(part)}"
            )
    digest = hashlib.sha256(train + b"\0" + validation).hexdigest()
    return Text(_as_tensor(train), _as_tensor(validation), digest)


def _files(data: str | None) -> list[Path]:
    """Return the files to read, in an order that depends only on their names."""
    root = Path(data) if data is not None else Path(sysconfig.get_path("stdlib"))
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UsageError(f"--data: no such file or folder: {root}")
    paths = []
    for folder, subfolders, names in os.walk(root):
        hidden = {name for name in subfolders if name.startswith((".", "__pycache__"))}
        skipped = hidden | SKIPPED_FOLDERS if data is None else hidden
        subfolders[:] = [name for name in subfolders if name not in skipped]
        wanted = [n for n in names if n.endswith(".py") or (data is not None and not n.startswith("."))]
        paths += [Path(folder, name) for name in wanted]
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _read(files: list[Path]) -> list[bytes]:
    """Read the text files, up to `MAX_MEGABYTES`, without binary, empty and repeated files."""
    contents: dict[bytes, None] = {}
    room = MAX_MEGABYTES * 1_000_000
    for path in files:
        try:
            with path.open("rb") as file:
                content = file.read(room)
        except OSError as error:
            raise UsageError(f"--data: cannot read {path}: {error.strerror}") from error
        if content and b"\0" not in content and content not in contents:
            contents[content] = None
            room -= len(content)
        if room <= 0:
            break
    if not contents:
        raise UsageError("--data: no text found (empty, or binary files only)")
    return list(contents)


def _as_tensor(content: bytes) -> Tensor:
    return torch.from_numpy(numpy.frombuffer(content, dtype=numpy.uint8).copy())


class Batches:
    """Endless random windows of the training text, ``[batch, context + 1]`` int64, fixed by the seed."""

    def __init__(self, text: Tensor, batch: int, context: int, seed: int) -> None:
        self.text, self.batch, self.context = text, batch, context
        self.generator = torch.Generator().manual_seed(seed)

    def next(self) -> Tensor:
        starts = torch.randint(len(self.text) - self.context, (self.batch,), generator=self.generator)
        return windows(self.text, starts, self.context)


def windows(text: Tensor, starts: Tensor, context: int) -> Tensor:
    """Return ``[len(starts), context + 1]`` int64: the bytes from each start on."""
    return text[starts[:, None] + torch.arange(context + 1)].long()


def validation_windows(text: Tensor, context: int) -> Tensor:
    """Return the fixed validation set: up to `VALIDATION_WINDOWS` windows, evenly spread over the text."""
    last = len(text) - context - 1
    count = min(VALIDATION_WINDOWS, 1 + last // context)
    return windows(text, torch.linspace(0, last, count, dtype=torch.float64).long(), context)
