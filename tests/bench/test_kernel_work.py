"""Work of the CUDA kernels in one CTA: the recorded table, and the times that the model computes from it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from kradagrad_ext.cost.time_model import kernel_work as work
from kradagrad_ext.cost.time_model import predict
from kradagrad_ext.cost.time_model.gpus import GPUS
from kradagrad_ext.cost.time_model.kernel_work import (
    BUSY_FRACTION,
    LATENCY_CYCLES,
    LOOKUP_CYCLES,
    PHASE_CYCLES,
    KernelWork,
)
from kradagrad_ext.cost.work import Cost

CTA = KernelWork(
    "k", "128", "sm_90", mma=4000, mma_most=1000, mma_least=1000, slots_most=6000, slots_least=5900,
    wavefronts=5000, bytes=2000, exposed_bytes=500, exposed_trips=2, lookups=3, barriers=4, registers=128,
    shared_bytes=1 << 16, ctas_of_sm=1,
)  # fmt: skip


def rows() -> dict[tuple[str, str], dict[str, KernelWork]]:
    """Return the rows of the table by kernel and call, then by architecture."""
    by_call: dict[tuple[str, str], dict[str, KernelWork]] = defaultdict(dict)
    for row in work.read():
        by_call[row.kernel, row.call][row.architecture] = row
    return by_call


def test_every_row_is_possible():
    """A row that fails a check has a count that was lost or counted twice."""
    for by_architecture in rows().values():
        assert {"sm_90", "sm_100"} <= by_architecture.keys()
        assert len({(row.mma, row.wavefronts, row.barriers) for row in by_architecture.values()}) == 1
        for row in by_architecture.values():
            assert row.mma_least <= row.mma / 4 <= row.mma_most
            assert row.slots_least <= row.slots_most
            assert row.mma_most < row.slots_most
            assert 0 <= row.exposed_bytes <= row.bytes
            assert row.ctas_of_sm >= 1
            assert row.ctas_of_sm * row.shared_bytes <= 228 << 10


def test_a_kernel_is_known_by_its_first_call():
    first = next(row for row in work.read() if row.kernel == "resident_update_128_bf16x3")
    assert work.work_of(first.kernel, first.architecture) == first
    assert "damped" not in first.call
    assert work.work_of("resident_update_128_bf16x3", "sm_70") is None


@pytest.mark.parametrize(
    ("changed", "limit"),
    [({}, 6000), ({"mma_most": 2000}, 8000), ({"wavefronts": 7000}, 7000), ({"slots_most": 9000}, 9000)],
)
def test_one_cta_alone_waits(changed, limit):
    waiting = 2 * LATENCY_CYCLES + 3 * LOOKUP_CYCLES + 4 * PHASE_CYCLES + 800 * 500 / 2000
    assert replace(CTA, **changed).cycles(4, 800) == pytest.approx(limit / BUSY_FRACTION + waiting)


def test_several_ctas_hide_what_each_waits_for():
    two, many = (replace(CTA, ctas_of_sm=count) for count in (2, 8))
    assert many.cycles(4, 800) == two.cycles(4, 800) == pytest.approx(6000 / BUSY_FRACTION)
    assert many.cycles(4, 20_000) == 20_000
    slow = replace(two, exposed_trips=100)
    assert slow.cycles(4, 800) == pytest.approx(replace(slow, ctas_of_sm=1).cycles(4, 800) / 2)


def test_hardware_rates_by_hand():
    """Public peaks give 8 cycles a product on an A100, and 4 on an H100 if mma.sync reached the peak."""
    a100, h100 = GPUS["A100"], GPUS["H100"]
    assert a100.clock == pytest.approx(1.41e9, rel=1e-3)
    assert h100.clock == pytest.approx(1.83e9, rel=1e-3)
    assert a100.mma_cycles == pytest.approx(8)
    assert h100.mma_cycles * h100.mma_sync == pytest.approx(4)
    assert a100.bytes_a_cycle * a100.sms * a100.clock == pytest.approx(a100.bandwidth)


def test_a_launch_takes_the_cycles_of_its_ctas():
    row = work.work_of("resident_precondition_128_bf16x3", "sm_90")
    assert row is not None
    gpu, ctas = GPUS["H100"], 1000
    flops = {"bf16": ctas * row.mma * work.MMA_FLOPS["bf16"]}
    cost = Cost(row.kernel, "product", 1, ctas * row.bytes, flops)
    cycles = row.cycles(gpu.mma_cycles, row.bytes / gpu.bytes_a_cycle)
    assert predict([cost], gpu) == pytest.approx(1e3 * ctas * cycles / (gpu.sms * gpu.clock))
    assert predict([cost], "H200") < predict([cost], gpu)


@pytest.mark.slow
def test_the_table_is_that_of_the_kernels():
    """After a change of kernels, ``python -m bench.gpu.kernels.work --record`` counts their work again."""
    pytest.importorskip("cuda.toolchain", reason="the plans' bindings are not here")
    from bench.gpu.kernels import work as kernel_work

    recorded = rows()
    for call in (kernel_work.CALLS[0], kernel_work.SquareCall(128)):
        for name in kernel_work.run(call):
            assert kernel_work.record(name, call, "sm_90") == recorded[name, str(call)]["sm_90"]


@pytest.mark.slow
@pytest.mark.parametrize("side", [64, 96, 128, 256, 512])
def test_flops_are_those_of_the_counted_products(side):
    """The roofline's flops determine the number of CTAs, through the products in the table."""
    pytest.importorskip("cuda.toolchain", reason="the plans' bindings are not here")
    from bench.gpu.kernels import work as kernel_work
    from bench.roofline import cuda_costs

    call = next(call for call in kernel_work.CALLS if call.side == side and not call.roots)
    rule = replace(
        kernel_work.square_root.RULE, method="products", refine=2, coupled=True, damped_updates=0.0
    )
    flops: dict[str, float] = defaultdict(float)
    blocks = [cuda_costs.Blocks(call.blocks, side, side)]
    for cost in cuda_costs.step_costs(blocks, cuda_costs.CallOptions(rule)):
        flops[cost.kernel] += cost.flops.get("bf16", 0.0)
    counted = {
        name: sum(counter["mma"] for counter in kernel.counters)
        for name, kernel in kernel_work.run(call).items()
    }
    assert {name: number / work.MMA_FLOPS["bf16"] for name, number in flops.items()} == counted
