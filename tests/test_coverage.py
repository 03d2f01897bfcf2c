"""Options without effect are refused, and parameters that are not preconditioned are reported."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kradagrad_ext import KrADagrad, PublishedKrADagrad


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("weight_decy", "weight_decay"),
        ("beta", "betas"),
        ("momentum", "momentum_on"),
        ("blocksize", "block_size"),
        ("precondtion", "precondition"),
        ("LR", None),
        ("lr0", None),
        ("initial_lr", None),
        ("max_lr", None),
        ("lr_scale", None),
        ("base_momentum", None),
        ("name", None),
    ],
)
def test_misspelt_keys_of_a_parameter_group(key: str, meant: str | None) -> None:
    """Other keys are kept: schedulers and trainers store theirs in a group."""
    group = {"params": parameters((4, 4)), key: 0.1}
    if meant is None:
        assert KrADagrad([group]).param_groups[0][key] == 0.1
        return
    with pytest.raises(
        ValueError, match=f"`{key}` of parameter group 0 must be an option; is `{meant}` meant"
    ):
        KrADagrad([group])
    optimizer = KrADagrad(parameters((4, 4)))
    with pytest.raises(ValueError, match=f"`{key}` of parameter group 1"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


def test_split_dim_alone() -> None:
    with pytest.raises(ValueError, match="`split_dim` must come with `split`, got 1 alone"):
        KrADagrad(parameters((4, 4)), split_dim=1)


@pytest.mark.parametrize(
    ("shapes", "options", "sound"),
    [
        ([(4, 4)], {}, False),
        ([(4, 4), (8,)], {}, False),
        ([(4, 4)], {"precondition_1d": True}, True),
        ([(4, 9, 9), (4, 9)], {}, True),
    ],
)
def test_batch_dims_of_matrices(shapes: list[tuple[int, ...]], options: dict[str, Any], sound: bool) -> None:
    """Experts' biases may share a group with their weights; a group without a matrix is a mistake."""
    if sound:
        KrADagrad(parameters(*shapes), batch_dims=1, **options)
        return
    with pytest.raises(
        ValueError, match="`batch_dims` must leave a matrix of some parameter of parameter group 0"
    ):
        KrADagrad(parameters(*shapes), batch_dims=1, **options)


def test_factors_shorter_than_blocks() -> None:
    message = r"`max_factor_dim` should be at least `block_size` \(16\), got 8"
    with pytest.warns(UserWarning, match=message) as first:
        optimizer = KrADagrad(parameters((8, 8)), block_size=16, max_factor_dim=8)
    with pytest.warns(UserWarning, match=message) as second:
        optimizer.add_param_group({"params": parameters((8, 8))})
    assert [warning.filename for warning in (*first, *second)] == [__file__] * 2, (
        "the line to look at is the user's"
    )


@pytest.mark.parametrize("group", ["world", 2, object()])
def test_an_invalid_process_group(group: object) -> None:
    with pytest.raises(
        ValueError, match="`process_group` must be None or a process group of which this rank"
    ):
        KrADagrad(parameters((4, 4)), process_group=group)


def test_a_process_group_of_other_ranks() -> None:
    with pytest.raises(ValueError, match="`process_group` must be"):
        KrADagrad(parameters((4, 4)), process_group=dist.GroupMember.NON_GROUP_MEMBER)


FLAT = (1 << 16,)
LEFT_OUT = [
    ([FLAT, (30, 30)], {}, "parameter 0 of parameter group 0 .*one-dimensional: a flat shard"),
    (
        [(30, 30), (4, 500)],
        {"max_factor_dim": 2, "block_size": 2},
        "all sides are longer than `max_factor_dim`",
    ),
    (
        [(3, 3, 3), (90, 20)],
        {"batch_dims": 1},
        "parameter 1 of parameter group 0 .*`batch_dims` leaves vectors",
    ),
]


