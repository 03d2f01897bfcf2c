"""transformers' Trainer, through the example, and Accelerate; offline, with tiny models of random weights."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from marks import slow, slow_after
from safetensors.torch import load_file
from torch import Tensor, nn

import kradagrad_ext
from kradagrad_ext import KrADagrad, param_groups

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import huggingface_trainer

EXAMPLES = str(Path(huggingface_trainer.__file__).parent)
SMALL = ["--steps=8", "--batch=8", "--save-every=4"]

pytestmark = pytest.mark.filterwarnings(
    # From torch's data loader: Trainer requests pinned memory on any machine.
    "ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forbid access to the network, and reset Accelerate's process-wide state after the test."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the option that names a text of 40 kB of Python, to train on."""
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_bytes(Path(argparse.__file__).read_bytes()[:40_000])
    return f"--data={path}"


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(folder / f"checkpoint-{step}" / "model.safetensors")


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Raise KeyboardInterrupt in a step, as Ctrl-C does."""
    original = huggingface_trainer.HealthTrainer.training_step

    def training_step(self: Any, *arguments: Any, **options: Any) -> Tensor:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(huggingface_trainer.HealthTrainer, "training_step", training_step)


@pytest.mark.parametrize("precision", slow_after(1, huggingface_trainer.PRECISIONS))
def test_a_resumed_run_equals_the_unbroken_one(
    precision: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights and optimizer state are equal bit for bit, after a stop between two checkpoints."""
    run = [text, *SMALL, f"--precision={precision}"]
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    assert huggingface_trainer.main([*run, f"--out={unbroken}"]) == 0
    with monkeypatch.context() as stopped:
        interrupt(stopped, 6)
        assert huggingface_trainer.main([*run, f"--out={resumed}"]) == 130
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().err
    assert huggingface_trainer.main([*run, f"--out={resumed}", "--resume"]) == 0
    ours, expected = weights(resumed, 8), weights(unbroken, 8)
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert {tensor.dtype for tensor in expected.values()} == {dtype}
    states = [
        torch.load(folder / "checkpoint-8" / "optimizer.pt", weights_only=True)["state"]
        for folder in (resumed, unbroken)
    ]
    for index, values in states[1].items():
        assert all(torch.equal(states[0][index][key], value) for key, value in values.items())


def test_losses_fall_and_the_logs_have_diagnostics(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huggingface_trainer.main([text, "--steps=20", "--batch=8", "--save-every=20", f"--out={tmp_path}"])
    state = json.loads((tmp_path / "checkpoint-20" / "trainer_state.json").read_text())
    log = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in log] == list(range(1, 21))
    assert log[-1]["loss"] < log[0]["loss"] - 1
    rates = [entry["learning_rate"] for entry in log]
    assert rates[0] < max(rates) == 1e-2
    assert rates[-1] < 1e-3
    assert all(entry["condition"] > 1 and entry["non_finite_gradients"] == 0 for entry in log)
    out = capsys.readouterr().out
    assert "eval_loss" in out
    assert "precondition=False" in out  # the table of parameter groups
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))


