"""Megatron-Core, through its example: its steps equal a bare loop's, and a checkpoint resumes them.

Megatron-Core places some buffers on a GPU by name. `OnCpu` places them on the CPU; all else is as it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ranks
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kradagrad_ext import KrADagrad, param_groups

pytest.importorskip("megatron.core", reason="pip install 'megatron-core>=0.16'")

EXAMPLES = str(Path(__file__).resolve().parent.parent / "examples")
OPTIONS: dict[str, Any] = dict(block_size=16, root_every=3)
RATE, DECAY, CLIP, STEPS = 1e-2, 0.1, 1.0, 6

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that Megatron-Core would like to have


class OnCpu(TorchFunctionMode):
    """Place on the CPU what is meant for a GPU, and name the type of tensors as if they were there."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        result = function(*args, **kwargs)
        return (
            "torch.cuda.FloatTensor" if isinstance(result, str) and result == "torch.FloatTensor" else result
        )


def model_of(seed: int = 0) -> nn.Module:
    """Return a transformer with two query groups of two heads each, gates, and an untied head."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    torch.manual_seed(seed)
    sizes = dict(num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, kv_channels=8)
    plain = dict(bias_dropout_fusion=False, masked_softmax_fusion=False, gradient_accumulation_fusion=False)
    config = TransformerConfig(
        **sizes,
        **plain,
        ffn_hidden_size=48,
        gated_linear_unit=True,
        add_bias_linear=False,
        use_cpu_initialization=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(),
        vocab_size=64,
        max_sequence_length=16,
        share_embeddings_and_output_weights=False,
    )


def loss_of(model: nn.Module, step: int) -> Tensor:
    tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(step))
    positions = torch.arange(16).expand(4, 16)
    mask = torch.ones(1, 1, 16, 16).tril() < 0.5
    return model(tokens[:, :-1], positions, mask, labels=tokens[:, 1:]).mean()


def config_of(**options: Any) -> Any:
    from megatron.core.optimizer import OptimizerConfig

    return OptimizerConfig(
        optimizer="sgd", lr=RATE, min_lr=0.0, weight_decay=DECAY, clip_grad=CLIP, **options
    )


def in_megatron(model: nn.Module, optimizer: Any, scheduler: Any, steps: range) -> list[Tensor]:
    for step in steps:
        loss_of(model, step).backward()
        succeeded, *_ = optimizer.step()
        assert succeeded
        optimizer.zero_grad()
        scheduler.step(increment=1)
    return [p.detach().clone() for p in model.parameters()]


def made(model: nn.Module) -> tuple[Any, Any]:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron_core import kradagrad_optimizer

    optimizer = kradagrad_optimizer(config_of(), [model], **OPTIONS)
    rates = dict(init_lr=0.0, max_lr=RATE, min_lr=0.0, lr_warmup_steps=2, lr_decay_steps=STEPS)
    decay = dict(start_wd=DECAY, end_wd=DECAY, wd_incr_steps=STEPS, wd_incr_style="constant")
    return optimizer, OptimizerParamScheduler(optimizer, **rates, **decay, lr_decay_style="linear")


def bare(model: nn.Module, rates: list[float]) -> list[Tensor]:
    """Return the parameters after the same steps without Megatron-Core's optimizer."""
    optimizer = KrADagrad(param_groups(model, show=None), lr=RATE, weight_decay=DECAY, **OPTIONS)
    for step, rate in enumerate(rates):
        loss_of(model, step).backward()
        squares = [p.grad.double().square().sum() for p in model.parameters()]
        scale = CLIP / (float(sum(squares)) ** 0.5 + 1e-6)
        for p in model.parameters():
            p.grad.mul_(min(scale, 1.0))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def rank_of(rank: int, examples: str, work: str) -> Any:
    """Run one of the functions below in a process with Megatron-Core's groups."""
    sys.path.insert(0, examples)
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    from megatron.core import tensor_parallel

    device = mock.patch.object(torch.cuda, "current_device", return_value="cpu")
    generators = mock.patch.object(tensor_parallel, "get_cuda_rng_tracker")  # of dropout, which is off
    with OnCpu(), device, generators:
        return globals()[work]()


