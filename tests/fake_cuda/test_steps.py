"""Steps of one process on a fake GPU: the host never waits, and the launches are those of the plans."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from . import recorded
from .training import BACKENDS, assert_free_of_waits, kernels, make, needs_fake_gpu, parameters, steady

pytestmark = needs_fake_gpu

WHOLE_BLOCKS = {
    f"resident_{half}_{side}_bf16x3": 1 for half in ("update", "precondition") for side in (64, 128)
}
WHOLE_BLOCKS |= {f"resident_root_{side}_bf16x3": 1 for side in (64, 96, 128)}
WHOLE_BLOCKS |= {f"wide_{half}": 1 for half in ("update", "precondition", "root")}
GROUPED = {
    "gradient_norms": 1,
    "start_sides": 1,
    "square_root_product_128_bf16x3": 9,  # roots are made between update and product
    "finish_sides": 1,
    "finish_norms": 1,
}
ELEMENTWISE = {
    "guard_gradients": 1,
    "update_moments": 1,
    "scale_updates": 1,
    "apply_updates": 1,
}


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("gpu_backend", BACKENDS)
def test_a_step_waits_for_nothing(gpu_backend: str, options: dict[str, bool]) -> None:
    optimizer = make(parameters(), gpu_backend, **options)
    recording = steady(optimizer.step)
    assert_free_of_waits(recording)
    assert recording.of("module") == []
    # A table of moved tensors is uploaded from page-locked memory, which serves many such tables.
    assert {event["call"] for event in recording.of("allocate")} <= {"cudaHostAlloc"}


def test_native_launches_are_those_of_its_plans() -> None:
    optimizer = make(parameters(), "native")
    assert kernels(steady(optimizer.step)) == WHOLE_BLOCKS | GROUPED | ELEMENTWISE


@pytest.mark.parametrize("gpu_backend", BACKENDS)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_learning_rate_is_no_wait(gpu_backend: str, where: str) -> None:
    optimizer = make(parameters(), gpu_backend, lr=torch.tensor(0.1, device=where))
    assert_free_of_waits(steady(optimizer.step))


@pytest.mark.parametrize("gpu_backend", BACKENDS)
def test_a_gradient_that_comes_and_goes_is_no_wait(gpu_backend: str) -> None:
    params = parameters()
    optimizer, grad = make(params, gpu_backend), params[0].grad
    optimizer.step()

    def step() -> None:
        params[0].grad = None if params[0].grad is grad else grad
        optimizer.step()

    step()
    with recorded() as recording:
        for _ in range(6):
            step()
    assert_free_of_waits(recording)


def test_a_gradient_that_is_missing_for_the_first_time_is_no_wait() -> None:
    params = parameters()
    optimizer = make(params, "native")
    optimizer.step()
    params[1].grad = None
    with recorded() as recording:
        optimizer.step()
    assert_free_of_waits(recording)


@pytest.mark.parametrize("gpu_backend", BACKENDS)
@pytest.mark.parametrize("capturable", [False, True])
def test_new_roots_are_no_wait(gpu_backend: str, capturable: bool) -> None:
    optimizer = make(parameters(), gpu_backend, capturable=capturable, root_every=2)
    recording = steady(optimizer.step, warm_up=5)
    assert_free_of_waits(recording)
    made = sum(name.startswith(("resident_root", "wide_root")) for name in kernels(recording))
    torchs = sum("gemm" in name for name in recording.launches)
    assert torchs > 50 if gpu_backend == "reference" else made >= 4


def test_roots_by_eigendecomposition_wait_for_torchs_own_check() -> None:
    """Each side of a group waits twice: for torch's check, and to select the blocks that take float64.

    One more wait, on every step, detects new blocks, which get their roots at once. `polar`, the default, has
    none. Kernels compute nothing here, so torch reads what the memory had before: a new pool makes it zero.
    """
    with torch.cuda.use_mem_pool(torch.cuda.MemPool()):
        optimizer = make(parameters(shapes=[(64, 32)]), "native", root_method="eigh", root_every=2)
        assert steady(optimizer.step, warm_up=5).syncs == ["cudaStreamSynchronize"] * 5
        assert steady(optimizer.step, warm_up=0).syncs == ["cudaStreamSynchronize"]


@pytest.mark.parametrize("gpu_backend", BACKENDS)
def test_a_scaler_is_no_wait(gpu_backend: str) -> None:
    """Set the attributes that `torch.amp.GradScaler` sets on a fused optimizer."""
    optimizer = make(parameters(), gpu_backend)
    optimizer.grad_scale = torch.ones(1, device="cuda")
    optimizer.found_inf = torch.zeros(1, device="cuda")
    assert_free_of_waits(steady(optimizer.step))


@pytest.mark.parametrize("gpu_backend", BACKENDS)
@pytest.mark.parametrize("factor_every", [1, 1000])
def test_a_step_stays_in_its_stream_except_moments_beside_factors(
    gpu_backend: str, factor_every: int
) -> None:
    """Moments wait for the earlier launches, and everything that reads them waits for them."""
    optimizer = make(parameters(), gpu_backend, factor_every=factor_every)
    optimizer.step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        recording = steady(optimizer.step)
    assert_free_of_waits(recording)
    kinds = recording.of("launch", "library", "order")
    streams = [event["stream"] for event in kinds if event["event"] != "order"]
    main = streams[0]
    beside = [i for i, event in enumerate(kinds) if event["event"] != "order" and event["stream"] != main]
    orders = [(event["stream"], event["after"]) for event in kinds if event["event"] == "order"]
    if factor_every > 1:
        assert not beside
        assert not orders
        return
    second = kinds[beside[0]]["stream"]
    assert {kinds[i]["stream"] for i in beside} == {second}
    assert orders == [(second, main), (main, second)]
    assert kinds[beside[0] - 1]["event"] == "order"
    names = [event.get("name", "joined") for event in kinds[beside[-1] + 1 :]]
    if gpu_backend == "native":
        assert {kinds[i]["name"] for i in beside} >= {"update_moments"}
        before, after = names[: names.index("joined")], names[names.index("joined") :]
        assert {name for name in before if "update" in name}
        assert {name for name in after if "precondition" in name} >= {"resident_precondition_64_bf16x3"}
        assert not [name for name in before if "precondition" in name or name == "apply_updates"]


@pytest.mark.parametrize("gpu_backend", BACKENDS)
def test_parameters_may_be_on_other_devices_than_the_current_one(gpu_backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    params: list[Tensor] = parameters("cuda:1") + parameters("cuda:0")
    optimizer = make(params, gpu_backend)
    recording = steady(optimizer.step)
    assert recording.refusals == []
    assert recording.syncs == []
    assert {event["device"] for event in recording.of("launch")} == {0, 1}
    assert torch.cuda.current_device() == 0
