"""Train a small Llama with transformers' Trainer: schedule, accumulation, checkpoints, health in the logs.

The model starts from random weights and reads bytes, by default those of the standard library's sources.
Nothing is downloaded. The extra ``integrations`` installs transformers, accelerate and tensorboard.

    python examples/huggingface_trainer.py --out runs/huggingface
    python examples/huggingface_trainer.py --out runs/huggingface --resume
    torchrun --nproc-per-node 2 examples/huggingface_trainer.py --out runs/two
    tensorboard --logdir runs/huggingface

With ``--resume`` and the same options, a stopped run continues from its last checkpoint bit for bit. On
several ranks, each rank has the optimizer's state and work of a share of the blocks.
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

from kradagrad_ext import KrADagrad, param_groups, read_diagnostics

CONTEXT = 64
EVALUATED = 256
"""Number of validation windows, spread over the whole text."""

PRECISIONS = ("float32", "bf16-mixed", "bfloat16")


class Windows(torch.utils.data.Dataset):
    """Examples of `CONTEXT` bytes, int64, of a text ``[length]`` uint8; the model shifts the labels."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __len__(self) -> int:
        return len(self.text) // CONTEXT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.text[index * CONTEXT : (index + 1) * CONTEXT].long()
        return {"input_ids": window, "labels": window}


class HealthTrainer(transformers.Trainer):
    """A trainer that logs the optimizer's health with the loss, on the progress bar and in all logs.

    On several ranks, the health is that of the blocks of the rank that logs.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            groups = read_diagnostics(self.optimizer)
            conditions = [group["condition"] for group in groups if not math.isnan(group["condition"])]
            logs |= {"condition": max(conditions)} if conditions else {}
            counts = ("roots_kept", "non_finite_gradients")
            logs |= {name: sum(group[name] for group in groups) for name in counts}
        super().log(logs, start_time)


class Consolidate(transformers.TrainerCallback):
    """A callback that gathers a sharded optimizer's state on rank 0, where Trainer saves it."""

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


def make_trainer(options: argparse.Namespace) -> transformers.Trainer:
    """Make the trainer of a run. Raise UsageError if there is too little text."""
    text = load_text(options.data, CONTEXT)
    arguments = transformers.TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch // options.accumulate,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        bf16=options.precision == "bf16-mixed",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=max(1, options.steps // 20),
        save_steps=options.save_every,
        save_total_limit=2,
        ddp_find_unused_parameters=False,
        seed=options.seed,
        report_to="tensorboard",
    )
    transformers.set_seed(options.seed)
    model = make_model(options.precision)
    # Under torchrun, TrainingArguments has started the process group: the ranks can share the work.
    group = dist.group.WORLD if dist.is_initialized() else None
    show = print if arguments.process_index == 0 else None
    optimizer = KrADagrad(
        param_groups(model, show=show), lr=options.lr, weight_decay=0.1, process_group=group
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, options.steps // 10, options.steps)
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
    parser.add_argument("--data", help="text file or folder; default: the standard library's sources")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32, help="examples per step on every rank")
    parser.add_argument(
        "--accumulate", type=int, default=2, help="parts of a batch, with accumulated gradients"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--lr", type=float, default=1e-2, help="peak learning rate")
    parser.add_argument("--save-every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/huggingface"), help="folder of checkpoints and logs"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    options = parser.parse_args(arguments)
    for option in ("steps", "batch", "accumulate", "save_every"):
        if getattr(options, option) < 1:
            parser.error(f"--{option.replace('_', '-')}: must be at least 1, got {getattr(options, option)}")
    if options.batch % options.accumulate:
        parser.error(f"--accumulate: must divide --batch {options.batch}, got {options.accumulate}")
    last = get_last_checkpoint(str(options.out)) if options.out.is_dir() else None
    if options.resume and last is None:
        parser.error(f"--resume: {options.out} holds no checkpoint")
    if last is not None and not options.resume:
        parser.error(f"--out: {last} is another run's checkpoint; go on with --resume, or remove it")
    return parser, options


def main(arguments: list[str] | None = None) -> int:
    parser, options = parse(arguments)
    try:
        trainer = make_trainer(options)
    except UsageError as error:
        parser.error(str(error))
    try:
        trainer.train(resume_from_checkpoint=options.resume)
    except KeyboardInterrupt:
        print(f"Stopped; --resume goes on from the last checkpoint in {options.out}", file=sys.stderr)
        return 130
    trainer.log_metrics("eval", trainer.evaluate())
    return 0


if __name__ == "__main__":
    sys.exit(main())
