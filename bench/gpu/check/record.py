"""Result files of a run, at most six: a CSV, a log, a summary, two plots, an archive of details.

Rows and lines are written to disk at once, so a run that is killed loses none of them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tarfile
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.gpu.check.words import GOOD

MEASURED = ("section", "case", "op", "backend", "recipe", "dtype", "shape", "blocks")
VALUES = ("metric", "p20", "p50", "p80", "bound", "verdict", "note")
CIRCUMSTANCES = ("device", "git_sha", "versions", "date")
COLUMNS = (*MEASURED, *VALUES, *CIRCUMSTANCES)

CSV, LOG, SUMMARY, ARCHIVE = "gpu_check.csv", "gpu_check.log", "summary.txt", "details.tar.gz"
PLOTS = ("sides.png", "prediction.png")
MOST_LOG, MOST_ARCHIVED = 12 << 20, 8 << 20
"""Maximum bytes of the log, and of the archive's files before compression."""


class Record:
    """The files of a run, and its verdicts. All methods may be called from any thread.

    Attributes:
        folder: folder of the files.  details: folder of files for the archive.
        circumstances: fields of every row.  found: facts about the machine.
        verdicts: section, case, verdict and text, in order of arrival.
    """

    def __init__(self, folder: Path, details: Path) -> None:
        self.folder, self.details = folder, details
        folder.mkdir(parents=True, exist_ok=True)
        details.mkdir(parents=True, exist_ok=True)
        for name in (CSV, LOG, SUMMARY, ARCHIVE, *PLOTS):
            (folder / name).unlink(missing_ok=True)
        self.start = time.monotonic()
        self.circumstances: dict[str, str] = {}
        self.found: dict[str, Any] = {}
        self.verdicts: list[tuple[str, str, str, str]] = []
        self.rows: list[dict[str, Any]] = []
        self._lock = threading.RLock()
        self._log = (folder / LOG).open("w", encoding="utf-8", errors="replace")
        self._csv = (folder / CSV).open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._csv, COLUMNS, lineterminator="\n")
        self._writer.writeheader()
        self._csv.flush()

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def log(self, line: str, source: str = "") -> None:
        """Write a line to the log, with the time and its source."""
        with self._lock:
            if self._log.closed or self._log.tell() > MOST_LOG:
                return
            self._log.write(f"{self.elapsed():7.1f} {source and f'[{source}] '}{line.rstrip()}\n")
            self._log.flush()

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Record a worker's facts about the machine; later rows contain some of them."""
        with self._lock:
            self.found |= facts
            versions = [f"{name} {facts[name]}" for name in ("torch", "cuda", "triton") if facts.get(name)]
            self.circumstances |= {"device": str(facts["device"]), "versions": "; ".join(versions)}

    def say(self, line: str) -> None:
        """Write a line to the log and to stdout."""
        with self._lock:
            print(line, flush=True)
            self.log(line)

    def row(self, section: str, case: str, values: Mapping[str, Any]) -> None:
        """Write one row of the CSV."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = {**self.circumstances, "date": date, **values, "section": section, "case": case}
        cells = {name: _told(row[name]) for name in COLUMNS if row.get(name) is not None}
        with self._lock:
            self.rows.append(row)
            if not self._csv.closed:
                self._writer.writerow(cells)
                self._csv.flush()
            value = " ".join(cells.get(name, "") for name in ("metric", "p50", "note"))
            self.log(f"{cells.get('backend', '')} {value}", f"{section}/{case}")

    def verdict(self, section: str, case: str, verdict: str, text: str, **values: object) -> None:
        """Record how a case ended: in a row, in the log and at once in the summary."""
        with self._lock:
            self.verdicts.append((section, case, verdict, text))
            self.row(section, case, {**values, "metric": "verdict", "verdict": verdict, "note": text})
            if verdict not in GOOD:
                self.say(f"{verdict} {section}/{case}: {text}")
            self.write_summary()

    @property
    def failed(self) -> bool:
        return any(verdict not in GOOD for _, _, verdict, _ in self.verdicts)

    def write_summary(self, more: str = "") -> str:
        """Write the summary: verdict counts by section, each failed case, then `more`."""
        with self._lock:
            text = "\n".join([*self._sections(), "", *self._failures(), "", more]).rstrip() + "\n"
            partial = self.folder / (SUMMARY + ".partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.folder / SUMMARY)
            return text

    def _sections(self) -> Iterable[str]:
        yield f"{'section':<12} cases"
        for section in dict.fromkeys(section for section, *_ in self.verdicts):
            counts: dict[str, int] = {}
            for name, _, verdict, _ in self.verdicts:
                if name == section:
                    counts[verdict] = counts.get(verdict, 0) + 1
            yield f"{section:<12} {', '.join(f'{number} {verdict}' for verdict, number in counts.items())}"

    def _failures(self) -> Iterable[str]:
        for section, case, verdict, text in self.verdicts:
            if verdict not in GOOD:
                yield f"{verdict} {section}/{case}: {text[:200]}"
        for section, case, verdict, text in self.verdicts:
            if verdict == "skip" and section not in ("times", "triton kernels"):
                yield f"skipped {section}/{case}: {text[:200]}"

    def archive(self) -> None:
        """Pack the details, the smallest files first, up to the size limit."""
        files = sorted((path for path in self.details.rglob("*") if path.is_file()), key=_size)
        room, buffer = MOST_ARCHIVED, io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
            for path in files:
                if _size(path) <= room:
                    room -= _size(path)
                    packed.add(path, path.relative_to(self.details).as_posix())
        (self.folder / ARCHIVE).write_bytes(buffer.getvalue())

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._log.close()
            self._csv.close()


def _size(path: Path) -> int:
    return path.stat().st_size


def _told(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