@pytest.mark.parametrize(("shapes", "options", "reason"), LEFT_OUT)
def test_left_out_parameters_are_reported(
    shapes: list[tuple[int, ...]], options: dict[str, Any], reason: str
) -> None:
    message = f"elements of matrices are preconditioned; left out: .*{reason}"
    with pytest.warns(UserWarning, match=message) as caught:
        KrADagrad(parameters(*shapes), **options)
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.raises(ValueError, match=reason):
        KrADagrad(parameters(*shapes), **options, strict=True)
    optimizer = KrADagrad(parameters((8, 8)), strict=True)
    with pytest.raises(ValueError, match=reason.replace("group 0", "group 1")):
        optimizer.add_param_group({"params": parameters(*shapes), **options})
    assert len(optimizer.param_groups) == 1


def test_names_are_those_of_named_parameters() -> None:
    (flat,) = parameters(FLAT)
    with pytest.raises(ValueError, match=r"left out: layers\.0\.flat_weight \[65536\]"):
        KrADagrad([("layers.0.flat_weight", flat)], strict=True)


def test_expected_omissions_are_not_reported() -> None:
    """Vectors, groups with `precondition` False, a small share, empty parameters, and a model of vectors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        KrADagrad(parameters((400, 300), (300,), (5,), (0, 7)), strict=True)
        KrADagrad(parameters((7,), ()), strict=True)
        KrADagrad([{"params": parameters(FLAT), "precondition": False}], strict=True)
        KrADagrad(parameters((9000, 100), (9000, 8500 // 850)), strict=True)
        KrADagrad(parameters((1 << 20, 4)), strict=True)
    assert not caught


@pytest.mark.parametrize("copied", [False, True])
def test_matrices_that_become_one_flat_vector_are_refused(copied: bool) -> None:
    """DeepSpeed's ZeRO replaces the parameters of a group after the optimizer was created."""
    optimizer = KrADagrad([{"params": parameters((5,))}, {"params": parameters((30, 30), (30,))}])
    optimizer = copy.deepcopy(optimizer) if copied else optimizer
    flat = torch.zeros(930, requires_grad=True)
    flat.grad = torch.ones(930)
    optimizer.param_groups[1]["params"] = [flat]
    message = r"parameter group 1 must keep its matrices, got a flat vector \[930\] in their place"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert not flat.any()
    assert not optimizer.state


def test_groups_of_vectors_may_follow_groups_that_are_gone() -> None:
    """A group that never had a matrix takes any vector, wherever it is in the list."""
    (matrix,) = parameters((30, 30))
    vector = torch.zeros(30, requires_grad=True)
    optimizer = KrADagrad([{"params": [matrix]}, {"params": [vector]}])
    del optimizer.param_groups[0]
    vector.grad = torch.ones(30)
    optimizer.step()
    assert vector.any()


def test_a_vector_may_be_what_is_left_of_a_group() -> None:
    matrix, vector = parameters((30, 30), (30,))
    optimizer = KrADagrad([matrix, vector])
    vector.grad = torch.ones(30)
    optimizer.param_groups[0]["params"] = [vector]
    before = vector.detach().clone()
    optimizer.step()
    assert not torch.equal(vector, before)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_strict_is_a_bool(value: object) -> None:
    with pytest.raises(ValueError, match="`strict` must be a bool"):
        KrADagrad(parameters((4, 4)), strict=value)


def test_published_merges_matrices_into_vectors() -> None:
    """It warns: the authors' code merges too, which few users expect."""
    with pytest.warns(
        UserWarning, match=r"`block_size` 128 merges parameter 0 of parameter group 0 \[8, 8\]"
    ):
        PublishedKrADagrad(parameters((8, 8)), variant="star", lr=0.1)


@pytest.mark.parametrize("how", ["load", "copy", "pickle"])
def test_constructor_options_outlive_copies(how: str) -> None:
    optimizer = KrADagrad(parameters((8, 8)), strict=True, amp_scaling=True)
    if how == "load":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        optimizer = copy.deepcopy(optimizer) if how == "copy" else pickle.loads(pickle.dumps(optimizer))
    assert optimizer._step_supports_amp_scaling
    with pytest.raises(ValueError, match="one-dimensional"):
        optimizer.add_param_group({"params": parameters(FLAT)})
