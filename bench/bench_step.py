"""Whole optimizer steps against rivals, and the table of bounds.

    python bench/bench_step.py                     # all parts, a few minutes
    python bench/bench_step.py --only race         # race, shares, scaling, memory, build
    python bench/bench_step.py --layers 2 --whole-dims

Work: the matrices of a GPT-2 layer, float32, blocks of 256, roots every 10 steps; 20 steps after 10 steps of
warm-up, roots included. The script prints the steps' times and the bounds, and appends all rows to the CSV.
The exit status does not depend on speed.
"""

from __future__ import annotations

import argparse

import torch
from bench_kron_step import make_case
from bounds import Bound, table
from build_time import build_seconds
from common import (
    MatmulRate,
    Row,
    append_rows,
    git_sha,
    interleave,
    machine,
    percentiles,
    usable_backends,
    versions,
)
from contenders import BLOCK, Contender, race
from memory import Memory, allocated, resident
from op_case import Runner, verify_case
from rivals import REFERENCE_RECIPES, baselines, kradagrad, matrix_rivals, ours, published
from step_check import verify_steps
from workload import LAYER_ELEMENTS

SIDES = (64, 128, 256, 512)
SHARE_RECIPES = ("cholesky", "cholesky kl", "products")
LAYER_BYTES = 4 * LAYER_ELEMENTS
MATRIX_RIVALS = ("ScalableShampoo", "SOAP whole dims", "SOAP blocks", "KL-SOAP blocks")


def race_part(options: argparse.Namespace) -> tuple[list[Bound], list[Row]]:
    """Time every optimizer in turn on the same gradients."""
    for backend in usable_backends():
        print(f"KrADagrad on {backend}: {verify_steps(backend):.1e} from float64 after a dozen steps")
    contenders = [*ours(), published(), *matrix_rivals(options.whole_dims), *baselines()]
    for contender in contenders:
        contender.layers = options.layers
    race(contenders, options.warmup, options.steps)
    rows = [row for contender in contenders for row in contender.rows()]
    print(f"\n| step, {options.layers} layer(s), ms | mean | p20 | p50 | p80 |\n|---|---|---|---|---|")
    for contender in sorted(contenders, key=lambda c: c.mean):
        spread = " | ".join(f"{1e3 * value:.1f}" for value in percentiles(contender.seconds))
        print(f"| {contender.label} | {1e3 * contender.mean:.1f} | {spread} |")
    return race_bounds({c.label: c for c in contenders}), rows


def race_bounds(raced: dict[str, Contender]) -> list[Bound]:
    """Return the bounds whose ratios come from the race."""
    backend = usable_backends()[0]
    mean = {label: contender.mean for label, contender in raced.items()}
    loop = mean["published formulas (plain loop)"]
    rivals = {label: m for label, m in mean.items() if label.startswith(MATRIX_RIVALS)}
    fastest = min(rivals, key=rivals.get) if rivals else None
    against = f"fastest matrix-preconditioned rival, {fastest}"
    bounds = []
    for recipe, limit in (("uncoupled", 0.6), ("default", 0.75)):
        step = mean[f"KrADagrad {recipe} ({backend})"]
        ratio = step / rivals[fastest] if fastest else None
        bounds.append(Bound(f"mean step, {recipe}, over the {against}", limit, ratio))
    default = mean[f"KrADagrad default ({backend})"]
    bounds.append(Bound("mean step, default, over the published formulas", 0.5, default / loop))
    if backend != "reference":
        for recipe in REFERENCE_RECIPES:
            ratio = mean[f"KrADagrad {recipe} ({backend})"] / mean[f"KrADagrad {recipe} (reference)"]
            bounds.append(Bound(f"mean step, {recipe}, {backend} over reference", 0.6, ratio))
    adamw = median(raced["AdamW fused (torch)"].seconds)
    outside = median(raced[f"KrADagrad default profiled ({backend})"].outside)
    plain = median(raced[f"KrADagrad precondition=False ({backend})"].seconds)
    bounds.append(Bound("step less its matrix products and roots, over AdamW fused", 1.5, outside / adamw))
    bounds.append(Bound("step with `precondition=False`, over AdamW fused", 1.5, plain / adamw))
    return bounds


def median(values: list[float]) -> float:
    return percentiles(values)[1]


