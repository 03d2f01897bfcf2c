"""modded-nanogpt's optimization track: KrADagrad, AdamW and Muon with its model, data and rules.

    python data/cached_fineweb10B.py 40      # in a checkout of modded-nanogpt: 4 billion tokens
    torchrun --standalone --nproc-per-node 8 bench/arena/nanogpt.py --data data/fineweb10B --optimizer muon
    python -m bench.arena.nanogpt --report   # the table of all runs so far, on any machine

This one file needs torch and tqdm, and kradagrad_ext for that optimizer. The track (its folder
records/track_3_optimization) fixes data, 524,288 tokens a step and architecture, and counts the steps to a
validation loss of 3.28; optimizer, schedule and initial weights are free. An entry needs
(3.28 - mean loss) * sqrt(runs) >= 0.004. From its baseline script are the model and its initial weights, the
sum of losses over a step's tokens, Muon, the AdamW (beta 0.8, 0.95) for embedding, head and vectors with its
rates, and a constant rate that falls to zero over the last 70% of the steps.

Chosen here: rates rise over the first 5% of the steps, and the AdamW of the other parameters is the same for
all, so that optimizers differ in the hidden matrices alone. The search is that of bench.arena, without a
second hyperparameter: five rates with seed 0, up to two beyond an edge, then the best rate with seeds 1 to 5.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

MAGIC, VERSION, HEADER = 20240520, 1, 256
"""First numbers of a shard, and the int32 numbers of its header; uint16 tokens follow."""

TARGET, THRESHOLD = 3.28, 0.004
WARMUP, COOLDOWN = 0.05, 0.7
"""Shares of the steps in which the rates rise and fall."""

SEEDS, EXTENSIONS = (1, 2, 3, 4, 5), 2
COLUMNS = ("optimizer", "lr", "seed", "steps", "step", "val_loss", "seconds", "ranks")

RATES = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "muon": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "kradagrad": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
WEIGHT_DECAY = {"adamw": 0.125, "muon": 0.025, "kradagrad": 0.04}
"""The track's, and for KrADagrad a third of AdamW's, as its rate is three times as high."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model, of a step and of the validation data. The defaults are the track's."""

    vocabulary: int = 50304
    layers: int = 12
    width: int = 768
    head: int = 128
    context: int = 1024
    step_tokens: int = 8 * 64 * 1024
    sequences: int = 64
    validation_tokens: int = 20 * 524288
    steps: int = 3500
    validate_every: int = 125


TOY = Sizes(256, 2, 64, 32, 32, 4 * 32, 2, 8 * 32, 6, 3)
"""Sizes for a check on a CPU."""


def read_shard(path: Path) -> Tensor:
    """Return the uint16 tokens of a shard, mapped from the file.

    Raises:
        ValueError: the file is no shard of this version, or shorter than its header says.
    """
    size = path.stat().st_size
    header = torch.from_file(str(path), False, min(HEADER, size // 4), dtype=torch.int32)[:3].tolist()
    if len(header) < 3 or header[:2] != [MAGIC, VERSION]:
        raise ValueError(f"{path} must begin with {MAGIC} and version {VERSION}, got {header[:2]}")
    count, rest = header[2], size - 4 * HEADER
    if rest != 2 * count:
        raise ValueError(f"{path} must have {2 * count} bytes of tokens after its header, got {rest}")
    return torch.from_file(str(path), False, 2 * HEADER + count, dtype=torch.uint16)[2 * HEADER :]


def batches(
    files: Sequence[Path], tokens: int, context: int, rank: int, world: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's inputs and targets ``[sequences, context]``, in the order of the files.

    Raises:
        ValueError: the files end.
    """
    share = tokens // world
    for file in files:
        shard = read_shard(file)
        for start in range(0, len(shard) - tokens - 1, tokens):
            mine = shard[start + rank * share :][: share + 1].to(torch.int64)
            yield mine[:-1].view(-1, context), mine[1:].view(-1, context)
    raise ValueError(f"--data: {len(files)} shards do not have {tokens} tokens for every step")


class Gains(nn.Module):
    """Root mean square norm with trained gains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.gains.type_as(x))


class CastLinear(nn.Linear):
    """A linear layer whose float32 weights are cast to the activations' dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.type_as(x), None if self.bias is None else self.bias.type_as(x))


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of the first half of every head ``[B, T, heads, head]`` by angles of its position."""
    quarter = x.shape[-1] // 4
    frequencies = (1 / 1024) ** torch.linspace(0, 1, quarter, device=x.device)
    frequencies = torch.cat([frequencies, frequencies.new_zeros(quarter)])
    angles = torch.outer(torch.arange(x.shape[1], device=x.device).float(), frequencies)[None, :, None]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], -1).type_as(x)


