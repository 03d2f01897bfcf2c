"""Worker processes: fed with cases, watched, and started again at the next case after a crash or a hang."""

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .record import Record
from .words import CRASH, FAIL, HANG, NOT_RUN

START_SECONDS = 90.0
"""For a worker to import torch, from a cold disk."""
END_SECONDS = 5.0
"""For a process that was told to end."""
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
    """

    name: str
    requests: tuple[Request, ...]
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    read: Callable[[Record], None] | None = None


@dataclass
class Launcher:
    """How workers are started.

    Attributes:
        command: the worker's.  environment: of the process.  folder: it runs in.
        living: all that are there, so that none outlives the driver.
    """

    command: Sequence[str]
    environment: dict[str, str]
    folder: Path
    record: Record
    living: set[Worker] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, task: Task) -> Worker:
        """A worker for a task's cases."""
        given = [json.dumps(request.message) for request in task.requests] if task.command else []
        worker = Worker(
            [*task.command, *self.command, *given],
            {**self.environment, **dict(task.environment)},
            self.folder,
            self.record,
        )
        with self.lock:
            self.living = {other for other in self.living if other.alive()} | {worker}
        return worker

    def end_all(self) -> None:
        """End every worker that is left."""
        with self.lock:
            living = list(self.living)
        for worker in living:
            worker.kill()


class Worker:
    """One process; what it prints goes into the log, what it answers into a queue."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], folder: Path, record: Record
    ) -> None:
        self.record, self.source = record, ""
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
            self.last_words.append(line.strip())
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
        return f"{said}{self.last_words and ': ' or ''}{' | '.join(self.last_words)}"

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
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)


def _own_group() -> dict[str, Any]:
    """So that a worker ends with its children, and all of them with the driver's session."""
    return {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


class Lane:
    """Runs tasks one after another, until a moment; while a worker works, the next one starts already."""

    def __init__(self, launcher: Launcher, section: str, seconds: float, until: float) -> None:
        self.launcher, self.section, self.seconds, self.until = launcher, section, seconds, until
        self.record = launcher.record
        self._spare: Worker | None = None
        self._exhausted = False

    def run(self, tasks: queue.SimpleQueue[Task]) -> None:
        """Take tasks until there are none."""
        while not self._exhausted:
            try:
                task = tasks.get_nowait()
            except queue.Empty:
                break
            self._run(task, more=not tasks.empty())
        if self._spare is not None:
            self._spare.kill()

    def _take(self, task: Task, more: bool) -> Worker:
        """A worker for a task: the one that was started ahead, if any will do."""
        plain = not task.command and not task.environment
        worker = self._spare if plain and self._spare is not None else self.launcher.start(task)
        if worker is self._spare:
            self._spare = None
        if more and plain and self._spare is None:
            self._spare = self.launcher.start(Task("spare", ()))
        return worker

    def _run(self, task: Task, more: bool) -> None:
        worker: Worker | None = None
        for request in task.requests:
            if time.monotonic() >= self.until:
                self._verdict(request, NOT_RUN, "no time was left")
                continue
            if worker is None:
                worker = self._take(task, more)
                asked = bool(task.command)  # it has got all requests
            worker.source = f"{self.section}/{request.name}"
            if not self._ask(worker, request, asked):
                worker.kill()
                worker = None
                if task.command:
                    task = replace(task, requests=_after(task.requests, request))
            if self._exhausted:
                break
        if worker is not None:
            worker.close(TOOL_END_SECONDS if task.command else END_SECONDS)
        if task.read is not None:
            task.read(self.record)

    def _ask(self, worker: Worker, request: Request, asked: bool) -> bool:
        """Run one case and record how it ended; whether the worker can go on."""
        limit = self.seconds if request.seconds is None else request.seconds
        try:
            if not self._is_ready(worker, request):
                return False
            if not asked:
                worker.ask(request.message)
            return self._listen(worker, request, min(time.monotonic() + limit, self.until + END_SECONDS))
        except TimeoutError:
            late = time.monotonic() >= self.until
            waited = limit if worker.ready else START_SECONDS
            text = "the section's time was over" if late else f"no answer within {waited:.0f} s"
            self._verdict(request, NOT_RUN if late else HANG, text)
            return False

    def _is_ready(self, worker: Worker, request: Request) -> bool:
        until = min(time.monotonic() + START_SECONDS, self.until + END_SECONDS)
        while not worker.ready:
            message = worker.next(until)
            if message is None:
                self._verdict(request, CRASH, f"the worker did not start: {worker.how_it_ended()}")
                return False
            if "end" in message:
                self._verdict(request, FAIL, message["end"]["text"])
                return False
            worker.ready = bool(message.get("ready"))
        return True

    def _listen(self, worker: Worker, request: Request, until: float) -> bool:
        while True:
            message = worker.next(until)
            if message is None:
                self._verdict(request, CRASH, worker.how_it_ended())
                return False
            if "row" in message:
                self.record.row(self.section, request.name, message["row"])
            elif "facts" in message:
                self.record.facts(message["facts"])
            elif "end" in message:
                end = message["end"]
                self._exhausted = bool(end.get("exhausted"))
                if self._exhausted:
                    return True
                self._verdict(request, end["verdict"], end["text"])
                return not end.get("last")

    def _verdict(self, request: Request, verdict: str, text: str) -> None:
        own = {"backend": request.message.get("backend")}
        self.record.verdict(self.section, request.name, verdict, text, **own)


def _after(requests: tuple[Request, ...], last: Request) -> tuple[Request, ...]:
    return requests[requests.index(last) + 1 :]


def run_tasks(
    launcher: Launcher, section: str, tasks: Sequence[Task], lanes: int, seconds: float, until: float
) -> None:
    """Run all tasks of a section, so many at a time; `until` by `time.monotonic`."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    threads = [
        threading.Thread(target=Lane(launcher, section, seconds, until).run, args=(waiting,))
        for _ in range(min(lanes, len(tasks)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
