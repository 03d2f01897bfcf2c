"""State in pieces, which torch.distributed.checkpoint saves and loads on any number of ranks.

A `ShardedTensorState` is a tensor of which this rank holds some boxes. It has no storage: the checkpoint
library gets its boxes from the methods that the library defines for such tensors.
"""

from __future__ import annotations

import itertools
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

from kradagrad_ext.blocking import BlockGrid, Blocking, Shape
from kradagrad_ext.state import SCALARS, State, TensorSpec, key_of

from .partition import Box, Piece

NOTHING = torch.empty(0, device="cpu")
"""Placeholder of a tensor that is not created yet."""

COPIES = (torch.ops.aten.clone.default, torch.ops.aten.detach.default, torch.ops.aten._to_copy.default)


class ShardedTensorState(torch.Tensor):
    """A tensor of some size, of which `boxes` and their `tensors` are on this rank.

    Attributes:
        tensors: the elements of each box, in the corresponding one of `shapes`; blocks are consecutive.
        whole: the whole tensor in host memory, on the rank that it was last gathered on; None after a step.
        looked_up: by owned batch, the state tensors that its step uses. It is valid as long as this object is
            in the state: if any entry of the state is replaced, the next step replaces all of these objects.
    """

    boxes: list[Box]
    tensors: list[Tensor]
    shapes: list[Shape]
    whole: Tensor | None
    looked_up: dict[int, list[Tensor]]

    @staticmethod
    def __new__(
        cls: type[ShardedTensorState], size: Shape, dtype: torch.dtype, device: torch.device
    ) -> ShardedTensorState:
        new: ShardedTensorState = torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)
        new.boxes, new.tensors, new.shapes, new.whole, new.looked_up = [], [], [], None, {}
        return new

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the ops that copy a state dict, tensor by tensor; refuse all other ops."""
        if func not in COPIES:
            raise NotImplementedError(f"KrADagrad: {func} must be called on whole tensors, got pieces of one")
        source: ShardedTensorState = args[0]
        tensors = [func(tensor, **(kwargs or {})) for tensor in source.tensors]
        like = tensors[0] if tensors else source
        copy = ShardedTensorState(tuple(source.shape), like.dtype, like.device)
        copy.boxes, copy.tensors, copy.shapes = list(source.boxes), tensors, list(source.shapes)
        return copy

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"ShardedTensorState({list(self.shape)}, {self.dtype}, {len(self.boxes)} here)"

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to pickle: a file of one rank would hold that rank's pieces alone, without any error."""
        raise TypeError(
            "KrADagrad: the state of a sharded optimizer must be saved with torch.distributed.checkpoint, or "
            f"after `consolidate_state_dict` on the rank named there, got pieces of {list(self.shape)}"
        )

    def gathered(self, to: int, group: dist.ProcessGroup) -> Tensor | None:
        """Return the whole tensor ``self.shape`` in host memory on the group's rank `to`, None on others."""
        whole = torch.zeros(tuple(self.shape), dtype=self.dtype, device=self.device)
        for box, tensor in zip(self.boxes, self.tensors, strict=True):
            whole[box.within(Box((0,) * self.ndim, tuple(self.shape)))] = tensor.view(box.shape)
        if whole.numel():
            # A sum of bytes is exact if all except one are zero, whatever their dtype.
            dist.reduce(whole.view(-1).view(torch.uint8), group=group, group_dst=to)
        return whole.to("cpu") if group.rank() == to else None

    def include(self, box: Box, shape: Shape) -> None:
        """Add a box, whose tensor is yet to be created."""
        self.boxes.append(box)
        self.tensors.append(NOTHING)
        self.shapes.append(shape)

    def shared_from(self, value: Tensor) -> ShardedTensorState:
        """Return the same boxes of `value`: its tensors, or copies if it is whole."""
        shared = ShardedTensorState(tuple(self.shape), value.dtype, value.device)
        shared.boxes, shared.shapes = list(self.boxes), list(self.shapes)
        if isinstance(value, ShardedTensorState):
            shared.tensors = list(value.tensors)
            return shared
        whole = Box((0,) * self.ndim, tuple(self.shape))
        pairs = zip(self.boxes, self.shapes, strict=True)
        shared.tensors = [value[box.within(whole)].reshape(shape).clone() for box, shape in pairs]
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
        pairs = zip(self.boxes, self.tensors, strict=True)
        return next(tensor.view(box.shape) for box, tensor in pairs if box.offset == offset)


