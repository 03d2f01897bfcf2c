"""Parameters that are stepped together: their blocks in batches, sums over blocks, and room to work in."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .backends.base import RESIDUAL, WEIGHT, WHITENED_MEAN, WHITENED_WEIGHT
from .backends.scalars import spans_of
from .block_layout import Blocked, BlockLayout, Workspace, divided
from .config import STRUCTURAL, Config
from .norms import GradientNorms
from .plan import ParameterPlan, Shape, group_blocks
from .roots import supports_polar
from .state import (
    SCALARS,
    Arrangement,
    Batches,
    State,
    compute_dtype,
    keeps_residuals,
    state_specs,
    views_of,
)
from .uploads import Masks

KIND = operator.attrgetter("device", "dtype", "shape")
"""What a parameter's place in a bucket depends on."""

KEPT_BYTES = 4 << 20
"""What a step works in and no step leaves to another is kept between steps where it takes up to so much."""


def as_tensor(number: float | Tensor, like: Tensor) -> Tensor:
    """A number, a learning rate for one, as a 0-dim tensor of the dtype of `like` on its device.

    What the host holds, a number or a tensor, goes there as a kernel's argument: nothing waits.
    """
    if isinstance(number, Tensor) and number.device.type == like.device.type:
        return number.detach().to(like, non_blocking=True).reshape(())
    return torch.full((), float(number), dtype=like.dtype, device=like.device)


def presence(gradients: Sequence[Tensor | None]) -> tuple[bool, ...]:
    """Which gradients there are."""
    return tuple([grad is not None for grad in gradients])


def check_capturable(config: Config, block_shapes: Iterable[Shape]) -> None:
    """Raise ValueError if a graph is to hold roots that products alone do not make."""
    for shape in block_shapes if config.capturable else ():
        p = config.root_order(len(shape))
        if not supports_polar(p):
            raise ValueError(
                f"KrADagrad: `exponent` must be 1/p, p = 2, 4, 8, ..., with `capturable`, got 1/{p} for "
                f"blocks of {list(shape)}"
            )


