"""A parameter's entries in ``optimizer.state``, and the stacked tensors of many parameters that the ops take.

The state is the tensors in ``optimizer.state`` and nothing else. Entries of all blocks of one shape group, of
many parameters, share one storage in which they are stacked, so that an op takes them all at once. A
`ParamBatch` knows this layout and keeps no tensor: it finds the stacked tensors in ``optimizer.state`` on
every step, and moves tensors that the user has replaced back into the layout.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import linalg
from .backends.base import ROOT_STATS, STATISTICS, Side
from .backends.scalars import COLUMNS
from .block_layout import BlockLayout
from .blocking import Blocking, Shape, ShapeGroup
from .config import STRUCTURAL, Config

State = MutableMapping[str, Any]
"""``optimizer.state[p]``; empty for a parameter that has taken no step."""

SCALARS, MOMENTUM, SECOND_MOMENT, RESIDUAL = "matrix_stats", "exp_avg", "exp_avg_sq", "residual"
OF_ELEMENTS = (MOMENTUM, SECOND_MOMENT, RESIDUAL)
"""Entries with one value for every element of a parameter."""

OF_BLOCKS = {"factor_stats": len(STATISTICS), "root_stats": len(ROOT_STATS)}
"""Kinds of statistics of every side of a block, and their number of columns."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of factors and moments: float64 for float64 parameters, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def keeps_residuals(config: Config, dtype: torch.dtype) -> bool:
    """Return True if the residuals of rounding are kept for parameters of this dtype."""
    return config.rounding == "compensated" and dtype == torch.bfloat16


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor of the state."""

    shape: Shape
    dtype: torch.dtype


def key_of(kind: str, grid: int, mode: int) -> str:
    """Return the key in ``optimizer.state[p]`` of one kind of entry of a block grid's blocks for one mode."""
    return f"{kind}_{grid}_{mode}"


