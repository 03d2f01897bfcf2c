"""What ``optimizer.state`` holds of a parameter, and the batches that the ops see of many.

The tensors in ``optimizer.state`` are the state; nothing else is. Those of the blocks of equal shape of many
parameters lie in one storage, one after the other, so that an op takes them all at once. A `Bucket` knows how
they lie and holds none of them: it finds the batches in ``optimizer.state`` on every step, and puts tensors
that lie elsewhere, since somebody has replaced them, in their place.
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

from . import packing
from .backends.base import ROOT_STATS, STATISTICS, Side
from .backends.scalars import COLUMNS
from .block_layout import BlockLayout
from .config import STRUCTURAL, Config
from .plan import Group, ParameterPlan, Shape

State = MutableMapping[str, Any]
"""``optimizer.state[p]``; empty for a parameter that has taken no step."""

SCALARS, MOMENTUM, SECOND_MOMENT, RESIDUAL = "scalars", "momentum", "second_moment", "residual"
OF_ELEMENTS = (MOMENTUM, SECOND_MOMENT, RESIDUAL)
"""What has a value for every element of a parameter."""

OF_BLOCKS = {"factor_stats": len(STATISTICS), "root_stats": len(ROOT_STATS)}
"""Kinds of statistics that every side of a block has, and their columns."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of factors and moments: float64 for float64 parameters, float32 for float32 and bfloat16."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def keeps_residuals(config: Config, dtype: torch.dtype) -> bool:
    """Whether what rounding leaves over of parameters of this dtype is kept."""
    return config.rounding == "compensated" and dtype == torch.bfloat16


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor of the state."""

    shape: Shape
    dtype: torch.dtype


def key_of(kind: str, region: int, mode: int) -> str:
    """The key in ``optimizer.state[p]`` of what all blocks of a region have for one mode."""
    return f"{kind}_{region}_{mode}"


def state_specs(
    plan: ParameterPlan, config: Config, dtype: torch.dtype, device: torch.device
) -> dict[str, Spec]:
    """The tensors of a parameter's state by their keys.

    Args:
        dtype, device: the parameter's.
    """
    compute = compute_dtype(dtype)
    specs = {SCALARS: Spec((plan.matrices, len(COLUMNS)), compute), MOMENTUM: Spec(plan.shape, compute)}
    if config.for_blocks(bool(plan.regions)).has_second_moment:
        specs[SECOND_MOMENT] = Spec(plan.shape, compute)
    if keeps_residuals(config, dtype):
        specs[RESIDUAL] = Spec(plan.shape, torch.int16)
    stored = {
        "factor": (config.factor_dtype or compute, config.packs_factors(device)),
        "root": (config.root_dtype or compute, config.packed),
    }
    for index, region in enumerate(plan.regions):
        n, sides = region.blocks, region.block_shape[plan.batch_dims :]
        for mode, (d, factored) in enumerate(zip(sides, plan.factored[plan.batch_dims :], strict=True)):
            if not factored:
                continue
            for kind, (own_dtype, is_packed) in stored.items():
                shape = (n, d * (d + 1) // 2) if is_packed else (n, d, d)
                specs[key_of(kind, index, mode)] = Spec(shape, own_dtype)
            for kind, columns in OF_BLOCKS.items():
                specs[key_of(kind, index, mode)] = Spec((n, columns), compute)
    return specs


def are_keys(state: Mapping[str, Any], specs: Mapping[str, Spec]) -> bool:
    """Whether a state has the tensors that it is to have; `rounding` may have changed since it was made."""
    return state.keys() ^ specs.keys() <= {RESIDUAL}


def drop_residuals(state: State, specs: Mapping[str, Spec]) -> bool:
    """Delete those that are there in vain; whether there were any."""
    return RESIDUAL not in specs and state.pop(RESIDUAL, None) is not None


def check_state(state: Mapping[str, Any], specs: Mapping[str, Spec], name: str) -> None:
    """Raise ValueError unless a parameter's state has the tensors that it is to have.

    Their dtype and device may be others: values are converted. Residuals may lack, or be there in vain.

    Args:
        name: the parameter's.
    """
    moved = state.get(MOMENTUM)
    if not are_keys(state, specs) and tuple(getattr(moved, "shape", ())) == specs[MOMENTUM].shape:
        missing, extra = sorted(specs.keys() - state.keys()), sorted(state.keys() - specs.keys())
        raise ValueError(
            f"KrADagrad: the state of {name} must be as its parameter group's options {STRUCTURAL} shape it: "
            f"it lacks {missing} and has unknown {extra}; delete it (`del optimizer.state[p]`) to start anew"
        )
    for key in (MOMENTUM, *(key for key in specs if key in state)):
        value, spec = state.get(key), specs[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != spec.shape:
            got = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"KrADagrad: `{key}` in the state of {name} must be {list(spec.shape)}, got {got}: shape and "
                f"options {STRUCTURAL} must stay as they were when the state was made; delete it "
                "(`del optimizer.state[p]`) to start anew"
            )


@dataclass(frozen=True)
class GroupState:
    """Factors, roots and what is known of them, for the N blocks of one group; one tensor a mode.

    Attributes:
        layouts: of each member's blocks, None where a block is the whole parameter.
        factors: F ``[N, d_i, d_i]`` for every mode i, in the factor dtype, empty for a mode without a factor;
            ``[N, d_i (d_i + 1) / 2]`` where they are stored as triangles, see `packing`.
        factor_stats: ``[N, 4]``, see `backends.base.STATISTICS`; empty for a mode without a factor.
        roots: like the factors, in the root dtype; triangles with `packed`.
        root_stats: ``[N, 4]``, see `backends.base.ROOT_STATS`; empty for a mode without a factor.
    """

    group: Group
    layouts: list[BlockLayout | None]
    factors: list[Tensor]
    factor_stats: list[Tensor]
    roots: list[Tensor]
    root_stats: list[Tensor]

    @property
    def is_kron(self) -> bool:
        """Whether the fused two-sided op serves these blocks."""
        return len(self.group.block_shape) == 2 and all(self.group.factored)

    @property
    def modes(self) -> list[int]:
        """Those with a factor."""
        return self.group.modes

    def columns(self, mode: int) -> int:
        """Of the blocks' unfoldings along a mode."""
        return math.prod(self.group.block_shape) // self.group.block_shape[mode]

    def side(self, mode: int) -> Side:
        """A mode as the ops take it."""
        return Side(self.factors[mode], self.factor_stats[mode], self.roots[mode])


