"""The costs of training with the optimizer, rank by rank, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from kradagrad_ext.tables import aligned

from .state import StateBytes
from .time_model import DEFAULT_GPUS, TRAINING_MFU, predict, training_step
from .work import Cost

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


ROWS: dict[str, tuple[str, Callable[[RankEstimate], float]]] = {
    "flops": ("flop", lambda rank: rank.kernels.flops + rank.roots.flops),
    "bytes moved": ("B", lambda rank: rank.kernels.bytes + rank.roots.bytes),
    "bytes sent": ("B", lambda rank: rank.sent),
    "bytes received": ("B", lambda rank: rank.received),
}
"""Rows of the table on a rank's step: unit and number, by name."""


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
        columns = zip(*(astuple(rank.state) for rank in self.ranks), strict=True)
        return StateBytes(*(sum(column) / len(self.ranks) for column in columns))

    def slowest(self, gpu: str) -> RankEstimate:
        """Return the slowest rank on a GPU, for which the others wait."""
        return max(self.ranks, key=lambda rank: rank.milliseconds(gpu))

    def training_milliseconds(self, gpu: str) -> float:
        """Return the milliseconds of forward and backward of a training step on one of the ranks."""
        return training_step(self.parameters, gpu, self.tokens) / len(self.ranks)

    def share(self, gpu: str) -> float:
        """Return the optimizer's time as a share of forward and backward, 0.01 for one percent."""
        return self.slowest(gpu).milliseconds(gpu) / self.training_milliseconds(gpu)

    def as_dict(self) -> dict[str, Any]:
        """Return numbers and names alone, for JSON: the most and the mean over the ranks."""
        states = {"most": self.most_state, "mean": self.mean_state}
        numbers = {name: list(map(of, self.ranks)) for name, (_, of) in ROWS.items()}
        return {
            "parameters": self.parameters,
            "world_size": len(self.ranks),
            "replicated": self.replicated,
            "tokens": self.tokens,
            "state_bytes": {name: {**asdict(state), "total": state.total} for name, state in states.items()},
            "step": {name: {"most": max(n), "mean": sum(n) / len(n)} for name, n in numbers.items()},
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
        alone, numbers = len(self.ranks) == 1, self.as_dict()
        where = "1 rank" if alone else f"{len(self.ranks)} ranks, "
        where += "" if alone else "replicated" if self.replicated else "sharded"
        lines = [
            f"{self.parameters / 1e6:,.1f} M parameters on {where}. Times are PREDICTED, not measured.",
            "",
            *aligned(_size_rows(numbers), numbers=(1, 2)),
            "",
            *aligned(_time_rows(numbers), numbers=range(1, 1 + len(DEFAULT_GPUS))),
            "",
            f"A training step has {self.tokens:,} tokens; forward and backward run at {TRAINING_MFU:.0%} of "
            "the peak.",
        ]
        return "\n".join(lines if alone else [*lines, "Not in the times: what ranks send one another."])


def _size_rows(numbers: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of state, work and traffic, from `Estimate.as_dict`."""
    states = numbers["state_bytes"]
    names = {"total": "state", **{name: f"  {name}" for name in states["most"] if name != "total"}}
    sizes = [
        (row, "B", {which: state[name] for which, state in states.items()}) for name, row in names.items()
    ]
    sizes += [(f"{name} a step", unit, numbers["step"][name]) for name, (unit, _) in ROWS.items()]
    rows = [(row, _unit(pair["most"], unit), _unit(pair["mean"], unit)) for row, unit, pair in sizes]
    return [("a rank", "most", "mean"), *rows]


def _time_rows(numbers: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of times by GPU, those of the slowest rank, from `Estimate.as_dict`."""
    times, shares = numbers["predicted_milliseconds"].values(), numbers["predicted_share"].values()
    return [
        ("milliseconds a step, PREDICTED", *DEFAULT_GPUS),
        ("kernels", *(f"{of_gpu['kernels']:.2f}" for of_gpu in times)),
        ("new roots", *(f"{of_gpu['roots']:.2f}" for of_gpu in times)),
        ("forward and backward", *(f"{of_gpu['training']:.1f}" for of_gpu in times)),
        ("share of these", *(f"{share:.1%}" for share in shares)),
    ]


def _unit(value: float, unit: str) -> str:
    """Return a value with three digits and a prefix."""
    if value < 1000:
        return f"{value:.0f} {unit}"
    scale, prefix = next((scale, prefix) for scale, prefix in PREFIXES if value >= scale)
    scaled = value / scale
    return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {prefix}{unit}"
