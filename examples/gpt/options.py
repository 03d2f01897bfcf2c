"""Command line and checks of train_gpt.py."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .data import MAX_MEGABYTES
from .errors import UsageError
from .optimizers import DEFAULT_LR, NAMES
from .ranks import MODES

FREE_ON_RESUME = ("out", "eval_every", "checkpoint_every", "threads", "parallel", "device")
"""Options that may change on resumption, because they do not affect training."""

DTYPES = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class Options:
    """Options of the command line; None for the default of the optimizer or of torch."""

    out: str
    optimizer: str = "kradagrad"
    steps: int = 300
    lr: float | None = None
    seed: int = 0
    block_size: int | None = None
    backend: str | None = None
    dtype: str = "float32"
    rounding: str | None = None
    data: str | None = None
    batch: int = 16
    context: int = 128
    layers: int = 5
    width: int = 128
    heads: int = 4
    eval_every: int = 50
    checkpoint_every: int = 100
    threads: int | None = None
    parallel: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        self._require("seed", 0 <= self.seed < 2**63, "be at least 0 and below 2^63")
        for name, value in vars(self).items():
            if isinstance(value, int) and name != "seed":
                self._require(name, value > 0, "be at least 1")
        self._require("lr", self.lr is None or 0 < self.lr < math.inf, "be positive and finite")
        self._require("heads", self.width % self.heads == 0, f"divide --width {self.width}")
        for name in ("block_size", "backend", "rounding"):
            if getattr(self, name) is not None and self.optimizer != "kradagrad":
                raise UsageError(
                    f"--{name.replace('_', '-')} is for --optimizer kradagrad, not {self.optimizer}"
                )

    def _require(self, name: str, holds: bool, condition: str) -> None:
        if not holds:
            raise UsageError(f"--{name.replace('_', '-')} must {condition}, got {getattr(self, name)}")

    @property
    def of_kradagrad(self) -> dict[str, Any]:
        """Options for KrADagrad, without those at its defaults."""
        options = {name: getattr(self, name) for name in ("block_size", "backend", "rounding")}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def learning_rate(self) -> float:
        return DEFAULT_LR[self.optimizer] if self.lr is None else self.lr

    @property
    def folder(self) -> Path:
        return Path(self.out)


def resumed(saved: dict[str, Any], specified: dict[str, Any]) -> Options:
    """Return a resumed run's options: the saved ones, updated by specified ones that may change.

    Raise UsageError if another specified option differs from the run's, or a saved option is invalid.
    """
    known = {field.name for field in dataclasses.fields(Options)}
    refused = f"--resume: `options` of the checkpoint in {specified['out']}"
    if not isinstance(saved, dict):
        raise UsageError(f"{refused} must be a dict, got {type(saved).__name__}")
    if unknown := sorted(saved.keys() - known):
        raise UsageError(f"{refused} has an unknown `{unknown[0]}`")
    try:
        saved = vars(Options(**saved))
    except TypeError as error:
        raise UsageError(f"{refused} does not fit this program: {error}") from error
    for name, value in specified.items():
        if name not in FREE_ON_RESUME and value != saved[name]:
            raise UsageError(
                f"--resume: the run in {specified['out']} has "
                f"--{name.replace('_', '-')} {saved[name]}, got {value}"
            )
    return Options(**{**saved, **specified})


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError for a wrong command line and prints its help on one rank only."""

    silent = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def print_help(self, file: Any = None) -> None:  # noqa: ANN401
        if not self.silent:
            super().print_help(file)


def parse(parser: Parser, arguments: list[str] | None) -> tuple[dict[str, Any], str]:
    """Return the specified options with `out`, and if to resume: ``never``, ``if any`` or ``always``.

    Raise UsageError on a wrong option.
    """
    specified = vars(parser.parse_args(arguments))
    resume = specified.pop("resume", "never")
    if specified.get("data") is not None:
        specified["data"] = str(Path(specified["data"]).resolve())
    specified.setdefault("out", f"runs/{specified.get('optimizer', Options.optimizer)}")
    return specified, resume


def make_parser(description: str) -> Parser:
    """Make a parser without defaults, so that `parse` can detect the specified options."""
    default = {field.name: field.default for field in dataclasses.fields(Options)}
    rates = ", ".join(f"{name} {lr:g}" for name, lr in DEFAULT_LR.items())
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    training = parser.add_argument_group("training")
    training.add_argument("--optimizer", choices=NAMES, help=f"default: {default['optimizer']}")
    training.add_argument("--steps", type=int, help=f"default: {default['steps']}")
    training.add_argument("--lr", type=float, help=f"peak learning rate; default: {rates}")
    training.add_argument(
        "--seed", type=int, help=f"seed of weights and data order; default: {default['seed']}"
    )
    training.add_argument("--block-size", type=int, help="KrADagrad's block size; default: KrADagrad's")
    training.add_argument(
        "--backend", help="KrADagrad's backend: auto, native, triton or reference; default: KrADagrad's"
    )
    training.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"dtype of parameters, gradients and activations; default: {default['dtype']}",
    )
    training.add_argument(
        "--rounding", help="KrADagrad's rounding of bfloat16 parameters: stochastic, compensated or nearest"
    )
    training.add_argument(
        "--data", help=f"text file or folder, up to {MAX_MEGABYTES} MB; default: Python's standard library"
    )
    training.add_argument("--batch", type=int, help=f"windows a step; default: {default['batch']}")
    training.add_argument("--context", type=int, help=f"bytes a window; default: {default['context']}")
    training.add_argument("--layers", type=int, help=f"default: {default['layers']}")
    training.add_argument("--width", type=int, help=f"default: {default['width']}")
    training.add_argument("--heads", type=int, help=f"default: {default['heads']}")
    running = parser.add_argument_group("run")
    running.add_argument("--out", help="folder of the run; default: runs/OPTIMIZER")
    resuming = running.add_mutually_exclusive_group()
    resuming.add_argument(
        "--resume", action="store_const", const="always", help="continue from the checkpoint in --out"
    )
    resuming.add_argument(
        "--resume-if-any",
        dest="resume",
        action="store_const",
        const="if any",
        help="continue if --out has a checkpoint, else start",
    )
    running.add_argument("--eval-every", type=int, help=f"steps; default: {default['eval_every']}")
    running.add_argument(
        "--checkpoint-every", type=int, help=f"steps; default: {default['checkpoint_every']}"
    )
    running.add_argument("--device", help="auto, cpu, cuda or cuda:N; default: auto, a GPU if there is one")
    running.add_argument("--threads", type=int, help="threads of torch; default: torch's choice")
    running.add_argument(
        "--parallel", choices=MODES, help=f"mode of ranks that torchrun started; default: {MODES[0]}"
    )
    return parser
