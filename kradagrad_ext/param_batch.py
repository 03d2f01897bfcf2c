"""Parameters that are stepped together: their shape groups, sums over blocks, and work buffers."""

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
from .blocking import Blocking, Shape, group_by_shape
from .config import STRUCTURAL, Config
from .norms import GradientNorms
from .roots import supports_polar
from .state import (
    SCALARS,
    BatchState,
    State,
    StateLayout,
    compute_dtype,
    keeps_residuals,
    state_specs,
    views_of,
)
from .uploads import Masks

KIND = operator.attrgetter("device", "dtype", "shape")
"""Properties of a parameter that must not change while it is in a param batch."""

KEPT_BYTES = 4 << 20
"""Work buffers of at most this size are kept between steps; larger ones are allocated on each step."""


def as_tensor(number: float | Tensor, like: Tensor) -> Tensor:
    """Return a number, such as a learning rate, as a 0-dim tensor of the dtype and device of `like`.

    A number or tensor on the host is passed as a kernel's argument, so that nothing waits.
    """
    if isinstance(number, Tensor) and number.device.type == like.device.type:
        return number.detach().to(like, non_blocking=True).reshape(())
    return torch.full((), float(number), dtype=like.dtype, device=like.device)


def presence(gradients: Sequence[Tensor | None]) -> tuple[bool, ...]:
    """Return True for each gradient that is not None."""
    return tuple([grad is not None for grad in gradients])


def check_capturable(config: Config, block_shapes: Iterable[Shape]) -> None:
    """Raise ValueError if `capturable` is set and products alone cannot compute the blocks' roots."""
    for shape in block_shapes if config.capturable else ():
        p = config.root_order(len(shape))
        if not supports_polar(p):
            raise ValueError(
                f"KrADagrad: `exponent` must be 1/p, p = 2, 4, 8, ..., with `capturable`, got 1/{p} for "
                f"blocks of {list(shape)}"
            )