def compare() -> Any:
    model = model_of()
    optimizer, scheduler = made(model)
    rates: list[float] = []
    inner = [one.optimizer for one in optimizer.chained_optimizers]
    inner[0].register_step_pre_hook(lambda one, *_: rates.append(one.param_groups[0]["lr"]))
    got = in_megatron(model, optimizer, scheduler, range(STEPS))
    decays = {group["name"]: group["weight_decay"] for one in inner for group in one.param_groups}
    return {"got": got, "want": bare(model_of(), rates), "rates": rates, "decays": decays}


def resume() -> Any:
    model = model_of()
    optimizer, scheduler = made(model)
    unbroken = in_megatron(model, optimizer, scheduler, range(STEPS))
    model = model_of()
    optimizer, scheduler = made(model)
    in_megatron(model, optimizer, scheduler, range(3))
    saved = [one.state_dict() for one in (model, optimizer, scheduler)]
    model = model_of(seed=1)
    optimizer, scheduler = made(model)
    for one, state in zip((model, optimizer, scheduler), saved, strict=True):
        one.load_state_dict(state)
    return {"want": unbroken, "got": in_megatron(model, optimizer, scheduler, range(3, STEPS))}


def groups() -> Any:
    model = model_of()
    return [
        (group["name"], group.get("split"), [tuple(p.shape) for p in group["params"]])
        for group in param_groups(model, show=None)
    ]


def refused() -> Any:
    from megatron_core import kradagrad_optimizer

    model, messages = model_of(), []
    for options in (dict(use_distributed_optimizer=True), dict(fp16=True)):
        with pytest.raises(ValueError, match="kradagrad_optimizer: `config") as error:
            kradagrad_optimizer(config_of(**options), [model])
        messages.append(str(error.value))
    next(model.parameters()).allreduce = False
    with pytest.raises(ValueError, match="expert parallelism") as error:
        kradagrad_optimizer(config_of(), [model])
    return [*messages, str(error.value)]


def test_steps_equal_a_bare_loop(tmp_path: Path) -> None:
    """Clipping and the scheduler are Megatron-Core's; vectors keep their weight decay of 0 under it."""
    (result,) = ranks.launch(1, rank_of, tmp_path, EXAMPLES, "compare")
    assert len(result["got"]) == len(result["want"])
    for got, want in zip(result["got"], result["want"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert result["rates"][:3] == pytest.approx([0.0, RATE / 2, RATE])
    assert {name for name, decay in result["decays"].items() if decay == 0} == {"norms", "biases"}


def test_a_checkpoint_resumes_bit_for_bit(tmp_path: Path) -> None:
    (result,) = ranks.launch(1, rank_of, tmp_path, EXAMPLES, "resume")
    assert all(map(torch.equal, result["got"], result["want"]))


def test_query_groups_and_gates_are_matrices_by_themselves(tmp_path: Path) -> None:
    (result,) = ranks.launch(1, rank_of, tmp_path, EXAMPLES, "groups")
    found = {name: (split, shapes) for name, split, shapes in result}
    assert found["fused"] == ((16, 8, 8, 16, 8, 8), [(64, 32)] * 2)
    assert found["fused_2"] == (2, [(96, 32)] * 2)
    assert found["embeddings"][1] == [(64, 32), (16, 32)]
    assert found["heads"][1] == [(64, 32)]
    assert found["matrices"][1] == [(32, 32), (32, 48)] * 2


def test_what_does_not_work_is_refused(tmp_path: Path) -> None:
    (messages,) = ranks.launch(1, rank_of, tmp_path, EXAMPLES, "refused")
    assert messages == [
        "kradagrad_optimizer: `config.use_distributed_optimizer` must be False, got True",
        "kradagrad_optimizer: `config.fp16` must be False, got True",
        "kradagrad_optimizer: `model_chunks` must have no expert parallelism, got some",
    ]
