"""Worker processes: start, requests, answers and end."""

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

from bench.gpu.check.record import Record

START_SECONDS = 90.0
"""Limit for a worker to import torch from a cold disk."""
END_SECONDS = 5.0
"""Limit for a process to end after a request to do so."""
STACK_SECONDS = 0.3
TOOL_END_SECONDS = 20.0
"""Limit for a profiler to end, because it writes its results then."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A case of a section, and the message to the worker.

    Attributes:
        name: name of the case in the record.  seconds: time limit; None for the section's.
    """

    name: str
    message: dict[str, Any]
    seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """Cases that one process runs consecutively.

    Attributes:
        command: prefix of the worker's command, such as a profiler's; the cases are then its arguments.
        environment: variables in addition to the launcher's.
        read: records the results that such a command wrote, after its end.
        numbered: True if the name is an index; a worker reports the end of the valid indices.
    """

    name: str
    requests: tuple[Request, ...]
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    read: Callable[[Record], None] | None = None
    numbered: bool = False


@dataclass
class Launcher:
    """The start of workers, and their end with the driver.

    Attributes:
        command: the worker's command.  environment: the process's.  folder: its working folder.
        living: all running workers, so that none outlives the driver.
        stopped: True if no more workers may start; verdicts of the remaining workers do not count then.
    """

    command: Sequence[str]
    environment: dict[str, str]
    folder: Path
    record: Record
    living: set[Worker] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def start(self, task: Task) -> Worker:
        """Start a worker for a task's cases."""
        arguments = [json.dumps(request.message) for request in task.requests] if task.command else []
        worker = Worker(
            [*task.command, *self.command, *arguments],
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
        """End all remaining workers, and start no more."""
        with self.lock:
            self.stopped = True
            living = list(self.living)
        for worker in living:
            worker.kill()


class Worker:
    """One process; its output goes into the log, its answers into a queue."""

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
            else:  # a tool around the worker prints there, too
                self._note(line)
        self.messages.put(None)

    def _prints(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._note(line)

    def _note(self, line: str) -> None:
        if line.strip():
            if not line.startswith("Extension modules"):  # after a crash; the lines before describe it
                self.last_words.append(line.strip()[:200])
            self.record.log(line, self.source or f"worker {self.process.pid}")

    def ask(self, message: dict[str, Any]) -> None:
        """Send a request; the wait for the answer detects a worker that has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def next(self, until: float) -> Message | None:
        """Return its next message; None if it ended. Raise TimeoutError after `until`."""
        try:
            return self.messages.get(timeout=max(until - time.monotonic(), 0.0))
        except queue.Empty:
            raise TimeoutError from None

    def alive(self) -> bool:
        return self.process.poll() is None

    def how_it_ended(self) -> str:
        """Return the signal or status, and its last lines of output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        for reader in self._readers[1:]:
            reader.join(1.0)
        status = self.process.returncode
        if status is None:
            return "it closed its output and went on"
        cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return ": ".join([cause, *([" | ".join(self.last_words)] if self.last_words else [])])

    def tell_where(self) -> None:
        """Let a hung worker print its Python stack into the log, except one under a tool."""
        if self.ready and not self.wrapped:
            with contextlib.suppress(OSError):
                self.process.send_signal(signal.SIGUSR1)
            time.sleep(STACK_SECONDS)

    def close(self, seconds: float) -> None:
        """Close its input, so that it ends after the last request; kill it after the time limit."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it with its child processes."""
        with contextlib.suppress(OSError):
            if self.alive() or self.wrapped:
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)


def _own_group() -> dict[str, Any]:
    """Return options of Popen so that a worker can be killed together with its children."""
    return {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
