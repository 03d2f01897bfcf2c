"""Whole optimizer steps against baselines, and the table of targets.

    python -m bench.steps.step                     # all parts, a few minutes
    python -m bench.steps.step --only race         # race, shares, scaling, memory, build
    python -m bench.steps.step --layers 2 --whole-dims

Work: the matrices of a GPT-2 layer, float32, blocks of 256, roots every 10 steps; 20 steps after 10 steps of
warm-up, roots included. The command prints the steps' times and the targets, and appends all rows to a CSV in
build/bench, or with `--record` to that of bench/results. The exit status does not depend on speed.
"""

from __future__ import annotations

import argparse

import torch

from bench.common import (
    MatmulRate,
    Row,
    add_record_option,
    append_rows,
    benchmarks_csv,
    git_sha,
    interleave,
    machine,
    percentiles,
    usable_backends,
    versions,
)
from bench.ops.case import Runner, verify_case
from bench.ops.factors import kron_step_case
from bench.steps.baselines import (
    BLOCK,
    REFERENCE_RECIPES,
    Contender,
    kradagrad,
    matrix_baselines,
    ours,
    published,
    race,
    torch_baselines,
)
from bench.steps.build_time import build_seconds
from bench.steps.memory import Memory, allocated, resident
from bench.steps.step_check import verify_steps
from bench.steps.targets import Target, target_table
from bench.workload import LAYER_ELEMENTS, gpt2

SIDES = (64, 128, 256, 512)
SHARE_RECIPES = ("cholesky", "cholesky kl", "products")
LAYER_BYTES = 4 * LAYER_ELEMENTS
MATRIX_BASELINES = ("ScalableShampoo", "SOAP", "KL-")


def race_part(options: argparse.Namespace) -> tuple[list[Target], list[Row]]:
    """Time every optimizer in turn on the same gradients."""
    for backend in usable_backends():
        print(f"KrADagrad on {backend}: {verify_steps(backend):.1e} from float64 after a dozen steps")
    contenders = [*ours(), published(), *matrix_baselines(options.whole_dims), *torch_baselines()]
    for contender in contenders:
        contender.workload = gpt2(options.layers)
    race(contenders, options.warmup, options.steps)
    rows = [row for contender in contenders for row in contender.rows()]
    print(f"\n| step, {options.layers} layer(s), ms | mean | p20 | p50 | p80 |\n|---|---|---|---|---|")
    for contender in sorted(contenders, key=lambda c: c.mean):
        spread = " | ".join(f"{1e3 * value:.1f}" for value in percentiles(contender.seconds))
        print(f"| {contender.label} | {1e3 * contender.mean:.1f} | {spread} |")
    return race_targets({c.label: c for c in contenders}), rows


def race_targets(raced: dict[str, Contender]) -> list[Target]:
    """Return the targets whose ratios come from the race."""
    backend = usable_backends()[0]
    mean = {label: contender.mean for label, contender in raced.items()}
    loop = mean["published formulas (plain loop)"]
    baselines = {label: m for label, m in mean.items() if label.startswith(MATRIX_BASELINES)}
    fastest = min(baselines, key=baselines.get) if baselines else None
    against = f"fastest matrix-preconditioned baseline, {fastest}"
    targets = []
    for recipe, limit in (("uncoupled", 0.6), ("default", 0.75)):
        step = mean[f"KrADagrad {recipe} ({backend})"]
        ratio = step / baselines[fastest] if fastest else None
        targets.append(Target(f"mean step, {recipe}, over the {against}", limit, ratio))
    default = mean[f"KrADagrad default ({backend})"]
    targets.append(Target("mean step, default, over the published formulas", 0.5, default / loop))
    if backend != "reference":
        for recipe in REFERENCE_RECIPES:
            ratio = mean[f"KrADagrad {recipe} ({backend})"] / mean[f"KrADagrad {recipe} (reference)"]
            targets.append(Target(f"mean step, {recipe}, {backend} over reference", 0.6, ratio))
    adamw = median(raced["AdamW fused (torch)"].seconds)
    outside = median(raced[f"KrADagrad default profiled ({backend})"].outside)
    plain = median(raced[f"KrADagrad precondition=False ({backend})"].seconds)
    targets.append(Target("step less its matrix products and roots, over AdamW fused", 1.5, outside / adamw))
    targets.append(Target("step with `precondition=False`, over AdamW fused", 1.5, plain / adamw))
    return targets


