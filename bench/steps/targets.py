"""Targets of the project's speed and memory on a CPU, and a table of a run's measurements against them."""

from __future__ import annotations

from dataclasses import dataclass

from bench.common import markdown_table


@dataclass(frozen=True)
class Target:
    """One line of the table; `measured` is None if this run could not measure it."""

    measure: str
    limit: float
    measured: float | None
    at_least: bool = False
    unit: str = ""

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "pass" if met else "miss"

    def told(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{100 * value:.0f}%" if self.unit == "%" else f"{value:.3g}{self.unit}"

    def cells(self) -> tuple[str, ...]:
        limit = ("≥ " if self.at_least else "≤ ") + self.told(self.limit)
        return self.measure, limit, self.told(self.measured), self.verdict


def target_table(targets: list[Target]) -> str:
    """Return the targets as a Markdown table."""
    return markdown_table(("measure", "target", "measured", ""), (target.cells() for target in targets))
