"""Steps in a CUDA graph: what a capture records, and what is refused before anything changes."""

from __future__ import annotations

import copy

import pytest
import torch

from kradagrad_ext import KrADagrad

from . import recorded
from .training import BACKENDS, kernels, make, needs_fake_gpu, parameters, steady

pytestmark = needs_fake_gpu


def captured(optimizer: KrADagrad) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


@pytest.mark.parametrize("gpu_backend", BACKENDS)
def test_a_graph_holds_a_step(gpu_backend: str) -> None:
    optimizer = make(parameters(), gpu_backend, capturable=True, lr=torch.tensor(0.1, device="cuda"))
    plain = steady(optimizer.step)
    with recorded() as recording:
        graph = captured(optimizer)
    assert recording.refusals == []
    assert kernels(recording) == kernels(plain)
    assert all(event["captured"] for event in recording.of("launch") if event["name"] in kernels(plain))
    with recorded() as replay:
        graph.replay()
    assert {event["event"] for event in replay.events} == {"graph"}


def test_a_table_of_a_graph_is_uploaded_when_it_runs() -> None:
    """A plan is new in the capture: its copy is a node, from memory that nothing else is allocated."""
    params = parameters()
    optimizer = make(params, "native", capturable=True, lr=torch.tensor(0.1, device="cuda"))
    optimizer.step()
    params[0].grad = torch.zeros_like(params[0])
    with recorded() as recording:
        captured(optimizer)
    uploads = [event for event in recording.of("copy") if not event["from"].startswith("device")]
    assert recording.refusals == []
    assert uploads
    assert all(event["from"] == "pinned" and event["captured"] for event in uploads)


def state_of(optimizer: KrADagrad) -> tuple[dict, list]:
    return copy.deepcopy(optimizer.state_dict()), [group["step"].item() for group in optimizer.param_groups]


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_rate_on_the_host_is_refused_before_anything_changes() -> None:
    optimizer = make(parameters(), "native", capturable=True, lr=torch.tensor(0.1))
    optimizer.step()
    steps = state_of(optimizer)[1]
    with recorded() as recording, pytest.raises(RuntimeError, match="`lr` of parameter group 0"):
        captured(optimizer)
    assert recording.of("launch") == []
    assert recording.refusals == []
    assert state_of(optimizer)[1] == steps


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_other_gradients_than_before_are_refused_before_anything_changes() -> None:
    params = parameters()
    optimizer = make(params, "native", capturable=True, lr=torch.tensor(0.1, device="cuda"))
    optimizer.step()
    params[0].grad = None
    with (
        recorded() as recording,
        pytest.raises(
            RuntimeError, match=r"every parameter must have a gradient .* parameter 0 of parameter"
        ),
    ):
        captured(optimizer)
    params[0].requires_grad_(False)  # this leaves the parameter out on purpose
    with (
        recorded() as recording,
        pytest.raises(RuntimeError, match="the same parameters must have gradients"),
    ):
        captured(optimizer)
    assert recording.of("launch") == []
    optimizer.step()
    captured(optimizer)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_weight_decay_that_a_graph_would_keep_is_refused() -> None:
    """Every replay reads a tensor on the device, but not one on the host."""
    params = parameters()
    decay = torch.tensor(0.1)
    optimizer = make(
        params, "native", capturable=True, lr=torch.tensor(0.1, device="cuda"), weight_decay=decay
    )
    optimizer.step()
    with pytest.raises(RuntimeError, match="`weight_decay` of parameter group 0 must be a tensor on the"):
        captured(optimizer)
    optimizer.param_groups[0]["weight_decay"] = decay.cuda()
    optimizer.step()
    captured(optimizer).replay()


def test_the_mask_of_a_graph_stays_where_it_is() -> None:
    params = parameters()
    optimizer = make(params, "native", capturable=True, lr=torch.tensor(0.1, device="cuda"))
    optimizer.step()
    graph = captured(optimizer)
    masks = optimizer._engine._by_position[0].placed[0].batch.masks
    used = masks._captured[(True,) * len(params)]
    for count in range(1, 70):
        masks.of(tuple(i < count for i in range(100)))
    assert (True,) * len(params) not in masks
    assert masks._captured[(True,) * len(params)] is used
    graph.replay()
