"""A step that fails anywhere leaves parameters and state unchanged, or all later steps are refused.

Tests put a fault at operations of a step, which include every allocation of a tensor: before one, as if there
were no memory, and after one, as if a kernel failed late. To test every operation:

    KRADAGRAD_EVERY_FAULT=1 pytest -n 2 tests/test_faults.py
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from marks import slow, slow_after
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kradagrad_ext import KrADagrad

SHAPES = [(20, 12), (3, 6, 5), (7,)]
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "polar": {"root_method": "polar", "factor_update": "products", "graft": "whitened"},
    "packed": {"packed": True, "root_dtype": torch.bfloat16, "momentum_on": "update", "graft": "rms"},
    "capturable": {"capturable": True, "exponent": 0.5, "weight_decay": 0.1, "decoupled_weight_decay": False},
    "bfloat16": {"rounding": "compensated"},
}
REFUSED = "must be loaded again"
EVERY = int(os.environ.get("KRADAGRAD_EVERY_FAULT", "29"))
"""Distance of two faults in operations; each recipe begins at another operation."""


class FaultAt(TorchDispatchMode):
    """Mode that raises before or after operation number `place`, and counts the operations."""

    def __init__(self, place: int, after: bool) -> None:
        super().__init__()
        self.place, self.after, self.count = place, after, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "profiler":  # torch calls it around a step, not in it
            return function(*args, **(kwargs or {}))
        is_it, self.count = self.count == self.place, self.count + 1
        if is_it and not self.after:
            raise torch.OutOfMemoryError(f"a fault before {function}")
        result = function(*args, **(kwargs or {}))
        if is_it:
            raise RuntimeError(f"a fault after {function}")
        return result


class Run:
    """Parameters and their optimizer, with the gradients of the next step."""

    def __init__(self, name: str, steps: int, **options: Any) -> None:
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        torch.manual_seed(0)
        self.params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
        self.optimizer = KrADagrad(self.params, lr=0.02, block_size=8, **RECIPES[name], **options)
        self.steps = steps
        for number in range(steps):
            self.set_gradients(number)
            self.optimizer.step()
        self.set_gradients(steps)
        self.saved = self.optimizer.state_dict() if steps else None
        self.before = [p.detach().clone() for p in self.params]

    def set_gradients(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for p in self.params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)

    def is_as_before(self) -> bool:
        step = int(self.optimizer.param_groups[0]["step"])
        same = all(map(torch.equal, self.params, self.before))
        if self.saved is None:
            return same and step == 0 and not any(self.optimizer.state.values())
        states = self.optimizer.state_dict()["state"]
        kept = all(
            all(map(torch.equal, parts_of(states[i][key]), parts_of(value)))
            for i, state in self.saved["state"].items()
            for key, value in state.items()
        )
        return same and step == self.steps and kept

    def check_after_fault(self, wanted: list[Tensor]) -> bool:
        """Return True if later steps were refused; assert that a repeated step gives the wanted values."""
        is_broken = self.optimizer._whole.is_broken
        if is_broken:
            for call in (self.optimizer.step, self.optimizer.state_dict):
                with pytest.raises(RuntimeError, match=REFUSED):
                    call()
            with torch.no_grad():
                for p, old in zip(self.params, self.before, strict=True):
                    p.copy_(old)
            if self.saved is None:
                return True
            self.optimizer.load_state_dict(self.saved)
        assert self.is_as_before()
        self.optimizer.step()
        assert all(map(torch.equal, self.params, wanted))
        return is_broken


def parts_of(value: Tensor) -> list[Tensor]:
    """Return the parts of a tensor on this rank."""
    return getattr(value, "tensors", [value])


def operations(name: str, steps: int, **options: Any) -> tuple[int, list[Tensor]]:
    """Return the number of a step's operations, and the parameters after it."""
    for _ in range(2):  # the first run fills the caches that all optimizers share
        run = Run(name, steps, **options)
        with FaultAt(-1, False) as counter:
            run.optimizer.step()
    return counter.count, [p.detach().clone() for p in run.params]


def check_faults(name: str, steps: int, after: bool, **options: Any) -> tuple[int, int]:
    """Return the number of tried places, and of those after which a state had to be loaded."""
    count, wanted = operations(name, steps, **options)
    assert count > 50
    whole = Run(name, steps, **options)
    refused = tried = 0
    for place in range((7 * len(name) + steps + 4 * after) % EVERY, count, EVERY):
        run = Run(name, steps, **options) if steps == 0 or options else copied(whole)
        with pytest.raises(RuntimeError), FaultAt(place, after):
            run.optimizer.step()
        refused += run.check_after_fault(wanted)
        tried += 1
    return tried, refused


def copied(run: Run) -> Run:
    """Return an independent copy of a run."""
    other = copy.deepcopy(run)
    other.set_gradients(other.steps)
    return other


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("steps", [0, 3, 31])
@pytest.mark.parametrize("name", slow_after(1, list(RECIPES)))
def test_a_fault_at_any_operation(name: str, steps: int, after: bool) -> None:
    """Faults hit the first step, which creates the state, an early one, and one that computes no root."""
    tried, refused = check_faults(name, steps, after)
    assert 0 < refused <= tried


def faulty_rank(rank: int, after: bool) -> tuple[int, int]:
    return check_faults("default", 3, after, process_group=dist.group.WORLD)


@slow
@pytest.mark.parametrize("after", [False, True])
def test_a_fault_of_the_sharded_engine(after: bool, tmp_path: Path) -> None:
    """There is one rank only: other ranks would wait until their timeout for one that failed."""
    ((tried, refused),) = ranks.launch(1, faulty_rank, tmp_path, after)
    assert 0 < refused <= tried


LIMITED = """
import resource, sys
import torch
from torch import nn
from kradagrad_ext import KrADagrad

torch.set_num_threads(1)
torch.manual_seed(0)
params = [nn.Parameter(torch.randn(600, 500)) for _ in range(4)]
optimizer = KrADagrad(params, lr=0.01, block_size=128, graft=sys.argv[1])

def gradients(number):
    generator = torch.Generator().manual_seed(number)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)

for number in range(2):
    gradients(number)
    optimizer.step()
saved, before = optimizer.state_dict(), [p.detach().clone() for p in params]
gradients(2)
optimizer.step()
wanted = [p.detach().clone() for p in params]
kept = refused = 0
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for room in range(0, 40 << 20, 1 << 20):
    with torch.no_grad():
        for p, old in zip(params, before):
            p.copy_(old)
    optimizer.load_state_dict(saved)
    gradients(2)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    try:
        optimizer.step()
        failed = False
    except (RuntimeError, MemoryError):
        failed = True
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if not failed:
        assert all(map(torch.equal, params, wanted))
    elif optimizer._whole.is_broken:
        refused += 1
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "must be loaded again" in str(error)
        else:
            raise AssertionError("a step after a broken one was not refused")
    else:
        kept += 1
        assert all(map(torch.equal, params, before))
        optimizer.step()
        assert all(map(torch.equal, params, wanted))
print(kept, refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as on Linux")
@pytest.mark.parametrize("graft", ["adam", "rms"])
def test_a_step_without_enough_memory(graft: str) -> None:
    """The address space of the process is limited; the limit grows by a megabyte for each step."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, graft], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    kept, refused = map(int, done.stdout.split())
    assert kept + refused > 2
