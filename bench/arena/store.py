"""The CSV of runs: one row a run, written when the run ends, with its validation curve as JSON."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from bench.arena.run import ArenaRun, Outcome

CIRCUMSTANCES = ("git_sha", "machine", "versions", "date")
RUN = tuple(field.name for field in fields(ArenaRun))
OUTCOME = tuple(field.name for field in fields(Outcome))
COLUMNS = (*RUN, *OUTCOME, *CIRCUMSTANCES)


@dataclass(frozen=True)
class RunRecord:
    """A run, its outcome, and where and with what it ran."""

    run: ArenaRun
    outcome: Outcome
    circumstances: tuple[str, ...]


def row_of(record: RunRecord) -> dict[str, object]:
    outcome = dict(vars(record.outcome))
    outcome["curve"] = json.dumps(
        [[step, round(seconds, 3), _rounded(loss)] for step, seconds, loss in record.outcome.curve]
    )
    for name in ("seconds", "optimizer_seconds"):
        outcome[name] = f"{outcome[name]:.3f}"
    outcome["val_loss"] = _rounded(record.outcome.val_loss)
    return {**vars(record.run), **outcome, **dict(zip(CIRCUMSTANCES, record.circumstances, strict=True))}


def _rounded(loss: float) -> float:
    """Return a loss with its float32 digits: a curve's end stays equal to the final loss."""
    return float(f"{loss:.8g}")


def record_of(row: dict[str, str]) -> RunRecord:
    run = ArenaRun(
        row["task"],
        row["optimizer"],
        float(row["lr"]),
        float(row["value"]),
        int(row["steps"]),
        int(row["seed"]),
    )
    outcome = Outcome(
        float(row["val_loss"]),
        float(row["seconds"]),
        float(row["optimizer_seconds"]),
        int(row["state_bytes"]),
        row["status"],
        [(int(step), float(seconds), float(loss)) for step, seconds, loss in json.loads(row["curve"])],
    )
    return RunRecord(run, outcome, tuple(row[name] for name in CIRCUMSTANCES))


class Store:
    """The records of a CSV. Each new one replaces the file as a whole: no row is ever half written."""

    records: list[RunRecord]

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one.

        Raises:
            ValueError: its columns are others.
        """
        self.path, self.records = path, []
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != COLUMNS:
                    raise ValueError(
                        f"{path} must have the columns {', '.join(COLUMNS)}, got {reader.fieldnames}"
                    )
                self.records = [record_of(row) for row in reader]

    @property
    def done(self) -> dict[ArenaRun, float]:
        return {record.run: record.outcome.val_loss for record in self.records}

    def add(self, record: RunRecord) -> None:
        self.records.append(record)
        write(self.records, self.path)


def write(records: Iterable[RunRecord], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(row_of, records))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
