"""Least cost of an optimizer step on a GPU, kernel by kernel, and a prediction of its time.

    python -m bench.roofline.step                                  # GPT-3 XL at the default options
    python -m bench.roofline.step --model 7b --block-size 128,256,1024 --gpu H100
    python -m bench.roofline.step --backend triton --gpu H100
    python -m bench.roofline.step --shapes 2304x768,768x768*12 --dtype bfloat16 --refine 0 --csv roofline.csv

**These are predictions. Nothing here was measured on a GPU.** Bytes and flops are counted from the launches
of csrc/cuda/plan. The time of a kernel's CTA is the largest of its times on tensor cores, schedulers, shared
memory and DRAM, plus its waits if few CTAs share an SM (`kradagrad_ext.cost.time_model`, counted by
bench/gpu/kernels/work.py); the number of CTAs follows from the flops. For a kernel without counted work, the
time is the larger of bytes over bandwidth and flops over the arithmetic rate. `cost.time_model.gpus` states
the share of each peak, with reasons. Blocks without a kernel take torch's products.

Bytes: each launch's operands once, as if the L2 kept data shared by CTAs of a launch, and nothing between
launches. Flops: those that the tensor cores execute. bf16x3 is three bf16 products (two if an operand is
bf16), tf32x3 three in tf32, fp32 multiply-adds; of symmetric products only the lower tiles; padding included.
Left out: the microseconds of a launch, the last wave of CTAs that does not fill the GPU, and the host.

A step updates the factors and refreshes no root. Roots have separate lines, divided by `root_every`. Shares
are of a training step with 6 flops a parameter and token, 64k tokens, and 45% of the dense bf16 peak. AdamW
fused moves parameter, gradient and both moments; its moments have the parameters' dtype.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.roofline.launches import launch_costs
from kradagrad_ext.blocking import blocking_of, group_by_shape
from kradagrad_ext.config import COUPLINGS, Config
from kradagrad_ext.cost.models import MODELS, Model, parse_shapes
from kradagrad_ext.cost.parameters import DTYPES, make_config
from kradagrad_ext.cost.time_model import DEFAULT_GPUS, predict, saved_by_concurrency, training_step
from kradagrad_ext.cost.time_model.gpus import GPUS, Gpu
from kradagrad_ext.cost.work import (
    CONCURRENT_WITH_UPDATE_MOMENTS,
    TERMS,
    Cost,
    elements,
    parts_of,
    root_costs,
)

DEFAULT_BLOCKS = (128, 256, 512, 1024)


def adamw_cost(parameters: int, dtype: torch.dtype) -> Cost:
    """Return the cost of fused AdamW: it reads the gradient, reads and writes parameter and both moments."""
    return Cost("torch: AdamW fused", "all", 1, 7.0 * dtype.itemsize * parameters)


def merged(costs: Sequence[Cost]) -> list[Cost]:
    """Merge costs of the same kernel and step, in order of first occurrence."""
    by_name: dict[tuple[str, str, str], Cost] = {}
    for cost in costs:
        key = (cost.kernel, cost.step, cost.concurrent_with)
        total = by_name.get(key, replace(cost, launches=0, bytes=0.0, flops={}, least_flops=0.0))
        kinds = {**total.flops, **cost.flops}
        by_name[key] = replace(
            total,
            launches=total.launches + cost.launches,
            bytes=total.bytes + cost.bytes,
            flops={kind: total.flops.get(kind, 0.0) + cost.flops.get(kind, 0.0) for kind in kinds},
            least_flops=total.least_flops + cost.least_flops,
        )
    return list(by_name.values())


def record(cost: Cost, gpus: Sequence[Gpu]) -> dict[str, Any]:
    """Return one line of the table."""
    times = {f"{gpu.name} ms": predict([cost], gpu) for gpu in gpus}
    return {
        "kernel": cost.kernel,
        "step": cost.step,
        "launches": cost.launches,
        "GB": cost.bytes / 1e9,
        "Tflop": sum(cost.flops.values()) / 1e12,
        "least Tflop": cost.least_flops / 1e12,
        **times,
    }


def table(model: Model, block_size: int, options: argparse.Namespace) -> pd.DataFrame:
    """Return the table: kernels, their sum, and costs for comparison."""
    config = make_config(
        block_size=block_size,
        refine=options.refine,
        coupling=options.coupling,
        max_factor_dim=options.max_factor_dim,
        precision=options.precision,
    )
    costs = merged(backend_costs(model, config, options))
    groups = group_by_shape([blocking_of(shape, config) for shape in model.shapes])
    roots = root_costs(groups, config)
    rows = [record(cost, options.gpu) for cost in costs]
    saved = {f"{gpu.name} ms": -saved_by_concurrency(costs, gpu) for gpu in options.gpu}
    if any(saved.values()):
        zeros = dict.fromkeys(("launches", "GB", "Tflop", "least Tflop"), 0)
        rows.append(
            {"kernel": CONCURRENT_WITH_UPDATE_MOMENTS, "step": "with update_moments", **zeros, **saved}
        )
    rows += comparison(rows, roots, elements(model.shapes + model.plain_shapes), options)
    circumstances = {
        "model": model.name,
        "block_size": block_size,
        "refine": options.refine,
        "dtype": options.dtype,
        "precision": options.precision,
    }
    return pd.DataFrame(rows).assign(**circumstances)


def backend_costs(model: Model, config: Config, options: argparse.Namespace) -> list[Cost]:
    """Return a step's launches; Triton's follow the tuning table for the last GPU of the options."""
    parts = parts_of(model.shapes, config, DTYPES[options.dtype], model.plain_shapes)
    gpu = options.gpu[-1] if options.backend == "triton" else None
    return launch_costs(parts, gpu)


def comparison(
    rows: list[dict[str, Any]], roots: Sequence[Cost], parameters: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the sum of the kernels' lines, roots, both as shares of a training step, and fused AdamW."""
    times = {gpu: f"{gpu.name} ms" for gpu in options.gpu}
    columns = ["launches", "GB", "Tflop", "least Tflop", *times.values()]
    step = {column: sum(row[column] for row in rows) for column in columns}
    trained = {column: training_step(parameters, gpu) for gpu, column in times.items()}
    share = {column: 100 * step[column] / time for column, time in trained.items()}
    rooted = {
        column: 100 * (step[column] + predict(roots, gpu)) / trained[column] for gpu, column in times.items()
    }
    return [
        {"kernel": "step", "step": "sum of the above", **step},
        *(record(cost, options.gpu) for cost in roots),
        {"kernel": "training step", "step": "64k tokens", **trained},
        {"kernel": "step", "step": "% of training", **share},
        {"kernel": "step and roots", "step": "% of training", **rooted},
        record(adamw_cost(parameters, DTYPES[options.dtype]), options.gpu),
    ]


