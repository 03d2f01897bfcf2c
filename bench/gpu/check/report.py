"""Write docs/gpu-measurements.md from the CSVs in bench/results/.

    python -m bench.gpu.check.report                 # prints the page
    python -m bench.gpu.check.report --record        # writes it

Copy the gpu_check.csv of a check there as gpu_<card>.csv. tests/bench/test_gpu_check_cases.py compares the
page with the CSVs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.check.package import ROOT
from bench.gpu.check.tables import failures, read, tables
from bench.gpu.check.words import GOOD

PAGE = ROOT / "docs/gpu-measurements.md"
RESULTS = ROOT / "bench/results"

HEAD = """\
# Measured on a GPU

`python -m bench.gpu.check.report --record` writes this page from `bench/results/gpu_*.csv`. Each is a run of
`bench/gpu_check.sh` on one card ([gpu-check](gpu-check.md)). Times are medians in milliseconds, `roofline` is
the prediction.
"""
NOTHING = """
Nothing has been measured yet: there is no such file. All that is said of speed elsewhere is a prediction.
"""


def page(paths: Sequence[Path]) -> str:
    """Return the page's text."""
    return HEAD + ("".join(map(_card, paths)) or NOTHING)


def _card(path: Path) -> str:
    rows = read(path)
    last = rows[-1]
    device = next((row["device"] for row in reversed(rows) if row["device"]), path.stem)
    parts = [
        f"## {device}",
        f"Commit {last['git_sha']}, {last['date'][:10]}, {last['versions']}: `{path.name}`.",
    ]
    bad = list(failures(rows, GOOD))
    parts.append(
        "\n".join(["What went wrong:", "", *(f"- {line}" for line in bad)]) if bad else "Nothing went wrong."
    )
    parts += [table.markdown() for table in tables(rows)]
    return "\n" + "\n\n".join(parts) + "\n"


def measured() -> list[Path]:
    return sorted(RESULTS.glob("gpu_*.csv"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write docs/gpu-measurements.md")
    options = parser.parse_args()
    if options.record:
        PAGE.write_text(page(measured()), encoding="utf-8")
    else:
        print(page(measured()), end="")


if __name__ == "__main__":
    main()