class Bucket:
    """P parameters of one parameter group with one device and dtype, which hold M matrices.

    Where lengths belong to blocks' updates, parameters without blocks are in a bucket of their own. It holds
    nothing of the state, which it finds in ``optimizer.state``.

    Args:
        has_scalars: whether the state has scalars.

    Attributes:
        params: in the parameter group's order.  plans: of each.
        groups: of the preconditioned blocks.
        numel: elements of every matrix ``[M]``, at least 1.
        preconditioned: ``[M]`` bool, whether a matrix has blocks.
        spans: of all matrices.  span_offsets: ``[M + 1]``, the first of each one's.
        block_order, block_offsets: ``[B]``, ``[M + 1]``: the blocks of all groups, matrix after matrix.
        key: device and dtype of the parameters.  kinds: `KIND` of each.
        label: what parameters of one bucket have in common within a group.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        config: Config,
        plans: Sequence[ParameterPlan],
        *,
        has_scalars: bool = True,
    ) -> None:
        self.params, self.plans = list(params), list(plans)
        self.structure = {option: getattr(config, option) for option in STRUCTURAL}
        device, dtype = params[0].device, compute_dtype(params[0].dtype)
        self.key = (device, params[0].dtype)
        self.kinds = list(map(KIND, params))
        self.packs_factors = config.packs_factors(device)
        self._keeps_residuals = keeps_residuals(config, params[0].dtype)
        self.masks = Masks(device)
        self.like = torch.empty(0, dtype=dtype, device=device)
        self._has_blocks = [bool(plan.regions) for plan in plans]
        self._with_blocks = [i for i, has in enumerate(self._has_blocks) if has]
        self.label = (*self.key, self.options(config).graft)
        self._divided = any(plan.divisions for plan in plans)
        self._checked: Config | None = None
        self.groups = group_blocks(plans)
        self._layouts = [
            [BlockLayout.of(plans[m.parameter], m.region) for m in group.members] for group in self.groups
        ]
        self.specs = [state_specs(plan, config, params[0].dtype, device) for plan in plans]
        if not has_scalars:
            self.specs = [{key: own[key] for key in own if key != SCALARS} for own in self.specs]
        self._arrangement = Arrangement(self.specs, self.groups, self._layouts, self.like)
        self._rooms: dict[bool, tuple[Blocked, Blocked]] = {}
        moment_bytes = sum(p.numel() for p in params) * dtype.itemsize
        self.is_small = moment_bytes <= KEPT_BYTES
        matrices = self.matrices(self.params)
        self._norms = GradientNorms(matrices)
        self.numel = self._upload([max(p.numel(), 1) for p in matrices], dtype)
        span_offsets = list(itertools.accumulate((spans_of(p.numel()) for p in matrices), initial=0))
        self.spans, self.span_offsets = span_offsets[-1], self._upload(span_offsets, torch.int64)
        self._numbers: dict[str, tuple[float, Tensor]] = {}
        self._index_blocks()

    def _upload(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.like.device)

    def _index_blocks(self) -> None:
        counts = [plan.matrices for plan in self.plans]
        starts = list(itertools.accumulate(counts, initial=0))
        owners = [
            [
                starts[m.parameter] + matrix
                for m in group.members
                for matrix in self.plans[m.parameter].matrices_of(m.region)
            ]
            for group in self.groups
        ]
        self._block_counts = list(map(len, owners))
        of_rows = [own * len(group.modes) for group, own in zip(self.groups, owners, strict=True)]
        self._block_matrices, self._stats_matrices = (
            self._upload([*itertools.chain(*each)], torch.int64) for each in (owners, of_rows)
        )
        has_blocks = (has for has, n in zip(self._has_blocks, counts, strict=True) for _ in range(n))
        self.preconditioned = self._upload(list(has_blocks), torch.bool)
        blocks: list[list[int]] = [[] for _ in range(starts[-1])]
        for number, matrix in enumerate(itertools.chain(*owners)):
            blocks[matrix].append(number)
        self.block_order = self._upload([*itertools.chain(*blocks)], torch.int64)
        offsets = itertools.accumulate(map(len, blocks), initial=0)
        self.block_offsets = self._upload(list(offsets), torch.int64)

    def adopt(self, states: Sequence[State]) -> None:
        """See `Arrangement.adopt`."""
        self._arrangement.adopt(states)

    @property
    def wanted(self) -> list[tuple[int, str]]:
        """See `Arrangement`."""
        return self._arrangement.wanted

    def batches(self, tensors: Sequence[Tensor]) -> Batches:
        """See `Arrangement.batches`."""
        return self._arrangement.batches(tensors)

    def matrices(self, tensors: list[Tensor]) -> list[Tensor]:
        """Views of all matrices ``[M]`` in tensors of the parameters' shapes."""
        if not self._divided:
            return tensors
        pairs = zip(self.plans, tensors, strict=True)
        return [part for plan, tensor in pairs for part in divided(tensor, plan.divisions)]

    def of_blocks(self, values: Tensor) -> Sequence[Tensor]:
        """For each group ``[N]``, its blocks' matrices' values, of ``[M]``."""
        return values[self._block_matrices].split_with_sizes(self._block_counts)

    def restart(self, batches: Batches, matrices: Tensor) -> None:
        """Let the factors of these matrices, ``[M]`` bool, start anew with the next gradient."""
        held = ~matrices[self._stats_matrices]
        batches.factor_stats.select(1, WEIGHT).mul_(held)
        batches.root_stats.select(1, RESIDUAL).mul_(held)
        if self.structure["graft"] == "whitened":
            batches.root_stats[:, WHITENED_MEAN : WHITENED_WEIGHT + 1].mul_(held[:, None])

    def has_newcomers(self, batches: Batches, active: Tensor) -> bool:
        """Whether blocks of active matrices, ``[M]`` bool, lack a factor, or a root since it started."""
        rootless = batches.root_stats.select(1, RESIDUAL) == 0
        return bool((rootless & active[self._stats_matrices]).any())

    def number(self, name: str, value: float | Tensor) -> Tensor:
        """See `as_tensor`; the tensor of a number is kept while it stays the same."""
        if isinstance(value, Tensor):
            return as_tensor(value, self.like)
        kept = self._numbers.get(name)
        if kept is None or kept[0] != value:
            kept = self._numbers[name] = value, as_tensor(value, self.like)
        return kept[1]

    def options(self, config: Config) -> Config:
        """The parameter group's, as they are for this bucket's parameters."""
        return config.for_blocks(any(self._has_blocks))

    def gradients(self, given: Sequence[Tensor | None]) -> tuple[list[Tensor], Tensor] | None:
        """The gradients, each missing one stood in for by its parameter, and which matrices have one ``[M]``.

        None without any.
        """
        present = presence(given)
        if not any(present):
            return None
        grads = [p if grad is None else grad for p, grad in zip(self.params, given, strict=True)]
        return grads, self.masks.of(self.mask(present))

    def mask(self, present: tuple[bool, ...]) -> tuple[bool, ...]:
        """What holds of the parameters, of the matrices."""
        if not self._divided:
            return present
        pairs = zip(self.plans, present, strict=True)
        return tuple(itertools.chain.from_iterable((has,) * plan.matrices for plan, has in pairs))

    def gradient_norms(self, grads: list[Tensor], host_looks: bool) -> Tensor:
        """|g|_F of the gradients of all matrices ``[M]`` float64, not finite where any element is not."""
        return self._norms.of(self.matrices(grads), host_looks)

    def blocked(self, tensors: list[Tensor]) -> Blocked:
        """Tensors of the parameters' shapes and views of their blocks."""
        pairs = zip(self.groups, self._layouts, strict=True)
        return Blocked(tensors, [views_of(group, layouts, tensors) for group, layouts in pairs])

    def workspace(self, config: Config, momenta: list[Tensor]) -> Workspace:
        """Where a step leaves what it makes of the gradients."""
        room, updates = self._room_for(config)
        if not config.writes_directions:
            return Workspace([], self.blocked(momenta), updates, None)
        fallbacks = list(room.tensors)
        for i in self._with_blocks:
            fallbacks[i] = momenta[i]
        return Workspace(room.tensors, room, updates, fallbacks)

    def _room_for(self, config: Config) -> tuple[Blocked, Blocked]:
        """A tensor for each parameter that needs one, and the same of those with blocks; small ones are kept.

        A graph makes its own, and views that it can write through.
        """
        kept = self._rooms.get(config.writes_directions)
        if kept is not None and not config.capturable:
            return kept
        made = [
            self.like.new_empty(p.shape) if has or config.writes_directions else self.like
            for has, p in zip(self._has_blocks, self.params, strict=True)
        ]
        room = self.blocked(made)
        updates = [own if has else self.like for has, own in zip(self._has_blocks, made, strict=True)]
        rooms = room, Blocked(updates, room.views)
        if self.is_small and not config.capturable:
            self._rooms = {config.writes_directions: rooms}
        return rooms

    def is_of(self, config: Config) -> bool:
        """Whether the options that shape the state are those that it was made with."""
        packs = config.packs_factors(self.like.device) == self.packs_factors
        return packs and self.is_rounded_as(config) and not self._changed(config)

    def is_rounded_as(self, config: Config) -> bool:
        """Whether it has residuals where the options ask for them, and there alone."""
        return keeps_residuals(config, self.key[1]) == self._keeps_residuals

    def _changed(self, config: Config) -> list[str]:
        """The options of those that are others."""
        return [option for option, value in self.structure.items() if getattr(config, option) != value]

    def check(self, config: Config) -> None:
        """Raise ValueError if an option does not fit the state.

        Those that shape it must be as when it was made; `capturable` needs roots that products alone make.
        """
        if config is self._checked:
            return
        check_capturable(config, [group.block_shape for group in self.groups])
        if config.packs_factors(self.like.device) != self.packs_factors:
            raise ValueError(
                "KrADagrad: `factor_update` and `capturable` must stay as they were when the state was made, "
                f"with `packed`, got {config.factor_update!r} and {config.capturable}"
            )
        for option in self._changed(config):
            raise ValueError(
                f"KrADagrad: `{option}` must stay {self.structure[option]!r} once the state exists, "
                f"got {getattr(config, option)!r}"
            )
        self._checked = config
