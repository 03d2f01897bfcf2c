"""State in pieces, as torch.distributed.checkpoint saves and loads it on any number of ranks.

A `StoredPieces` is a tensor of which this rank holds some boxes. It has no storage of its own: the checkpoint
library asks it for its boxes by the methods that it defines for such tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from kradagrad_ext.plan import ParameterPlan, Region, Shape

from .pieces import Box, Piece

COPIES = (torch.ops.aten.clone.default, torch.ops.aten.detach.default, torch.ops.aten._to_copy.default)


class StoredPieces(torch.Tensor):
    """A tensor of some size, of which `boxes` and their `parts` are on this rank.

    Attributes:
        whole: all of it, in host memory, on the rank that it was last gathered on; None after a step.
    """

    boxes: list[Box]
    parts: list[Tensor]
    whole: Tensor | None

    @staticmethod
    def __new__(
        cls: type[StoredPieces], size: Shape, dtype: torch.dtype, device: torch.device
    ) -> StoredPieces:
        own: StoredPieces = torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)
        own.boxes, own.parts, own.whole = [], [], None
        return own

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """What copying a state dict takes, part by part; there is nothing to compute with."""
        if func not in COPIES:
            raise NotImplementedError(f"KrADagrad: {func} must be called on whole tensors, got pieces of one")
        given: StoredPieces = args[0]
        parts = [func(part, **(kwargs or {})) for part in given.parts]
        like = parts[0] if parts else given
        copy = StoredPieces(tuple(given.shape), like.dtype, like.device)
        for box, part in zip(given.boxes, parts, strict=True):
            copy.include(box, part)
        return copy

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"StoredPieces({list(self.shape)}, {self.dtype}, {len(self.boxes)} here)"

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse: a file of one rank would hold that rank's pieces alone, and no error tell of it."""
        raise TypeError(
            "KrADagrad: the state of a sharded optimizer must be saved with torch.distributed.checkpoint, or "
            f"after `consolidate_state_dict` on the rank named there, got pieces of {list(self.shape)}"
        )

    def gathered(self, to: int, group: dist.ProcessGroup) -> Tensor | None:
        """The whole tensor ``self.shape`` in host memory on the group's rank `to`, None on the others."""
        whole = torch.zeros(tuple(self.shape), dtype=self.dtype, device=self.device)
        for box, part in zip(self.boxes, self.parts, strict=True):
            whole[box.within(Box((0,) * self.ndim, tuple(self.shape)))] = part
        if whole.numel():
            # A sum of bytes, all but one of them zero, is exact whatever they stand for.
            dist.reduce(whole.view(-1).view(torch.uint8), group=group, group_dst=to)
        return whole.to("cpu") if group.rank() == to else None

    def include(self, box: Box, part: Tensor) -> None:
        """One more box."""
        self.boxes.append(box)
        self.parts.append(part)

    def take_over(self, value: Tensor) -> None:
        """Copy pieces in the same boxes, or those of a whole tensor, whose blocks may lie in a row."""
        whole = Box((0,) * self.ndim, tuple(self.shape))
        for index, (box, part) in enumerate(zip(self.boxes, self.parts, strict=True)):
            if isinstance(value, StoredPieces):
                part.copy_(value.parts[index])
            else:
                part.copy_(value.view(self.shape)[box.within(whole)])

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape)) for box in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        offset = tuple(index.offset or ())
        return next(part for box, part in zip(self.boxes, self.parts, strict=True) if box.offset == offset)


def stored_states(
    whole: ParameterPlan,
    own: Sequence[tuple[Piece, dict[str, Tensor]]],
    expected: dict[str, Tensor],
    device: torch.device,
) -> dict[str, Tensor]:
    """One parameter's state as tensors that lie in pieces on the ranks.

    Args:
        whole: the parameter's plan.
        own: this rank's pieces of it, and their states as those of parameters of their own.
        expected: the state of the whole parameter on the meta device.
        device: of the pieces.
    """
    stored: dict[str, StoredPieces] = {}
    for key, tensor in expected.items():
        size = tuple(tensor.shape)
        if (place := _place(key)) is not None:
            size = (*whole.regions[place[0]].grid, *size[1:])
        stored[key] = StoredPieces(size, tensor.dtype, device)
    for piece, state in own:
        for key, tensor in state.items():
            if (place := _place(key)) is None:
                stored[key].include(piece.box, tensor)
                continue
            region, rest = piece.plan.regions[place[0]], tuple(tensor.shape[1:])
            index, offset = _find(whole, piece, region)
            box = Box((*offset, *(0,) * len(rest)), (*region.grid, *rest))
            name, _, mode = key.rsplit("_", 2)
            stored[f"{name}_{index}_{mode}"].include(box, tensor.view(box.shape))
    return dict(stored)


def _place(key: str) -> tuple[int, int] | None:
    """Region and mode that a key of a block's state ends in."""
    *_, region, mode = ("", "", *key.rsplit("_", 2))
    return (int(region), int(mode)) if region.isdigit() and mode.isdigit() else None


def _find(whole: ParameterPlan, piece: Piece, region: Region) -> tuple[int, Shape]:
    """Which region of the whole parameter a piece's region is part of, and its first block there."""
    # Only dims that were not merged are ever cut.
    own = (piece.box.offset[dims[0]] for dims in whole.merged_dims)
    start = tuple(map(sum, zip(own, region.offset, strict=True)))
    for index, candidate in enumerate(whole.regions):
        steps = [b - a for a, b in zip(candidate.offset, start, strict=True)]
        inside = all(
            0 <= step < count * size
            for step, count, size in zip(steps, candidate.grid, candidate.block_shape, strict=True)
        )
        if inside and candidate.block_shape == region.block_shape:
            return index, tuple(s // size for s, size in zip(steps, region.block_shape, strict=True))
    raise AssertionError(f"{region} lies in no region of {whole}")
