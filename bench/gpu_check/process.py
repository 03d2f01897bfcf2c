"""Worker processes: how they are started, asked, listened to and ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .record import Record

START_SECONDS = 90.0
"""For a worker to import torch, from a cold disk."""
END_SECONDS = 5.0
"""For a process that was told to end."""
STACK_SECONDS = 0.3
TOOL_END_SECONDS = 20.0
"""For a profiler, which writes what it found at its end."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A case of a section, and what the worker is asked.

    Attributes:
        name: of the case in what is recorded.  seconds: at most; the section's where it is None.
    """

    name: str
    message: dict[str, Any]
    seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """Cases that one process runs after each other.

    Attributes:
        command: before the worker's own, such as a profiler's; cases are then given as arguments.
        environment: beside the driver's.
        read: records what such a command wrote, once it has ended.
        numbered: whether it is one of more than there may be, of which a worker tells where they end.
    """

    name: str
    requests: tuple[Request, ...]
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    read: Callable[[Record], None] | None = None
    numbered: bool = False


@dataclass
class Launcher:
    """How workers are started.

    Attributes:
        command: the worker's.  environment: of the process.  folder: it runs in.
        living: all that are there, so that none outlives the driver.
        stopped: whether no more are to be started, and what becomes of those that are left counts no more.
    """

    command: Sequence[str]
    environment: dict[str, str]
    folder: Path
    record: Record
    living: set[Worker] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def start(self, task: Task) -> Worker:
        """A worker for a task's cases."""
        given = [json.dumps(request.message) for request in task.requests] if task.command else []
        worker = Worker(
            [*task.command, *self.command, *given],
            {**self.environment, **dict(task.environment)},
            self.folder,
            self.record,
        )
        worker.wrapped = bool(task.command)
        with self.lock:
            self.living = {other for other in self.living if other.alive()} | {worker}
            stopped = self.stopped
        if stopped:
            worker.kill()
        return worker

    def end_all(self) -> None:
        """End every worker that is left, and start no more."""
        with self.lock:
            self.stopped = True
            living = list(self.living)
        for worker in living:
            worker.kill()


class Worker:
    """One process; what it prints goes into the log, what it answers into a queue."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], folder: Path, record: Record
    ) -> None:
        self.record, self.source, self.wrapped = record, "", False
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=folder,
            text=True,
            errors="replace",
            **_own_group(),
        )
        self.messages: queue.Queue[Message | None] = queue.Queue()
        self.ready = False
        self.last_words: deque[str] = deque(maxlen=3)
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._answers, self._prints)]
        for reader in self._readers:
            reader.start()

    def _answers(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict):
                self.messages.put(message)
            else:  # a tool around the worker speaks there, too
                self._note(line)
        self.messages.put(None)

    def _prints(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._note(line)

    def _note(self, line: str) -> None:
        if line.strip():
            if not line.startswith("Extension modules"):  # of a crash, which is told in the lines above
                self.last_words.append(line.strip()[:200])
            self.record.log(line, self.source or f"worker {self.process.pid}")

    def ask(self, message: dict[str, Any]) -> None:
        """Send a request; a worker that is gone is noticed when its answer is waited for."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def next(self, until: float) -> Message | None:
        """Its next message; None if it ended. Raises TimeoutError."""
        try:
            return self.messages.get(timeout=max(until - time.monotonic(), 0.0))
        except queue.Empty:
            raise TimeoutError from None

    def alive(self) -> bool:
        return self.process.poll() is None

    def how_it_ended(self) -> str:
        """The signal or status, and its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        for reader in self._readers[1:]:
            reader.join(1.0)
        status = self.process.returncode
        if status is None:
            return "it closed its output and went on"
        said = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return ": ".join([said, *([" | ".join(self.last_words)] if self.last_words else [])])

    def tell_where(self) -> None:
        """Let a hung worker print its Python stack into the log; one within a tool is not asked."""
        if self.ready and not self.wrapped:
            with contextlib.suppress(OSError):
                self.process.send_signal(signal.SIGUSR1)
            time.sleep(STACK_SECONDS)

    def close(self, seconds: float) -> None:
        """Let it end by itself, as it does when there are no more requests; else end it."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it with all that it started."""
        with contextlib.suppress(OSError):
            if self.alive() or self.wrapped:
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)


def _own_group() -> dict[str, Any]:
    """So that a worker ends with its children, and all of them with the driver's session."""
    return {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
