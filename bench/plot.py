"""Plots of the latest run of each measurement in the CSV.

python -m bench.plot                 # of build/bench/benchmarks.csv, beside it
python -m bench.plot --record        # of bench/results/benchmarks.csv, into docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.common import ROOT, UNRECORDED, add_record_option, benchmarks_csv

OURS, OTHERS = "#1f5fa8", "#9aa3ad"
SERIES = ("#1f5fa8", "#d1682b", "#3b8f5a", "#8a5aa8")
UNTIMED = ("profiled", "precondition=False")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150, "savefig.bbox": "tight"}


def latest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of every op, backend, dtype, shape and metric."""
    keys = ["op", "backend", "dtype", "shape", "metric"]
    return rows.sort_values("date", kind="stable").drop_duplicates(keys, keep="last")


def plot_steps(rows: pd.DataFrame) -> Figure | None:
    """Plot the mean milliseconds of every optimizer's step, with the spread over root periods."""
    chosen = rows[rows["op"].str.startswith("step ") & (rows["metric"] == "mean_ms")]
    chosen = chosen[(chosen["shape"] == "gpt2-layer x1") & ~chosen["op"].str.endswith(UNTIMED)]
    chosen = chosen[chosen["date"] == chosen["date"].max()]  # only baselines from the same process
    if chosen.empty:
        return None
    chosen = chosen.sort_values("p50", ascending=False)
    labels = chosen["op"].str.removeprefix("step ") + "\n" + chosen["backend"].map("({})".format)
    colors = [OURS if "KrADagrad" in op else OTHERS for op in chosen["op"]]
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(chosen) + 1))
    errors = [(chosen["p50"] - chosen["p20"]).clip(lower=0), (chosen["p80"] - chosen["p50"]).clip(lower=0)]
    axes.barh(labels, chosen["p50"], xerr=errors, color=colors, error_kw={"ecolor": "#333333", "capsize": 2})
    for position, (value, high) in enumerate(zip(chosen["p50"], chosen["p80"], strict=True)):
        axes.annotate(
            f"{value:.0f}" if value >= 100 else f"{value:.1f}",
            (max(value, high), position),
            (5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.01)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.set_xlabel("mean time of a step, ms (log scale); bars: spread over windows of ten steps")
    axes.set_title("Optimizer step, the matrices of one GPT-2 layer, CPU", loc="left", fontsize=11)
    return figure


def plot_shares(rows: pd.DataFrame) -> Figure | None:
    """Plot `kron_step_` as a share of the machine's product rate, over the side of a block."""
    chosen = rows[rows["metric"] == "share_of_matmul_on_least_flops"].copy()
    if chosen.empty:
        return None
    chosen["side"] = chosen["shape"].str.split("x").str[0].astype(int)
    figure, axes = plt.subplots(figsize=(6.5, 4))
    for color, (op, series) in zip(SERIES, chosen.groupby("op"), strict=False):
        lines_with_spread(
            axes, series.sort_values("side"), "side", op.removeprefix("kron_step_ "), color, 100
        )
    axes.plot([256], [70], "_", color="black", markersize=14, label="target for cholesky")
    axes.set_xscale("log", base=2)
    sides = sorted(chosen["side"].unique())
    axes.set_xticks(sides, map(str, sides))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("side of a block")
    axes.set_ylabel("% of torch.mm at 2048")
    axes.set_title("Factor updates and product, on the least flops", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left")
    return figure


def lines_with_spread(
    axes: Axes, series: pd.DataFrame, x: str, label: str, color: str, factor: float = 1.0, style: str = "o-"
) -> None:
    axes.plot(series[x], factor * series["p50"], style, color=color, label=label, markersize=4)
    axes.fill_between(
        series[x], factor * series["p20"], factor * series["p80"], color=color, alpha=0.15, lw=0
    )


def plot_roots(rows: pd.DataFrame) -> Figure | None:
    """Plot the error of the roots over the condition number, one panel per root order."""
    chosen = rows[rows["op"].str.startswith("root ") & (rows["metric"] == "relative_error")].copy()
    if chosen.empty:
        return None
    chosen["condition"] = chosen["shape"].str.split("condition ").str[1].astype(float)
    # Most methods compute the identity's root exactly: it would only stretch the axis.
    chosen = chosen[chosen["condition"] > 1]
    chosen[["order", "method"]] = chosen["op"].str.split(" ", expand=True)[[1, 2]].to_numpy()
    orders = sorted(chosen["order"].unique(), reverse=True, key=lambda order: -int(order.split("/")[1]))
    figure, panels = plt.subplots(1, len(orders), figsize=(5 * len(orders), 4), sharey=True, squeeze=False)
    colors = dict(zip(sorted(chosen["dtype"].unique()), SERIES, strict=False))
    for axes, order in zip(panels[0], orders, strict=True):
        panel = chosen[chosen["order"] == order]
        for (dtype, method), series in panel.groupby(["dtype", "method"]):
            style = "o-" if method == "eigh" else "s--"
            label = f"{method}, {dtype}"
            series = series.sort_values("condition")
            lines_with_spread(axes, series, "condition", label, colors[dtype], style=style)
        axes.set(xscale="log", yscale="log", xlabel="condition number", ylim=(1e-16, 3))
        axes.set_title(f"X^({order})", loc="left", fontsize=11)
    panels[0, 0].set_ylabel("relative error against float64")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.92, 0.5), frameon=False, fontsize=8)
    return figure


PLOTS = {"step_time": plot_steps, "matmul_share": plot_shares, "root_error": plot_roots}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="the measurements; default: build/bench/benchmarks.csv")
    parser.add_argument("--out", type=Path, help="folder of the plots; default: build/bench")
    add_record_option(parser, "docs/images, from bench/results/benchmarks.csv")
    arguments = parser.parse_args()
    csv = arguments.csv or benchmarks_csv(arguments.record)
    if not csv.exists():
        parser.error(f"there are no measurements in {csv}; --csv or --record chooses others")
    out = arguments.out or (ROOT / "docs/images" if arguments.record else UNRECORDED)
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    rows = latest(pd.read_csv(csv, keep_default_na=False, na_values=["nan"]))
    out.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        figure = plot(rows)
        if figure is None:
            print(f"{name}: nothing measured yet")
            continue
        path = out / f"{name}.png"
        figure.savefig(path)
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
