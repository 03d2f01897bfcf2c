"""The project's performance bounds on a CPU, and a table of a run's measurements against them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
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

    def line(self) -> str:
        limit = ("≥ " if self.at_least else "≤ ") + self.told(self.limit)
        return f"| {self.measure} | {limit} | {self.told(self.measured)} | {self.verdict} |"


def table(bounds: list[Bound]) -> str:
    """Return the bounds as a Markdown table."""
    head = "| measure | bound | measured | |\n|---|---|---|---|"
    return "\n".join([head, *(bound.line() for bound in bounds)])
