"""Checkpoints of several ranks, by torch.distributed.checkpoint, for resumption on any number of ranks.

::

    checkpoint.current       name of the current folder
    checkpoint-300/          state after step 300
        run.pt               all state except tensors of model and optimizers
        .metadata            location of each box of each of these tensors
        __0_0.distcp ...     boxes of rank 0, and so on

The folder is written under a temporary name and synced to disk. Then it is renamed, and finally the pointer
is replaced. A crash at any moment leaves the last checkpoint or the new one.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from . import checkpoint
from .errors import UsageError
from .ranks import Ranks
from .trainer import Trainer

RUN, METADATA = "run.pt", ".metadata"


def save(trainer: Trainer, folder: Path) -> None:
    """Replace `folder`'s checkpoint; on all ranks.

    Raises:
        CheckpointException: on every rank, if a rank could not write. OSError: on the first rank.
    """
    name = f"checkpoint-{trainer.step}"
    partial = folder / f"checkpoint.tmp-{trainer.step}"
    if trainer.ranks.first:
        # No other rank writes before this one calls dcp.save, where all ranks plan together first.
        checkpoint.remove(folder, [checkpoint.PARTIAL_FOLDERS])
    tensors, param_groups = _state(trainer)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(partial))
    if trainer.ranks.first:
        run = trainer.progress() | {"param_groups": param_groups, "metadata": _digest(partial / METADATA)}
        checkpoint.replace(partial / RUN, lambda file: torch.save(run, file))
        checkpoint.remove(folder, [name])
        partial.rename(folder / name)
        checkpoint.sync(folder)
        checkpoint.replace(folder / checkpoint.POINTER, lambda file: file.write(name.encode()))
        checkpoint.remove(folder, [checkpoint.FOLDERS], but=name)


def load(folder: Path, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """Return the current folder and its run.pt's content. Raise UsageError if one of its files is damaged."""
    path = _current(folder)
    run = checkpoint.read(path / RUN)
    checkpoint.require(run, ("options", *checkpoint.PROGRESS, "param_groups", "metadata"), path / RUN)
    metadata = _read_metadata(path / METADATA, run["metadata"])
    _verify(path, metadata, ranks)
    return path, run


def restore(trainer: Trainer, path: Path, run: dict[str, Any]) -> None:
    """Restore a state that `load` verified; on all ranks. Raise UsageError if it does not fit."""
    checkpoint.restore(trainer, path / RUN, run, checkpoint.PROGRESS)
    tensors, _ = _state(trainer)
    try:
        dcp.load(tensors, storage_reader=Reader(path, run["metadata"]), planner=Planner())
    except dcp.CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise UsageError(f"--resume: {path} does not fit this run: {cause}") from error
    set_model_state_dict(trainer.model, tensors["model"])
    if trainer.step == 0:
        return
    optimizers = {"state": tensors["optimizers"], "param_groups": run["param_groups"]}
    try:
        set_optimizer_state_dict(trainer.model, trainer.optimizers, optimizers)
    except checkpoint.MISFITS as error:
        raise checkpoint.misfit(path / RUN, "param_groups", error) from error


def _state(trainer: Trainer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return all tensors by the parameters' names, and the parameter groups.

    torch lets optimizers without state take a step that changes no parameter. So the optimizers are left out
    before the first step.
    """
    tensors: dict[str, Any] = {"model": get_model_state_dict(trainer.model)}
    if trainer.step == 0:
        return tensors, []
    optimizers = get_optimizer_state_dict(trainer.model, trainer.optimizers)
    return tensors | {"optimizers": optimizers["state"]}, optimizers["param_groups"]


def _current(folder: Path) -> Path:
    pointer = folder / checkpoint.POINTER
    if not pointer.is_file():
        hint = "; one process saved it: go on without torchrun" if checkpoint.exists(folder) else ""
        raise UsageError(f"--resume: no checkpoint in {folder} ({pointer.name}){hint}")
    name = pointer.read_bytes().decode(errors="replace")
    if not re.fullmatch(r"checkpoint-\d+", name):
        raise UsageError(f"--resume: {pointer} must name a folder checkpoint-STEP, got {name[:40]!r}")
    return folder / name


METADATA_CLASSES = {
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}
"""Classes of metadata by module, except paths, whose module depends on Python's version."""


class MetadataUnpickler(pickle.Unpickler):
    """An unpickler that allows only the classes of metadata: a pickle may call any function."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if name in METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module.split(".")[0] == "pathlib" and name == "PosixPath":
            return Path
        raise pickle.UnpicklingError(f"{module}.{name} is not part of metadata")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_metadata(path: Path, digest: str) -> Metadata:
    """Read the metadata. Raise UsageError if it is damaged."""
    try:
        if _digest(path) != digest:  # a pickle has no checksums
            raise pickle.UnpicklingError(f"it is not what {RUN} belongs to")
        with path.open("rb") as file:
            metadata = MetadataUnpickler(file).load()
    except (*checkpoint.UNREADABLE, ImportError, MemoryError, OverflowError) as error:
        raise UsageError(f"--resume: cannot read {path}: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise UsageError(f"--resume: {path} must hold a checkpoint's metadata, got {type(metadata).__name__}")
    return metadata


def _verify(path: Path, metadata: Metadata, ranks: Ranks) -> None:
    """Verify the checksums of this rank's share of all boxes. Raise UsageError if one is damaged."""
    boxes = sorted(metadata.storage_data.values(), key=lambda box: (box.relative_path, box.offset))
    for box in boxes[ranks.rank :: ranks.world]:
        file = path / box.relative_path
        try:
            with file.open("rb") as stream:
                stream.seek(box.offset)
                checkpoint.verify(io.BytesIO(stream.read(box.length)))
        except checkpoint.UNREADABLE as error:
            raise UsageError(f"--resume: cannot read {file}: {error}") from error


class Reader(dcp.FileSystemReader):
    """A reader that unpickles metadata by `MetadataUnpickler`."""

    def __init__(self, path: Path, digest: str) -> None:
        super().__init__(path)
        self._digest = digest

    def read_metadata(self) -> Metadata:
        return _read_metadata(Path(self.path) / METADATA, self._digest)


class Planner(dcp.DefaultLoadPlanner):
    """A planner that refuses tensors to cast, unknown or missing ones; the message names the key."""

    def create_local_plan(self) -> LoadPlan:
        saved = self.metadata.state_dict_metadata
        if lacking := sorted(self.state_dict.keys() - saved.keys()):
            raise ValueError(f"it lacks `{lacking[0]}`")
        if unknown := sorted(saved.keys() - self.state_dict.keys()):
            raise ValueError(f"it has an unknown `{unknown[0]}`")
        for key, tensor in self.state_dict.items():
            wanted, got = f"{tensor.dtype} {list(tensor.shape)}", _described(saved[key])
            if got != wanted:
                raise ValueError(f"`{key}` must be {wanted}, got {got}")
        return super().create_local_plan()


def _described(saved: object) -> str:
    """Describe a saved tensor: its dtype and shape, and the number of elements if some are missing."""
    if not isinstance(saved, TensorStorageMetadata):
        return "no tensor"
    elements = sum(math.prod(chunk.sizes) for chunk in saved.chunks)
    part = "" if elements == math.prod(saved.size) else f" with {elements} elements"
    return f"{saved.properties.dtype} {list(saved.size)}{part}"