def state_specs(
    blocking: Blocking, config: Config, dtype: torch.dtype, device: torch.device
) -> dict[str, TensorSpec]:
    """Return the shapes and dtypes of a parameter's state by their keys.

    Args:
        dtype, device: the parameter's.
    """
    compute = compute_dtype(dtype)
    specs = {
        SCALARS: TensorSpec((blocking.matrices, len(COLUMNS)), compute),
        MOMENTUM: TensorSpec(blocking.shape, compute),
    }
    if config.for_blocks(bool(blocking.grids)).has_second_moment:
        specs[SECOND_MOMENT] = TensorSpec(blocking.shape, compute)
    if keeps_residuals(config, dtype):
        specs[RESIDUAL] = TensorSpec(blocking.shape, torch.int16)
    stored = {
        "factor": (config.factor_dtype or compute, config.packs_factors(device)),
        "root": (config.root_dtype or compute, config.packed),
    }
    for index, grid in enumerate(blocking.grids):
        n, sides = grid.blocks, grid.block_shape[blocking.batch_dims :]
        for mode, (d, factored) in enumerate(
            zip(sides, blocking.factored[blocking.batch_dims :], strict=True)
        ):
            if not factored:
                continue
            for kind, (storage_dtype, is_packed) in stored.items():
                shape = (n, d * (d + 1) // 2) if is_packed else (n, d, d)
                specs[key_of(kind, index, mode)] = TensorSpec(shape, storage_dtype)
            for kind, columns in OF_BLOCKS.items():
                specs[key_of(kind, index, mode)] = TensorSpec((n, columns), compute)
    return specs


def are_keys(state: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> bool:
    """Return True if a state has the keys of its specs, apart from residuals, as `rounding` may change."""
    return state.keys() ^ specs.keys() <= {RESIDUAL}


def drop_residuals(state: State, specs: Mapping[str, TensorSpec]) -> bool:
    """Delete residuals that the specs do not have; return True if there were any."""
    return RESIDUAL not in specs and state.pop(RESIDUAL, None) is not None


def check_state(state: Mapping[str, Any], specs: Mapping[str, TensorSpec], name: str) -> None:
    """Raise ValueError unless a parameter's state has the keys and shapes of its specs.

    Dtypes and devices may differ: values are converted. Residuals may be missing or unused.

    Args:
        name: the parameter's, for messages.
    """
    momentum = state.get(MOMENTUM)
    if not are_keys(state, specs) and tuple(getattr(momentum, "shape", ())) == specs[MOMENTUM].shape:
        missing, extra = sorted(specs.keys() - state.keys()), sorted(state.keys() - specs.keys())
        raise ValueError(
            f"KrADagrad: the state of {name} must be as its parameter group's options {STRUCTURAL} shape it: "
            f"it lacks {missing} and has unknown {extra}; delete it (`del optimizer.state[p]`) to restart"
        )
    for key in (MOMENTUM, *(key for key in specs if key in state)):
        value, spec = state.get(key), specs[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != spec.shape:
            got = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"KrADagrad: `{key}` in the state of {name} must be {list(spec.shape)}, got {got}: shape and "
                f"options {STRUCTURAL} must stay as they were when the state was made; delete it "
                "(`del optimizer.state[p]`) to restart"
            )


@dataclass(frozen=True)
class GroupState:
    """Factors, roots and their statistics for the N blocks of one shape group; one tensor per mode.

    Attributes:
        layouts: of each member's blocks, None where a block is the whole parameter.
        factors: F ``[N, d_i, d_i]`` for every mode i, in the factor dtype, empty for a mode without a factor;
            ``[N, d_i (d_i + 1) / 2]`` if they are stored as triangles, see `linalg`.
        factor_stats: ``[N, 4]``, see `backends.base.STATISTICS`; empty for a mode without a factor.
        roots: like the factors, in the root dtype; triangles with `packed`.
        root_stats: ``[N, 4]``, see `backends.base.ROOT_STATS`; empty for a mode without a factor.
    """

    group: ShapeGroup
    layouts: list[BlockLayout | None]
    factors: list[Tensor]
    factor_stats: list[Tensor]
    roots: list[Tensor]
    root_stats: list[Tensor]

    @property
    def is_kron(self) -> bool:
        """True if the fused two-sided op supports these blocks."""
        return len(self.group.block_shape) == 2 and all(self.group.factored)

    @property
    def modes(self) -> list[int]:
        """The modes with a factor."""
        return self.group.modes

    def columns(self, mode: int) -> int:
        """Return the number of columns of the blocks' unfoldings along a mode."""
        return math.prod(self.group.block_shape) // self.group.block_shape[mode]

    def side(self, mode: int) -> Side:
        """Return a mode's tensors as the ops take them."""
        return Side(self.factors[mode], self.factor_stats[mode], self.roots[mode])


def views_of(
    group: ShapeGroup, layouts: Sequence[BlockLayout | None], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """Return block views ``[*grid, *block_shape]`` of a shape group's blocks in the parameters' tensors."""
    view = BlockLayout.view_in_graph if torch.compiler.is_compiling() else BlockLayout.view
    members = [tensors[i] for i in group.parameters]
    if not any(layouts):
        is_ready = all(map(Tensor.is_contiguous, members))
        return members if is_ready else [tensor.contiguous() for tensor in members]
    return [
        tensor.contiguous() if layout is None else view(layout, tensor)
        for tensor, layout in zip(members, layouts, strict=True)
    ]


@dataclass(frozen=True)
class StackedTensor:
    """A tensor that holds one kind of entry of the states of several parameters, stacked along its first dim.

    Attributes:
        spec: of the tensor.
        entries: (parameter, key, first row, last row) in the order of the rows; the last row is excluded.
        is_root: true if new entries are identities, not zeros.
    """

    spec: TensorSpec
    entries: list[tuple[int, str, int, int]]
    is_root: bool = False

    @classmethod
    def of(
        cls, specs: Sequence[Mapping[str, TensorSpec]], keys: Iterable[tuple[int, str]], is_root: bool = False
    ) -> StackedTensor:
        """Stack at least one entry.

        Args:
            specs: of all parameters.  keys: (parameter, key) of each entry.
        """
        entries, row = [], 0
        for parameter, key in keys:
            end = row + specs[parameter][key].shape[0]
            entries.append((parameter, key, row, end))
            row = end
        parameter, key, *_ = entries[0]
        spec = specs[parameter][key]
        return cls(TensorSpec((row, *spec.shape[1:]), spec.dtype), entries, is_root)

    @functools.cached_property
    def stride(self) -> Shape:
        return tuple(math.prod(self.spec.shape[dim + 1 :]) for dim in range(len(self.spec.shape)))

    @property
    def is_one(self) -> bool:
        """True if it is the tensor of one parameter."""
        return len(self.entries) == 1

    def made(self, like: Tensor) -> Tensor:
        """Allocate the tensor on `like`'s device, with zeros or identities."""
        whole = like.new_zeros(self.spec.shape, dtype=self.spec.dtype)
        if self.is_root and whole.ndim == 3:
            whole.diagonal(dim1=1, dim2=2).fill_(1)
        elif self.is_root:
            d = linalg.side_of(whole.shape[-1])
            whole[:, [i * (i + 3) // 2 for i in range(d)]] = 1
        return whole

    def adopt(self, states: Sequence[State], like: Tensor) -> None:
        """Copy the entries of all states into one tensor and create missing ones; states get views of it."""
        if self.is_one:
            parameter, key, *_ = self.entries[0]
            value = states[parameter].get(key)
            states[parameter][key] = self.made(like) if value is None else fitting(value, self.spec, like)
            return
        whole = self.made(like)
        for parameter, key, first, last in self.entries:
            value = states[parameter].get(key)
            if value is not None:
                whole[first:last].copy_(value.detach())
        for parameter, key, first, last in self.entries:
            states[parameter][key] = whole[first:last]

    @property
    def first(self) -> tuple[int, str]:
        """Parameter and key of the first entry, from which `found` derives the tensor."""
        parameter, key, *_ = self.entries[0]
        return parameter, key

    def stacked(self, first: Tensor) -> Tensor:
        """Return the stacked tensor, from its first entry's view."""
        return first if self.is_one else first.as_strided(self.spec.shape, self.stride)


def fitting(value: Tensor, spec: TensorSpec, like: Tensor) -> Tensor:
    """Return the tensor if it has the spec's dtype, `like`'s device and is contiguous, else a copy."""
    return value.detach().to(device=like.device, dtype=spec.dtype).contiguous()


@dataclass(frozen=True)
class BatchState:
    """The state of a param batch's P parameters with M matrices on one step.

    Attributes:
        scalars: ``[M, 9]``, see `backends.scalars`.
        momenta, second_moments, residuals: P tensors each, or none.
        groups: the state of each shape group.
        factor_stats, root_stats: of all modes of all shape groups, ``[sum of N, 4]``; `groups` have views.
    """

    scalars: Tensor
    momenta: list[Tensor]
    second_moments: list[Tensor]
    residuals: list[Tensor]
    groups: list[GroupState]
    factor_stats: Tensor
    root_stats: Tensor


class StateLayout:
    """How the states of a param batch's parameters are stacked.

    Attributes:
        entries: (parameter, key) of the entries from which `state` derives all tensors of a `BatchState`.

    Args:
        specs: of each parameter's state; scalars may be left out of all.
        groups: the parameters' shape groups.  layouts: of each shape group's members.
        like: an empty tensor in the compute dtype on the parameters' device.
    """

    def __init__(
        self,
        specs: Sequence[Mapping[str, TensorSpec]],
        groups: Sequence[ShapeGroup],
        layouts: Sequence[list[BlockLayout | None]],
        like: Tensor,
    ) -> None:
        self._specs, self._groups, self._layouts, self._like = specs, groups, layouts, like
        self._sides = [(group, mode) for group in groups for mode in group.modes]
        self._scalars = stacked_scalars(specs) if SCALARS in specs[0] else None
        self._of_sides = {
            kind: [self._rows([_entries(kind, *side)], kind == "root") for side in self._sides]
            for kind in ("factor", "root")
        }
        sides = self._sides
        kinds = OF_BLOCKS if sides else ()
        self._stats = {kind: self._rows([_entries(kind, *side) for side in sides]) for kind in kinds}
        self._stats_rows = [group.blocks for group, _ in self._sides]
        of_elements = [[(i, key) for i, keys in enumerate(specs) if key in keys] for key in OF_ELEMENTS]
        self.entries = [*(batch.first for batch in self._batches()), *itertools.chain(*of_elements)]
        self._of_elements = list(map(len, of_elements))

    def _rows(self, lists: Sequence[Sequence[tuple[int, str]]], is_root: bool = False) -> StackedTensor:
        return StackedTensor.of(self._specs, itertools.chain(*lists), is_root)

    def _batches(self) -> Iterator[StackedTensor]:
        if self._scalars is not None:
            yield self._scalars
        if self._sides:
            yield from itertools.chain(*self._of_sides.values(), self._stats.values())

    def adopt(self, states: Sequence[State]) -> None:
        """Bring all states, whose keys and shapes are checked, into the layout; create missing entries.

        An exception leaves each entry either moved or not: its values are the same in both cases.
        """
        for batch in self._batches():
            batch.adopt(states, self._like)
        for specs, state in zip(self._specs, states, strict=True):
            for key in OF_ELEMENTS:
                if key in specs:
                    value, spec = state.get(key), specs[key]
                    tensor = self._like.new_zeros(spec.shape, dtype=spec.dtype) if value is None else value
                    state[key] = fitting(tensor, spec, self._like)

    def state(self, tensors: Sequence[Tensor]) -> BatchState:
        """Return the state of all parameters, whose entries are as `adopt` left them.

        Args:
            tensors: the entries that `entries` lists.
        """
        left = iter(tensors)
        none = self._like.new_empty(0, 0, 0)
        scalars = none if self._scalars is None else self._scalars.stacked(next(left))
        factors, roots = ([batch.stacked(next(left)) for batch in each] for each in self._of_sides.values())
        stats = [batch.stacked(next(left)) for batch in self._stats.values()]
        factor_stats, root_stats = stats or (
            self._like.new_zeros(0, columns) for columns in OF_BLOCKS.values()
        )
        of_stats = (whole.split_with_sizes(self._stats_rows) for whole in (factor_stats, root_stats))
        sides = zip(factors, roots, *of_stats, strict=True)
        groups = []
        for group, layouts in zip(self._groups, self._layouts, strict=True):
            modes = [next(sides) if factored else (none, none, none, none) for factored in group.factored]
            f, r, f_stats, r_stats = (list(each) for each in zip(*modes, strict=True))
            groups.append(GroupState(group, layouts, f, f_stats, r, r_stats))
        momenta, second_moments, residuals = (
            list(itertools.islice(left, count)) for count in self._of_elements
        )
        return BatchState(scalars, momenta, second_moments, residuals, groups, factor_stats, root_stats)


def stacked_scalars(specs: Sequence[Mapping[str, TensorSpec]]) -> StackedTensor:
    """Return the stacked tensor of all parameters' scalars."""
    return StackedTensor.of(specs, [(i, SCALARS) for i in range(len(specs))])


def _entries(kind: str, group: ShapeGroup, mode: int) -> list[tuple[int, str]]:
    """Return (parameter, key) of every member of a shape group."""
    return [(member.parameter, key_of(kind, member.grid_index, mode)) for member in group.members]


VALUES = operator.methodcaller("values")


def values_of(states: Sequence[State]) -> Iterator[Any]:
    """Iterate over all values of some states."""
    return itertools.chain.from_iterable(map(VALUES, states))


class AliveCheck:
    """A check that some objects are alive, which does not keep them alive."""

    def __init__(self, objects: Iterable[object]) -> None:
        self._gone: list[object] = []
        self._refs = [weakref.ref(each, self._gone.append) for each in objects]  # call back only while kept

    @property
    def all_here(self) -> bool:
        return not self._gone


class StateWatch:
    """A check that the tensors of some states are still the same, with their data at the same addresses.

    It keeps no tensor alive. For each storage it needs one live tensor: while that one is alive, no other
    storage can have these addresses.

    Args:
        states: the states whose addresses are compared.  objects: one of their tensors for each storage.
    """

    def __init__(self, states: Sequence[State], objects: Sequence[Tensor]) -> None:
        self._lives = AliveCheck(objects)
        self.look_at(states)

    def look_at(self, states: Sequence[State]) -> None:
        """Record the addresses of these states' data."""
        self._addresses = list(map(Tensor.data_ptr, values_of(states)))

    def holds(self, states: Sequence[State]) -> bool:
        """Return True if these states have the recorded addresses."""
        if not self._lives.all_here or sum(map(len, states)) != len(self._addresses):
            return False
        try:
            return list(map(Tensor.data_ptr, values_of(states))) == self._addresses
        except TypeError:  # an entry is not a tensor
            return False