def views_of(group: Group, layouts: Sequence[BlockLayout | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Block views ``[*grid, *block_shape]`` of a group's blocks in the parameters' tensors."""
    view = BlockLayout.view_in_graph if torch.compiler.is_compiling() else BlockLayout.view
    own = [tensors[i] for i in group.parameters]
    if not any(layouts):
        return own if all(map(Tensor.is_contiguous, own)) else [tensor.contiguous() for tensor in own]
    return [
        tensor.contiguous() if layout is None else view(layout, tensor)
        for tensor, layout in zip(own, layouts, strict=True)
    ]


@dataclass(frozen=True)
class Batch:
    """A tensor that holds one kind of entry of the states of several parameters, row after row.

    Attributes:
        spec: of the tensor.
        entries: (parameter, key, first row, last row) in the order of the rows.
        is_root: whether new entries are identities, not zeros.
    """

    spec: Spec
    entries: list[tuple[int, str, int, int]]
    is_root: bool = False

    @classmethod
    def of(
        cls, specs: Sequence[Mapping[str, Spec]], keys: Iterable[tuple[int, str]], is_root: bool = False
    ) -> Batch:
        """The batch of at least one entry.

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
        return cls(Spec((row, *spec.shape[1:]), spec.dtype), entries, is_root)

    @functools.cached_property
    def stride(self) -> Shape:
        return tuple(math.prod(self.spec.shape[dim + 1 :]) for dim in range(len(self.spec.shape)))

    @property
    def is_one(self) -> bool:
        """Whether it is the tensor of one parameter."""
        return len(self.entries) == 1

    def made(self, like: Tensor) -> Tensor:
        """A new one, of `like`'s device."""
        whole = like.new_zeros(self.spec.shape, dtype=self.spec.dtype)
        if self.is_root and whole.ndim == 3:
            whole.diagonal(dim1=1, dim2=2).fill_(1)
        elif self.is_root:
            d = packing.side_of(whole.shape[-1])
            whole[:, [i * (i + 3) // 2 for i in range(d)]] = 1
        return whole

    def adopt(self, states: Sequence[State], like: Tensor) -> None:
        """Put the entries of all states side by side; those that there are not yet are made."""
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
        """Parameter and key of the entry that the tensor is found from."""
        parameter, key, *_ = self.entries[0]
        return parameter, key

    def found(self, first: Tensor) -> Tensor:
        """The tensor that the first entry is a part of."""
        return first if self.is_one else first.as_strided(self.spec.shape, self.stride)


def fitting(value: Tensor, spec: Spec, like: Tensor) -> Tensor:
    """The tensor itself where its dtype, device and strides are those of a batch, else a copy."""
    return value.detach().to(device=like.device, dtype=spec.dtype).contiguous()


@dataclass(frozen=True)
class Batches:
    """The state of a bucket's P parameters with M matrices on one step.

    Attributes:
        scalars: ``[M, 9]``, see `backends.scalars`.
        momenta, second_moments, residuals: P tensors each, or none.
        groups: of the preconditioned blocks.
        factor_stats, root_stats: of all modes of all groups, ``[sum of N, 4]``, which theirs are views of.
    """

    scalars: Tensor
    momenta: list[Tensor]
    second_moments: list[Tensor]
    residuals: list[Tensor]
    groups: list[GroupState]
    factor_stats: Tensor
    root_stats: Tensor


class Arrangement:
    """How the states of a bucket's parameters lie in batches.

    Attributes:
        wanted: (parameter, key) of the entries that all batches are found from.

    Args:
        specs: of each parameter's state; scalars may be left out of all.
        groups: of their blocks.  layouts: of each group's members.
        like: an empty tensor in the compute dtype on the parameters' device.
    """

    def __init__(
        self,
        specs: Sequence[Mapping[str, Spec]],
        groups: Sequence[Group],
        layouts: Sequence[list[BlockLayout | None]],
        like: Tensor,
    ) -> None:
        self._specs, self._groups, self._layouts, self._like = specs, groups, layouts, like
        self._sides = [(group, mode) for group in groups for mode in group.modes]
        self._scalars = batch_of_scalars(specs) if SCALARS in specs[0] else None
        self._of_sides = {
            kind: [self._rows([_entries(kind, *side)], kind == "root") for side in self._sides]
            for kind in ("factor", "root")
        }
        own = self._sides
        self._stats = {kind: self._rows([_entries(kind, *side) for side in own]) for kind in OF_BLOCKS if own}
        self._stats_rows = [group.blocks for group, _ in self._sides]
        of_elements = [[(i, key) for i, own in enumerate(specs) if key in own] for key in OF_ELEMENTS]
        self.wanted = [*(batch.first for batch in self._batches()), *itertools.chain(*of_elements)]
        self._of_elements = list(map(len, of_elements))

    def _rows(self, lists: Sequence[Sequence[tuple[int, str]]], is_root: bool = False) -> Batch:
        return Batch.of(self._specs, itertools.chain(*lists), is_root)

    def _batches(self) -> Iterator[Batch]:
        if self._scalars is not None:
            yield self._scalars
        if self._sides:
            yield from itertools.chain(*self._of_sides.values(), self._stats.values())

    def adopt(self, states: Sequence[State]) -> None:
        """Bring all states, whose keys and shapes were checked, into batches; those that lack are made.

        What raises leaves each state as it was or as it is to be: both are the same values.
        """
        for batch in self._batches():
            batch.adopt(states, self._like)
        for specs, state in zip(self._specs, states, strict=True):
            for key in OF_ELEMENTS:
                if key in specs:
                    value, spec = state.get(key), specs[key]
                    made = self._like.new_zeros(spec.shape, dtype=spec.dtype) if value is None else value
                    state[key] = fitting(made, spec, self._like)

    def batches(self, tensors: Sequence[Tensor]) -> Batches:
        """The batches of states that lie as `adopt` has left them.

        Args:
            tensors: the entries that are `wanted`.
        """
        left = iter(tensors)
        none = self._like.new_empty(0, 0, 0)
        scalars = none if self._scalars is None else self._scalars.found(next(left))
        factors, roots = ([batch.found(next(left)) for batch in own] for own in self._of_sides.values())
        stats = [batch.found(next(left)) for batch in self._stats.values()]
        factor_stats, root_stats = stats or (
            self._like.new_zeros(0, columns) for columns in OF_BLOCKS.values()
        )
        of_stats = (whole.split_with_sizes(self._stats_rows) for whole in (factor_stats, root_stats))
        sides = zip(factors, roots, *of_stats, strict=True)
        groups = []
        for group, layouts in zip(self._groups, self._layouts, strict=True):
            modes = [next(sides) if factored else (none, none, none, none) for factored in group.factored]
            own = [list(each) for each in zip(*modes, strict=True)]
            groups.append(GroupState(group, layouts, own[0], own[2], own[1], own[3]))
        momenta, second_moments, residuals = (
            list(itertools.islice(left, count)) for count in self._of_elements
        )
        return Batches(scalars, momenta, second_moments, residuals, groups, factor_stats, root_stats)


def batch_of_scalars(specs: Sequence[Mapping[str, Spec]]) -> Batch:
    """The batch of all parameters' scalars."""
    return Batch.of(specs, [(i, SCALARS) for i in range(len(specs))])


def _entries(kind: str, group: Group, mode: int) -> list[tuple[int, str]]:
    """(parameter, key) of every member of a group."""
    return [(member.parameter, key_of(kind, member.region_index, mode)) for member in group.members]


VALUES = operator.methodcaller("values")


def values_of(states: Sequence[State]) -> Iterator[Any]:
    """All values of some states."""
    return itertools.chain.from_iterable(map(VALUES, states))


class Lives:
    """Tells whether any of some objects is gone, without keeping them alive."""

    def __init__(self, objects: Iterable[object]) -> None:
        self._gone: list[object] = []
        self._refs = [weakref.ref(each, self._gone.append) for each in objects]  # which call back while kept

    @property
    def all_here(self) -> bool:
        return not self._gone


class Watch:
    """Tells whether the tensors of some states are still the same, their data where they were.

    It keeps none of them alive. Of those that share a storage, it is enough to know that one is still there:
    so long, no other storage can be where they were.

    Args:
        states: all of whose data are looked at.  objects: one of their tensors for each storage.
    """

    def __init__(self, states: Sequence[State], objects: Sequence[Tensor]) -> None:
        self._lives = Lives(objects)
        self.look_at(states)

    def look_at(self, states: Sequence[State]) -> None:
        """Where the data of these states are now."""
        self._addresses = list(map(Tensor.data_ptr, values_of(states)))

    def holds(self, states: Sequence[State]) -> bool:
        """Whether these are the states."""
        if not self._lives.all_here or sum(map(len, states)) != len(self._addresses):
            return False
        try:
            return list(map(Tensor.data_ptr, values_of(states))) == self._addresses
        except TypeError:  # of what is no tensor
            return False