def shares_part(options: argparse.Namespace) -> tuple[list[Bound], list[Row]]:
    """Compare `kron_step_`, by its least flops, with the machine's rate of matrix products, interleaved."""
    backend = usable_backends()[0]
    bounds, rows = [], []
    for side in SIDES:
        runners, least = {}, {}
        for recipe in SHARE_RECIPES:
            case = make_case(side, recipe)
            verify_case(case, backend)
            runners[recipe], least[recipe] = Runner(case, backend), case.flops
        product = MatmulRate()
        seconds = interleave(
            {"mm": product, **runners},
            repeats=9,
            prepare=lambda name, runners=runners: name in runners and runners[name].reset(),
        )
        rate = product.flops / median(seconds["mm"])
        for recipe in SHARE_RECIPES:
            slow_to_fast = [least[recipe] / time / rate for time in reversed(percentiles(seconds[recipe]))]
            where = (f"kron_step_ {recipe}", backend, "float32", f"{side}x{side}", case.blocks)
            rows.append(Row(*where, "share_of_matmul_on_least_flops", *slow_to_fast))
            if recipe == "cholesky" and side == BLOCK:
                limit = 0.7
                measure = (
                    f"update and product, blocks of {side}, of the {rate / 1e9:.0f} Gflop/s of a product"
                )
                bounds.append(Bound(measure, limit, slow_to_fast[1], at_least=True, unit="%"))
    print(
        "\n| share of the mm rate on the least flops | " + " | ".join(SHARE_RECIPES) + " |\n|---|---|---|---|"
    )
    for start in range(0, len(rows), len(SHARE_RECIPES)):
        line = rows[start : start + len(SHARE_RECIPES)]
        print(f"| {line[0].shape} | " + " | ".join(f"{100 * row.p50:.0f}%" for row in line) + " |")
    return bounds, rows


def scaling_part(options: argparse.Namespace) -> tuple[list[Bound], list[Row]]:
    """Time one layer against two, in turn."""
    backend = usable_backends()[0]
    one, two = kradagrad("default", backend), kradagrad("default", backend)
    two.layers = 2
    race([one, two], options.warmup, options.steps)
    return [Bound("mean step, twice the number of blocks", 2.05, two.mean / one.mean)], two.rows()


def memory_part(options: argparse.Namespace) -> tuple[list[Bound], list[Row]]:
    """Measure peaks of a step. A GPT-2 layer's blocks have one shape, so the largest group is the layer."""
    backend = usable_backends()[0]
    contender = kradagrad("default", backend)
    measured: dict[str, Memory | None] = {
        "torch's allocator": allocated(contender),
        "resident set": resident(),
    }
    bounds, rows = [], []
    for source, memory in measured.items():
        for kind in ("plain_step", "root_step"):
            ratio = (memory.kept + getattr(memory, kind)) / LAYER_BYTES if memory else None
            name = kind.replace("_", " ")
            bounds.append(
                Bound(f"peak memory of a {name} beyond the state, {source}, over the group", 1.25, ratio)
            )
            if ratio is not None:
                where = ("step KrADagrad default", backend, "float32", "gpt2-layer x1", contender.blocks)
                rows.append(Row(*where, f"memory over group, {name}, {source}", ratio, ratio, ratio))
    return bounds, rows


def build_part(options: argparse.Namespace) -> tuple[list[Bound], list[Row]]:
    """Time the build of the extension from the committed sources."""
    seconds = build_seconds()
    row = Row("build", "native", "", "", 0, "s", seconds or 0.0, seconds or 0.0, seconds or 0.0)
    return [Bound("build of the CPU extension", 90, seconds, unit=" s")], [row] if seconds else []


PARTS = {
    "race": race_part,
    "shares": shares_part,
    "scaling": scaling_part,
    "memory": memory_part,
    "build": build_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="a part to run; may be repeated")
    parser.add_argument("--layers", type=int, default=1, help="GPT-2 layers of the race")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--whole-dims", action="store_true", help="run heavyball's SOAP on whole dims as well"
    )
    options = parser.parse_args()
    print(f"{git_sha()}; {machine()}; {versions()}; backends: {', '.join(usable_backends())}")
    torch.manual_seed(0)
    bounds = []
    for part in options.only or PARTS:
        new_bounds, rows = PARTS[part](options)
        bounds += new_bounds
        append_rows(rows)
    print("\n" + table(bounds))


if __name__ == "__main__":
    main()
