"""Train a small byte-level GPT on the Python standard library's sources, or on any text.

    python examples/train_gpt.py --optimizer kradagrad
    python examples/train_gpt.py --optimizer adamw --lr 3e-3 --out runs/adamw
    python examples/train_gpt.py --out runs/adamw --resume

    torchrun --standalone --nproc-per-node 2 examples/train_gpt.py --parallel ddp --out runs/ddp
    torchrun --standalone --nproc-per-node 4 examples/train_gpt.py --parallel fsdp --out runs/ddp --resume

Writes log.csv, loss.png, result.json and a checkpoint to --out. The last line of stdout is the result as
JSON. Ctrl-C and SIGTERM save a checkpoint and say how to go on; a resumed run equals an unbroken one bit
for bit, with the same number of threads.

A GPU is taken where there is one; --device cpu or cuda:1 says otherwise.

Under torchrun the ranks share out every batch, so that their number changes rounding alone, and a run can go
on with another number of ranks or another --parallel. Each takes a GPU of its
own where there are any. Ranks on several
machines need --out on a file system that they share. To save after Ctrl-C they have torchrun's
--shutdown-timeout, 30 s by default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
from gpt.ranks import MODES, Ranks, leave
from gpt.store import Store
from gpt.trainer import Trainer
from tqdm import tqdm


class StopRequest:
    """SIGINT or SIGTERM, noted between steps; a second one acts as if this were not here."""

    def __init__(self) -> None:
        self._noted = 0
        self.signal: int | None = None

    def __enter__(self) -> StopRequest:
        self._previous: dict[int, Any] = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, ranks: Ranks) -> bool:
        """Whether any rank has got one; all are told the same."""
        self.signal = ranks.largest(self._noted) or None
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        signal.signal(number, self._previous[number])


class DivergedError(Exception):
    """The training loss is no longer a number."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 after divergence, 2 if it is wrong, 128 + signal number."""
    parser = options.make_parser(__doc__.splitlines()[0])
    with Ranks() as ranks, StopRequest() as stop:
        parser.silent = not ranks.first
        # The trainer goes before the process group does: were DistributedDataParallel the last to hold it, it
        # would wait, with the interpreter's lock, for the group's threads, which may wait for that lock.
        return run(parser, arguments, ranks, stop)


def run(parser: options.Parser, arguments: list[str] | None, ranks: Ranks, stop: StopRequest) -> int:
    """What `main` does, on ranks that are there."""
    speak = functools.partial(print, file=sys.stderr) if ranks.first else lambda line: None
    try:
        trainer, store = prepare(parser, arguments, ranks)
        train(trainer, store, stop)
    except UsageError as error:
        speak(f"{parser.format_usage()}{parser.prog}: error: {error}")
        return 2
    except DivergedError as error:
        speak(f"{parser.prog}: {error}")
        return 1
    if stop.signal is not None and trainer.step < trainer.options.steps:
        speak(f"Stopped after step {trainer.step} and saved. Go on with:")
        speak(f"  {shlex.join(how_to_go_on(ranks, store.folder))}")
        return 128 + stop.signal
    if ranks.first:
        finish(trainer, store.folder)
    return 0


def how_to_go_on(ranks: Ranks, folder: Path) -> list[str]:
    """The command line; of ranks on several machines, each adds where they meet."""
    command = [sys.executable]
    if ranks.launched:
        machines = "--standalone" if ranks.nodes == 1 else f"--nnodes={ranks.nodes}"
        per_node = f"--nproc-per-node={ranks.world // ranks.nodes}"
        command += ["-m", "torch.distributed.run", machines, per_node]
    return [*command, sys.argv[0], "--out", str(folder), "--resume"]


