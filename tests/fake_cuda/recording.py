"""What the fake CUDA runtime wrote to its log, read by the process that it is of."""

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
    """Whether this process runs under the fake runtime, see ``__main__``."""
    return "FAKE_CUDA_LOG" in os.environ


@dataclass
class Recording:
    """The events of a stretch of a process, in order."""

    events: list[Event] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Event]:
        """Events of some kinds: launch, library, copy, set, sync, allocate, refused, graph and so on."""
        return [event for event in self.events if event["event"] in kinds]

    @property
    def launches(self) -> list[str]:
        """Names of the kernels and of the libraries' calls, in order."""
        return [event["name"] for event in self.of("launch", "library")]

    @property
    def syncs(self) -> list[str]:
        """The calls that made the host wait."""
        return [event["call"] for event in self.of("sync")]

    @property
    def refusals(self) -> list[str]:
        """What was refused, and why."""
        return [f"{event['call']}: {event['why']}" for event in self.of("refused")]

    def copies(self, source: str, target: str) -> int:
        """How many copies there were between two kinds of memory: ``pageable``, ``pinned``, ``device 0``."""
        return sum(event["from"] == source and event["to"] == target for event in self.of("copy"))

    def summary(self) -> Counter[str]:
        """How many events there are of each kind."""
        return Counter(event["event"] for event in self.events)


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record what this process asks of the runtime while the context is open; it is there when it closes."""
    log, recording = Path(os.environ["FAKE_CUDA_LOG"]), Recording()
    start = log.stat().st_size if log.exists() else 0
    yield recording
    with log.open("rb") as lines:
        lines.seek(start)
        events = map(json.loads, lines)
        recording.events += [event for event in events if event["pid"] == os.getpid()]
