"""The roofline model, bench/roofline.py: counts made by hand, and the launches that csrc/cuda/plan makes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("pandas")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import roofline

from kradagrad_ext.cost import launches, products
from kradagrad_ext.cost.gpus import BANDWIDTH_FRACTION, FEED_FRACTION, GPUS, Cost, gpu_of, predict
from kradagrad_ext.cost.launches import elements, kron_step_costs, rule_of
from kradagrad_ext.cost.models import MODELS, parse_shapes
from kradagrad_ext.cost.parameters import make_config
from kradagrad_ext.cost.products import lower_elements, terms
from kradagrad_ext.cost.steps import kernel_costs, parts_of
from kradagrad_ext.plan import group_blocks, plan_parameter

BENCH = Path(roofline.__file__).parent


def groups_of(shapes, config):
    return group_blocks([plan_parameter(shape, config) for shape in shapes])


def kron_costs(shapes, dtype=torch.float32, **options):
    config = make_config(**{"block_size": 256, "merge_dims": False, **options})
    return kron_step_costs(groups_of(shapes, config), rule_of(config, dtype))


def by_step(costs):
    return {cost.step: cost for cost in costs}


def test_terms_of_split_products():
    assert [terms(name) for name in ("bf16x3", "bf16x6", "tf32x3", "fp32")] == [3, 6, 3, 1]
    assert [terms(name, False, True) for name in ("bf16x3", "bf16x6", "tf32x3", "fp32")] == [2, 3, 2, 1]
    assert [terms(name, True, True) for name in ("bf16x3", "bf16x6", "tf32x3", "fp32")] == [1, 1, 1, 1]


@pytest.mark.parametrize(("side", "elements"), [(16, 256), (128, 36 * 256), (17, 256 + 17), (8, 64)])
def test_lower_elements(side, elements):
    assert lower_elements(side) == elements


def test_resident_block_of_128():
    (cost,) = kron_costs([(128, 128)], block_size=128, refine=0, factor_scale="trace")
    assert (cost.kernel, cost.launches) == ("kron_step_resident_128_bf16x3", 1)
    # G, D and the product once; of both factors and roots the lower tiles, both factors written whole.
    assert cost.bytes == 4 * (3 * 128**2 + 4 * 36 * 256 + 2 * 128**2)
    # Y of both sides and two products with roots are full, two downdates have 36 of 64 tiles.
    full, lower = 2 * 128**3, 2 * 36 * 256 * 128
    assert cost.flops == {"bf16": 3 * (4 * full + 2 * lower)}
    assert cost.least_flops == 10 * 128**3
    assert not cost.overlaps


def test_resident_refinement():
    """Two iterates: four symmetric products, N = I + A^T Y and Y C a side."""
    (plain,) = kron_costs([(128, 128)], block_size=128, refine=0, factor_scale="trace")
    (refined,) = kron_costs([(128, 128)], block_size=128, refine=2)
    assert refined.least_flops - plain.least_flops == 2 * (4 + 1 + 2) * 128**3
    assert refined.bytes == plain.bytes


def test_resident_pads_to_its_side():
    (cost,) = kron_costs([(100, 40)], refine=0, factor_scale="trace")
    full = 2 * 128 * 128
    lower = 2 * 256 * (28 * 48 + 6 * 112)
    # Depths 112 and 48 of both factors' products, 112 and 48 of the two-sided one; 7 and 3 rows of tiles.
    assert cost.flops == {"bf16": 3 * (2 * full * (112 + 48) + lower)}
    assert cost.least_flops == 5 * 100 * 40 * 140


def test_small_blocks_share_an_sm():
    (cost,) = kron_costs([(64, 64)], refine=0)
    assert cost.kernel == "kron_step_resident_64_bf16x3"
    assert cost.overlaps


def test_grouped_block_of_256():
    costs = kron_costs([(256, 256)], refine=0, factor_scale="trace")
    assert sum(cost.least_flops for cost in costs) == 10 * 256**3
    steps = by_step(costs)
    assert {step: cost.launches for step, cost in steps.items() if step != "books"} == {
        "Y and R D^T": 1,
        "downdate": 1,
    }
    # L, R, the right root, G, D in; both Y and half of the product out.
    assert steps["Y and R D^T"].bytes == 4 * 8 * 256**2
    # Three of four tiles of 128 are on or below the diagonal. L W is made in the same launch.
    assert steps["downdate"].flops == {"bf16": 3 * (2 * 0.75 * 2 + 2) * 256**3}
    assert steps["downdate"].least_flops == 4 * 256**3
    assert steps["downdate"].bytes == 4 * (2 * (2 * 256**2 + 136 * 256) + 3 * 256**2)
    assert all(cost.overlaps for cost in costs)


def test_least_flops_are_those_of_the_plan():
    shapes = [(512, 384), (300, 200), (100, 90)]
    config = make_config(block_size=192, merge_dims=False, refine=0, factor_scale="trace")
    groups = groups_of(shapes, config)
    costs = kron_step_costs(groups, rule_of(config, torch.float32))
    assert sum(cost.least_flops for cost in costs) == sum(group.step_flops for group in groups)


def test_bf16_gradients_save_a_product_and_bytes():
    full, exact = (
        by_step(kron_costs([(256, 256)], dtype, refine=0)) for dtype in (torch.float32, torch.bfloat16)
    )
    # Two of three products of Y = X A; R D^T has a float32 direction.
    assert exact["Y and R D^T"].flops["bf16"] == full["Y and R D^T"].flops["bf16"] * 7 / 9
    assert full["Y and R D^T"].bytes - exact["Y and R D^T"].bytes == 2 * 256**2


def test_elementwise_kernels_by_hand():
    config = make_config(block_size=128)
    costs = {cost.kernel: cost for cost in kernel_costs(parts_of([(128, 128), (100,)], config))}
    count, spans = 128**2 + 100, 4 + 1
    assert costs["accumulate"].bytes == (4 + 8 + 8) * count + 4 * spans
    assert costs["parameter_step"].bytes == (4 + 8) * 128**2 + (4 + 4 + 8) * 100
    assert costs["sum_spans"].bytes == 4 * (spans + 2)


def test_prediction_by_hand():
    gpu = GPUS["H100"]
    bandwidth, rate = 1e9 * BANDWIDTH_FRACTION * gpu.hbm, 1e12 * FEED_FRACTION * gpu.mma_sync * gpu.bf16
    memory, arithmetic = 1e9 / bandwidth, 1e11 / rate
    cost = Cost("a", "b", 1, 1e9, {"bf16": 1e11})
    apart = Cost("a", "b", 1, 1e9, {"bf16": 1e11}, overlaps=False)
    assert predict([cost], gpu) == pytest.approx(1e3 * max(memory, arithmetic))
    assert predict([apart], "H100") == pytest.approx(1e3 * (memory + arithmetic))


@pytest.mark.parametrize("block_size", [128, 256])
def test_more_work_takes_longer(block_size):
    def time(count=1, gpu="H100", precision="bf16x3", **options):
        config = make_config(block_size=block_size, precision=precision, **options)
        return predict(kernel_costs(parts_of([(512, 512)] * count, config)), gpu)

    assert time(2) == pytest.approx(2 * time(1), rel=1e-3)
    assert time(refine=0) < time(refine=1) < time(refine=2) < time(refine=3)
    assert time(refine=0, factor_scale="trace") <= time(refine=0, factor_scale="frobenius")
    assert time(precision="bf16x3") < time(precision="bf16x6")
    assert time(gpu="B200") < time(gpu="H200") <= time(gpu="H100") < time(gpu="A100")


def test_total_is_the_sum_of_its_parts():
    options = roofline.parse(["--model", "gpt2"])
    frame = roofline.table(MODELS["gpt2"], 256, options)
    total = frame.index[frame["step"] == "sum of the above"][0]
    parts = frame.iloc[:total]
    for column in ("launches", "GB", "Tflop", "least Tflop", "H100 ms"):
        assert frame.at[total, column] == pytest.approx(parts[column].sum())
    model = MODELS["gpt2"]
    costs = kernel_costs(parts_of(model.shapes, make_config(), plain_shapes=model.plain_shapes))
    assert frame.at[total, "H100 ms"] == pytest.approx(predict(costs, "H100"))


@pytest.mark.parametrize(
    ("name", "millions"), [("gpt2", 124.4), ("1.3b", 1315.7), ("7b", 6738.4), ("70b", 68976.6)]
)
def test_models_have_their_parameters(name, millions):
    model = MODELS[name]
    assert elements(model.shapes + model.plain_shapes) / 1e6 == pytest.approx(millions, abs=0.1)


def test_shapes_that_no_kernel_serves_are_refused():
    with pytest.raises(ValueError, match="no kernel serves"):
        kron_costs([(9000, 128)])
    with pytest.raises(ValueError, match="Cholesky"):
        kron_costs([(64, 64)], factor_update="exact")
    with pytest.raises(ValueError, match="like 2304x768"):
        parse_shapes("2304x")


def test_gpu_of_a_device_name():
    assert gpu_of("NVIDIA H100 80GB HBM3") is GPUS["H100"]
    assert gpu_of("NVIDIA A100-SXM4-80GB") is GPUS["A100"]
    assert gpu_of("NVIDIA H100 PCIe") is None
    assert gpu_of("NVIDIA GeForce RTX 4090") is None


def test_command_line(tmp_path):
    path = tmp_path / "roofline.csv"
    command = [sys.executable, BENCH / "roofline.py", "--shapes", "512x256*2,70", "--block-size", "128,256"]
    done = subprocess.run(
        [*command, "--gpu", "H100", "--json", "--csv", path], capture_output=True, text=True, check=True
    )
    records = json.loads(done.stdout)
    assert {record["block_size"] for record in records} == {128, 256}
    assert len(path.read_text().splitlines()) == len(records) + 1


def tensor(*sizes):
    strides = torch.empty(sizes, device="meta").stride()
    return 4096, False, list(sizes), list(strides)


def planned_launches(groups, config, update, precondition, scratch_bytes):
    """How often the plans of csrc/cuda launch each kernel; no address is looked at."""
    toolchain = pytest.importorskip("cuda.toolchain", reason="the plans' bindings are not here")
    inputs = []
    for group in groups:
        count, (m, n) = group.blocks, group.block_shape
        views = [tensor(count, m, n)] if precondition else []
        roots = (tensor(count, m, m), tensor(count, n, n)) if precondition else (None, None)
        inputs.append({
            "blocks": count, "m": m, "n": n, "grad": [tensor(count, m, n)], "direction": views, "out": views,
            "left": (tensor(count, m, m), 4096), "right": (tensor(count, n, n), 4096),
            "left_root": roots[0], "right_root": roots[1],
        })  # fmt: skip
    rule = (0.95, 0.05, 1e-3, config.factor_scale, config.refine, "bf16x3")
    plan = toolchain.plans().kron_step(inputs, *rule, update, precondition, *[4096] * 2, scratch_bytes)
    return Counter(name for name, *_ in plan.launches)


@pytest.mark.parametrize(("update", "precondition"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("scratch_bytes", [1 << 28, 1 << 21])
@pytest.mark.parametrize(
    ("scale", "refine"),
    [("trace", 0), ("frobenius", 0), ("schatten4", 0), ("product", 2), ("frobenius", 1), ("frobenius", 3)],
)
def test_launches_are_those_of_the_plans(scale, refine, scratch_bytes, update, precondition):
    config = make_config(block_size=192, merge_dims=False, factor_scale=scale, refine=refine)
    groups = groups_of([(600, 300), (192, 40), (100, 90), (64, 64)], config)
    costs = kron_step_costs(groups, rule_of(config, torch.float32), scratch_bytes, update, precondition)
    counted = Counter()
    for cost in costs:
        counted[cost.kernel] += cost.launches
    assert counted == planned_launches(groups, config, update, precondition, scratch_bytes)


def test_constants_are_those_of_the_sources():
    kernels = BENCH.parent / "csrc/cuda"
    text = "".join(path.read_text() for path in sorted(kernels.rglob("*.*")) if path.is_file())
    for name, value in (
        ("kResidentSide", launches.RESIDENT_SIDE),
        ("kSmallSide", launches.SMALL_SIDE),
        ("kSpan", launches.SPAN),
        ("kProductDepth", products.DEPTH),
    ):
        assert f"{name} = {value};" in text


def test_a_timed_case_costs_what_its_blocks_do():
    """Shapes, strides and the roofline's blocks of one call with two groups, made on the CPU."""
    from gpu_check.cases import Case
    from gpu_check.products import bmm_products
    from gpu_check.specs import kron

    spec = kron((32, 32), (20, 48), shape=(64, 96), scale="trace", refine=0)
    case = Case(spec, torch.device("cpu"))
    arguments = case.arguments
    counts = [6, 6]
    assert [len(factor) for factor in arguments["left"]] == counts
    assert [view.shape[:-2].numel() for view in arguments["grad"]] == counts
    assert arguments["grad"][0].stride() == (32 * 96, 32, 96, 1)
    assert len(arguments["active"]) == len(arguments["norms"]) == case.count == sum(counts)
    # 10 b^3 is 5 mn(m + n) for a square block.
    assert sum(cost.least_flops for cost in case.costs()) == 6 * (10 * 32**3 + 5 * 20 * 48 * 68)
    bmm_products(arguments)()
