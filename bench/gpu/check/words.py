"""Messages of a worker to the driver, one line of JSON each: rows, facts and verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

PASS, WRONG, FAIL, SKIP, UNJUDGED = "pass", "WRONG", "FAIL", "skip", "not judged"
CRASH, HANG, NOT_RUN = "CRASH", "HANG", "NOT RUN"
GOOD = (PASS, SKIP, UNJUDGED)
"""Verdicts with which the check passes."""


class Report:
    """The worker's end of the channel. `fields` go into every row of the current case."""

    def __init__(self, stream: IO[str], judged: bool = True) -> None:
        self._stream, self.judged = stream, judged
        self.fields: dict[str, Any] = {}

    def send(self, **message: object) -> None:
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()

    def row(self, metric: str, *values: float, **fields: object) -> None:
        """Send one measured quantity: a value, or its 20th, 50th and 80th percentile."""
        p20, p50, p80 = values if len(values) == 3 else values * 3
        self.send(row={**self.fields, "metric": metric, "p20": p20, "p50": p50, "p80": p80, **fields})

    def end(self, wrong: Sequence[str], remark: str = "") -> None:
        """Send the verdict of a case from the list of its defects."""
        verdict = (WRONG if self.judged else UNJUDGED) if wrong else (PASS if self.judged else UNJUDGED)
        text = "; ".join([*wrong, *([remark] if remark else [])])
        self.send(end={"verdict": verdict, "text": text})

    def failed(self, text: str, last: bool = False) -> None:
        """Send an error; `last` if this process runs no other case."""
        self.send(end={"verdict": FAIL, "text": text, "last": last})

    def exhausted(self) -> None:
        """Report that no case with this or a higher index exists."""
        self.send(end={"verdict": SKIP, "text": "", "exhausted": True})

    def skipped(self, reason: str) -> None:
        self.send(end={"verdict": SKIP, "text": reason})


class SkippedError(Exception):
    """A case that does not apply here; the message has the reason."""


class ExhaustedError(Exception):
    """An index past the last case."""