class SelfAttention(nn.Module):
    """Causal attention with normalised queries and keys."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.q, self.k, self.v, self.proj = (CastLinear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head)) for layer in (self.q, self.k, self.v))
        q, k = (rotate(F.rms_norm(one, (self.head,))).transpose(1, 2) for one in (q, k))
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), scale=0.12, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then two matrices around a squared ReLU; each adds to the stream."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, head)
        self.expand, self.proj = CastLinear(width, 4 * width), CastLinear(4 * width, width)
        self.norm1, self.norm2 = Gains(width), Gains(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.proj(self.expand(self.norm2(x)).relu().square())


class TrackGPT(nn.Module):
    """The track's model: the sum of the tokens' losses for inputs and targets ``[sequences, context]``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(sizes.vocabulary, sizes.width).bfloat16()
        self.blocks = nn.ModuleList(Layer(sizes.width, sizes.head) for _ in range(sizes.layers))
        self.proj = CastLinear(sizes.width, sizes.vocabulary)
        self.norm1, self.norm2 = Gains(sizes.width), Gains(sizes.width)
        for name, p in self.named_parameters():
            with torch.no_grad():
                if name.endswith(("proj.weight", "bias")):
                    p.zero_()
                elif name.endswith("weight"):
                    p.normal_(std=1.0 if "embed" in name else (3 * p.shape[-1]) ** -0.5)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.norm1(self.embed(inputs))
        for block in self.blocks:
            x = block(x)
        logits = self.proj(self.norm2(x)).float()
        logits = 15 * logits * (logits.square() + 15**2).rsqrt()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the nearest orthogonal matrix, nearly: twelve steps of Newton and Schulz."""
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(12):
        a = x @ x.T
        x = 2 * x + (-1.5 * a + 0.5 * a @ a) @ x
    return x if wide else x.T


class TrackMuon(Optimizer):
    """The track's Muon. Every rank has all gradients and orthogonalises its share of the matrices."""

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(sorted(params, key=lambda p: p.shape), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if index % world == rank:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 0.05)
                    update = orthogonal(p.grad.lerp(momentum, 0.95))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
            for index, p in enumerate(group["params"]):
                dist.broadcast(p, index % world)


