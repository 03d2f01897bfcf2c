"""The optimizer's engine where ranks share out state and work: shards, made as parameters come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.step import Settings

from .shard import Shard


class Sharded:
    """One shard of all parameters that there are on the first step, and one of those added between two."""

    def __init__(self, state: dict[Tensor, Any], group: dist.ProcessGroup | None) -> None:
        self._state, self._group = state, group or dist.distributed_c10d._get_default_group()
        self._shards: list[Shard] = []
        self._all: Sequence[Settings] = ()

    def check(self, settings: Sequence[Settings]) -> None:
        """Raise ValueError if an option that shapes the state has changed since it was made.

        Args:
            settings: of all parameter groups.
        """
        self._all = settings
        configs = {own.position: own.config for own in settings}
        for shard in self._shards:
            shard.check(configs)

    def step(self, settings: Sequence[Settings]) -> None:
        """One step of the groups that have a gradient; on all ranks alike."""
        known = {p for shard in self._shards for p in shard.params}
        new = [(own, i, p) for own in self._all for i, p in enumerate(own.params) if p not in known]
        if new:
            self._shards.append(self._make_shard(new))
        for own in settings:
            own.count()
        by_position = {own.position: own for own in settings}
        for shard in self._shards:
            shard.step(by_position)

    def _make_shard(self, new: Sequence[tuple[Settings, int, Tensor]]) -> Shard:
        names = [f"parameter {i} of parameter group {own.position}" for own, i, _ in new]
        configs = {own.position: own.config for own in self._all}
        positions = [own.position for own, _, _ in new]
        shard = Shard([p for *_, p in new], names, positions, configs, self._group)
        for p, state in zip(shard.params, shard.parameter_states(), strict=True):
            self._state[p] = state
        return shard
