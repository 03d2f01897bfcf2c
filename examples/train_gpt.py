"""Train a small byte-level GPT on the Python standard library's sources, or on any text.

    python examples/train_gpt.py --optimizer kradagrad
    python examples/train_gpt.py --optimizer adamw --lr 3e-3 --out runs/adamw
    python examples/train_gpt.py --out runs/adamw --resume

    torchrun --standalone --nproc-per-node 2 examples/train_gpt.py --parallel ddp --out runs/ddp
    torchrun --standalone --nproc-per-node 4 examples/train_gpt.py --parallel fsdp --out runs/ddp --resume

The script writes log.csv, loss.png, result.json and a checkpoint to --out. The last line of stdout is the
result as JSON. After Ctrl-C or SIGTERM, it saves a checkpoint and prints the command that resumes the run.
With the same number of threads, a resumed run equals an unbroken one bit for bit.

The script uses a GPU if there is one; --device cpu or cuda:1 selects another device.

Under torchrun, the ranks share every batch, so their number changes only rounding. A run can be resumed with
another number of ranks or another --parallel. Each rank uses a separate GPU if there are any. Ranks on
several machines need --out on a shared file system. After Ctrl-C, the ranks have torchrun's
--shutdown-timeout, 30 s by default, to save.
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
    """A record of SIGINT or SIGTERM, read between steps; a second signal has its usual effect."""

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
        """Return True on all ranks if any rank got a signal."""
        self.signal = ranks.largest(self._noted) or None
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        signal.signal(number, self._previous[number])


class DivergedError(Exception):
    """A training loss that is not finite."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, 1 after divergence, 2 for a wrong option, 128 + signal number."""
    parser = options.make_parser(__doc__.splitlines()[0])
    with Ranks() as ranks, StopRequest() as stop:
        parser.silent = not ranks.first
        # `run` frees the trainer before the process group ends. If DistributedDataParallel had the last
        # reference to the group, it would wait with the interpreter's lock for threads that may need it.
        return run(parser, arguments, ranks, stop)


def run(parser: options.Parser, arguments: list[str] | None, ranks: Ranks, stop: StopRequest) -> int:
    """Run the command line on started ranks and return the exit status."""
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
    """Return the command that resumes the run; on several machines, add torchrun's rendezvous options."""
    command = [sys.executable]
    if ranks.launched:
        machines = "--standalone" if ranks.nodes == 1 else f"--nnodes={ranks.nodes}"
        per_node = f"--nproc-per-node={ranks.world // ranks.nodes}"
        command += ["-m", "torch.distributed.run", machines, per_node]
    return [*command, sys.argv[0], "--out", str(folder), "--resume"]


def prepare(parser: options.Parser, arguments: list[str] | None, ranks: Ranks) -> tuple[Trainer, Store]:
    """Make the run of the command line, new or resumed; write no file before all checks have passed.

    Raise UsageError on every rank.
    """
    with ranks.together():
        specified, resume = options.parse(parser, arguments)
        ranks.choose_device(specified.get("device"))
        store = Store(Path(specified["out"]), ranks)
        resumes = resume == "always" or (resume == "if any" and checkpoint.exists(store.folder))
        saved = store.load() if resumes else None
        chosen = Options(**specified) if saved is None else options.resumed(saved["options"], specified)
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
    """Return the options of a run on these ranks. Raise UsageError if they do not allow it."""
    if not ranks.launched:
        if chosen.parallel is not None:
            raise UsageError("--parallel is for ranks that torchrun starts, this is a single process")
        return chosen
    if chosen.batch % ranks.world != 0:
        raise UsageError(f"--batch must be divisible by the {ranks.world} ranks, got {chosen.batch}")
    return dataclasses.replace(chosen, parallel=chosen.parallel or MODES[0])


def refuse_unfinished(folder: Path) -> None:
    """Raise UsageError if the folder has an unfinished run; a finished run may be replaced."""
    if checkpoint.exists(folder) and not (folder / report.RESULT).exists():
        raise UsageError(f"--out: {folder} holds an unfinished run; go on with --resume, or remove it")


def make_ready(folder: Path, new: bool) -> None:
    """Make the folder; remove an old result and, for a new run, old checkpoints.

    Raise UsageError if the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if new:
            checkpoint.clear(folder)
        (folder / report.RESULT).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot use {error.filename}: {error.strerror}") from error


def train(trainer: Trainer, store: Store, stop: StopRequest) -> None:
    """Train up to the last step or a signal to any rank, then save. Raise DivergedError on divergence."""
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
    """Return a progress bar, shown only on a terminal; elsewhere the lines of `show` are enough."""
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
    """Show losses and step time of a logged step on the bar; after a validation, print a permanent line."""
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
    """Write plot and result file, and print the result as the last line of stdout."""
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