@dataclass(frozen=True)
class PiecePlace:
    """The place of an entry of a piece's state: tensor number `index` of the parameter's entry `key`."""

    key: str
    index: int
    box: Box
    shape: Shape


class PieceState(MutableMapping[str, Tensor]):
    """The entries of one piece in its parameter's state, in the form of a parameter's state.

    Args:
        state: ``optimizer.state[p]``.
        places: the place of each entry, without the scalars, which belong to the whole parameter.
    """

    def __init__(self, state: State, places: Mapping[str, PiecePlace]) -> None:
        self._state, self._places = state, places

    def __getitem__(self, key: str) -> Tensor:
        place = self._places[key]
        tensor: Tensor = self._state[place.key].tensors[place.index]
        if tensor is NOTHING:
            raise KeyError(key)
        return tensor

    def __setitem__(self, key: str, value: Tensor) -> None:
        place = self._places[key]
        self._state[place.key].tensors[place.index] = value

    def __delitem__(self, key: str) -> NoReturn:
        raise TypeError(f"KrADagrad: {key} must stay in the state of a piece")

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def places_of(
    whole: Blocking, pieces: Sequence[tuple[Piece, Mapping[str, TensorSpec]]]
) -> list[dict[str, PiecePlace]]:
    """Return, for every piece, where the entries of its state are stored, by key.

    Args:
        whole: the parameter's blocking.
        pieces: the parameter's pieces on this rank, with the specs of a piece's state.
    """
    counts: dict[str, int] = {}
    places_by_piece: list[dict[str, PiecePlace]] = []
    for piece, specs in pieces:
        places = {}
        for key, spec in specs.items():
            stored_key, box = _whereabouts(whole, piece, key, spec)
            places[key] = PiecePlace(stored_key, counts.get(stored_key, 0), box, spec.shape)
            counts[stored_key] = counts.get(stored_key, 0) + 1
        places_by_piece.append(places)
    return places_by_piece


def _whereabouts(whole: Blocking, piece: Piece, key: str, spec: TensorSpec) -> tuple[str, Box]:
    if (place := _place(key)) is None:
        return key, piece.box
    grid, rest = piece.blocking.grids[place[0]], spec.shape[1:]
    index, offset = _find(whole, piece, grid)
    kind, *_ = key.rsplit("_", 2)
    return key_of(kind, index, place[1]), Box((*offset, *(0,) * len(rest)), (*grid.counts, *rest))


def empty_pieces(
    whole: Blocking,
    specs: Mapping[str, TensorSpec],
    places: Sequence[Mapping[str, PiecePlace]],
    device: torch.device,
) -> dict[str, ShardedTensorState]:
    """Return one parameter's state, except scalars, with boxes whose tensors are yet to be created.

    Args:
        specs: those of the whole parameter's state.  places: those of every piece on this rank.
    """
    stored: dict[str, ShardedTensorState] = {}
    for key, spec in specs.items():
        size = spec.shape
        if (grid_and_mode := _place(key)) is not None:
            size = (*whole.grids[grid_and_mode[0]].counts, *size[1:])
        if key != SCALARS:
            stored[key] = ShardedTensorState(size, spec.dtype, device)
    for place in itertools.chain.from_iterable(by_key.values() for by_key in places):
        stored[place.key].include(place.box, place.shape)
    return stored


def _place(key: str) -> tuple[int, int] | None:
    """Return the grid and the mode at the end of a key of blocks' state; None for other keys."""
    *_, grid, mode = ("", "", *key.rsplit("_", 2))
    return (int(grid), int(mode)) if grid.isdigit() and mode.isdigit() else None


def _find(whole: Blocking, piece: Piece, grid: BlockGrid) -> tuple[int, Shape]:
    """Return the index of the parameter's block grid that contains a piece's, and the first block there."""
    # Only dims that are not merged are cut.
    offset = (piece.box.offset[dims[0]] for dims in whole.merged_dims)
    start = tuple(map(sum, zip(offset, grid.offset, strict=True)))
    for index, candidate in enumerate(whole.grids):
        steps = [b - a for a, b in zip(candidate.offset, start, strict=True)]
        inside = all(
            0 <= step < count * size
            for step, count, size in zip(steps, candidate.counts, candidate.block_shape, strict=True)
        )
        if inside and candidate.block_shape == grid.block_shape:
            return index, tuple(s // size for s, size in zip(steps, grid.block_shape, strict=True))
    raise AssertionError(f"{grid} is in no block grid of {whole}")