def test_accumulation_is_one_larger_batch(text: str, tmp_path: Path) -> None:
    """Parts of a batch give its update to float32 rounding, which Adam's update of a rare token magnifies."""
    for parts in (1, 4):
        huggingface_trainer.main([text, *SMALL, f"--accumulate={parts}", f"--out={tmp_path / str(parts)}"])
    whole, cut = weights(tmp_path / "1", 8), weights(tmp_path / "4", 8)
    for name, tensor in whole.items():
        assert (cut[name] - tensor).norm() <= 1e-2 * tensor.norm(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "--resume: {out} holds no checkpoint"),
        (["--accumulate=3"], "--accumulate: must divide --batch 8, got 3"),
        (["--steps=0"], "--steps: must be at least 1, got 0"),
        (["--data={out}/none"], "--data: no such file or folder"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        huggingface_trainer.main([*SMALL, f"--out={out}", *(option.format(out=out) for option in options)])
    assert message.format(out=out) in capsys.readouterr().err
    assert not out.exists()


def test_runs_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(SystemExit):
        huggingface_trainer.main([f"--out={tmp_path}"])
    assert "checkpoint-4 is another run's checkpoint; go on with --resume" in capsys.readouterr().err


def trainer_rank(rank: int, examples: str, arguments: list[str]) -> int:
    """Run the example in one of the processes that torchrun starts; return its exit status."""
    torchrun = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ.update(torchrun, ACCELERATE_USE_CPU="1")
    sys.path.insert(0, examples)
    import huggingface_trainer

    return huggingface_trainer.main(arguments)


@slow
def test_two_ranks_share_the_work(text: str, tmp_path: Path) -> None:
    """They train like one rank with twice the batch, to rounding, and resume from one rank's checkpoint."""
    out = tmp_path / "two"
    arguments = [text, "--steps=8", "--batch=4", "--accumulate=1", "--save-every=4", f"--out={out}"]
    assert ranks.launch(2, trainer_rank, tmp_path, EXAMPLES, arguments) == [0, 0]
    unbroken = weights(out, 8)
    shutil.rmtree(out / "checkpoint-8")
    (tmp_path / "rendezvous").unlink(missing_ok=True)
    assert ranks.launch(2, trainer_rank, tmp_path, EXAMPLES, [*arguments, "--resume"]) == [0, 0]
    resumed = weights(out, 8)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in unbroken.items())
    one = tmp_path / "one"
    huggingface_trainer.main([text, *SMALL, "--accumulate=1", f"--out={one}"])
    for name, tensor in weights(one, 8).items():
        assert (unbroken[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3))


def batches(steps: range) -> list[tuple[Tensor, Tensor]]:
    generators = [torch.Generator().manual_seed(step) for step in steps]
    return [(torch.randn(8, 12, generator=g), torch.randn(8, 3, generator=g)) for g in generators]


def make(accelerator: Accelerator) -> tuple[nn.Module, Any, Any]:
    model = network()
    optimizer = KrADagrad(model.parameters(), lr=1e-2, block_size=8, root_every=3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return accelerator.prepare(model, optimizer, schedule)


def accelerated(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, schedule: Any, steps: range
) -> None:
    for x, y in batches(steps):
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - y).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def test_accelerate_takes_the_steps_of_a_plain_loop() -> None:
    """Accelerate accumulates, clips and follows a schedule with the same bits."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, schedule = make(accelerator)
    accelerated(accelerator, model, optimizer, schedule, range(12))
    plain = network()
    plain_optimizer = KrADagrad(plain.parameters(), lr=1e-2, block_size=8, root_every=3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(plain_optimizer, 20)
    for number, (x, y) in enumerate(batches(range(12))):
        ((plain(x) - y).square().mean() / 2).backward()
        if number % 2:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            plain_optimizer.step()
            rates.step()
            plain_optimizer.zero_grad()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert report["steps"] == 6


def test_accelerate_saves_and_loads(tmp_path: Path) -> None:
    """A run resumes bit for bit with `save_state` and `load_state`."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, schedule = make(accelerator)
    accelerated(accelerator, model, optimizer, schedule, range(5))
    accelerator.save_state(str(tmp_path))
    accelerated(accelerator, model, optimizer, schedule, range(5, 10))
    other = Accelerator(cpu=True)
    resumed = make(other)
    other.load_state(str(tmp_path))
    accelerated(other, *resumed, range(5, 10))
    assert all(map(torch.equal, resumed[0].parameters(), model.parameters()))


