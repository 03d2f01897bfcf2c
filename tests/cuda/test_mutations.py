"""The checks of the kernels' tests notice faults in the source and in compiled PTX."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import inputs
import ptx_executor
import pytest
from marks import slow

from . import mutations
from .mutations import source_faults, survivors, sweep
from .mutations.detection import layers_that_notice
from .mutations.probes import MAKERS, of_kernel
from .mutations.ptx_edits import STRICT
from .mutations.source_faults import Fault
from .mutations.survivors import Survivor

LISTS = sorted(path.stem for path in Path(mutations.__file__).parent.glob("faults_*.py"))
FAULTS = [fault for name in LISTS for fault in importlib.import_module(f"{mutations.__name__}.{name}").FAULTS]
FAULTS += [fault for op in inputs.elementwise().values() for fault in op.faults]

MOST_SURVIVORS = 0.5
"""Share of the edits of masks, addresses and lanes that may go unnoticed where probes execute them: many only
move a value that is not used, or widen a mask where the matrix happens to end."""

MOST_UNREACHED = 0.6
"""Share of the sampled edits in code that no probe executes: 64-bit division where 32 bits do, other
layouts and dtypes of each operand, pairs above the diagonal."""


def name_of(fault: Fault) -> str:
    return f"{fault.kernel}: {fault.name}"


def test_every_kernel_has_a_probe() -> None:
    """One of the kernel's sides and precisions is enough."""
    started, probed = (
        {re.sub(r"_\d+_\w+$", "", name) for name in names} for names in (inputs.kernels(), MAKERS)
    )
    assert started == probed


@pytest.mark.parametrize("fault", FAULTS, ids=name_of)
def test_source_fault_applies(fault: Fault) -> None:
    """A fault whose source has changed fails here, with or without nvcc."""
    source_faults.sources(fault)


@slow
@pytest.mark.parametrize("kernel", MAKERS)
def test_unedited_kernel_passes(kernel: str) -> None:
    """Otherwise every fault would count as noticed."""
    assert not layers_that_notice(sweep.text_of(kernel), kernel, of_kernel(kernel))


@slow
@pytest.mark.parametrize("fault", FAULTS, ids=name_of)
def test_source_fault_is_noticed(fault: Fault) -> None:
    text = ptx_executor.isolate(source_faults.compiled(fault), fault.kernel)
    assert fault.layer in layers_that_notice(text, fault.kernel, of_kernel(fault.kernel))


@pytest.mark.parametrize("survivor", survivors.SURVIVORS, ids=lambda survivor: survivor.place[1].strip())
def test_survivor_names_its_place(survivor: Survivor) -> None:
    survivors.line_of(survivor.place)
    if survivor.caller:
        survivors.line_of(survivor.caller)


@slow
@pytest.mark.parametrize("kernel", sweep.KERNELS)
def test_ptx_edits_are_noticed(kernel: str) -> None:
    text = sweep.text_of(kernel)
    results = sweep.run(kernel, text, sweep.sample(kernel, text))
    print(sweep.table(results))
    strict = [(edit, layers) for edit, layers in results if edit.kind in STRICT]
    unexplained = survivors.unexplained(kernel, strict)
    assert not unexplained, "\n".join(unexplained)
    loose = [layers for edit, layers in results if edit.kind not in STRICT]
    assert loose.count(set()) <= MOST_SURVIVORS * len(loose)
    unreached = [edit for edit, layers in results if layers == {sweep.UNREACHED}]
    assert len(unreached) <= MOST_UNREACHED * len(results)
