"""Train a small model and write loss and diagnostics to TensorBoard, without a wait for the device.

At each interval, the script writes the reading of the last interval and starts the next. It needs tensorboard
(``pip install tensorboard``) and runs on a GPU if there is one.

    python examples/log_to_tensorboard.py --out runs/tensorboard
    tensorboard --logdir runs/tensorboard
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter

from kradagrad_ext import AsyncDiagnostics, KrADagrad

INPUTS, CLASSES = 64, 10


class Log:
    """A pending reading and its event file."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))
        self._pending: tuple[int, AsyncDiagnostics] | None = None

    def offer(self, step: int, optimizer: KrADagrad, loss: Tensor) -> None:
        """Write the last reading and start the next; do neither if the last has not arrived."""
        if self._pending is None or self._pending[1].ready():
            self._write()
            self._pending = step, AsyncDiagnostics(optimizer, {"train/loss": loss})

    def close(self) -> None:
        """Write the last reading, waiting for it, and close the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if self._pending is None:
            return
        step, reading = self._pending
        metrics = reading.metrics()
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        condition, residual, kept = (
            metrics[f"kradagrad/matrices/{name}"] for name in ("condition", "root_residual", "roots_kept")
        )
        print(
            f"step {step}: loss {metrics['train/loss']:.3f}, condition below {condition:.0f}, "
            f"root residual {residual:.0e}, {kept:.0f} roots kept",
            file=sys.stderr,
        )


def make_task(device: torch.device) -> tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]:
    """Make a model and a source of batches: correlated inputs, with classes by a random network."""
    inputs = torch.randn(8192, INPUTS) @ torch.randn(INPUTS, INPUTS) / INPUTS**0.5
    with torch.no_grad():
        classes = nn.Sequential(nn.Linear(INPUTS, 32), nn.Tanh(), nn.Linear(32, CLASSES))(inputs).argmax(1)
    inputs, classes = inputs.to(device), classes.to(device)
    model = nn.Sequential(nn.Linear(INPUTS, 128), nn.ReLU(), nn.Linear(128, CLASSES)).to(device)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(inputs), (256,), device=device)
        return inputs[chosen], classes[chosen]

    return model, batch


def train(steps: int, every: int, folder: Path, device: torch.device) -> None:
    model, batch = make_task(device)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "name": "matrices"},
        {"params": [p for p in model.parameters() if p.ndim < 2], "name": "vectors"},
    ]
    optimizer = KrADagrad(groups, lr=1e-2, weight_decay=0.01)
    log = Log(folder)
    try:
        for step in range(1, steps + 1):
            inputs, targets = batch()
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            if step % every == 0 or step == steps:
                log.offer(step, optimizer, loss)
    finally:
        log.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=20, help="steps between two readings")
    parser.add_argument("--out", type=Path, default=Path("runs/tensorboard"), help="folder of the event file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for option in ("steps", "every"):
        if getattr(options, option) < 1:
            parser.error(f"--{option}: must be at least 1, got {getattr(options, option)}")
    if options.out.is_dir() and any(options.out.glob("events.out.tfevents.*")):
        parser.error(f"--out: {options.out} holds another run's events; name another folder, or remove it")
    torch.manual_seed(options.seed)
    try:
        train(
            options.steps,
            options.every,
            options.out,
            torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )
    except OSError as error:
        parser.error(f"--out: cannot use {error.filename}: {error.strerror}")
    print(f"Written to {options.out}; look at it with: tensorboard --logdir {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
