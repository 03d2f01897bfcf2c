"""Processes that train, one run at a time each, with one thread on one core."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait

import torch

from bench.arena.run import ArenaRun, Outcome, train
from bench.arena.store import RunRecord
from bench.common import git_sha, machine, versions

LIMIT_SECONDS = 3600.0
"""A run that takes longer ends and loses."""

Trainer = Callable[[ArenaRun], Outcome]


def lost(status: str, seconds: float = 0.0) -> Outcome:
    """Return the outcome of a run that did not end by itself."""
    return Outcome(math.nan, seconds, 0.0, 0, status, [])


def serve(connection: Connection, core: int | None, trainer: Trainer) -> None:
    """Train every run that comes through the connection and send back its record, until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # tails of drawn curves are denormal, which slows some processors tenfold
    if core is not None:
        os.sched_setaffinity(0, {core})
    where = (git_sha(), machine(), versions())
    while (run := connection.recv()) is not None:
        try:
            outcome = trainer(run)
        except Exception as error:  # noqa: BLE001  (recorded with its message, and the report lists it)
            traceback.print_exc()
            outcome = lost(
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            )
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        connection.send(RunRecord(run, outcome, (*where, date)))


class ArenaWorker:
    """One process and the run that it trains; after a crash or a run beyond the limit it starts again."""

    def __init__(self, core: int | None, trainer: Trainer, limit: float) -> None:
        self.core, self.trainer, self.limit = core, trainer, limit
        self.run: ArenaRun | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.core, self.trainer), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, run: ArenaRun) -> None:
        self.run, self.since = run, time.monotonic()
        self.connection.send(run)

    @property
    def late(self) -> bool:
        return self.run is not None and time.monotonic() - self.since > self.limit

    def take(self) -> RunRecord | None:
        """Return the record of the run that ended; None if it goes on."""
        assert self.run is not None
        if self.connection.poll():
            try:
                record = self.connection.recv()
            except EOFError:
                record = self._restart(f"the process ended with status {self._status()}")
        elif self.late:
            record = self._restart(f"longer than {self.limit:g} s")
        else:
            return None
        self.run = None
        return record

    def _status(self) -> int | None:
        self.process.join(10)
        return self.process.exitcode

    def _restart(self, status: str) -> RunRecord:
        assert self.run is not None
        self.end()
        self._start()
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        where = (git_sha(), machine(), versions(), date)
        return RunRecord(self.run, lost(status, time.monotonic() - self.since), where)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def cores(count: int) -> list[int | None]:
    """Return a core for each of `count` workers; None where the system cannot pin them, or has too few."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * count
    usable = sorted(os.sched_getaffinity(0))
    return [*usable[:count], *[None] * (count - len(usable))]


def train_all(
    upcoming: Callable[[], Iterator[ArenaRun]],
    count: int,
    trainer: Trainer = train,
    limit: float = LIMIT_SECONDS,
) -> Iterator[RunRecord]:
    """Yield the record of every run as it ends.

    Args:
        upcoming: returns the runs that can start now, in order, including those in progress.
        count: the number of processes.
    """
    workers = [ArenaWorker(core, trainer, limit) for core in cores(count)]
    try:
        while True:
            active = {worker.run for worker in workers}
            runs = (run for run in upcoming() if run not in active)
            for worker in (worker for worker in workers if worker.run is None):
                if (run := next(runs, None)) is not None:
                    worker.give(run)
            busy = [worker for worker in workers if worker.run is not None]
            if not busy:
                return
            wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                if (record := worker.take()) is not None:
                    yield record
    finally:
        for worker in workers:
            worker.end()