def prepare(parser: options.Parser, arguments: list[str] | None, ranks: Ranks) -> tuple[Trainer, Store]:
    """The run that the command line describes, new or resumed. Writes nothing before all is found well.

    Raises UsageError on every rank.
    """
    with ranks.together():
        given, resume = options.parse(parser, arguments)
        ranks.choose_device(given.get("device"))
        store = Store(Path(given["out"]), ranks)
        saved = store.load() if resume else None
        chosen = Options(**given) if saved is None else options.resumed(saved["options"], given)
        chosen = fit_to(ranks, chosen)
        if saved is None:
            refuse_unfinished(store.folder)
        if chosen.threads is not None:
            torch.set_num_threads(chosen.threads)
        text = load_text(chosen.data, chosen.context)
    trainer = Trainer(chosen, text, ranks)
    if saved is not None:
        store.restore(trainer, saved)
    with ranks.together():
        if ranks.first:
            make_ready(store.folder, new=saved is None)
    return trainer, store


def fit_to(ranks: Ranks, chosen: Options) -> Options:
    """The options of a run on these ranks. Raises UsageError where there is no such."""
    if not ranks.launched:
        if chosen.parallel is not None:
            raise UsageError("--parallel is for ranks that torchrun starts, this is a single process")
        return chosen
    if chosen.batch % ranks.world != 0:
        raise UsageError(f"--batch must be divisible by the {ranks.world} ranks, got {chosen.batch}")
    return dataclasses.replace(chosen, parallel=chosen.parallel or MODES[0])


def refuse_unfinished(folder: Path) -> None:
    """A finished run may be replaced, one that can still go on may not."""
    if checkpoint.exists(folder) and not (folder / report.RESULT).exists():
        raise UsageError(f"--out: {folder} holds an unfinished run; go on with --resume, or remove it")


def make_ready(folder: Path, new: bool) -> None:
    """Make the folder, without the result and, of another run, the checkpoints.

    Raises UsageError if it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if new:
            checkpoint.clear(folder)
        (folder / report.RESULT).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot use {error.filename}: {error.strerror}") from error


def train(trainer: Trainer, store: Store, stop: StopRequest) -> None:
    """Steps until the last one or a signal to any rank, then a checkpoint. Raises DivergedError."""
    steps, every = trainer.options.steps, trainer.options.checkpoint_every
    with contextlib.ExitStack() as stack:
        if trainer.ranks.first:
            log = stack.enter_context(report.LogFile(store.folder, trainer.log))
            bar = stack.enter_context(progress_bar(trainer))
        while trainer.step < steps:
            stopped = stop.requested(trainer.ranks)
            rows = [] if stopped else trainer.train_step()
            saves = trainer.step % every == 0 and trainer.step < steps
            rows += trainer.settle() if saves or stopped else []
            for row in rows:
                if trainer.ranks.first:
                    log.add(row)
                    show(bar, trainer, row[0])
                if not math.isfinite(row[2]):
                    raise DivergedError(
                        f"diverged: training loss {row[2]} at step {row[0]}; try a smaller --lr"
                    )
            if stopped:
                break
            if saves:
                store.save(trainer)
    store.save(trainer)


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


def show(bar: tqdm, trainer: Trainer, number: int) -> None:
    """Losses and step time on the bar, and a line to keep after each validation; of a step in the log."""
    recent = trainer.log[max(0, number - 20) : number]
    step, seconds, train_loss, val_loss, _, _ = recent[-1]
    elapsed = seconds - (recent[0][1] if len(recent) > 1 else 0.0)
    milliseconds = 1000 * elapsed / max(1, len(recent) - 1)
    last_val = next((row[3] for row in reversed(trainer.log[:number]) if row[3] is not None), None)
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
        "world_size": trainer.ranks.world,
        "parallel": chosen.parallel,
        "val_loss": val_loss,
        "seconds": round(seconds, 3),
        "optimizer_seconds": round(optimizer_seconds, 3),
    }
    report.plot([(report.label(result), report.read_log(folder))], folder / report.PLOT)
    report.write_result(folder, result)
    print(json.dumps(result))


if __name__ == "__main__":
    leave(main())
