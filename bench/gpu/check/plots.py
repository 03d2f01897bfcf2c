"""Plots of a check's measurements from its CSV: `python -m bench.gpu.check.plots gpu_check.csv`."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.gpu.check.specs import OURS
from bench.gpu.check.tables import DEFAULT

COLORS = {
    "native": "#1f5fa8",
    "triton": "#c23b5a",
    "reference": "#d1682b",
    "roofline": "#3b8f5a",
    "torch.bmm fp32": "#8a5aa8",
    "torch.bmm tf32": "#777777",
}
PARTS_OF_A_PLAIN_CASE = 4  # op/blocks/recipe/dtype/column
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150, "savefig.bbox": "tight"}


def plot_sides(rows: pd.DataFrame, device: str) -> Figure | None:
    """Plot `kron_step_` of the default recipe over the side of a block, with its baselines."""
    chosen = rows[(rows["op"] == "kron_step_") & (rows["recipe"] == DEFAULT) & (rows["dtype"] == "float32")]
    chosen = chosen[chosen["case"].str.count("/") == PARTS_OF_A_PLAIN_CASE].copy()
    if chosen.empty:
        return None
    chosen["side"] = chosen["shape"].str.split("x").str[0].astype(int)
    figure, axes = plt.subplots(figsize=(6.5, 4))
    for name, series in chosen.groupby("backend"):
        color, series = COLORS[name], series.sort_values("side")
        style = "--" if name == "roofline" else "o-"
        axes.plot(series["side"], series["p50"], style, color=color, label=name, markersize=4)
        axes.fill_between(series["side"], series["p20"], series["p80"], color=color, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sides = sorted(chosen["side"].unique())
    axes.set_xticks(sides, map(str, sides))
    axes.set(xlabel="side of a block", ylabel="ms, median, 20th to 80th percentile")
    axes.set_title(f"Kron step of a 4096 x 4096 matrix, {device}", loc="left", fontsize=11)
    axes.legend(frameon=False)
    return figure


def plot_prediction(rows: pd.DataFrame, device: str) -> Figure | None:
    """Plot the measured time of every case over its prediction."""
    times = rows[rows["backend"].isin([*OURS, "roofline"])].copy()
    times["spec"] = [case.rpartition("/")[0] for case in times["case"]]
    wide = times.pivot_table(index="spec", columns="backend", values="p50")
    ours = [name for name in OURS if name in wide]
    if not ours or "roofline" not in wide:
        return None
    ratio = wide[ours].div(wide["roofline"], axis=0).dropna(how="all").sort_values(ours[0])
    figure, axes = plt.subplots(figsize=(7, 0.28 * len(ratio) * len(ours) + 1))
    ratio.plot.barh(ax=axes, color=[COLORS[name] for name in ours], width=0.8)
    axes.legend(frameon=False, ncols=len(ours), loc="lower right", bbox_to_anchor=(1, 1))
    axes.axvline(1, color="black", lw=0.8)
    axes.tick_params(axis="y", labelsize=7, length=0)
    axes.set_xlabel("measured over predicted time (of the CUDA kernels' launches)")
    axes.set_title(f"Kernels against their roofline, {device}", loc="left", fontsize=11)
    return figure


PLOTS = {"sides": plot_sides, "prediction": plot_prediction}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the plots; default: the CSV's folder")
    options = parser.parse_args()
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    rows = pd.read_csv(options.csv, dtype={"case": str, "note": str, "device": str})
    rows = rows[(rows["section"] == "times") & (rows["metric"] == "ms")]
    folder = options.out or options.csv.parent
    device = str(next(iter(rows["device"].dropna()), "no device"))
    for name, plot in PLOTS.items():
        figure = plot(rows, device)
        if figure is None:
            print(f"{name}: nothing measured yet")
            continue
        path = folder / f"{name}.png"
        figure.savefig(path)
        plt.close(figure)
        print(path.name)


if __name__ == "__main__":
    main()
