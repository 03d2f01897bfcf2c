"""After any changes between two steps, the optimizer steps as a plain one does, which caches nothing.

Run 50,000 examples by hand:

    KRADAGRAD_STATEFUL_EXAMPLES=25000 pytest -n 2 -m slow tests/test_stateful.py
"""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections import defaultdict
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain import PlainKrADagrad
from torch import Tensor, nn

from kradagrad_ext import KrADagrad

EXAMPLES = int(os.environ.get("KRADAGRAD_STATEFUL_EXAMPLES", "2000"))
"""Number of examples of each recipe."""

SHAPES = [(3, 5), (4, 2), (3,), (2, 3, 3), (6, 2)]
GROUP_OPTIONS: list[dict[str, Any]] = [{}, {"batch_dims": 1}, {"split": 2}, {"precondition": False}]
KINDS = {3: 1, 4: 2}
"""Options, by place in `GROUP_OPTIONS`, of the parameters that need some; the others take any of `PLAIN`."""
PLAIN = (0, 0, 3)
FREE = {
    "lr": [0.0, 1e-2, 0.1],
    "weight_decay": [0.0, 0.1],
    "betas": [(0.9, 0.99), (0.0, 0.9), (0.5, 0.5)],
    "damping": [1e-3, 1e-2],
    "root_every": [1, 3],
    "factor_every": [1, 2],
    "start_step": [1, 3],
    "eps": [1e-8, 1e-3],
}
"""Options that may change at any time."""
GRADIENTS = ["plain"] * 6 + ["none", "zero", "nan", "spike", "tiny"]
RECIPES: list[dict[str, Any]] = [{"graft": "adam"}, {"graft": "rms", "factor_decay": 0.9}]


class Job:
    """An optimizer and all parameters, in a group or not, which are copied and pickled together."""

    def __init__(self, params: list[nn.Parameter], optimizer: KrADagrad) -> None:
        self.params, self.optimizer = params, optimizer


