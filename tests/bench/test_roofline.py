"""The roofline model, bench/roofline: counts by hand, and the launches of csrc/cuda/plan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pandas")

from bench.roofline import cuda_costs, step
from bench.roofline.cuda_costs import Blocks, CallOptions, lower_elements, step_costs, terms
from bench.roofline.launches import launch_costs
from kradagrad_ext.backends.base import UpdateRule
from kradagrad_ext.backends.scalars import SPAN
from kradagrad_ext.cost import work
from kradagrad_ext.cost.models import MODELS, parse_shapes
from kradagrad_ext.cost.parameters import make_config
from kradagrad_ext.cost.time_model import milliseconds, predict
from kradagrad_ext.cost.time_model.gpus import BANDWIDTH_FRACTION, FEED_FRACTION, GPUS, gpu_of
from kradagrad_ext.cost.work import Cost, GroupShapes, elements, parts_of

ROOT = Path(__file__).resolve().parents[2]
RULE = UpdateRule(decay=0.9, weight=0.1, damping=1e-3, method="products")
SHARED_BYTES = 163 << 10  # an A100's; blocks of the longest sides are not resident from refine 3 on
GROUPS = [Blocks(9, 192, 140), Blocks(4, 40, 192), Blocks(7, 100, 90), Blocks(3, 64, 64)]


def test_terms_of_split_products():
    assert [terms(name) for name in ("bf16x3", "tf32x3", "fp32")] == [3, 3, 1]
    assert [terms(name, False, True) for name in ("bf16x3", "tf32x3", "fp32")] == [2, 2, 1]
    assert [terms(name, True, True) for name in ("bf16x3", "tf32x3", "fp32")] == [1, 1, 1]


@pytest.mark.parametrize(("side", "elements"), [(16, 256), (128, 36 * 256), (17, 256 + 17), (8, 64)])
def test_lower_elements(side, elements):
    assert lower_elements(side) == elements


def test_resident_block_of_128_by_hand() -> None:
    update, product = step_costs([Blocks(1, 128, 128)], CallOptions(replace(RULE, coupled=True)))
    assert [cost.kernel for cost in (update, product)] == [
        "resident_update_128_bf16x3",
        "resident_precondition_128_bf16x3",
    ]
    # G, both factors in and out and both roots, of which the lower tiles; D, V and both roots.
    triangle = 36 * 256
    assert (update.bytes, product.bytes) == (4 * (5 * 128**2 + 2 * triangle), 4 * (2 * 128**2 + 2 * triangle))
    # A side: U, B and F R are full; F^T F, B B^T and two of the iteration have 36 of 64 tiles.
    full, lower = 2 * 128**3, 2 * 36 * 256 * 128
    assert update.flops == {"bf16": 3 * 2 * (3 * full + 4 * lower)}
    assert update.least_flops == 2 * (3 * 2 + 4) * 128**3
    assert product.flops == {"bf16": 3 * 2 * full}


def test_bfloat16_saves_products_and_bytes() -> None:
    exact = CallOptions(RULE, grad=2, direction=2, factor=2, root=2)
    update, product = step_costs([Blocks(1, 64, 64)], exact)
    full, lower = 2 * 64**3, 2 * 10 * 256 * 64
    # U and F of B are exact, F of F^T F twice; F of F R alone.
    assert update.flops["bf16"] == 2 * (full * (1 + 2) + lower * (1 + 3 + 2 * 3))
    assert product.flops["bf16"] == full * (1 + 2)
    assert update.bytes == 2 * 5 * 64**2


def test_grouped_block_of_512_by_hand() -> None:
    costs = {cost.step: cost for cost in step_costs([Blocks(2, 512, 512)], CallOptions(RULE))}
    both = 2 * 512**3
    # D P_r; B, M with as many columns again for damping, the iteration, F R of both sides; V.
    assert costs["first products"].least_flops == costs["V"].least_flops == 2 * both
    assert costs["B"].least_flops == costs["F R"].least_flops == 4 * both
    assert costs["M"].least_flops == 4 * both
    assert costs["T2"].bytes == 2 * 2 * 3 * 4 * 512**2


def test_wide_block_of_256_by_hand() -> None:
    update, product = step_costs([Blocks(2, 256, 256)], CallOptions(replace(RULE, coupled=True)))
    assert [cost.kernel for cost in (update, product)] == ["wide_update", "wide_precondition"]
    # A side: U, B and F R; B B^T, F^T F and two of the iteration leave out one of four tiles of 128.
    full = 2 * 256**3
    assert update.flops == {"bf16": 3 * 2 * 2 * (3 + 4 * 3 / 4) * full}
    assert update.least_flops == 2 * 2 * (3 + 4 / 2) * full
    assert product.flops == {"bf16": 3 * 2 * 2 * full}
    # D, both roots and three grids made of them; two products read two grids and write one.
    assert product.bytes == 2 * 4 * 256**2 * (3 * 2 + 2 * 3)


def test_elementwise_kernels_by_hand():
    config = make_config(block_size=128, nesterov=False)
    costs = {cost.kernel: cost for cost in launch_costs(parts_of([(128, 128), (100,)], config))}
    count, spans = 128**2 + 100, 4 + 1
    assert costs["update_moments"].bytes == (4 + 8 + 8) * count + 4 * spans
    assert costs["apply_updates"].bytes == (4 + 8) * 128**2 + (4 + 4 + 8) * 100


def test_prediction_by_hand():
    gpu = GPUS["H100"]
    bandwidth, rate = 1e9 * BANDWIDTH_FRACTION * gpu.hbm, 1e12 * FEED_FRACTION * gpu.mma_sync * gpu.bf16
    memory, arithmetic = 1e9 / bandwidth, 1e11 / rate
    cost = Cost("a", "b", 1, 1e9, {"bf16": 1e11})
    assert predict([cost], gpu) == pytest.approx(1e3 * max(memory, arithmetic))


@pytest.mark.parametrize(
    ("kernel", "least", "most"), [("resident_update_128_bf16x3", 0, 0), ("wide_precondition", 0.02, 0.4)]
)
def test_concurrent_kernels_by_hand(kernel: str, least: float, most: float) -> None:
    """One kernel prefetches its bytes, the other waits for some of them."""
    gpu, flops = GPUS["H100"], {"bf16": 1e13}
    host = Cost(kernel, "update", 1, 3e10, flops)
    alone, waiting = milliseconds(host, gpu)
    waits = waiting / alone
    assert least <= waits <= most
    for size in (1e9, 3e10, 1e12):
        guest = Cost("update_moments", "moments", 1, size, concurrent_with=host.kernel)
        guest_time, both = milliseconds(guest, gpu)[0], 1e3 * (3e10 + size) / gpu.bandwidth
        assert predict([guest, host], gpu) == pytest.approx(max(alone + waits * guest_time, both))
        assert predict([guest], gpu) == pytest.approx(guest_time)
        other = replace(host, kernel="wide_root")
        assert predict([guest, other], gpu) == pytest.approx(guest_time + milliseconds(other, gpu)[0])


@pytest.mark.parametrize("block_size", [128, 256])
def test_more_work_takes_longer(block_size):
    def time(count=1, gpu="H100", precision="bf16x3", **options):
        config = make_config(block_size=block_size, precision=precision, **options)
        return predict(launch_costs(parts_of([(512, 512)] * count, config)), gpu)

    assert time(2) == pytest.approx(2 * time(1), rel=1e-3)
    assert time(refine=1) < time(refine=2) < time(refine=3)
    assert time(coupling="none") < time(coupling="kl")
    assert time(precision="bf16x3") < time(precision="tf32x3")
    assert time(gpu="B200") < time(gpu="H200") <= time(gpu="H100") < time(gpu="A100")


def test_total_is_the_sum_of_its_parts():
    options = step.parse(["--model", "gpt2"])
    frame = step.table(MODELS["gpt2"], 256, options)
    total = frame.index[frame["step"] == "sum of the above"][0]
    parts = frame.iloc[:total]
    for column in ("launches", "GB", "Tflop", "least Tflop", "H100 ms"):
        assert frame.at[total, column] == pytest.approx(parts[column].sum())
    model = MODELS["gpt2"]
    costs = launch_costs(parts_of(model.shapes, make_config(block_size=256), plain_shapes=model.plain_shapes))
    assert frame.at[total, "H100 ms"] == pytest.approx(predict(costs, "H100"))


@pytest.mark.parametrize(
    ("name", "millions"), [("gpt2", 124.4), ("1.3b", 1315.7), ("7b", 6738.4), ("70b", 68976.6)]
)
def test_models_have_their_parameters(name, millions):
    model = MODELS[name]
    assert elements(model.shapes + model.plain_shapes) / 1e6 == pytest.approx(millions, abs=0.1)


def test_blocks_that_no_kernel_serves_are_the_least_work():
    config = make_config(merge_dims=False)
    (cost,) = [c for c in launch_costs(parts_of([(9000, 128)], config)) if c.step == "blocks"]
    assert cost.kernel == "kron_step"
    assert cost.least_flops > 0
    with pytest.raises(ValueError, match="like 2304x768"):
        parse_shapes("2304x")


def test_gpu_of_a_device_name():
    assert gpu_of("NVIDIA H100 80GB HBM3") is GPUS["H100"]
    assert gpu_of("NVIDIA A100-SXM4-80GB") is GPUS["A100"]
    assert gpu_of("NVIDIA H100 PCIe") is None
    assert gpu_of("NVIDIA GeForce RTX 4090") is None


def test_command_line(tmp_path):
    path = tmp_path / "roofline.csv"
    options = [
        "--shapes",
        "512x256*2,70",
        "--block-size",
        "128,256",
        "--gpu",
        "H100",
        "--json",
        "--csv",
        path,
    ]
    command = [sys.executable, "-m", "bench.roofline.step", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    records = json.loads(done.stdout)
    assert {record["block_size"] for record in records} == {128, 256}
    assert len(path.read_text().splitlines()) == len(records) + 1


def tensor(*sizes: int) -> tuple[int, bool, list[int], list[int]]:
    return 4096, False, list(sizes), list(torch.empty(sizes, device="meta").stride())


def planned(call: CallOptions) -> Counter[str]:
    """Return the number of launches of each kernel in the plan, which reads no address."""
    toolchain = pytest.importorskip("cuda.toolchain", reason="the plans' bindings are not here")
    groups = []
    for count, m, n in ((group.count, group.m, group.n) for group in GROUPS):
        views = [tensor(count, m, n)]
        groups.append({
            "blocks": count, "m": m, "n": n, "grad": views, "direction": views, "out": views,
            "left": (tensor(count, m, m), 4096), "right": (tensor(count, n, n), 4096),
            "left_root": tensor(count, m, m), "right_root": tensor(count, n, n),
        })  # fmt: skip
    rule = call.rule
    plan = toolchain.plans().square_root_step(
        groups, rule.decay, rule.weight, rule.damping, rule.prior, rule.damped_updates, rule.refine,
        rule.precision, rule.coupled, call.update, call.precondition, 4096, 4096, call.scratch_bytes,
        SHARED_BYTES, 108,
    )  # fmt: skip
    return Counter(name for name, *_ in plan.launches)


@pytest.mark.parametrize(("update", "precondition"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("scratch_bytes", [1 << 28, 1 << 21])
@pytest.mark.parametrize(
    ("refine", "coupled", "damped_updates"),
    [(1, True, 1.0), (2, False, 0.0), (3, True, 1.0), (6, False, 2.0)],
)
def test_launches_are_those_of_the_plans(
    refine: int, coupled: bool, damped_updates: float, scratch_bytes: int, update: bool, precondition: bool
) -> None:
    rule = replace(RULE, refine=refine, coupled=coupled, damped_updates=damped_updates)
    call = CallOptions(
        rule,
        update=update,
        precondition=precondition,
        scratch_bytes=scratch_bytes,
        shared_bytes=SHARED_BYTES,
    )
    counted: Counter[str] = Counter()
    for cost in step_costs(GROUPS, call):
        counted[cost.kernel] += cost.launches
    assert counted == planned(call)


def root_costs(parts: list[GroupShapes]) -> list[Cost]:
    return [cost for part in parts for cost in work.root_costs(part.groups, part.options)]


def test_roots_of_sides_of_one_size_share_a_launch() -> None:
    """Launches are those of csrc/cuda/plan/root_plan.cpp; eigendecompositions are made on some steps only."""
    shapes = [(64, 96), (90, 100), (200, 300), (500, 1000), (600, 2000)]
    config = make_config(block_size=2000, root_every=4)
    launches = {cost.kernel: cost.launches for cost in root_costs(parts_of(shapes, config))}
    resident = {f"resident_root_{side}_bf16x3": 1 for side in (64, 96, 128)}
    assert launches == {**resident, "wide_root": 3, "torch: bmm": 1}
    config = make_config(block_size=2000, root_every=4, root_method="eigh")
    assert [cost.launches for cost in root_costs(parts_of(shapes, config))] == [len(shapes) * 2 / 4]


@pytest.mark.parametrize("block_size", [128, 256])
def test_a_step_of_a_large_model_is_ten_launches_of_kernels(block_size: int) -> None:
    """Blocks take three and lengths one; guard, moments and update three, for matrices and for the rest."""
    model = MODELS["1.3b"]
    parts = parts_of(model.shapes, make_config(block_size=block_size), plain_shapes=model.plain_shapes)
    costs = [*launch_costs(parts), *root_costs(parts)]
    assert sum(cost.launches for cost in costs if not cost.kernel.startswith("torch: ")) == 10


def test_updates_by_cholesky_are_refused() -> None:
    with pytest.raises(ValueError, match="Cholesky"):
        step_costs(GROUPS, CallOptions(replace(RULE, method="cholesky")))


def test_constants_are_those_of_the_sources():
    sources = ROOT / "csrc"
    text = "".join(path.read_text() for path in sorted(sources.rglob("*.*")) if path.is_file())
    for name, value in (
        ("kResidentSide", work.RESIDENT_SIDES[-1]),
        ("kMiddleSide", work.RESIDENT_SIDES[1]),
        ("kKernelSides[]", "{64, kMiddleSide, kResidentSide, kWideSide}"),
        ("kRootSides[]", "{64, kMiddleSide, kResidentSide, kWideSide, 512, 1024}"),
        ("kWideSide", "kWideTiles * kTile"),
        ("kWideTiles", work.WHOLE_SIDE // cuda_costs.TILE),
        ("kStaticShared", cuda_costs.STATIC_BYTES),
        ("kSpan", SPAN),
        ("kProductDepth", cuda_costs.DEPTH),
    ):
        assert f"{name} = {value};" in text


def test_a_timed_case_costs_what_its_blocks_do():
    """Shapes, strides and the roofline's blocks agree for one call with two groups, made on the CPU."""
    from bench.gpu.check.cases import DeviceCase
    from bench.gpu.check.factors import bmm_products
    from bench.gpu.check.specs import kron

    case = DeviceCase(kron((32, 32), (20, 48), shape=(64, 96), coupled=True), torch.device("cpu"))
    arguments = case.arguments
    counts = [6, 6]
    assert [len(factor) for factor in arguments["left"]] == counts
    assert [view.shape[:-2].numel() for view in arguments["grad"]] == counts
    assert arguments["grad"][0].stride() == (32 * 96, 32, 96, 1)
    assert len(arguments["scales"]) == len(arguments["norms"]) == case.count == sum(counts)

    def least(m: int, n: int) -> int:
        sides = sum(2 * d * k * k + 3 * d * d * k + (1 + 2 + 2) * d**3 for d, k in ((m, n), (n, m)))
        return sides + 2 * m * n * (m + n)

    assert sum(cost.least_flops for cost in case.costs()) == 6 * (least(32, 32) + least(20, 48))
    bmm_products(arguments)()