def make_optimizers(name: str, model: TrackGPT, lr: float) -> list[Optimizer]:
    """Return the optimizer of the hidden matrices, and the track's AdamW for all other parameters."""
    hidden = [p for p in model.blocks.parameters() if p.dim() == 2]
    groups = [
        {"params": [model.embed.weight], "lr": 0.3},
        {"params": [model.proj.weight], "lr": 1 / 320},
        {"params": [p for p in model.parameters() if p.dim() < 2], "lr": 1e-2},
    ]
    decay = WEIGHT_DECAY[name]
    auxiliary = AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    if name == "adamw":
        return [AdamW(hidden, lr=lr, betas=(0.9, 0.95), weight_decay=decay), auxiliary]
    if name == "muon":
        return [TrackMuon(hidden, lr, decay), auxiliary]
    from kradagrad_ext import KrADagrad

    return [KrADagrad(hidden, lr=lr, weight_decay=decay, process_group=dist.group.WORLD), auxiliary]


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak rates: linear warm-up, constant, then linear to zero."""
    return min((step + 1) / max(1, round(WARMUP * steps)), 1.0, (1 - step / steps) / COOLDOWN)


@dataclass(frozen=True)
class TrackRun:
    """What determines a run."""

    optimizer: str
    lr: float
    seed: int
    steps: int


class Trial:
    """Training and validation of one run on this rank."""

    def __init__(self, run: TrackRun, sizes: Sizes, data: Path, device: torch.device) -> None:
        self.run, self.sizes, self.data, self.device = run, sizes, data, device
        torch.manual_seed(run.seed)
        self.model = TrackGPT(sizes).to(device)
        for p in self.model.parameters():
            dist.broadcast(p.detach(), 0)
        self.optimizers = make_optimizers(run.optimizer, self.model, run.lr)
        self.rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.network = torch.compile(self.model, dynamic=False) if device.type == "cuda" else self.model

    def batches(self, part: str, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        files = sorted(self.data.glob(f"fineweb_{part}_*.bin"))
        return batches(files, tokens, self.sizes.context, dist.get_rank(), dist.get_world_size())

    def sum_of_losses(self, batch: tuple[Tensor, Tensor], backward: bool) -> Tensor:
        """Return the loss of this rank's sequences, some at a time, and add up their gradients."""
        total = torch.zeros((), device=self.device)
        for inputs, targets in zip(*(one.split(self.sizes.sequences) for one in batch), strict=True):
            loss = self.network(inputs.to(self.device), targets.to(self.device))
            if backward:
                loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def validate(self) -> float:
        loss = self.sum_of_losses(next(self.batches("val", self.sizes.validation_tokens)), backward=False)
        dist.all_reduce(loss)
        return loss.item() / self.sizes.validation_tokens

    def step(self, number: int, batch: tuple[Tensor, Tensor]) -> None:
        self.sum_of_losses(batch, backward=True)
        for p in self.model.parameters():
            dist.all_reduce(p.grad)
        factor = rate_factor(number, self.run.steps)
        for one, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(one.param_groups, rates, strict=True):
                group["lr"] = factor * rate
            one.step()
        self.model.zero_grad()

    def train(self) -> list[tuple[int, float, float]]:
        """Return step, validation loss and seconds without validation; the end is NaN if a loss was."""
        steps, seconds, curve = self.run.steps, 0.0, []
        stream = self.batches("train", self.sizes.step_tokens)
        for step in tqdm(range(1, steps + 1), str(self.run), disable=dist.get_rank() != 0):
            start = time.perf_counter()
            self.step(step - 1, next(stream))
            due = step % self.sizes.validate_every == 0 or step == steps
            if due and self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - start
            if due:
                curve.append((step, self.validate(), seconds))
                if not math.isfinite(curve[-1][1]):
                    return [*curve, (steps, math.nan, seconds)]
        return curve


