"""The share of slow cases that one commit takes."""

from __future__ import annotations

import pytest
from marks import in_turn


@pytest.mark.parametrize("share", [1, 2, 6])
def test_every_case_is_taken_on_some_turn_and_of_every_test_one_on_each(share: int) -> None:
    functions = ["a", "b"] + 3 * ["a"] + 20 * ["c"] + ["b"]
    turns = [in_turn(functions, share, turn) for turn in range(7, 7 + share)]
    assert all(map(any, zip(*turns, strict=True)))
    for taken in turns:
        count = {name: sum(t for f, t in zip(functions, taken, strict=True) if f == name) for name in "abc"}
        assert min(count.values()) >= 1
        assert count["c"] <= -(-20 // share)
