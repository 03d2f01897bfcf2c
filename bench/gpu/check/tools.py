"""Verdicts and rows from the output of compute-sanitizer and Nsight Compute."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from bench.gpu.check.record import Record
from bench.gpu.check.words import FAIL, PASS, WRONG

SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards?)")
FINDING = re.compile(r"=========\s+((?:Invalid|Error:|Race|Warning:|Program hit|Uninitialized|Misaligned).*)")
HEADER = '"ID",'


def read_sanitizer(tool: str, kernel: str, log: Path, record: Record) -> None:
    """Record a tool's verdict on a kernel: the summary of its log, and the first error."""
    text = log.read_text(errors="replace") if log.exists() else ""
    summary = SUMMARY.search(text)
    finding = FINDING.search(text)
    first = finding.group(1).strip() if finding else ""
    if summary is None:
        record.verdict(tool, f"{kernel}/report", FAIL, f"the tool wrote no summary {first}".rstrip())
        return
    errors = int(next(number for number in summary.groups() if number is not None))
    record.row(tool, f"{kernel}/report", {"backend": "native", "metric": "errors", "p50": float(errors)})
    result = f"{errors} found" + (f", the first: {first}" if first else "")
    record.verdict(tool, f"{kernel}/report", WRONG if errors else PASS, result)


def read_profile(backend: str, kernel: str, path: Path, record: Record) -> None:
    """Record a row per metric of a profile."""
    case = f"{backend}/{kernel}"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    start = next((number for number, line in enumerate(lines) if line.startswith(HEADER)), None)
    rows = list(csv.DictReader(lines[start:])) if start is not None else []
    values = [row for row in rows if row.get("Metric Name") and number(row.get("Metric Value")) is not None]
    for row in values:
        unit = row.get("Metric Unit") or ""
        metric = f"{row['Metric Name']} [{unit}]" if unit else row["Metric Name"]
        fields = {"op": row.get("Kernel Name", kernel), "backend": backend, "metric": metric}
        record.row(
            "ncu", case, fields | {"p50": number(row["Metric Value"]), "note": row.get("Section Name", "")}
        )
    if not values:
        last = " | ".join(lines[-3:])
        record.verdict("ncu", f"{case}/report", FAIL, f"the profile has no metrics: {last}")


def number(text: str | None) -> float | None:
    """Convert a number with or without thousands separators; return None for any other text."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
