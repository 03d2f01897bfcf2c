"""Schedules: the steps on which roots are computed, and how damping enters between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kradagrad_ext import KrADagrad
from kradagrad_ext.config import Config
from kradagrad_ext.schedule import GROWTH, Schedule


def config(**options: object) -> Config:
    optimizer = KrADagrad([torch.nn.Parameter(torch.zeros(2, 2))], **options)
    return Config.of(optimizer.param_groups[0])


def root_steps(options: Config, last: int) -> Iterator[int]:
    """Yield the steps up to `last` on which all roots are computed."""
    return (number for number in range(1, last + 1) if Schedule(number).turn(options, in_turns=False))


def test_roots_are_computed_on_every_step_at_first() -> None:
    """The expected steps for `root_every` 10 are derived by hand."""
    often = [*range(1, 20), *range(20, 40, 2), *range(42, 60, 3), *range(60, 80, 4), *range(80, 100, 5)]
    seldom = [102, 108, 114, 126, 133, 144, 152, 162, 171, 180, 190, 200, 210]
    assert list(root_steps(config(root_every=10), 210)) == often + seldom
    assert list(root_steps(config(root_every=1), 5)) == [1, 2, 3, 4, 5]


@given(root_every=st.integers(1, 60), number=st.integers(1, 1000))
def test_no_roots_are_older_than_the_schedule_says(root_every: int, number: int) -> None:
    """Roots are computed within 2 * `root_every` steps; once the interval has grown to `root_every`, on its
    multiples."""
    options = config(root_every=root_every)
    assert any(Schedule(number + later).turn(options, in_turns=False) for later in range(2 * root_every))
    if number >= GROWTH * min(root_every, GROWTH):
        assert (Schedule(number).turn(options, in_turns=False) is not None) == (number % root_every == 0)


@given(root_every=st.integers(1, 25), blocks=st.integers(1, 60), first=st.integers(1, 500))
def test_in_turns_all_blocks_have_new_roots_within_the_interval(
    root_every: int, blocks: int, first: int
) -> None:
    """While the interval grows, they do within two intervals; no step computes more than its share."""
    options, device = config(root_every=root_every), torch.device("cpu")
    made = torch.zeros(blocks, dtype=torch.bool)
    settled = first >= GROWTH * min(root_every, GROWTH)
    for number in range(first, first + (1 if settled else 2) * root_every):
        turn = Schedule(number).turn(options, in_turns=True)
        due = turn.due(blocks, device)
        assert len(due) == -(-blocks // turn.turns)
        made[due] = True
    assert made.all()


@pytest.mark.parametrize("root_every", [1, 2, 10])
def test_in_turns_damping_enters_with_every_third_update(root_every: int) -> None:
    options = config(root_every=root_every)
    entered = [Schedule(number).damped_updates(options, in_turns=True) for number in range(1, 61)]
    assert sum(entered) == 60
    assert max(map(len, "".join("x" if one == 0 else " " for one in entered).split()), default=0) <= 2


@given(root_every=st.integers(1, 30), factor_every=st.integers(1, 30))
def test_damping_keeps_up_with_forgetting(root_every: int, factor_every: int) -> None:
    """On every `root_every`-th step, the damping of all updates has entered, except the last one's."""
    options = config(root_every=root_every, factor_every=factor_every)
    updates, damping = 0, 0.0
    for number in range(1, 500):
        schedule = Schedule(number)
        if schedule.factors_due(options):
            updates += 1
            damping += schedule.damped_updates(options, in_turns=False)
        if number % root_every == 0:
            assert damping >= updates - 1 - 1e-9
    assert damping <= updates + 2 * root_every


@pytest.mark.parametrize("in_turns", [True, False])
@pytest.mark.parametrize("root_every", [1, 10])
def test_nothing_is_damped_where_nothing_is_forgotten(root_every: int, in_turns: bool) -> None:
    options = config(root_every=root_every, factor_decay=1.0)
    assert all(Schedule(number).damped_updates(options, in_turns) == 0 for number in range(1, 200))