def median(values: list[float]) -> float:
    return percentiles(values)[1]


def shares_part(options: argparse.Namespace) -> tuple[list[Target], list[Row]]:
    """Compare `kron_step_`, by its least flops, with the machine's rate of matrix products, interleaved."""
    backend = usable_backends()[0]
    targets, rows = [], []
    for side in SIDES:
        runners, least = {}, {}
        for recipe in SHARE_RECIPES:
            case = kron_step_case(side, recipe)
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
                targets.append(Target(measure, limit, slow_to_fast[1], at_least=True, unit="%"))
    print(
        "\n| share of the mm rate on the least flops | " + " | ".join(SHARE_RECIPES) + " |\n|---|---|---|---|"
    )
    for start in range(0, len(rows), len(SHARE_RECIPES)):
        line = rows[start : start + len(SHARE_RECIPES)]
        print(f"| {line[0].shape} | " + " | ".join(f"{100 * row.p50:.0f}%" for row in line) + " |")
    return targets, rows


def scaling_part(options: argparse.Namespace) -> tuple[list[Target], list[Row]]:
    """Time one layer against two, in turn."""
    backend = usable_backends()[0]
    one, two = kradagrad("default", backend), kradagrad("default", backend)
    two.workload = gpt2(2)
    race([one, two], options.warmup, options.steps)
    return [Target("mean step, twice the number of blocks", 2.05, two.mean / one.mean)], two.rows()


def memory_part(options: argparse.Namespace) -> tuple[list[Target], list[Row]]:
    """Measure peaks of a step. A GPT-2 layer's blocks have one shape, so the largest group is the layer."""
    backend = usable_backends()[0]
    contender = kradagrad("default", backend)
    measured: dict[str, Memory | None] = {
        "torch's allocator": allocated(contender),
        "resident set": resident(),
    }
    targets, rows = [], []
    for source, memory in measured.items():
        for kind in ("plain_step", "root_step"):
            ratio = (memory.kept + getattr(memory, kind)) / LAYER_BYTES if memory else None
            name = kind.replace("_", " ")
            targets.append(
                Target(f"peak memory of a {name} beyond the state, {source}, over the group", 1.25, ratio)
            )
            if ratio is not None:
                where = ("step KrADagrad default", backend, "float32", "gpt2-layer x1", contender.blocks)
                rows.append(Row(*where, f"memory over group, {name}, {source}", ratio, ratio, ratio))
    return targets, rows


def build_part(options: argparse.Namespace) -> tuple[list[Target], list[Row]]:
    """Time the build of the extension from the committed sources."""
    seconds = build_seconds()
    row = Row("build", "native", "", "", 0, "s", seconds or 0.0, seconds or 0.0, seconds or 0.0)
    return [Target("build of the CPU extension", 90, seconds, unit=" s")], [row] if seconds else []


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
    add_record_option(parser, "bench/results/benchmarks.csv")
    options = parser.parse_args()
    print(f"{git_sha()}; {machine()}; {versions()}; backends: {', '.join(usable_backends())}")
    torch.manual_seed(0)
    targets = []
    for part in options.only or PARTS:
        new_targets, rows = PARTS[part](options)
        targets += new_targets
        append_rows(rows, benchmarks_csv(options.record))
    print("\n" + target_table(targets), end="")


if __name__ == "__main__":
    main()
