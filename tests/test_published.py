"""The published optimizers beyond their golden trajectories: steps by hand, state, errors, odd gradients."""

from __future__ import annotations

import copy
import io
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import parameters, set_gradients

from kradagrad_ext import KrADagrad, PublishedKrADagrad
from kradagrad_ext.published import blocks_of, merged_shape, plain_mode

SHAPES = ((20, 12), (9, 6, 5), (7,), (1,), (1, 1), (), (0, 3))
VARIANTS = ("star", "plain")


def make(params: list[Any], variant: str, **options: Any) -> PublishedKrADagrad:
    return PublishedKrADagrad(params, **{"variant": variant, "lr": 0.02, "block_size": 6} | options)


def train(optimizer: PublishedKrADagrad, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def copied(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def tensors(value: Any) -> list[Tensor]:
    """Return all of a parameter's state in order, numbers as tensors."""
    if isinstance(value, (dict, list)):
        parts = value.values() if isinstance(value, dict) else value
        return [tensor for part in parts for tensor in tensors(part)]
    return [torch.as_tensor(value)]


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.mT


def statistic(tensor: Tensor, mode: int) -> Tensor:
    unfolding = tensor.movedim(mode, 0).flatten(1)
    return unfolding @ unfolding.mT


def test_a_star_step_of_order_3_by_hand() -> None:
    """The step is the paper's, with statistics S, products X S X, sixth roots and the gradient's length."""
    (p,) = parameters((4, 3, 5), dtype=torch.float64)
    start = p.detach().clone()
    optimizer = make([p], "star", matrix_eps=0.5, beta2=0.9)
    set_gradients([p], 0)
    optimizer.step()
    assert p.grad is not None
    roots = []
    for mode, d in enumerate(p.shape):
        s, x = statistic(p.grad, mode), torch.eye(d, dtype=torch.float64) / 0.5 / 0.9
        roots.append(power(x - x @ s @ x / (d * (1 + torch.trace(s @ x))), 1 / 6))
    update = torch.einsum("abc,ia,jb,kc->ijk", p.grad, *roots)
    expected = start - 0.02 * update * p.grad.norm() / update.norm()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0)


def test_two_plain_steps_of_order_3_by_hand() -> None:
    """The first step updates mode 0; the second updates mode 1, after the root of mode 0."""
    (p,) = parameters((4, 3, 5), dtype=torch.float64)
    expected = p.detach().clone()
    optimizer = make([p], "plain", matrix_eps=0.1, beta2=0.9, momentum=0.0)
    roots = [torch.eye(d, dtype=torch.float64) for d in p.shape]
    for mode in range(2):
        set_gradients([p], mode)
        optimizer.step()
        assert p.grad is not None
        others = [torch.eye(len(root)).double() if i == mode else root for i, root in enumerate(roots)]
        s = statistic(torch.einsum("abc,ia,jb,kc->ijk", p.grad, *others), mode)
        x = torch.eye(len(s), dtype=torch.float64) / 0.9
        x = x - 0.1 * x @ x
        roots[mode] = power(x - x @ s @ x / (1 + (x @ s).norm()), 1 / 2)
        expected -= 0.02 * torch.einsum("abc,ia,jb,kc->ijk", p.grad, *roots)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-9)


def test_momentum_and_weight_decay_are_of_the_update() -> None:
    """Before `start_step`, the update is the gradient."""
    (p,) = parameters((6, 4), dtype=torch.float64)
    expected, velocity = p.detach().clone(), torch.zeros(6, 4, dtype=torch.float64)
    optimizer = make([p], "star", momentum=0.5, weight_decay=0.1, start_step=9)
    for step in range(3):
        train(optimizer, [p], range(step, step + 1))
        assert p.grad is not None
        velocity = 0.5 * velocity + p.grad + 0.1 * expected
        expected = expected - 0.02 * velocity
        torch.testing.assert_close(p.detach(), expected)


def test_plain_turns_go_ever_more_often_to_the_longest_mode() -> None:
    turns = [plain_mode(turn, (3, 9, 4)) for turn in range(100)]
    assert turns[:12] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert turns[81:91] == [0, 1, 2, 1, 1, 1, 1, 1, 1, 1]
    late = Counter(turns[49:])
    assert late[1] > 5 * late[0] == 5 * late[2] > 0


