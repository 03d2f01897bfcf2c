"""Triton's kernels for every row of the tuning table: registers, memory and instructions, without a GPU.

The specialisations are those that the package's plans launch with the default recipe, and with the
recipe that needs the trace of a square.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cuda import binaries as cuda_binaries
from cuda.binaries import Binary, Shape
from inputs import apply_updates as apply_updates_inputs
from inputs import square_root
from inputs import update_moments as update_moments_inputs

from kradagrad_ext.backends import square_root_triton
from kradagrad_ext.triton_kernels.plan import elements, groups, square_root_step, tuning
from kradagrad_ext.triton_kernels.square_root_resident import square_root_resident

from .compiled import compiled, launch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
PRECISIONS = ("bf16x3", "tf32x3", "fp32")
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
"""Instruction of products with tiles of 64 and more, by architecture."""


@dataclass(frozen=True)
class Made:
    """A compiled specialisation.

    Args:
        shape: the shape class of the tuning table's row.
    """

    kernel: str
    shape: str
    constants: dict[str, Any]
    binary: Binary
    launched: Shape


def tensor_cores(of: Made, architecture: str) -> str | None:
    """Return the instruction that a kernel's products must use; None if it has no such products."""
    if of.constants.get("PRECISION") in (None, "fp32") or of.constants.get("STEP") == "only":
        return None
    if of.kernel == "square_root_resident" and int(of.shape) < 64 and not architecture.startswith("gfx"):
        return "HMMA"
    return TENSOR_CORES[architecture]


SHAPES = {
    **{str(side): [(side, side)] for side in tuning.PADDED},
    "small": [(128, 128)],
    "large": [(256, 256)],
}
"""Shapes by shape class, read in vectors of 16 bytes."""
RAGGED_SHAPES = {"16": [(15, 9)], "32": [(31, 9)], "small": [(127, 70)]}
"""Shapes whose rows start at any address; the other classes have none."""


def _square_root_plans(precision: str, architecture: str) -> Iterator[tuple[str, launch.Plan]]:
    """Yield plans of the square-root form with every step of its iteration."""
    for name, aligned in SHAPES.items():
        if name.isdigit() and not tuning.has(square_root_resident, name, precision, architecture):
            continue
        for refine, coupled, shapes in (
            (3, True, aligned + RAGGED_SHAPES.get(name, [])),
            (1, False, aligned),
        ):
            batches = [
                square_root_triton._of_kernels(square_root.group(2, shape), 0, True) for shape in shapes
            ]
            rule = groups.StepRule(refine, coupled, True, precision, architecture)
            yield name, square_root_step.plan_groups(batches, rule)


def _plans(precision: str, architecture: str) -> Iterator[tuple[str, launch.Plan]]:
    """Yield plans that launch every kernel, with their shape classes."""
    yield from _square_root_plans(precision, architecture)
    if precision != "fp32":
        return
    tensors = update_moments_inputs.make(torch.float32)
    lists = {"grad": tensors.grads, "momentum": tensors.momenta, "second_moment": tensors.second_moments}
    parameters = elements.parameters_of("", tensors.params, lists)
    yield (
        "elements",
        elements.plan_update_moments(parameters, {"NESTEROV": False, "HAS_NORMS": True}, architecture),
    )
    tensors = apply_updates_inputs.make(torch.float32)
    lists = {
        "update": tensors.updates,
        "direction": tensors.directions,
        "second_moment": tensors.second_moments,
    }
    parameters = elements.parameters_of("", tensors.params, lists)
    yield "elements", elements.plan_apply_updates(parameters, {"NESTEROV": False}, architecture)


@functools.cache
def launches(precision: str, architecture: str) -> tuple[tuple[str, launch.Launch], ...]:
    """Return every specialisation once, by shape class; none for a precision that the architecture lacks."""
    if tuning.served(precision, architecture) != precision:
        return ()
    unique = {
        (shape, item.kernel.__name__, item.config, tuple(item.constants.items())): (shape, item)
        for shape, plan in _plans(precision, architecture)
        for item in plan.launches
    }
    return tuple(unique.values())


@functools.cache
def made(precision: str, architecture: str) -> tuple[Made, ...]:
    """Return all specialisations, compiled."""
    return tuple(
        Made(
            item.kernel.__name__, shape, item.constants | item.config.constants, *_binary(item, architecture)
        )
        for shape, item in launches(precision, architecture)
    )


def _binary(item: launch.Launch, architecture: str) -> tuple[Binary, Shape]:
    result = compiled(item, architecture)
    threads = result.metadata.num_warps * result.metadata.warp_size
    read = _read_amd if architecture.startswith("gfx") else _read_cubin
    return read(result), Shape(threads, result.metadata.shared)


def _read_cubin(result: Any) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        path = Path(file.name)
        ((_, *numbers),) = cuda_binaries.USAGE.findall(cuda_binaries.dump(path, "-res-usage"))
        code = cuda_binaries.count_instructions(cuda_binaries.dump(path, "-sass"))
    code["ftz"] = result.asm["ptx"].count(".ftz")
    registers, stack, _, local = map(int, numbers)
    return Binary(registers, stack, local, 0, code)


def _read_amd(result: Any) -> Binary:
    """Return a kernel's use of the GPU, with the scratch memory of a lane as its stack.

    Scalar registers spill into vector registers, not to memory.
    """
    text = result.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

    code = cuda_binaries.Counter(re.findall(r"^\s+(v_mfma|scratch_load|scratch_store)", text, re.MULTILINE))
    return Binary(
        number("vgpr_count"), number("private_segment_fixed_size"), number("vgpr_spill_count"), 0, code
    )
