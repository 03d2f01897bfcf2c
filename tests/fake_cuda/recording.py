"""The log of the fake CUDA runtime, read by the process that caused it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def is_active() -> bool:
    """Return True if this process runs under the fake runtime, see ``__main__``."""
    return "FAKE_CUDA_LOG" in os.environ


@dataclass
class Recording:
    """The events of a part of a process, in order."""

    events: list[Event] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Event]:
        """Return events of some kinds: launch, library, copy, set, sync, allocate, refused, graph, ..."""
        return [event for event in self.events if event["event"] in kinds]

    @property
    def launches(self) -> list[str]:
        """Names of the launched kernels and of the libraries' calls, in order."""
        return [event["name"] for event in self.of("launch", "library")]

    @property
    def syncs(self) -> list[str]:
        """Calls that made the host wait."""
        return [event["call"] for event in self.of("sync")]

    @property
    def refusals(self) -> list[str]:
        """Refused calls, with the reasons."""
        return [f"{event['call']}: {event['why']}" for event in self.of("refused")]

    def copies(self, source: str, target: str) -> int:
        """Count the copies between two kinds of memory: ``pageable``, ``pinned``, ``device 0``."""
        return sum(event["from"] == source and event["to"] == target for event in self.of("copy"))

    def summary(self) -> Counter[str]:
        """Count the events of each kind."""
        return Counter(event["event"] for event in self.events)


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record this process's calls of the runtime while the context is open; they are read when it closes."""
    log, recording = Path(os.environ["FAKE_CUDA_LOG"]), Recording()
    start = log.stat().st_size if log.exists() else 0
    yield recording
    with log.open("rb") as lines:
        lines.seek(start)
        events = map(json.loads, lines)
        recording.events += [event for event in events if event["pid"] == os.getpid()]
