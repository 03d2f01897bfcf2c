"""Train a small Llama with transformers' Trainer: schedule, accumulation, checkpoints, health in the logs.

The model starts from random weights and reads bytes, by default those of the standard library's sources:
nothing is downloaded. Needs transformers, accelerate and tensorboard, the extra ``integrations``.

    python examples/huggingface_trainer.py --out runs/huggingface
    python examples/huggingface_trainer.py --out runs/huggingface --resume
    torchrun --nproc-per-node 2 examples/huggingface_trainer.py --out runs/two
    tensorboard --logdir runs/huggingface

A run that was stopped goes on from its last checkpoint with ``--resume`` and the options that it had, bit for
bit. On several ranks, each one has the optimizer's state and work for a share of the blocks.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from gpt.data import load_text
from gpt.errors import UsageError
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from kradagrad_ext import KrADagrad, diagnostics, param_groups

CONTEXT = 64
EVALUATED = 256
"""Windows of the validation text, spread over all of it."""

PRECISIONS = ("float32", "bf16-mixed", "bfloat16")


class Windows(torch.utils.data.Dataset):
    """A text ``[length]`` uint8 as examples of `CONTEXT` bytes each, int64; the model shifts the labels."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __len__(self) -> int:
        return len(self.text) // CONTEXT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.text[index * CONTEXT : (index + 1) * CONTEXT].long()
        return {"input_ids": window, "labels": window}


class HealthTrainer(transformers.Trainer):
    """Logs the optimizer's health with the loss, on the progress bar and wherever else the logs go.

    On several ranks it is that of the blocks of the rank which logs.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            groups = diagnostics(self.optimizer)
            conditions = [own["condition"] for own in groups if not math.isnan(own["condition"])]
            logs |= {"condition": max(conditions)} if conditions else {}
            counts = ("roots_kept", "non_finite_gradients")
            logs |= {name: sum(own[name] for own in groups) for name in counts}
        super().log(logs, start_time)


class Consolidate(transformers.TrainerCallback):
    """Brings the whole state of a sharded optimizer to rank 0, before Trainer saves it there alone."""

    def __init__(self, optimizer: KrADagrad) -> None:
        self.optimizer = optimizer

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: Any,  # noqa: ANN401
    ) -> None:
        if control.should_save:
            self.optimizer.consolidate_state_dict()


def make_model(precision: str) -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    return model.to(torch.bfloat16) if precision == "bfloat16" else model


def make_trainer(given: argparse.Namespace) -> transformers.Trainer:
    """All that a run consists of. Raises UsageError if there is too little text."""
    text = load_text(given.data, CONTEXT)
    arguments = transformers.TrainingArguments(
        output_dir=str(given.out),
        max_steps=given.steps,
        per_device_train_batch_size=given.batch // given.accumulate,
        per_device_eval_batch_size=given.batch,
        gradient_accumulation_steps=given.accumulate,
        bf16=given.precision == "bf16-mixed",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, given.steps // 20),
        save_steps=given.save_every,
        save_total_limit=2,
        ddp_find_unused_parameters=False,
        seed=given.seed,
        report_to="tensorboard",
    )
    transformers.set_seed(given.seed)
    model = make_model(given.precision)
    # Where torchrun started several ranks, the arguments have joined them: they can share out the work.
    group = dist.group.WORLD if dist.is_initialized() else None
    show = print if arguments.process_index == 0 else None
    optimizer = KrADagrad(param_groups(model, show=show), lr=given.lr, weight_decay=0.1, process_group=group)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, given.steps // 10, given.steps)
    held_out = Windows(text.validation)
    stride = max(1, len(held_out) // EVALUATED)
    return HealthTrainer(
        model=model,
        args=arguments,
        train_dataset=Windows(text.train),
        eval_dataset=torch.utils.data.Subset(held_out, range(0, len(held_out), stride)),
        optimizers=(optimizer, schedule),
        callbacks=[Consolidate(optimizer)],
    )


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a text file or folder; default: the standard library's sources")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32, help="examples of a step, on every rank")
    parser.add_argument("--accumulate", type=int, default=2, help="parts that a batch is worked off in")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--lr", type=float, default=1e-2, help="the largest learning rate")
    parser.add_argument("--save-every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/huggingface"), help="of checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    given = parser.parse_args(arguments)
    for option in ("steps", "batch", "accumulate", "save_every"):
        if getattr(given, option) < 1:
            parser.error(f"--{option.replace('_', '-')}: must be at least 1, got {getattr(given, option)}")
    if given.batch % given.accumulate:
        parser.error(f"--accumulate: must divide --batch {given.batch}, got {given.accumulate}")
    last = get_last_checkpoint(str(given.out)) if given.out.is_dir() else None
    if given.resume and last is None:
        parser.error(f"--resume: {given.out} holds no checkpoint")
    if last is not None and not given.resume:
        parser.error(f"--out: {last} is another run's checkpoint; go on with --resume, or remove it")
    return parser, given


def main(arguments: list[str] | None = None) -> int:
    parser, given = parse(arguments)
    try:
        trainer = make_trainer(given)
    except UsageError as error:
        parser.error(str(error))
    try:
        trainer.train(resume_from_checkpoint=given.resume)
    except KeyboardInterrupt:
        print(f"Stopped; --resume goes on from the last checkpoint in {given.out}", file=sys.stderr)
        return 130
    trainer.log_metrics("eval", trainer.evaluate())
    return 0


if __name__ == "__main__":
    sys.exit(main())