def test_plain_roots_are_made_of_all_modes_with_a_turn_since() -> None:
    """Plain roots are made on every third step from the first on, star roots on every third step."""
    refreshed: dict[str, list[list[int]]] = {}
    for variant in VARIANTS:
        (p,) = parameters((6, 6, 6))
        optimizer = make([p], variant, root_every=3)
        refreshed[variant] = []
        for step in range(7):
            before = [root.clone() for root in optimizer.state[p]["roots"][0]] if step else [torch.eye(6)] * 3
            train(optimizer, [p], range(step, step + 1))
            pairs = zip(before, optimizer.state[p]["roots"][0], strict=True)
            refreshed[variant].append([mode for mode, pair in enumerate(pairs) if not torch.equal(*pair)])
    assert refreshed["plain"] == [[0], [], [], [0, 1, 2], [], [], [0, 1, 2]]
    assert refreshed["star"] == [[], [], [0, 1, 2], [], [], [0, 1, 2], []]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_failing_eigendecomposition_changes_nothing(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters before the one whose factor fails stay as well."""
    params = parameters((6, 4), (9, 3))
    optimizer = make(params, variant)
    train(optimizer, params, range(2))
    before, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    eigh = torch.linalg.eigh

    def fails(matrix: Tensor) -> Any:
        if len(matrix) in (9, 3):
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(torch.linalg.LinAlgError):
        train(optimizer, params, range(2, 3))
    for p, value in zip(params, values, strict=True):
        assert torch.equal(p, value)
    torch.testing.assert_close(optimizer.state_dict()["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_are_symmetric_to_the_bit(variant: str) -> None:
    (p,) = parameters((61, 47))
    optimizer = make([p], variant, block_size=64)
    train(optimizer, [p], range(6))
    for factor in optimizer.state[p]["factors"][0]:
        assert torch.equal(factor, factor.mT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_is_for_the_model(variant: str) -> None:
    plain, under_autocast = parameters((20, 12)), parameters((20, 12))
    train(make(plain, variant), plain, range(3))
    with torch.autocast("cpu", torch.bfloat16):
        train(make(under_autocast, variant), under_autocast, range(3))
    assert torch.equal(plain[0], under_autocast[0])


@pytest.mark.parametrize(
    ("shape", "merged"),
    [
        ((), []),
        ((1, 1), []),
        ((8, 8), [64]),
        ((64, 3, 3, 3), [64, 27]),
        ((1, 70, 1), [70]),
        ((70, 2), [70, 2]),
    ],
)
def test_merging(shape: tuple[int, ...], merged: list[int]) -> None:
    assert merged_shape(shape, 64) == merged


def test_blocks_are_cut_row_by_row_with_the_rest_last() -> None:
    blocks = blocks_of(torch.arange(35).reshape(5, 7), 4)
    assert [tuple(block.shape) for block in blocks] == [(4, 4), (4, 3), (1, 4), (1, 3)]
    assert [int(block.flatten()[0]) for block in blocks] == [0, 4, 28, 32]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_resumed_run_equals_the_unbroken_one(dtype: torch.dtype, variant: str) -> None:
    """Every kind of parameter resumes; bfloat16 ones have their state in float32."""
    options = {"root_every": 3, "factor_every": 2, "beta2": 0.95}
    unbroken = parameters(*SHAPES, dtype=dtype)
    optimizer = make(unbroken, variant, **options)
    train(optimizer, unbroken, range(5))
    resumed = [nn.Parameter(p.detach().clone()) for p in unbroken]
    other = make(resumed, variant, lr=1.0)
    other.load_state_dict(copied(optimizer.state_dict()))
    train(optimizer, unbroken, range(5, 12))
    train(other, resumed, range(5, 12))
    for p, q in zip(unbroken, resumed, strict=True):
        assert torch.equal(p, q)
        for expected, loaded in zip(tensors(optimizer.state[p]), tensors(other.state[q]), strict=True):
            assert torch.equal(expected, loaded)
            assert expected.dtype == loaded.dtype
    assert unbroken[0].isfinite().all()


def test_a_loaded_state_is_not_shared() -> None:
    saved, loaded = parameters((6, 4)), parameters((6, 4))
    optimizer, other = make(saved, "star"), make(loaded, "star")
    train(optimizer, saved, range(2))
    other.load_state_dict(optimizer.state_dict())
    before = [tensor.clone() for tensor in tensors(other.state[loaded[0]])]
    train(optimizer, saved, range(2, 4))
    assert all(map(torch.equal, tensors(other.state[loaded[0]]), before))


def test_a_state_dict_of_another_optimizer_is_refused() -> None:
    params = parameters((6, 4))
    optimizer = make(params, "star")
    with pytest.raises(ValueError, match=r"a parameter group lacks the options \['variant', 'momentum'"):
        optimizer.load_state_dict(KrADagrad(params).state_dict())
    train(optimizer, params, range(1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float, variant: str) -> None:
    """The parameter with it stays, the other one steps, and later steps are as if it had not come."""
    params, spared = parameters((20, 12), (7,)), parameters((20, 12), (7,))
    optimizer, other = make(params, variant, root_every=2), make(spared, variant, root_every=2)
    train(optimizer, params, range(3))
    train(other, spared, range(3))
    set_gradients(params, 3)
    assert params[0].grad is not None
    params[0].grad[3, 4] = value
    before = params[1].detach().clone()
    optimizer.step()
    assert not torch.equal(params[1], before)
    train(optimizer, params[:1], range(4, 8))
    train(other, spared[:1], range(4, 8))
    assert torch.equal(params[0], spared[0])
    assert all(map(torch.equal, tensors(optimizer.state[params[0]]), tensors(other.state[spared[0]])))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_without_a_gradient(variant: str) -> None:
    """The parameter and its state stay; a late first gradient creates the state."""
    params = parameters((6, 4), (5, 3))
    optimizer = make(params, variant)
    set_gradients(params, 0)
    params[1].grad = None
    start = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], start)
    assert params[1] not in optimizer.state
    train(optimizer, params, range(1, 4))
    assert optimizer.state[params[0]]["step"] == 4
    assert optimizer.state[params[1]]["step"] == 3
    assert not torch.equal(params[1], start)


def test_factors_that_would_overflow_stay_finite() -> None:
    """A direction without a gradient grows by 1 / beta2 a step."""
    (p,) = parameters((6, 4))
    optimizer = make([p], "star", beta2=1e-3)
    for _ in range(20):
        p.grad = torch.zeros_like(p)
        p.grad[0, 0] = 1.0
        optimizer.step()
    assert p.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in tensors(optimizer.state[p]))


def test_closures_groups_and_tensors_as_learning_rates() -> None:
    """Each group steps by its options; the closure's loss is returned, and its gradients are used."""
    grouped, separate = parameters((6, 4), (5, 3)), parameters((6, 4), (5, 3))
    groups = [{"params": grouped[:1]}, {"params": grouped[1:], "variant": "plain", "lr": torch.tensor(0.5)}]
    optimizer = make(groups, "star")

    def closure() -> Tensor:
        loss = sum((p.square().sum() for p in grouped), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        return loss

    expected = float(sum(p.detach().square().sum() for p in grouped))
    assert float(optimizer.step(closure).detach()) == pytest.approx(expected)
    for p, q in zip(grouped, separate, strict=True):
        q.grad = p.grad
    make(separate[:1], "star").step()
    make(separate[1:], "plain", lr=0.5).step()
    assert all(map(torch.equal, grouped, separate))


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("variant", "moon", "one of ('star', 'plain')"),
        ("lr", -1.0, "a number >= 0 that float32 holds, or a one-element tensor"),
        ("momentum", 1.0, "a number in [0, 1)"),
        ("matrix_eps", 0.0, "a number > 0"),
        ("beta2", 0.0, "a number in (0, 1]"),
        ("block_size", 2.5, "an integer >= 1"),
        ("root_every", 0, "an integer >= 1"),
        ("factor_every", True, "an integer >= 1"),
        ("start_step", -1, "an integer >= 0"),
        ("weight_decay", math.nan, "a number >= 0"),
        ("ons_exponent", 1, "a bool"),
    ],
)
def test_bad_options_are_named(option: str, value: object, expected: str) -> None:
    params = parameters((6, 4))
    with pytest.raises(ValueError, match="KrADagrad: ") as caught:
        make(params, **{"variant": "star", option: value})
    assert str(caught.value) == f"KrADagrad: `{option}` must be {expected}, got {value!r}"
    optimizer = make(params, "star")
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        optimizer.add_param_group({"params": parameters((3, 3)), option: value})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0][option] = value
    start = params[0].detach().clone()
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        train(optimizer, params, range(1))
    assert torch.equal(params[0], start)


