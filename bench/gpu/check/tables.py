"""Tables of a check's measurements from the CSV's rows, for the summary and docs/gpu-measurements.md."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.check.record import COLUMNS

Row = Mapping[str, str]

DEFAULT = "r2-bf16x3-coupled"
BACKENDS = (
    "native",
    "triton",
    "auto",
    "roofline",
    "torch.bmm fp32",
    "torch.bmm tf32",
    "AdamW fused",
    "reference",
)
PROFILED = (
    "Duration", "Compute (SM) Throughput", "Memory Throughput", "Achieved Occupancy", "Registers Per Thread",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and lines of cells."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table as text, aligned by blanks."""
        cells = [list(self.header), *map(list, self.lines)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.header))]
        rows = [
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in cells
        ]
        return "\n".join([f"{self.title}:", *(row.rstrip() for row in rows)])

    def markdown(self) -> str:
        rows = [self.header, ["---"] * len(self.header), *self.lines]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)])


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words(rows: Iterable[Mapping[str, object]]) -> list[dict[str, str]]:
    """Convert rows of a run to the form of rows read from its CSV."""
    return [{name: "" if row.get(name) is None else str(row[name]) for name in COLUMNS} for row in rows]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return all tables that have lines."""
    candidates = [
        _ceilings(rows),
        _times("kron_step_, default recipe, float32, 4096 x 4096: ms", _default(rows), ("shape",)),
        _times("Other recipes and ops, 4096 x 4096: ms", _others(rows), ("op", "shape", "recipe", "dtype")),
        _times("A step on GPT-2's layers: ms", _steps(rows), ("recipe", "metric")),
        _errors(rows),
        _profiles(rows),
    ]
    return [table for table in candidates if table.lines]


def _ceilings(rows: Sequence[Row]) -> Table:
    rates = [row for row in rows if row["section"] == "ceilings" and row["metric"] in ("GB/s", "Tflop/s")]
    lines = [[row["recipe"], row["shape"], f"{number(row):.0f} {row['metric']}"] for row in rates]
    return Table("Ceilings of this card", ("what", "size", "rate"), lines)


def _is_time(row: Row) -> bool:
    return row["section"] == "times" and row["metric"] == "ms"


def _is_default(row: Row) -> bool:
    plain = not row["case"].split("/")[4:-1]  # op, blocks, recipe, dtype and no more before the column
    return row["op"] == "kron_step_" and row["recipe"] == DEFAULT and row["dtype"] == "float32" and plain


def _default(rows: Sequence[Row]) -> list[Row]:
    chosen = [row for row in rows if _is_time(row) and _is_default(row)]
    return sorted(chosen, key=lambda row: int(row["shape"].split("x")[0]))


def _others(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if _is_time(row) and not _is_default(row)]


def _steps(rows: Sequence[Row]) -> list[Row]:
    metrics = ("ms", "mean_ms", "host_ms", "wall_ms")
    return [row for row in rows if row["section"] == "gpt2" and row["metric"] in metrics]


def _times(title: str, rows: Sequence[Row], keys: Sequence[str]) -> Table:
    """Return a table with a line per combination of `keys` and a column per backend or baseline."""
    columns = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        cells.setdefault(key, {})[row["backend"]] = f"{number(row):.3g}"
    lines = [[*key, *(values.get(name, "") for name in columns)] for key, values in cells.items()]
    return Table(title, [*keys, *columns], lines)


def _errors(rows: Sequence[Row]) -> Table:
    """Return the largest error by section and task, with the bound and torch's float32 error."""
    largest: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["section"] not in ("native", "triton", "steps") or not row["metric"].startswith("error of"):
            continue
        values = largest.setdefault((row["section"], row["case"].split("/")[0]), {})
        kind = "torch" if ", torch" in row["metric"] else "worst" if "worst" in row["metric"] else "error"
        values[kind] = max(values.get(kind, 0.0), number(row))
        if kind == "error" and row.get("bound"):
            values["bound"] = max(values.get("bound", 0.0), float(row["bound"]))
    names = ("error", "worst", "bound", "torch")
    lines = [
        [*key, *(f"{values[name]:.1e}" if name in values else "" for name in names)]
        for key, values in largest.items()
    ]
    header = ("section", "task", "largest error", "of one block", "bound", "torch float32")
    return Table("Errors against float64", header, lines)


def _profiles(rows: Sequence[Row]) -> Table:
    metrics: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row["metric"].split(" [")[0]
        if row["section"] == "ncu" and name in PROFILED:
            unit = row["metric"].partition(" [")[2].rstrip("]")
            metrics.setdefault(row["case"], {}).setdefault(name, f"{number(row):.3g} {unit}".strip())
    lines = [[case, *(values.get(name, "") for name in PROFILED)] for case, values in metrics.items()]
    return Table("Nsight Compute", ("kernel", *PROFILED), lines)


def number(row: Row) -> float:
    return float(row["p50"])


def failures(rows: Sequence[Row], good: Sequence[str]) -> Iterator[str]:
    """Yield the cases with a bad verdict."""
    for row in rows:
        if row["metric"] == "verdict" and row["verdict"] not in good:
            yield f"{row['verdict']} {row['section']}/{row['case']}: {row['note']}"