class ParamBatch:
    """P parameters of one parameter group with one device and dtype, which hold M matrices.

    With a graft whose lengths belong to blocks' updates, parameters without blocks are in a separate param
    batch. A param batch keeps no tensor of the state; it finds them in ``optimizer.state`` on every step.

    Args:
        has_scalars: true if the state has scalars.

    Attributes:
        params: in the parameter group's order.  blockings: of each parameter.
        structure: the values of `STRUCTURAL` that the state was created with.
        groups: the shape groups of the preconditioned blocks.
        specs: of each parameter's state.
        masks: masks of matrices on the device.  like: an empty tensor of the compute dtype on the device.
        numel: number of elements of every matrix ``[M]``, at least 1.
        preconditioned: ``[M]`` bool, true for a matrix with blocks.
        spans: number of spans of all matrices.  span_offsets: ``[M + 1]``, index of each matrix's first span.
        block_order, block_offsets: ``[B]``, ``[M + 1]``: the blocks of all shape groups, matrix after matrix.
        key: device and dtype of the parameters.  kinds: `KIND` of each.
        label: what the parameters of one param batch have in common within a parameter group.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        config: Config,
        blockings: Sequence[Blocking],
        *,
        has_scalars: bool = True,
    ) -> None:
        self.params, self.blockings = list(params), list(blockings)
        self.structure = {option: getattr(config, option) for option in STRUCTURAL}
        device, dtype = params[0].device, compute_dtype(params[0].dtype)
        self.key = (device, params[0].dtype)
        self.kinds = list(map(KIND, params))
        self.packs_factors = config.packs_factors(device)
        self._keeps_residuals = keeps_residuals(config, params[0].dtype)
        self.masks = Masks(device)
        self.like = torch.empty(0, dtype=dtype, device=device)
        self._has_blocks = [bool(blocking.grids) for blocking in blockings]
        self._with_blocks = [i for i, has in enumerate(self._has_blocks) if has]
        self.label = (*self.key, self.options(config).graft)
        self._divided = any(blocking.divisions for blocking in blockings)
        self._checked: Config | None = None
        self.groups = group_by_shape(blockings)
        self._layouts = [
            [BlockLayout.of(blockings[m.parameter], m.grid) for m in group.members] for group in self.groups
        ]
        self.specs = [state_specs(blocking, config, params[0].dtype, device) for blocking in blockings]
        if not has_scalars:
            self.specs = [{key: specs[key] for key in specs if key != SCALARS} for specs in self.specs]
        self._arrangement = StateLayout(self.specs, self.groups, self._layouts, self.like)
        self._kept_buffers: dict[bool, tuple[Blocked, Blocked]] = {}
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
        counts = [blocking.matrices for blocking in self.blockings]
        starts = list(itertools.accumulate(counts, initial=0))
        owners = [
            [
                starts[m.parameter] + matrix
                for m in group.members
                for matrix in self.blockings[m.parameter].matrices_of(m.grid)
            ]
            for group in self.groups
        ]
        self._block_counts = list(map(len, owners))
        row_owners = [numbers * len(group.modes) for group, numbers in zip(self.groups, owners, strict=True)]
        self._block_matrices, self._stats_matrices = (
            self._upload([*itertools.chain(*each)], torch.int64) for each in (owners, row_owners)
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
        """Bring the parameters' states into the layout; see `StateLayout.adopt`."""
        self._arrangement.adopt(states)

    @property
    def entries(self) -> list[tuple[int, str]]:
        """(parameter, key) of the state entries that `state` takes; see `StateLayout`."""
        return self._arrangement.entries

    def state(self, tensors: Sequence[Tensor]) -> BatchState:
        """Return the state of all parameters from the `entries`; see `StateLayout.state`."""
        return self._arrangement.state(tensors)

    def matrices(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return views of all M matrices in tensors of the parameters' shapes."""
        if not self._divided:
            return tensors
        pairs = zip(self.blockings, tensors, strict=True)
        return [part for blocking, tensor in pairs for part in divided(tensor, blocking.divisions)]

    def of_blocks(self, values: Tensor) -> Sequence[Tensor]:
        """Return for each shape group ``[N]``: the values of its blocks' matrices, from values ``[M]``."""
        return values[self._block_matrices].split_with_sizes(self._block_counts)

    def restart(self, state: BatchState, matrices: Tensor) -> None:
        """Mark the factors of these matrices, ``[M]`` bool, to restart with the next gradient."""
        keeps = ~matrices[self._stats_matrices]
        state.factor_stats.select(1, WEIGHT).mul_(keeps)
        state.root_stats.select(1, RESIDUAL).mul_(keeps)
        if self.structure["graft"] == "whitened":
            state.root_stats[:, WHITENED_MEAN : WHITENED_WEIGHT + 1].mul_(keeps[:, None])

    def has_new_blocks(self, state: BatchState, active: Tensor) -> bool:
        """True if blocks of active matrices, ``[M]`` bool, lack a factor, or a root since it started."""
        rootless = state.root_stats.select(1, RESIDUAL) == 0
        return bool((rootless & active[self._stats_matrices]).any())

    def number(self, name: str, value: float | Tensor) -> Tensor:
        """Return an option as a tensor, see `as_tensor`; a number's tensor is kept until it changes."""
        if isinstance(value, Tensor):
            return as_tensor(value, self.like)
        kept = self._numbers.get(name)
        if kept is None or kept[0] != value:
            kept = self._numbers[name] = value, as_tensor(value, self.like)
        return kept[1]

    def options(self, config: Config) -> Config:
        """Return the options of this param batch's parameters, from those of the parameter group."""
        return config.for_blocks(any(self._has_blocks))

    def gradients(self, grads: Sequence[Tensor | None]) -> tuple[list[Tensor], Tensor] | None:
        """Return the gradients and which matrices have one, ``[M]`` bool; None if no parameter has one.

        The parameter takes the place of a missing gradient, as a tensor of the right shape.
        """
        present = presence(grads)
        if not any(present):
            return None
        filled = [p if grad is None else grad for p, grad in zip(self.params, grads, strict=True)]
        return filled, self.masks.of(self.mask(present))

    def mask(self, present: tuple[bool, ...]) -> tuple[bool, ...]:
        """Return one flag per matrix, from one per parameter."""
        if not self._divided:
            return present
        pairs = zip(self.blockings, present, strict=True)
        return tuple(itertools.chain.from_iterable((has,) * blocking.matrices for blocking, has in pairs))

    def gradient_norms(self, grads: list[Tensor], host_looks: bool) -> Tensor:
        """Return |g|_F of all matrices' gradients, ``[M]`` float64; not finite where any element is not."""
        return self._norms.of(self.matrices(grads), host_looks)

    def blocked(self, tensors: list[Tensor]) -> Blocked:
        """Return tensors of the parameters' shapes together with views of their blocks."""
        pairs = zip(self.groups, self._layouts, strict=True)
        return Blocked(tensors, [views_of(group, layouts, tensors) for group, layouts in pairs])

    def workspace(self, config: Config, momenta: list[Tensor]) -> Workspace:
        """Return the buffers that a step writes directions and updates to."""
        directions, updates = self._buffers_for(config)
        if not config.writes_directions:
            return Workspace([], self.blocked(momenta), updates, None)
        fallbacks = list(directions.tensors)
        for i in self._with_blocks:
            fallbacks[i] = momenta[i]
        return Workspace(directions.tensors, directions, updates, fallbacks)

    def _buffers_for(self, config: Config) -> tuple[Blocked, Blocked]:
        """Return buffers for the directions, and the same buffers of parameters with blocks for the updates.

        Parameters that need no buffer get an empty tensor. Small buffers are kept for the next steps, except
        with `capturable`: a graph allocates its buffers, and views that it can write through.
        """
        kept = self._kept_buffers.get(config.writes_directions)
        if kept is not None and not config.capturable:
            return kept
        buffers = [
            self.like.new_empty(p.shape) if has or config.writes_directions else self.like
            for has, p in zip(self._has_blocks, self.params, strict=True)
        ]
        directions = self.blocked(buffers)
        updates = [each if has else self.like for has, each in zip(self._has_blocks, buffers, strict=True)]
        both = directions, Blocked(updates, directions.views)
        if self.is_small and not config.capturable:
            self._kept_buffers = {config.writes_directions: both}
        return both

    def is_of(self, config: Config) -> bool:
        """Return True if the options shape the state as it is."""
        packs = config.packs_factors(self.like.device) == self.packs_factors
        return packs and self.is_rounded_as(config) and not self._changed(config)

    def is_rounded_as(self, config: Config) -> bool:
        """Return True if the state has residuals exactly when the options ask for them."""
        return keeps_residuals(config, self.key[1]) == self._keeps_residuals

    def _changed(self, config: Config) -> list[str]:
        """Return the names of structural options whose values differ from those of the state."""
        return [option for option, value in self.structure.items() if getattr(config, option) != value]

    def check(self, config: Config) -> None:
        """Raise ValueError if an option does not fit the state.

        Options that shape the state must not change; `capturable` needs roots that products alone compute.
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