def stored(path: Path) -> dict[TrackRun, dict[int, float]]:
    """Return the validation losses by step of every finished run of a CSV."""
    runs: dict[TrackRun, dict[int, float]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                run = TrackRun(row["optimizer"], float(row["lr"]), int(row["seed"]), int(row["steps"]))
                runs.setdefault(run, {})[int(row["step"])] = float(row["val_loss"])
    return {run: losses for run, losses in runs.items() if run.steps in losses}


def append(path: Path, run: TrackRun, curve: Sequence[tuple[int, float, float]]) -> None:
    """Append a run's rows in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    who, ranks = vars(run).values(), dist.get_world_size()
    rows = [[*who, step, f"{loss:.5f}", f"{seconds:.2f}", ranks] for step, loss, seconds in curve]
    lines = rows if path.exists() else [list(COLUMNS), *rows]
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def beyond(rates: Sequence[float], up: bool) -> float:
    """Return the next of the rates ..., 0.1, 0.3, 1, 3, ... above the last or below the first one."""
    digit, exponent = f"{rates[-1] if up else rates[0]:.0e}".split("e")
    step = (digit == "3") if up else -(digit == "1")
    return float(f"{4 - int(digit)}e{int(exponent) + step}")


def next_runs(name: str, steps: int, done: dict[TrackRun, dict[int, float]]) -> list[TrackRun]:
    """Return the runs that can start now: the search with seed 0, then the best rate with the other seeds."""
    final = {
        run.lr: losses[steps] if math.isfinite(losses[steps]) else math.inf
        for run, losses in done.items()
        if (run.optimizer, run.seed, run.steps) == (name, 0, steps)
    }
    rates = list(RATES[name])
    for _ in range(EXTENSIONS + 1):
        if waiting := [rate for rate in rates if rate not in final]:
            return [TrackRun(name, rate, 0, steps) for rate in waiting]
        best = min(rates, key=lambda rate: (final[rate], rate))
        if best not in (rates[0], rates[-1]) or len(rates) == len(RATES[name]) + EXTENSIONS:
            break
        up = best == rates[-1]
        rates.insert(len(rates) if up else 0, beyond(rates, up))
    runs = [TrackRun(name, best, seed, steps) for seed in SEEDS]
    return [run for run in runs if run not in done] if math.isfinite(final[best]) else []


def report(done: dict[TrackRun, dict[int, float]]) -> str:
    """Return a Markdown table of the runs of seeds 1 to 5."""
    choices: dict[tuple[str, float, int], list[dict[int, float]]] = {}
    for run, losses in done.items():
        if run.seed:
            choices.setdefault((run.optimizer, run.lr, run.steps), []).append(losses)
    header = "| optimizer | rate | seeds | final loss | its deviation | steps by the track's rule |"
    lines = [header, "|---" * 6 + "|"]
    for (name, lr, steps), runs in choices.items():
        finals = [losses[steps] for losses in runs]
        spread = f"{statistics.stdev(finals):.5f}" if len(finals) > 1 else ""
        passing = [
            step
            for step in sorted(set.intersection(*map(set, runs)))
            if (TARGET - statistics.fmean(losses[step] for losses in runs)) * len(runs) ** 0.5 >= THRESHOLD
        ]
        cells = [name, f"{lr:g}", len(runs), f"{statistics.fmean(finals):.5f}", spread]
        lines.append(f"| {' | '.join(map(str, cells))} | {passing[0] if passing else 'never'} |")
    return "\n".join(lines)


def start_ranks() -> torch.device:
    """Join torchrun's ranks, or be the only one, and return the device of this rank."""
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, **({} if dist.is_torchelastic_launched() else alone))
    return device


def run_all(options: argparse.Namespace, sizes: Sizes, device: torch.device) -> None:
    """Train every run that the CSV lacks. Rank 0 reads and writes it."""
    while True:
        waiting: list[list[TrackRun]] = [[]]
        if dist.get_rank() == 0:
            waiting = [next_runs(options.optimizer, sizes.steps, stored(options.csv))]
        dist.broadcast_object_list(waiting, 0)
        for run in waiting[0]:
            curve = Trial(run, sizes, options.data, device).train()
            if dist.get_rank() == 0:
                append(options.csv, run, curve)
        if not waiting[0]:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of fineweb_train_*.bin and fineweb_val_*.bin")
    parser.add_argument("--optimizer", choices=tuple(RATES), default="kradagrad")
    parser.add_argument("--steps", type=int, help=f"default: {Sizes.steps}")
    parser.add_argument("--csv", type=Path, default=Path("build/bench/nanogpt.csv"))
    parser.add_argument("--toy", action="store_true", help="a tiny model, to check the script")
    parser.add_argument("--report", action="store_true", help="print the table of the CSV and end")
    options = parser.parse_args(arguments)
    sizes = TOY if options.toy else Sizes()
    sizes = dataclasses.replace(sizes, steps=options.steps or sizes.steps)
    if options.report:
        print(report(stored(options.csv)))
        return 0
    if options.data is None or not any(options.data.glob("fineweb_train_*.bin")):
        parser.error(f"--data must be a folder with fineweb_train_*.bin, got {options.data}")
    device = start_ranks()
    world, sequences = dist.get_world_size(), sizes.step_tokens // sizes.context
    if sequences % world:
        parser.error(f"torchrun: the number of ranks must divide {sequences}, got {world}")
    run_all(options, sizes, device)
    if dist.get_rank() == 0:
        print(report(stored(options.csv)))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