class Machine(RuleBasedStateMachine):
    """The optimizer, and a plain one beside it."""

    recipe: ClassVar[dict[str, Any]] = {}

    @initialize(seed=st.integers(0, 99), first=st.sampled_from([0, 1, 2]))
    def begin(self, seed: int, first: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        params = [nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in SHAPES]
        optimizer = KrADagrad([{"params": [params[first]]}], block_size=3, **self.recipe)
        self.job, self.plain, self.seed = Job(params, optimizer), PlainKrADagrad(), seed
        self.plain.values = {p: p.detach().clone() for p in params}

    def groups(self) -> list[dict[str, Any]]:
        return self.job.optimizer.param_groups

    def grouped(self) -> list[Tensor]:
        return [p for group in self.groups() for p in group["params"]]

    def outside(self) -> list[int]:
        """Return the places of the parameters that are in no group."""
        inside = set(map(id, self.grouped()))
        return [i for i, p in enumerate(self.job.params) if id(p) not in inside]

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        for p in self.job.params:
            kind = data.draw(st.sampled_from(GRADIENTS))
            gradient = torch.randn(p.shape, generator=generator).double()
            if p.ndim == 3:  # experts without a token
                gradient[data.draw(st.integers(0, 1))] *= data.draw(st.sampled_from([0, 1, 1e3]))
            scale = {"zero": 0.0, "spike": 1e4, "tiny": 1e-6}.get(kind, 1.0)
            p.grad = None if kind == "none" else gradient * scale
            if kind == "nan":
                p.grad.view(-1)[-1] = torch.nan
        numbers = [group["step"] + 1 for group in self.groups()]
        self.plain.step(self.groups(), numbers)
        self.job.optimizer.step()

    @precondition(lambda self: self.outside())
    @rule(data=st.data())
    def add_group(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.outside()))
        kind = KINDS.get(place, data.draw(st.sampled_from(PLAIN)))
        p = self.job.params[place]
        if self.job.optimizer.state.get(p) and kind == 3:
            kind = 0
        self.drop_state_of_another_kind(p, kind)
        self.job.optimizer.add_param_group({"params": [p], **GROUP_OPTIONS[kind]})

    def drop_state_of_another_kind(self, p: Tensor, kind: int) -> None:
        state = self.job.optimizer.state.get(p)
        if state and p.ndim == 2 and kind != 2 and ("factor_0_0" in state) != (kind != 3):
            del self.job.optimizer.state[p]
            self.plain.state.pop(p, None)

    @precondition(lambda self: len(self.grouped()) > 1)
    @rule(data=st.data())
    def drop_parameter(self, data: st.DataObject) -> None:
        places = [(i, j) for i, group in enumerate(self.groups()) for j in range(len(group["params"]))]
        group, place = data.draw(st.sampled_from(places))
        self.groups()[group]["params"].pop(place)

    @rule(data=st.data())
    def move_parameter(self, data: st.DataObject) -> None:
        alike = [i for i, group in enumerate(self.groups()) if is_plain(group)]
        if len(alike) < 2:
            return
        source, target = (self.groups()[i] for i in data.draw(st.permutations(alike))[:2])
        if source["params"]:
            target["params"].insert(0, source["params"].pop())

    @precondition(lambda self: len(self.groups()) > 1)
    @rule(data=st.data())
    def drop_or_reorder_groups(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(len(self.groups()))))
        kept = order[: data.draw(st.integers(1, len(order)))]
        self.groups()[:] = [self.groups()[i] for i in kept]

    @rule(data=st.data())
    def merge_groups(self, data: st.DataObject) -> None:
        alike = [group for group in self.groups() if is_plain(group)]
        for group in alike[1:]:
            alike[0]["params"] += group["params"]
            self.groups()[:] = [other for other in self.groups() if other is not group]

    @rule(data=st.data())
    def change_options(self, data: st.DataObject) -> None:
        place, option = (
            data.draw(st.integers(0, len(self.groups()) - 1)),
            data.draw(st.sampled_from(list(FREE))),
        )
        self.groups()[place][option] = data.draw(st.sampled_from(FREE[option]))

    @rule(data=st.data())
    def clear_state(self, data: st.DataObject) -> None:
        known = [i for i, p in enumerate(self.job.params) if p in self.job.optimizer.state]
        how = data.draw(st.sampled_from(["clear", "another", "delete", "empty"]))
        if how in ("clear", "another"):
            if how == "clear":
                self.job.optimizer.state.clear()
            else:
                self.job.optimizer.state = defaultdict(dict)
            self.plain.state.clear()
        elif known:
            p = self.job.params[data.draw(st.sampled_from(known))]
            self.plain.state.pop(p, None)
            if how == "delete":
                del self.job.optimizer.state[p]
            else:
                self.job.optimizer.state[p] = {}

    @rule(data=st.data())
    def replace_tensors(self, data: st.DataObject) -> None:
        """Replace state as offloading does: by other tensors, or by other data of the same ones."""
        by_data = data.draw(st.booleans())
        for state in self.job.optimizer.state.values():
            for key, value in state.items():
                if data.draw(st.booleans()):
                    continue
                if by_data:
                    value.data = value.clone()
                else:
                    state[key] = value.clone()

    @rule()
    def save_and_load(self) -> None:
        buffer = io.BytesIO()
        torch.save(self.job.optimizer.state_dict(), buffer)
        buffer.seek(0)
        self.job.optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        self.forget_outside()

    def forget_outside(self) -> None:
        """Drop the state of parameters in no group, which a state dict does not have."""
        inside = set(map(id, self.grouped()))
        self.plain.state = {p: state for p, state in self.plain.state.items() if id(p) in inside}

    @rule(how=st.sampled_from([copy.deepcopy, lambda job: pickle.loads(pickle.dumps(job))]))
    def copy(self, how: Any) -> None:
        job = how(self.job)
        renamed = dict(zip(self.job.params, job.params, strict=True))
        self.plain.values = {renamed[p]: value for p, value in self.plain.values.items()}
        self.plain.state = {renamed[p]: state for p, state in self.plain.state.items()}
        self.job = job

    @invariant()
    def parameters_are_where_the_plain_one_has_them(self) -> None:
        if not hasattr(self, "job"):
            return
        for i, p in enumerate(self.job.params):
            torch.testing.assert_close(p.detach(), self.plain.values[p], rtol=1e-6, atol=1e-6, msg=f"{i}")


def is_plain(group: dict[str, Any]) -> bool:
    """Return True if a group has the options of most groups."""
    return (group["batch_dims"], group["split"], group["precondition"]) == (0, 1, True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_any_sequence_of_changes_ends_where_a_plain_optimizer_ends(recipe: dict[str, Any]) -> None:
    machine = type("Machine", (Machine,), {"recipe": recipe})
    machine.TestCase.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase().runTest()