def show(model: Model, frame: pd.DataFrame) -> str:
    """Format a table for printing."""
    first = frame.iloc[0]
    parameters = elements(model.shapes + model.plain_shapes)
    title = (
        f"{first['model']}: {parameters / 1e6:.1f} M parameters, {first['dtype']}, blocks of up to "
        f"{first['block_size']}, {first['precision']}, refine {first['refine']}. PREDICTED, not measured"
    )
    shown = frame.drop(columns=["model", "block_size", "refine", "dtype", "precision"])
    formats = dict.fromkeys(shown.columns[3:], "{:.3f}".format)
    text = shown.to_string(
        index=False, na_rep="", formatters={**formats, "launches": "{:.0f}".format}, justify="right"
    )
    return f"{title}\n{text}\n"


def gpu_list(text: str) -> list[Gpu]:
    unknown = [name for name in text.split(",") if name not in GPUS]
    if unknown:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(GPUS)}, got {', '.join(unknown)}")
    return [GPUS[name] for name in text.split(",")]


def sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", choices=MODELS, default="1.3b")
    models.add_argument("--shapes", type=parse_shapes, help="such as 2304x768,768x768*12")
    parser.add_argument("--block-size", type=sizes, default=list(DEFAULT_BLOCKS))
    parser.add_argument(
        "--backend", choices=("native", "triton"), default="native", help="kernels of the blocks"
    )
    parser.add_argument("--refine", type=int, default=make_config().refine)
    parser.add_argument("--coupling", choices=COUPLINGS, default=make_config().coupling)
    parser.add_argument(
        "--max-factor-dim",
        type=int,
        default=16384,
        help="the package's default, 8192, would leave the 11008 side of a Llama 7B without factors",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of parameters and gradients"
    )
    parser.add_argument("--precision", choices=TERMS, default="bf16x3", help="precision of the products")
    parser.add_argument("--gpu", type=gpu_list, default=[GPUS[name] for name in DEFAULT_GPUS])
    parser.add_argument("--json", action="store_true", help="print records instead of tables")
    parser.add_argument("--csv", type=Path, help="file for the records, in addition")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    model = options.shapes or MODELS[options.model]
    frames = [table(model, block_size, options) for block_size in options.block_size]
    records = pd.concat(frames, ignore_index=True)
    if options.csv:
        records.to_csv(options.csv, index=False)
    if options.json:
        json.dump(json.loads(records.to_json(orient="records")), sys.stdout, indent=1)
        return
    for gpu in options.gpu:
        print(f"{gpu.name}: {', '.join(gpu.sources)}")
    print()
    for frame in frames:
        print(show(model, frame))


if __name__ == "__main__":
    main()
