"""Train a small byte-level GPT on the Python standard library's sources, or on any text.

    python examples/train_gpt.py --optimizer kradagrad
    python examples/train_gpt.py --optimizer adamw --lr 3e-3 --out runs/adamw
    python examples/train_gpt.py --out runs/adamw --resume

Writes log.csv, loss.png, result.json and checkpoint.pt to --out. The last line of stdout is the result as
JSON. Ctrl-C and SIGTERM save a checkpoint and say how to go on; a resumed run equals an unbroken one bit
for bit, with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from gpt import checkpoint, options, report
from gpt.data import load_text
from gpt.errors import UsageError
from gpt.options import Options
from gpt.trainer import Trainer
from tqdm import tqdm


class StopRequest:
    """SIGINT or SIGTERM, noted between steps; a second one acts as if this were not here."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> StopRequest:
        self._previous: dict[int, Any] = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._previous[number])


class DivergedError(Exception):
    """The training loss is no longer a number."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 after divergence, 128 + signal number after a signal."""
    parser = options.make_parser(__doc__.splitlines()[0])
    with StopRequest() as stop:
        trainer = prepare(parser, arguments)
        folder = trainer.options.folder
        try:
            train(trainer, folder, stop)
        except DivergedError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 1
    if stop.signal is not None and trainer.step < trainer.options.steps:
        command = [sys.executable, sys.argv[0], "--out", str(folder), "--resume"]
        print(
            f"Stopped after step {trainer.step} and saved. Go on with:\n  {shlex.join(command)}",
            file=sys.stderr,
        )
        return 128 + stop.signal
    finish(trainer, folder)
    return 0


def prepare(parser: argparse.ArgumentParser, arguments: list[str] | None) -> Trainer:
    """The run that the command line describes, new or resumed. Writes nothing before all is found well."""
    given, resume = options.parse(parser, arguments)
    try:
        saved: dict[str, Any] | None = checkpoint.load(Path(given["out"])) if resume else None
        chosen = Options(**given) if saved is None else options.resumed(saved["options"], given)
        if saved is None:
            refuse_unfinished(chosen.folder)
        if chosen.threads is not None:
            torch.set_num_threads(chosen.threads)
        trainer = Trainer(chosen, load_text(chosen.data, chosen.context))
        if saved is not None:
            trainer.load_state_dict(saved)
        chosen.folder.mkdir(parents=True, exist_ok=True)
    except UsageError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out: cannot use {error.filename}: {error.strerror}")
    return trainer


def refuse_unfinished(folder: Path) -> None:
    """A finished run may be replaced, one that can still go on may not."""
    if (folder / checkpoint.NAME).exists() and not (folder / report.RESULT).exists():
        raise UsageError(f"--out: {folder} holds an unfinished run; go on with --resume, or remove it")


def train(trainer: Trainer, folder: Path, stop: StopRequest) -> None:
    """Steps until the last one or a signal, then a checkpoint. Raises DivergedError."""
    steps, every = trainer.options.steps, trainer.options.checkpoint_every
    (folder / report.RESULT).unlink(missing_ok=True)
    with report.LogFile(folder, trainer.log) as log, progress_bar(trainer) as bar:
        while trainer.step < steps and stop.signal is None:
            row = trainer.train_step()
            log.add(row)
            show(bar, trainer)
            if not math.isfinite(row[2]):
                raise DivergedError(f"diverged: training loss {row[2]} at step {row[0]}; try a smaller --lr")
            if trainer.step % every == 0 and trainer.step < steps:
                checkpoint.save(trainer.state_dict(), folder)
    checkpoint.save(trainer.state_dict(), folder)


def progress_bar(trainer: Trainer) -> tqdm:
    """On a terminal only; elsewhere the lines of `show` are enough."""
    shape = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
    return tqdm(
        desc=trainer.options.optimizer,
        total=trainer.options.steps,
        initial=trainer.step,
        bar_format=shape,
        dynamic_ncols=True,
        disable=None,
    )


def show(bar: tqdm, trainer: Trainer) -> None:
    """Losses and step time on the bar, and a line to keep after each validation."""
    recent = trainer.log[-20:]
    step, seconds, train_loss, val_loss, _, _ = recent[-1]
    elapsed = seconds - (recent[0][1] if len(recent) > 1 else 0.0)
    milliseconds = 1000 * elapsed / max(1, len(recent) - 1)
    last_val = next((row[3] for row in reversed(trainer.log) if row[3] is not None), None)
    val = "" if last_val is None else f" val {last_val:.3f}"
    bar.set_postfix_str(f"loss {train_loss:.3f}{val} {milliseconds:.0f} ms/step", refresh=False)
    bar.update()
    if val_loss is not None:
        line = f"step {step:>{len(str(trainer.options.steps))}}: loss {train_loss:.3f}, val {val_loss:.3f}, "
        tqdm.write(line + f"{milliseconds:.0f} ms/step", file=sys.stderr)


def finish(trainer: Trainer, folder: Path) -> None:
    """Plot, result file, and the result as the last line of stdout."""
    _, seconds, _, val_loss, _, optimizer_seconds = trainer.log[-1]
    chosen = trainer.options
    result = {
        "optimizer": chosen.optimizer,
        "lr": chosen.learning_rate,
        "steps": chosen.steps,
        "seed": chosen.seed,
        "val_loss": val_loss,
        "seconds": round(seconds, 3),
        "optimizer_seconds": round(optimizer_seconds, 3),
    }
    report.plot([(report.label(result), report.read_log(folder))], folder / report.PLOT)
    report.write_result(folder, result)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
