"""Changes that users make to parameter groups and state between two steps, checked with a plain optimizer.

One process steps all parameters, or two ranks share them.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from plain import PlainKrADagrad
from torch import nn

from kradagrad_ext import KrADagrad

SHAPES = [(9, 7), (5, 6), (4,), (6, 6)]


class Job:
    """An optimizer of two groups, and a plain one beside it that caches nothing."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]
        first, second = {"params": self.params[:3]}, {"params": self.params[3:], "lr": 0.05}
        self.optimizer = KrADagrad([first, second], lr=0.02, block_size=4, **options)
        self.plain = PlainKrADagrad()
        self.plain.values = {p: p.detach().clone() for p in self.params}
        self.number = 0

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def steps(self, count: int) -> None:
        for _ in range(count):
            generator = torch.Generator().manual_seed(self.number)
            for p in self.params:
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            numbers = [group["step"] + 1 for group in self.groups]
            self.optimizer.step()
            self.plain.step(self.groups, numbers)
            self.number += 1

    def check(self) -> None:
        for i, p in enumerate(self.params):
            torch.testing.assert_close(p.detach(), self.plain.values[p], rtol=1e-7, atol=1e-7, msg=f"{i}")


def take_out(job: Job) -> None:
    del job.groups[0]["params"][1]


def move(job: Job) -> None:
    job.groups[1]["params"].append(job.groups[0]["params"].pop(1))


def reorder_parameters(job: Job) -> None:
    job.groups[0]["params"].reverse()


def reorder_groups(job: Job) -> None:
    job.groups.reverse()


def drop_group(job: Job) -> None:
    del job.groups[1]


def merge_groups(job: Job) -> None:
    job.groups[0]["params"] += job.groups[1]["params"]
    del job.groups[1]


def change_options(job: Job) -> None:
    job.groups[0].update(lr=0.1, betas=(0.5, 0.9), weight_decay=0.1, root_every=2)


def clear_state(job: Job) -> None:
    job.optimizer.state.clear()
    job.plain.state.clear()


def new_state(job: Job) -> None:
    job.optimizer.state = defaultdict(dict)
    job.plain.state.clear()


def delete_one_state(job: Job) -> None:
    del job.optimizer.state[job.params[0]]
    del job.plain.state[job.params[0]]


def copy_tensors(job: Job) -> None:
    """Replace all tensors of the state, as trainers that offload it do; sharded ones are copied by piece."""
    for state in job.optimizer.state.values():
        for key, value in state.items():
            state[key] = value.clone()


def edit_values(job: Job) -> None:
    for p in job.params:
        job.optimizer.state[p]["matrix_stats"][:, 0] += 3
        for matrix_state in job.plain.state[p]:
            matrix_state["steps"] += 3


def new_values_of_parameters(job: Job) -> None:
    with torch.no_grad():
        for p in job.params:
            p.data = p * 2
            job.plain.values[p] *= 2


def save_and_load(job: Job) -> None:
    job.optimizer.load_state_dict(job.optimizer.state_dict())


def add_group(job: Job) -> None:
    p = nn.Parameter(torch.ones(5, 8, dtype=torch.float64))
    job.params.append(p)
    job.plain.values[p] = p.detach().clone()
    job.optimizer.add_param_group({"params": [p], "lr": 0.01})


SITUATIONS: dict[str, Callable[[Job], None]] = {
    "a parameter taken out of its group": take_out,
    "a parameter moved to another group": move,
    "parameters in another order": reorder_parameters,
    "groups in another order": reorder_groups,
    "a group dropped": drop_group,
    "two groups made one": merge_groups,
    "other options": change_options,
    "state cleared": clear_state,
    "another defaultdict": new_state,
    "the state of one parameter deleted": delete_one_state,
    "all tensors replaced": copy_tensors,
    "values edited": edit_values,
    "parameters of other values": new_values_of_parameters,
    "saved and loaded": save_and_load,
    "a group added": add_group,
}


def check_situation(name: str, **options: Any) -> None:
    job = Job(**options)
    job.steps(3)
    job.check()
    SITUATIONS[name](job)
    job.steps(4)
    job.check()


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_step_uses_the_present_groups_and_state(name: str) -> None:
    check_situation(name)


def checked_rank(rank: int) -> bool:
    for name in SITUATIONS:
        try:
            check_situation(name, process_group=dist.group.WORLD)
        except Exception as error:
            raise AssertionError(name) from error
    return True


def test_two_ranks_use_the_present_groups_and_state(tmp_path: Path) -> None:
    """All situations share one run, since the start of two processes takes longer."""
    assert ranks.launch(2, checked_rank, tmp_path) == [True, True]


def test_a_parameter_that_was_taken_out_keeps_no_memory() -> None:
    """The state is freed with the entry in ``optimizer.state``, which is the user's to delete."""
    job = Job()
    job.steps(2)
    p = job.groups[0]["params"].pop(0)
    moments = weakref.ref(job.optimizer.state.pop(p)["exp_avg"])
    assert moments() is None
    job.steps(1)
