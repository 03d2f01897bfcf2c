"""Factors and roots in half the memory: the same triangles, the same steps, and the bytes that are saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import TRAJECTORY
from training import SHAPES, SMALL, parameters, relative_difference, train

from kradagrad_ext import KrADagrad, linalg, packed
from kradagrad_ext.blocking import blocking_of, group_by_shape
from kradagrad_ext.config import Config

pytestmark = pytest.mark.filterwarnings("ignore:KrADagrad. .* of the elements of matrices are")


@given(n=st.integers(0, 4), d=st.integers(0, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_packing_keeps_every_bit_of_a_symmetric_matrix(n: int, d: int, dtype: torch.dtype) -> None:
    matrices = torch.randn(n, d, d, generator=torch.Generator().manual_seed(d)).to(dtype)
    symmetric = torch.tril(matrices) + torch.tril(matrices, -1).mT
    triangles = linalg.pack_lower(symmetric)
    assert triangles.shape == (n, d * (d + 1) // 2)
    assert linalg.side_of(triangles.shape[-1]) == d
    assert torch.equal(linalg.unpack_lower(triangles, d), symmetric)


@given(n=st.integers(0, 4), d=st.integers(0, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_packing_keeps_every_bit_of_a_triangular_matrix(n: int, d: int, dtype: torch.dtype) -> None:
    upper = torch.randn(n, d, d, generator=torch.Generator().manual_seed(d)).to(dtype).triu()
    triangles = linalg.pack_upper(upper)
    assert triangles.shape == (n, d * (d + 1) // 2)
    assert torch.equal(linalg.unpack_upper(triangles, d), upper)


def test_packing_goes_row_by_row() -> None:
    matrix = torch.tensor([[1, 2, 4], [2, 3, 5], [4, 5, 6]])
    assert linalg.pack_lower(matrix[None]).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert linalg.pack_upper(matrix.triu()[None]).tolist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("whole_bytes", [1, 1500, packed.WHOLE_BYTES], ids=str)
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"factor_update": "products", "root_method": "polar"},
        {"max_factor_dim": 10, "merge_dims": False},
        {"root_dtype": torch.bfloat16, "factor_dtype": torch.bfloat16},
        {"precondition_1d": True, "start_step": 4, "factor_every": 2},
    ],
    ids=str,
)
def test_steps_are_those_of_whole_matrices(
    recipe: dict[str, Any], whole_bytes: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of blocks that are whole at once does not matter. Steps agree to rounding only, since a
    root's other triangle is not kept."""
    monkeypatch.setattr(packed, "WHOLE_BYTES", whole_bytes)
    ours, whole = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = KrADagrad(ours, **(SMALL | recipe), packed=True, backend=backend)
    other = KrADagrad(whole, **(SMALL | recipe), backend=backend)
    train(optimizer, ours, range(20))
    train(other, whole, range(20))
    loose = TRAJECTORY[recipe.get("root_dtype", torch.float32)]
    assert relative_difference(ours, whole) < loose
    for p, q in zip(ours, whole, strict=True):
        for key, stored in optimizer.state[p].items():
            if key.startswith("factor_") and "stats" not in key:
                f = other.state[q][key].double()
                by_products = recipe.get("factor_update") == "products"
                assert stored.ndim == (3 if by_products else 2)
                ours_ = (stored if by_products else linalg.unpack_upper(stored, f.shape[-1])).double()
                gap = (ours_ @ ours_.mT - f @ f.mT).norm()
                assert float(gap) <= 0.05 * float((f @ f.mT).norm())


@pytest.mark.parametrize("root_dtype", [None, torch.bfloat16])
def test_half_the_bytes(root_dtype: torch.dtype | None) -> None:
    """Factors and roots take half the bytes, apart from the diagonals."""

    def bytes_of(**options: Any) -> int:
        params = parameters((256, 512))
        optimizer = KrADagrad(params, block_size=128, root_dtype=root_dtype, **options)
        train(optimizer, params, range(1))
        state = optimizer.state[params[0]]
        tensors = [t for key, t in state.items() if key.startswith(("factor", "root")) and "stats" not in key]
        return sum(t.numel() * t.element_size() for t in tensors)

    assert bytes_of(packed=True) / bytes_of() == (128 + 1) / (2 * 128)


def test_a_resumed_run_equals_the_unbroken_one(backend: str) -> None:
    unbroken, resumed = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = KrADagrad(unbroken, **SMALL, packed=True, backend=backend)
    train(optimizer, unbroken, range(5))
    for p, q in zip(unbroken, resumed, strict=True):
        q.data.copy_(p.data)
    other = KrADagrad(resumed, **SMALL, packed=True, backend=backend)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, unbroken, range(5, 9))
    train(other, resumed, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))
    whole = KrADagrad(resumed, **SMALL, backend=backend)
    with pytest.raises(ValueError, match="`packed` of parameter group 0 must be False"):
        whole.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("to_triangles", [False, True])
def test_a_checkpoint_of_another_kind_of_device_has_the_same_factors(
    to_triangles: bool, dtype: torch.dtype
) -> None:
    """Cholesky updates store triangles, updates by products store whole matrices; F F^T must be the same."""
    updates = ("products", "cholesky") if to_triangles else ("cholesky", "products")
    params, other = parameters(*SHAPES), parameters(*SHAPES)
    options = {**SMALL, "packed": True, "factor_dtype": dtype if dtype == torch.bfloat16 else None}
    saved, loaded = (
        KrADagrad(tensors, factor_update=update, **options)
        for tensors, update in zip((params, other), updates, strict=True)
    )
    train(saved, params, range(4))
    state_dict = saved.state_dict()
    state_dict["param_groups"][0]["factor_update"] = updates[1]
    loaded.load_state_dict(state_dict)
    for p, q in zip(params, other, strict=True):
        for key, factor in saved.state[p].items():
            if key.startswith("factor_") and "stats" not in key:
                pair = (factor, loaded.state[q][key])
                assert {t.ndim for t in pair} == {2, 3}
                before, after = (
                    linalg.unpack_upper(t, linalg.side_of(t.shape[-1])).double()
                    if t.ndim == 2
                    else t.double()
                    for t in pair
                )
                error = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
                torch.testing.assert_close(
                    before @ before.mT, after @ after.mT, rtol=error, atol=error * float(before.norm()) ** 2
                )
    train(loaded, other, range(4, 8))
    assert all(p.isfinite().all() for p in other)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    most=st.integers(1, 40_000),
)
def test_runs_hold_every_member_once_and_stay_within_the_bound(
    shapes: list[tuple[int, int]], most: int
) -> None:
    config = Config.of(KrADagrad([torch.zeros(1)], block_size=8, packed=True).param_groups[0])
    groups = group_by_shape([blocking_of(shape, config) for shape in shapes])
    sizes = [group.state_bytes() // group.blocks for group in groups]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "WHOLE_BYTES", most)
        cut = list(packed.batches(groups, sizes))
    stepped = [(run.group, index) for runs in cut for run in runs for index in range(run.first, run.last)]
    expected = [(number, index) for number, group in enumerate(groups) for index in range(len(group.members))]
    assert stepped == expected
    for runs in cut:
        members = [(run.group, m) for run in runs for m in groups[run.group].members[run.first : run.last]]
        run_bytes = [sizes[number] * member.grid.blocks for number, member in members]
        assert len(run_bytes) == 1 or sum(run_bytes) <= most