def sharded(rank: int, folder: str) -> Any:
    """Return the parameters after training by Accelerate and `fully_shard`, resuming, and a plain loop."""
    torchrun = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ.update(torchrun, ACCELERATE_USE_CPU="1")
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.tensor import DTensor

    def whole(model: nn.Module) -> list[Tensor]:
        assert all(isinstance(p, DTensor) for p in model.parameters())
        return [p.full_tensor().detach() for p in model.parameters()]

    def prepared() -> tuple[Accelerator, Any]:
        AcceleratorState._reset_state(reset_partial_state=False)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        # Accelerate considers its plugin with accelerators alone; everything behind that works on the CPU.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
        return accelerator, make(accelerator)

    accelerator, parts = prepared()
    accelerated(accelerator, *parts, range(4))
    accelerator.save_state(folder)
    accelerated(accelerator, *parts, range(4, 8))
    other, resumed = prepared()
    other.load_state(folder)
    accelerated(other, *resumed, range(4, 8))
    plain = network()
    optimizer = KrADagrad(plain.parameters(), lr=1e-2, block_size=8, root_every=3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for x, y in batches(range(8)):
        (plain(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
        rates.step()
        rates.step()  # Accelerate advances a schedule once for each rank
        optimizer.zero_grad()
    return {"got": whole(parts[0]), "resumed": whole(resumed[0]), "want": list(plain.parameters())}


def test_accelerate_shards_by_fully_shard(tmp_path: Path) -> None:
    """`prepare` puts DTensors in the place of parameters; the optimizer shares out its work and resumes."""
    for result in ranks.launch(2, sharded, tmp_path, str(tmp_path / "saved")):
        for got, resumed, want in zip(result["got"], result["resumed"], result["want"], strict=True):
            assert torch.equal(got, resumed)
            torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-6)


class NextToken(torch.utils.data.Dataset):
    """Rows of eight tokens."""

    def __init__(self) -> None:
        self.rows = torch.randint(0, 64, (16, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def llama(adapted: bool) -> nn.Module:
    """Return a small Llama; if adapted, with LoRA matrices of PEFT, which alone are trained."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes))
    if not adapted:
        return model
    peft = pytest.importorskip("peft", reason="pip install 'peft>=0.15'")
    targets = ["q_proj", "v_proj", "up_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, lora_dropout=0.0))


class ByParamGroups:
    """A factory as `Trainer` calls it: with the model, after it has placed it, and the options."""

    def __call__(self, model: nn.Module, **options: Any) -> KrADagrad:
        return KrADagrad(param_groups(model, show=None), **options)


def trainer(model: nn.Module, folder: Path, steps: int) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=4, per_device_train_batch_size=4,
        lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    options = dict(lr=1e-2, weight_decay=0.02, block_size=16, root_every=3)
    return transformers.Trainer(
        model, arguments, train_dataset=NextToken(), optimizer_cls_and_kwargs=(ByParamGroups, options)
    )


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's use of it
@pytest.mark.parametrize("adapted", [False, True])
def test_trainer_creates_the_optimizer_by_a_factory(adapted: bool, tmp_path: Path) -> None:
    """It takes the steps of a plain loop on the same batches, and resumes bit for bit."""
    model = llama(adapted)
    host = trainer(model, tmp_path / "out", 8)
    seen: list[dict[str, Tensor]] = []
    model.register_forward_pre_hook(
        lambda _, arguments, inputs: seen.append(
            {key: inputs[key].clone() for key in ("input_ids", "labels")}
        ),
        with_kwargs=True,
    )
    host.train()
    got = trained(model)
    assert isinstance(host.optimizer.optimizer, KrADagrad)
    assert len(seen) == 8
    plain = llama(adapted)
    optimizer = ByParamGroups()(plain, lr=1e-2, weight_decay=0.02, block_size=16, root_every=3)
    for batch in seen:
        plain(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(got[name], p) for name, p in trained(plain).items())
    assert got.keys() == trained(plain).keys()
    resumed = llama(adapted)
    trainer(resumed, tmp_path / "out", 8).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-4"))
    assert all(torch.equal(got[name], p) for name, p in trained(resumed).items())
