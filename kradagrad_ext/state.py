"""The optimizer's tensors: batched by group for the ops, seen by parameter for checkpoints.

A `Bucket` holds the parameters of one parameter group with one device and dtype. Factors and roots of all
blocks of equal shape live in one batch (`GroupState`); ``optimizer.state[p]`` holds views of its slices,
so that a checkpoint lists them parameter by parameter.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import packing
from .backends.base import ROOT_STATS, STATISTICS, WEIGHT, WHITENED_MEAN, WHITENED_WEIGHT, Side
from .block_layout import Blocked, BlockLayout, Workspace
from .config import STRUCTURAL, Config
from .grafting import COLUMNS, has_second_moment
from .norms import GradientNorms
from .plan import Group, Member, ParameterPlan, group_blocks, plan_parameter
from .roots import supports_polar
from .uploads import Masks

KEPT_BYTES = 4 << 20
"""What a step works in and no step leaves to another is kept between steps where it takes up to so much."""

Initial = Mapping[str, Any]
"""The saved state of one parameter, by key; empty for a new one."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of factors and moments: float64 for float64 parameters, float32 for float32 and bfloat16."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class GroupState:
    """Factors, roots and what is known of them, for the N blocks of one group; one tensor a mode.

    Attributes:
        layouts: of each member's blocks, None where a block is the whole parameter.
        factors: F ``[N, d_i, d_i]`` for every mode i, in the factor dtype, empty for a mode without a factor;
            ``[N, d_i (d_i + 1) / 2]`` where they are stored as triangles, see `packing`.
        factor_stats: ``[N, 4]``, see `backends.base.STATISTICS`.
        roots: like the factors, in the root dtype; triangles with `packed`.
        root_stats: ``[N, 4]``, see `backends.base.ROOT_STATS`.
    """

    group: Group
    layouts: list[BlockLayout | None]
    factors: list[Tensor]
    factor_stats: list[Tensor]
    roots: list[Tensor]
    root_stats: list[Tensor]

    @classmethod
    def new(cls, group: Group, plans: Sequence[ParameterPlan], config: Config, like: Tensor) -> GroupState:
        """The state before the first step, of `like`'s dtype and device: roots I, factors 0.

        A factor starts with its first gradient, which the damping is relative to.
        """
        n, dims = group.blocks, group.factor_dims
        triangles = config.packs_factors(like.device)
        factors, roots = [], []
        for d in dims:
            shape = (n, d * (d + 1) // 2) if triangles else (n, d, d)
            factors.append(like.new_zeros(shape, dtype=config.factor_dtype or like.dtype))
            identity = torch.eye(d, dtype=config.root_dtype or like.dtype, device=like.device)
            identity = packing.pack(identity[None])[0] if config.packed else identity
            roots.append(identity.expand(n, *identity.shape).clone())
        return cls(
            group,
            [BlockLayout.of(plans[m.parameter], m.region) for m in group.members],
            factors,
            [like.new_zeros(n, len(STATISTICS)) for _ in dims],
            roots,
            [like.new_zeros(n, len(ROOT_STATS)) for _ in dims],
        )

    @property
    def is_kron(self) -> bool:
        """Whether the fused two-sided op serves these blocks."""
        return len(self.group.block_shape) == 2 and all(self.group.factored)

    @property
    def modes(self) -> list[int]:
        """Those with a factor."""
        return [mode for mode, factored in enumerate(self.group.factored) if factored]

    def columns(self, mode: int) -> int:
        """Of the blocks' unfoldings along a mode."""
        return math.prod(self.group.block_shape) // self.group.block_shape[mode]

    def side(self, mode: int) -> Side:
        """A mode as the ops take it."""
        return Side(self.factors[mode], self.factor_stats[mode], self.roots[mode])

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Block views ``[*grid, *block_shape]`` of this group's blocks in the parameters' tensors."""
        view = BlockLayout.view_in_graph if torch.compiler.is_compiling() else BlockLayout.view
        own = [tensors[i] for i in self._parameters]
        if not any(self.layouts):
            return own if all(map(Tensor.is_contiguous, own)) else [tensor.contiguous() for tensor in own]
        return [
            tensor.contiguous() if layout is None else view(layout, tensor)
            for tensor, layout in zip(own, self.layouts, strict=True)
        ]

    @functools.cached_property
    def _parameters(self) -> list[int]:
        """Of every member."""
        return [member.parameter for member in self.group.members]

    def slices(self, member: Member) -> dict[str, Tensor]:
        """A member's part of every tensor, by its key in ``optimizer.state[p]``."""
        part = slice(member.start, member.start + member.region.blocks)
        tensors = {
            "factor": self.factors,
            "factor_stats": self.factor_stats,
            "root": self.roots,
            "root_stats": self.root_stats,
        }
        return {
            f"{key}_{member.region_index}_{mode}": batch[part]
            for key, batches in tensors.items()
            for mode, batch in enumerate(batches)
            if self.group.factored[mode]
        }


def _joined(batches: Sequence[list[Tensor]], like: Tensor) -> Tensor:
    """All batches ``[N, 4]`` as one tensor, which they become views of."""
    whole = torch.cat([like.new_empty(0, 4), *itertools.chain(*batches)])
    parts = iter(torch.split(whole, [len(batch) for batch in itertools.chain(*batches)]))
    for batch in batches:
        batch[:] = itertools.islice(parts, len(batch))
    return whole


def presence(gradients: Sequence[Tensor | None]) -> tuple[bool, ...]:
    """Which gradients there are."""
    return tuple([grad is not None for grad in gradients])


def empty_state(p: Tensor, config: Config) -> dict[str, Tensor]:
    """What ``optimizer.state[p]`` holds of a parameter, on the meta device."""
    config = replace(config, factor_update=config.factor_method(p.device))
    like = torch.empty(p.shape, dtype=p.dtype, device="meta")
    return Bucket([like], config, [{}]).parameter_states()[0]


class Bucket:
    """Parameters of one parameter group with one device and dtype, and all their state.

    Where lengths belong to blocks' updates, parameters without blocks are in a bucket of their own.

    Attributes:
        params: P parameters, in the parameter group's order.
        scalars: ``[P, 8]``, see `grafting`.
        momenta, second_moments: P tensors each, or none.
        groups: the batched state of the preconditioned blocks.
        factor_stats, root_stats: of all modes of all groups, ``[sum of N, 4]``, which theirs are views of.
        preconditioned: ``[P]`` bool, whether a parameter has blocks.
        norm_index: ``[P, most blocks]`` into the concatenated block norms and one trailing zero.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        config: Config,
        initial: Sequence[Initial],
        plans: Sequence[ParameterPlan] | None = None,
    ) -> None:
        self.params = list(params)
        self.structure = {option: getattr(config, option) for option in STRUCTURAL}
        self.packs_factors = config.packs_factors(params[0].device)
        self.key = (params[0].device, params[0].dtype)
        self.masks = Masks(params[0].device)
        device, dtype = params[0].device, compute_dtype(params[0].dtype)
        self.like = like = torch.empty(0, dtype=dtype, device=device)
        self.plans = list(plans) if plans else [plan_parameter(p.shape, config) for p in params]
        self._has_blocks = [bool(plan.regions) for plan in self.plans]
        self._norms = GradientNorms(params, dtype, dots=True)
        self._workspace: Workspace | None = None
        self._checked: Config | None = None
        self.scalars = like.new_zeros(len(params), len(COLUMNS))
        self.momenta = [torch.zeros(p.shape, dtype=dtype, device=device) for p in params]
        self.is_small = sum(m.nbytes for m in self.momenta) <= KEPT_BYTES
        kept = has_second_moment(self.options(config))
        self.second_moments = [torch.zeros_like(m) for m in self.momenta] if kept else []
        self.groups = [GroupState.new(group, self.plans, config, like) for group in group_blocks(self.plans)]
        self.factor_stats = _joined([state.factor_stats for state in self.groups], like)
        self.root_stats = _joined([state.root_stats for state in self.groups], like)
        self.numel = torch.tensor([max(p.numel(), 1) for p in params], dtype=dtype, device=device)
        self._index_blocks()
        for state, saved in zip(self.parameter_states(), initial, strict=True):
            if saved:
                self._take_over(state, saved)

    def _index_blocks(self) -> None:
        device = self.like.device
        owners = [
            [m.parameter for m in state.group.members for _ in range(m.region.blocks)]
            for state in self.groups
        ]
        self._block_counts = list(map(len, owners))
        of_rows = [own * len(state.factors) for state, own in zip(self.groups, owners, strict=True)]
        self._block_parameters, self._stats_parameters = (
            torch.tensor([*itertools.chain(*each)], dtype=torch.int64, device=device)
            for each in (owners, of_rows)
        )
        self.preconditioned = torch.tensor(self._has_blocks, device=device)
        self.norm_index = self._norm_index()

    @staticmethod
    def _take_over(state: dict[str, Tensor], saved: Initial) -> None:
        expected = {key: tensor.shape for key, tensor in state.items()}
        if {key: tensor.shape for key, tensor in saved.items()} != expected:
            raise ValueError(
                f"KrADagrad: the options {STRUCTURAL} must stay as they were when the state was made"
            )
        for key, tensor in state.items():
            tensor.copy_(saved[key])

    def _norm_index(self) -> Tensor:
        blocks: list[list[int]] = [[] for _ in self.params]
        start = 0
        for state in self.groups:
            for m in state.group.members:
                blocks[m.parameter] += range(start + m.start, start + m.start + m.region.blocks)
            start += state.group.blocks
        width = max(map(len, blocks), default=0)
        padded = [own + [start] * (width - len(own)) for own in blocks]
        return torch.tensor(padded, dtype=torch.int64, device=self.like.device).reshape(len(blocks), width)

    def of_blocks(self, values: Tensor) -> Sequence[Tensor]:
        """For each group ``[N]``, its blocks' parameters' values, of ``[P]``."""
        return values[self._block_parameters].split_with_sizes(self._block_counts)

    def restart(self, parameters: Tensor) -> None:
        """Let the factors of these parameters, ``[P]`` bool, start anew with the next gradient."""
        held = ~parameters[self._stats_parameters]
        self.factor_stats.select(1, WEIGHT).mul_(held)
        if self.structure["graft"] == "whitened":
            self.root_stats[:, WHITENED_MEAN : WHITENED_WEIGHT + 1].mul_(held[:, None])

    def update_norms(self, block_norms: Sequence[Tensor]) -> Tensor:
        """Squared norm ``[P]`` of every parameter's update from its blocks', in a fixed order."""
        return torch.cat([*block_norms, self.like.new_zeros(1)])[self.norm_index].sum(1)

    def options(self, config: Config) -> Config:
        """The parameter group's, as they are for this bucket's parameters."""
        return config.for_blocks(any(self._has_blocks))

    def parameter_states(self) -> list[dict[str, Tensor]]:
        """For every parameter, what ``optimizer.state[p]`` holds: views, by key."""
        states = []
        for i, momentum in enumerate(self.momenta):
            state = {"scalars": self.scalars[i], "momentum": momentum}
            if self.second_moments:
                state["second_moment"] = self.second_moments[i]
            states.append(state)
        for group in self.groups:
            for member in group.group.members:
                states[member.parameter].update(group.slices(member))
        return states

    def gradients(self, given: Sequence[Tensor | None]) -> tuple[list[Tensor], Tensor] | None:
        """The gradients, each missing one stood in for by its parameter, and which there are ``[P]``.

        None without any.
        """
        present = presence(given)
        if not any(present):
            return None
        grads = [p if grad is None else grad for p, grad in zip(self.params, given, strict=True)]
        return grads, self.masks.of(present)

    def gradient_norms(self, grads: list[Tensor]) -> Tensor:
        """|g|_F^2 of every gradient ``[P]``, not finite where any element is not."""
        return self._norms.of(grads)

    def blocked(self, tensors: list[Tensor]) -> Blocked:
        """Tensors of the parameters' shapes and views of their blocks."""
        return Blocked(tensors, [group.views(tensors) for group in self.groups])

    def workspace(self, config: Config) -> Workspace:
        """Where a step leaves what it makes of the gradients: small tensors are made once and kept.

        A graph makes its own, and views that it can write through.
        """
        if config.capturable or not self.is_small:
            return self._new_workspace(config)
        if self._workspace is None or bool(self._workspace.lookahead) != config.looks_ahead:
            self._workspace = self._new_workspace(config)
        return self._workspace

    def _new_workspace(self, config: Config) -> Workspace:
        made = [
            torch.empty_like(m) if has or config.looks_ahead else self.like
            for has, m in zip(self._has_blocks, self.momenta, strict=True)
        ]
        own = self.blocked(made)
        if not config.looks_ahead:
            directions = self.blocked(self.momenta) if config.momentum_on == "gradient" else None
            return Workspace([], directions, own, None)
        pairs = list(zip(self._has_blocks, made, self.momenta, strict=True))
        updates = Blocked([d if has else self.like for has, d, _ in pairs], own.views)
        return Workspace(made, own, updates, [m if has else d for has, d, m in pairs])

    def lr_tensor(self, lr: float | Tensor) -> Tensor:
        """The learning rate as a 0-dim tensor of the compute dtype on this bucket's device.

        What the host holds, a number or a tensor, goes there as a kernel's argument: nothing waits.
        """
        if isinstance(lr, Tensor) and lr.device.type == self.like.device.type:
            return lr.detach().to(self.like, non_blocking=True).reshape(())
        return torch.full((), float(lr), dtype=self.like.dtype, device=self.like.device)

    def check(self, config: Config) -> None:
        """Raise ValueError if an option does not fit the state.

        Those that shape it must be as when it was made; `capturable` needs roots that products alone make.
        """
        if config is self._checked:
            return
        for state in self.groups:
            p = config.root_order(len(state.group.block_shape))
            if config.capturable and not supports_polar(p):
                raise ValueError(
                    f"KrADagrad: `exponent` must be 1/p, p = 2, 4, 8, ..., with `capturable`, got 1/{p} for "
                    f"blocks of {list(state.group.block_shape)}"
                )
        if config.packs_factors(self.like.device) != self.packs_factors:
            raise ValueError(
                "KrADagrad: `factor_update` and `capturable` must stay as they were when the state was made, "
                f"with `packed`, got {config.factor_update!r} and {config.capturable}"
            )
        for option, value in self.structure.items():
            if getattr(config, option) != value:
                got = getattr(config, option)
                raise ValueError(
                    f"KrADagrad: `{option}` must stay {value!r} once the state exists, got {got!r}"
                )
        self._checked = config
