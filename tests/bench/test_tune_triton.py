"""The tuner of Triton's table, bench/tuning/tune_triton.py, without a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.tuning import tune_triton
from kradagrad_ext.triton_kernels import inverse_root
from kradagrad_ext.triton_kernels.plan import tuning


def test_tuner_writes_a_table_that_reads_back(tmp_path: Path) -> None:
    """Measuring needs a GPU. Candidates begin with the present row, which the end of an exchange restores."""
    tune_triton.write(tuning.table(), tmp_path / "table.csv")
    assert tuning.read(tmp_path / "table.csv") == tuning.table()
    for key, row in list(tuning.table().items()):
        first, *others = tune_triton.candidates(key)
        assert first == row
        assert others
        assert row not in others
    key = tuning.Key("inverse_root", "large", "bf16x3", "sm_90")
    with tune_triton.exchanged(key, others[0]):
        assert tuning.config(inverse_root.inverse_root, *key[1:]).warps == others[0].warps
    assert tuning.config(inverse_root.inverse_root, *key[1:]).warps == tuning.table()[key].warps
