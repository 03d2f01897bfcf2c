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
"""Options that change where and when something is done, not what is learned."""

DTYPES = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class Options:
    """What the command line says; None where the choice is left to the optimizer or to torch."""

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
        """KrADagrad's own options, but those that are left to it."""
        own = {name: getattr(self, name) for name in ("block_size", "backend", "rounding")}
        return {name: value for name, value in own.items() if value is not None}

    @property
    def learning_rate(self) -> float:
        return DEFAULT_LR[self.optimizer] if self.lr is None else self.lr

    @property
    def folder(self) -> Path:
        return Path(self.out)


def resumed(saved: dict[str, Any], given: dict[str, Any]) -> Options:
    """The options of a run that goes on: the saved ones, and of those given what may change.

    Raises UsageError if a given option differs from the run's, or a saved one is none.
    """
    known = {field.name for field in dataclasses.fields(Options)}
    refused = f"--resume: `options` of the checkpoint in {given['out']}"
    if not isinstance(saved, dict):
        raise UsageError(f"{refused} must be a dict, got {type(saved).__name__}")
    if unknown := sorted(saved.keys() - known):
        raise UsageError(f"{refused} has an unknown `{unknown[0]}`")
    try:
        saved = vars(Options(**saved))
    except TypeError as error:
        raise UsageError(f"{refused} does not fit this program: {error}") from error
    for name, value in given.items():
        if name not in FREE_ON_RESUME and value != saved[name]:
            raise UsageError(
                f"--resume: the run in {given['out']} has "
                f"--{name.replace('_', '-')} {saved[name]}, got {value}"
            )
    return Options(**{**saved, **given})


class Parser(argparse.ArgumentParser):
    """One that leaves it to its caller to refuse a command line, and of several ranks helps on one."""

    silent = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def print_help(self, file: Any = None) -> None:  # noqa: ANN401
        if not self.silent:
            super().print_help(file)


def parse(parser: Parser, arguments: list[str] | None) -> tuple[dict[str, Any], bool]:
    """The options given and `out`, no others, and whether to resume. Raises UsageError on a wrong one."""
    given = vars(parser.parse_args(arguments))
    resume = given.pop("resume", False)
    if given.get("data") is not None:
        given["data"] = str(Path(given["data"]).resolve())
    given.setdefault("out", f"runs/{given.get('optimizer', Options.optimizer)}")
    return given, resume


def make_parser(description: str) -> Parser:
    """Every option without a default here, so that `parse` can tell which were given."""
    default = {field.name: field.default for field in dataclasses.fields(Options)}
    rates = ", ".join(f"{name} {lr:g}" for name, lr in DEFAULT_LR.items())
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    learning = parser.add_argument_group("what is learned")
    learning.add_argument("--optimizer", choices=NAMES, help=f"default: {default['optimizer']}")
    learning.add_argument("--steps", type=int, help=f"default: {default['steps']}")
    learning.add_argument("--lr", type=float, help=f"peak learning rate; default: {rates}")
    learning.add_argument("--seed", type=int, help=f"of weights and data order; default: {default['seed']}")
    learning.add_argument("--block-size", type=int, help="KrADagrad's; default: its own")
    learning.add_argument(
        "--backend", help="KrADagrad's: auto, native, triton or reference; default: its own"
    )
    learning.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"of parameters, gradients and activations; default: {default['dtype']}",
    )
    learning.add_argument(
        "--rounding", help="KrADagrad's, of bfloat16 parameters: stochastic, compensated or nearest"
    )
    learning.add_argument(
        "--data", help=f"text file or folder, up to {MAX_MEGABYTES} MB; default: Python's standard library"
    )
    learning.add_argument("--batch", type=int, help=f"windows a step; default: {default['batch']}")
    learning.add_argument("--context", type=int, help=f"bytes a window; default: {default['context']}")
    learning.add_argument("--layers", type=int, help=f"default: {default['layers']}")
    learning.add_argument("--width", type=int, help=f"default: {default['width']}")
    learning.add_argument("--heads", type=int, help=f"default: {default['heads']}")
    running = parser.add_argument_group("where and when")
    running.add_argument("--out", help="folder of the run; default: runs/OPTIMIZER")
    running.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    running.add_argument("--eval-every", type=int, help=f"steps; default: {default['eval_every']}")
    running.add_argument(
        "--checkpoint-every", type=int, help=f"steps; default: {default['checkpoint_every']}"
    )
    running.add_argument(
        "--device", help="auto, cpu, cuda or cuda:N; default: auto, a GPU where there is one"
    )
    running.add_argument("--threads", type=int, help="default: torch's own choice")
    running.add_argument(
        "--parallel", choices=MODES, help=f"what ranks that torchrun started do; default: {MODES[0]}"
    )
    return parser
