"""Lanes that feed workers with cases; after a crash or a hang, a new worker takes the next case."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace

from bench.gpu.check.process import (
    END_SECONDS,
    START_SECONDS,
    TOOL_END_SECONDS,
    Launcher,
    Request,
    Task,
    Worker,
)
from bench.gpu.check.words import CRASH, FAIL, HANG, NOT_RUN, SKIP


class Lane:
    """A runner of consecutive tasks up to a deadline; while a worker runs, the next one already starts."""

    def __init__(self, launcher: Launcher, section: str, seconds: float, until: float) -> None:
        self.launcher, self.section, self.seconds, self.until = launcher, section, seconds, until
        self.record = launcher.record
        self._spare: Worker | None = None
        self._exhausted = self._numbered = False

    def run(self, tasks: queue.SimpleQueue[Task]) -> None:
        """Run tasks until the queue is empty."""
        while not self._exhausted and not self.launcher.stopped:
            try:
                task = tasks.get_nowait()
            except queue.Empty:
                break
            try:
                self._run(task, more=not tasks.empty())
            except Exception as error:  # noqa: BLE001  (a fault of the driver costs only this task)
                self.record.log(traceback.format_exc(), self.section)
                self.record.verdict(self.section, task.name, FAIL, f"{type(error).__name__}: {error}")
        if self._spare is not None:
            self._spare.kill()

    def _take(self, task: Task, more: bool) -> Worker:
        """Return a worker for a task: the one started ahead, if the task needs no special command."""
        plain = not task.command and not task.environment
        worker = self._spare if plain and self._spare is not None else self.launcher.start(task)
        if worker is self._spare:
            self._spare = None
        if more and plain and self._spare is None:
            self._spare = self.launcher.start(Task("spare", ()))
        return worker

    def _run(self, task: Task, more: bool) -> None:
        worker: Worker | None = None
        self._numbered = task.numbered  # tasks left over at the deadline are not a fault
        for request in task.requests:
            if time.monotonic() >= self.until and task.numbered:
                self._exhausted = True
                self._verdict(replace(request, name=f"from {request.name} on"), SKIP, "no time was left")
                continue
            if time.monotonic() >= self.until:
                self._verdict(request, NOT_RUN, "no time was left")
                continue
            if worker is None:
                worker = self._take(task, more)
                asked = bool(task.command)  # it has all requests as arguments
            worker.source = f"{self.section}/{request.name}"
            if not self._ask(worker, request, asked):
                worker.kill()
                worker = None
                if task.command:
                    task = replace(task, requests=_after(task.requests, request))
            if self._exhausted or self.launcher.stopped:
                break
        if worker is not None:
            worker.close(TOOL_END_SECONDS if task.command else END_SECONDS)
        if task.read is not None:
            task.read(self.record)

    def _ask(self, worker: Worker, request: Request, asked: bool) -> bool:
        """Run one case and record its verdict; return True if the worker can continue."""
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
            self._verdict(request, (SKIP if self._numbered else NOT_RUN) if late else HANG, text)
            worker.tell_where()
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
        if self.launcher.stopped:
            return
        backend = request.message.get("backend")
        self.record.verdict(self.section, request.name, verdict, text, backend=backend)


def _after(requests: tuple[Request, ...], last: Request) -> tuple[Request, ...]:
    return requests[requests.index(last) + 1 :]


def run_tasks(
    launcher: Launcher, section: str, tasks: Sequence[Task], lanes: int, seconds: float, until: float
) -> None:
    """Run all tasks of a section in parallel `lanes`; `until` is a time of `time.monotonic`."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    threads = [
        threading.Thread(target=Lane(launcher, section, seconds, until).run, args=(waiting,), daemon=True)
        for _ in range(min(lanes, len(tasks)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
