"""State in pieces, as torch.distributed.checkpoint saves and loads it on any number of ranks.

A `StoredPieces` is a tensor of which this rank holds some boxes. It has no storage of its own: the checkpoint
library asks it for its boxes by the methods that it defines for such tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
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
from kradagrad_ext.state import SCALARS, Spec, State, key_of

from .pieces import Box, Piece

NOTHING = torch.empty(0, device="cpu")
"""Stands for a part that is not made yet."""

COPIES = (torch.ops.aten.clone.default, torch.ops.aten.detach.default, torch.ops.aten._to_copy.default)


class StoredPieces(torch.Tensor):
    """A tensor of some size, of which `boxes` and their `parts` are on this rank.

    Attributes:
        parts: of each box its elements, in one of `shapes`: those of blocks one block after the other.
        whole: all of it, in host memory, on the rank that it was last gathered on; None after a step.
        found: what parts of a step want of the state, as long as this is in it: if anything of the state is
            replaced, the next step replaces all of these.
    """

    boxes: list[Box]
    parts: list[Tensor]
    shapes: list[Shape]
    whole: Tensor | None
    found: dict[int, list[Tensor]]

    @staticmethod
    def __new__(
        cls: type[StoredPieces], size: Shape, dtype: torch.dtype, device: torch.device
    ) -> StoredPieces:
        own: StoredPieces = torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)
        own.boxes, own.parts, own.shapes, own.whole, own.found = [], [], [], None, {}
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
        copy.boxes, copy.parts, copy.shapes = list(given.boxes), parts, list(given.shapes)
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
            whole[box.within(Box((0,) * self.ndim, tuple(self.shape)))] = part.view(box.shape)
        if whole.numel():
            # A sum of bytes, all but one of them zero, is exact whatever they stand for.
            dist.reduce(whole.view(-1).view(torch.uint8), group=group, group_dst=to)
        return whole.to("cpu") if group.rank() == to else None

    def include(self, box: Box, shape: Shape) -> None:
        """One more box, whose part is still to be made."""
        self.boxes.append(box)
        self.parts.append(NOTHING)
        self.shapes.append(shape)

    def shared_from(self, value: Tensor) -> StoredPieces:
        """The same boxes of a tensor in the same pieces, or copies of those of a whole one."""
        shared = StoredPieces(tuple(self.shape), value.dtype, value.device)
        shared.boxes, shared.shapes = list(self.boxes), list(self.shapes)
        if isinstance(value, StoredPieces):
            shared.parts = list(value.parts)
            return shared
        whole = Box((0,) * self.ndim, tuple(self.shape))
        pairs = zip(self.boxes, self.shapes, strict=True)
        shared.parts = [value[box.within(whole)].reshape(shape).clone() for box, shape in pairs]
        return shared

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
        pairs = zip(self.boxes, self.parts, strict=True)
        return next(part.view(box.shape) for box, part in pairs if box.offset == offset)


@dataclass(frozen=True)
class Place:
    """Where an entry of a piece's state is kept: part number `part` of the parameter's `key`, a box of it."""

    key: str
    part: int
    box: Box
    shape: Shape


class PieceState(MutableMapping[str, Tensor]):
    """One piece's entries in its parameter's state, as the state of a parameter of its own.

    Args:
        state: ``optimizer.state[p]``.
        places: of each entry; there are no scalars, which are the whole parameter's.
    """

    def __init__(self, state: State, places: Mapping[str, Place]) -> None:
        self._state, self._places = state, places

    def __getitem__(self, key: str) -> Tensor:
        place = self._places[key]
        part: Tensor = self._state[place.key].parts[place.part]
        if part is NOTHING:
            raise KeyError(key)
        return part

    def __setitem__(self, key: str, value: Tensor) -> None:
        place = self._places[key]
        self._state[place.key].parts[place.part] = value

    def __delitem__(self, key: str) -> NoReturn:
        raise TypeError(f"KrADagrad: {key} must stay in the state of a piece")

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def places_of(
    whole: ParameterPlan, pieces: Sequence[tuple[Piece, Mapping[str, Spec]]]
) -> list[dict[str, Place]]:
    """Where the entries of one parameter's pieces on this rank are kept; for every piece, by key.

    Args:
        whole: the parameter's plan.
        pieces: this rank's, with the specs of their states as those of parameters of their own.
    """
    counts: dict[str, int] = {}
    found: list[dict[str, Place]] = []
    for piece, specs in pieces:
        places = {}
        for key, spec in specs.items():
            kept, box = _whereabouts(whole, piece, key, spec)
            places[key] = Place(kept, counts.get(kept, 0), box, spec.shape)
            counts[kept] = counts.get(kept, 0) + 1
        found.append(places)
    return found


def _whereabouts(whole: ParameterPlan, piece: Piece, key: str, spec: Spec) -> tuple[str, Box]:
    if (place := _place(key)) is None:
        return key, piece.box
    region, rest = piece.plan.regions[place[0]], spec.shape[1:]
    index, offset = _find(whole, piece, region)
    kind, *_ = key.rsplit("_", 2)
    return key_of(kind, index, place[1]), Box((*offset, *(0,) * len(rest)), (*region.grid, *rest))


def empty_pieces(
    whole: ParameterPlan,
    specs: Mapping[str, Spec],
    places: Sequence[Mapping[str, Place]],
    device: torch.device,
) -> dict[str, StoredPieces]:
    """One parameter's state, but for scalars, with boxes that have no elements yet.

    Args:
        specs: of the whole parameter's state.  places: of every piece on this rank.
    """
    stored: dict[str, StoredPieces] = {}
    for key, spec in specs.items():
        size = spec.shape
        if (place := _place(key)) is not None:
            size = (*whole.regions[place[0]].grid, *size[1:])
        if key != SCALARS:
            stored[key] = StoredPieces(size, spec.dtype, device)
    for own in places:
        for kept in own.values():
            stored[kept.key].include(kept.box, kept.shape)
    return stored


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