def sparse(p: nn.Parameter) -> Tensor:
    return torch.ones_like(p).to_sparse()


@pytest.mark.parametrize(
    ("convert", "got"),
    [
        (lambda p: p.half(), "strided float16"),
        (lambda p: p.cfloat(), "strided complex64"),
        (sparse, "sparse_coo"),
    ],
)
def test_tensors_of_other_kinds_are_refused(convert: Callable[[Tensor], Tensor], got: str) -> None:
    """A parameter is refused at once, a gradient before any parameter changes."""
    (p,) = parameters((6, 4))
    message = f"must be dense float32, float64 or bfloat16, got {got}"
    with pytest.raises(TypeError, match=f"parameter 0 of parameter group 0 {message}"):
        make([convert(p.detach())], "star")
    if got == "sparse_coo":
        params = parameters((5, 3), (6, 4))
        optimizer = make(params, "star")
        set_gradients(params, 0)
        params[1].grad = convert(params[1])
        start = params[0].detach().clone()
        with pytest.raises(TypeError, match=f"the gradient of parameter 1 of parameter group 0 {message}"):
            optimizer.step()
        assert torch.equal(params[0], start)


@pytest.mark.parametrize("option", ["variant", "matrix_eps"])
def test_the_main_optimizer_lacks_these_options(option: str) -> None:
    with pytest.raises(TypeError, match=f"keywords must be options, got `{option}`"):
        KrADagrad(parameters((6, 4)), **{option: "star"})
