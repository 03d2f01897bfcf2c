"""The costs of training with the optimizer, rank by rank, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kradagrad_ext.tables import aligned

from .gpus import DEFAULT_GPUS, GPUS, TRAINING_MFU, Cost, predict, training_step
from .memory import StateBytes

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class RankLoad:
    """The mean work of a rank on a step.

    Attributes:
        flops: the least flops on factors and blocks; elementwise flops are not counted.
        bytes: bytes of memory that launches read and write.
        milliseconds: the predicted time, by the name of the GPU.
    """

    flops: float
    bytes: float
    milliseconds: dict[str, float]

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> RankLoad:
        """Return the sum of launches."""
        return cls(
            sum(cost.least_flops for cost in costs),
            sum(cost.bytes for cost in costs),
            {gpu: predict(costs, gpu) for gpu in DEFAULT_GPUS},
        )


@dataclass(frozen=True)
class RankEstimate:
    """The state and work of one rank.

    Attributes:
        kernels: the launches of a step except new roots, a mean of the steps with and without damping.
        roots: the share of new roots on a step, one `root_every`-th of them (more at first).
        sent, received: bytes to and from other ranks a step.
    """

    state: StateBytes
    kernels: RankLoad
    roots: RankLoad
    sent: int
    received: int

    def milliseconds(self, gpu: str) -> float:
        """Return the predicted milliseconds of a step on a GPU."""
        return self.kernels.milliseconds[gpu] + self.roots.milliseconds[gpu]


ROWS: tuple[tuple[str, str, Callable[[RankEstimate], float]], ...] = (
    ("flops", "flop", lambda rank: rank.kernels.flops + rank.roots.flops),
    ("bytes moved", "B", lambda rank: rank.kernels.bytes + rank.roots.bytes),
    ("bytes sent", "B", lambda rank: rank.sent),
    ("bytes received", "B", lambda rank: rank.received),
)
"""Rows of the table on a rank's step: name, unit and number."""


@dataclass(frozen=True)
class Estimate:
    """The costs of training with the optimizer; times are predictions, nothing is measured.

    Attributes:
        parameters: number of their elements.  tokens: those of a training step, over all ranks.
        replicated: True if all ranks hold all parameters and gradients, False if they hold shards.
        ranks: the estimates of every rank.
    """

    parameters: int
    tokens: int
    replicated: bool
    ranks: tuple[RankEstimate, ...]

    @property
    def most_state(self) -> StateBytes:
        """The state of the rank that has the most."""
        return max((rank.state for rank in self.ranks), key=lambda state: state.total)

    @property
    def mean_state(self) -> StateBytes:
        """The mean state of all ranks."""
        return sum((rank.state for rank in self.ranks), StateBytes()).divided(len(self.ranks))

    def slowest(self, gpu: str) -> RankEstimate:
        """Return the slowest rank on a GPU, for which the others wait."""
        return max(self.ranks, key=lambda rank: rank.milliseconds(gpu))

    def training_milliseconds(self, gpu: str) -> float:
        """Return the milliseconds of forward and backward of a training step on one of the ranks."""
        return training_step(self.parameters, GPUS[gpu], self.tokens) / len(self.ranks)

    def share(self, gpu: str) -> float:
        """Return the optimizer's time as a share of forward and backward, 0.01 for one percent."""
        return self.slowest(gpu).milliseconds(gpu) / self.training_milliseconds(gpu)

    def as_dict(self) -> dict[str, Any]:
        """Return numbers and names alone, for JSON: the most and the mean over the ranks."""
        states = {"most": self.most_state, "mean": self.mean_state}
        return {
            "parameters": self.parameters,
            "world_size": len(self.ranks),
            "replicated": self.replicated,
            "tokens": self.tokens,
            "state_bytes": {name: {**asdict(state), "total": state.total} for name, state in states.items()},
            "step": {name: dict(zip(states, self._spread(of), strict=True)) for name, _, of in ROWS},
            "predicted_milliseconds": {
                gpu: {
                    "kernels": self.slowest(gpu).kernels.milliseconds[gpu],
                    "roots": self.slowest(gpu).roots.milliseconds[gpu],
                    "training": self.training_milliseconds(gpu),
                }
                for gpu in DEFAULT_GPUS
            },
            "predicted_share": {gpu: self.share(gpu) for gpu in DEFAULT_GPUS},
        }

    def __str__(self) -> str:
        """Return a table to read."""
        alone = len(self.ranks) == 1
        placed = "replicated" if self.replicated else "sharded"
        where = "1 rank" if alone else f"{len(self.ranks)} ranks, {placed}"
        lines = [
            f"{self.parameters / 1e6:,.1f} M parameters on {where}. Times are PREDICTED, not measured.",
            "",
            *aligned(self._size_rows(), numbers=(1, 2)),
            "",
            *aligned(self._time_rows(), numbers=range(1, 1 + len(DEFAULT_GPUS))),
            "",
            f"A training step has {self.tokens:,} tokens; forward and backward run at {TRAINING_MFU:.0%} of "
            "the peak.",
        ]
        return "\n".join(lines if alone else [*lines, "Not in the times: what ranks send one another."])

    def _size_rows(self) -> list[tuple[str, ...]]:
        """Return the rows of state, work and traffic."""
        most, mean = self.most_state, self.mean_state
        sizes = [("state", most.total, mean.total)]
        sizes += [(f"  {name}", size, asdict(mean)[name]) for name, size in asdict(most).items()]
        spreads = [(f"{name} a step", *(_unit(v, unit) for v in self._spread(of))) for name, unit, of in ROWS]
        rows = [(name, _unit(first, "B"), _unit(second, "B")) for name, first, second in sizes]
        return [("a rank", "most", "mean"), *rows, *spreads]

    def _time_rows(self) -> list[tuple[str, ...]]:
        """Return the rows of times by GPU, those of the slowest rank."""
        slowest = {gpu: self.slowest(gpu) for gpu in DEFAULT_GPUS}
        return [
            ("milliseconds a step, PREDICTED", *DEFAULT_GPUS),
            ("kernels", *(f"{rank.kernels.milliseconds[gpu]:.2f}" for gpu, rank in slowest.items())),
            ("new roots", *(f"{rank.roots.milliseconds[gpu]:.2f}" for gpu, rank in slowest.items())),
            ("forward and backward", *(f"{self.training_milliseconds(gpu):.1f}" for gpu in DEFAULT_GPUS)),
            ("share of these", *(f"{self.share(gpu):.1%}" for gpu in DEFAULT_GPUS)),
        ]

    def _spread(self, of: Callable[[RankEstimate], float]) -> tuple[float, float]:
        """Return the most and the mean of all ranks."""
        values = [of(rank) for rank in self.ranks]
        return max(values), sum(values) / len(values)


def _unit(value: float, unit: str) -> str:
    """Return a value with three digits and a prefix."""
    if value < 1000:
        return f"{value:.0f} {unit}"
    scale, prefix = next((scale, prefix) for scale, prefix in PREFIXES if value >= scale)
    scaled = value / scale
    return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {prefix}{unit}"
