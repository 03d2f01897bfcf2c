"""Plans of update_moments_ and apply_updates_: from tensors to launches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import elements, entry
from ..apply_updates import apply_updates
from ..update_moments import update_moments
from . import plan_cache, tuning
from .launch import TYPES, Launch, Plan

Constants = Mapping[str, bool]
"""Constants of a kernel besides those that follow from the tensors."""

MOST_DIMS = elements.DIMS.value
TENSORS = ("param", "grad", "momentum", "second_moment", "direction", "update", "residual")
"""Names of the tensors, in the order of their numbers in an entry."""


@dataclass(frozen=True)
class ElementsParam:
    """A parameter's tensors by name, without those that are missing or have no elements."""

    number: int
    tensors: Mapping[str, Tensor]

    def layout(self) -> list[tuple[int, dict[str, int]]]:
        """Return the dims' sizes and strides in the parameter's memory order, contiguous dims merged."""
        param = self.tensors["param"]
        order = [dim for dim in range(param.ndim) if param.shape[dim] != 1]
        order.sort(key=lambda dim: -param.stride(dim))
        dims: list[tuple[int, dict[str, int]]] = []
        for dim in order:
            size = param.shape[dim]
            strides = {name: tensor.stride(dim) for name, tensor in self.tensors.items()}
            if dims and all(dims[-1][1][name] == stride * size for name, stride in strides.items()):
                dims[-1] = (dims[-1][0] * size, strides)
            else:
                dims.append((size, strides))
        return dims or [(1, dict.fromkeys(self.tensors, 1))]

    def flat(self) -> bool:
        """Return True if the kernels may read the elements in vectors (FLAT in elements.py)."""
        dims = self.layout()
        contiguous = len(dims) == 1 and all(stride == 1 for stride in dims[0][1].values())
        whole = self.tensors["param"].numel() % entry.SIZE_MULTIPLE.value == 0
        return contiguous and whole and all(tensor.data_ptr() % 16 == 0 for tensor in self.tensors.values())

    def fields(self, first_program: int, first_span: int) -> list[int]:
        """Return the fields of the parameter's entry."""
        fields = [0] * entry.WIDTH.value
        fields[entry.FIRST_PROGRAM.value] = first_program
        fields[elements.PARAMETER.value] = self.number
        fields[elements.NUMEL.value] = self.tensors["param"].numel()
        fields[elements.FIRST_SPAN.value] = first_span
        dims = [(1, dict.fromkeys(self.tensors, 0))] * MOST_DIMS + self.layout()
        for dim, (size, strides) in enumerate(dims[-MOST_DIMS:]):
            fields[elements.SIZES.value + dim] = size
            for name, tensor in self.tensors.items():
                at = elements.TENSORS.value + TENSORS.index(name) * elements.TENSOR_WIDTH.value
                fields[at] = tensor.data_ptr()
                fields[at + 1 + dim] = strides[name]
        return fields


def parameters_of(
    op: str, params: Sequence[Tensor], lists: Mapping[str, Sequence[Tensor]]
) -> list[ElementsParam]:
    """Return the parameters of an op's lists of tensors; each list may be empty.

    Raises:
        RuntimeError: a parameter's tensors have too many dims that cannot be merged.
    """
    parameters = []
    for number, param in enumerate(params):
        tensors = {"param": param}
        tensors |= {name: items[number] for name, items in lists.items() if items and items[number].numel()}
        parameter = ElementsParam(number, tensors)
        dims = len(parameter.layout())
        if dims > MOST_DIMS:
            raise RuntimeError(
                f"{op}: `params[{number}]` and its tensors must have at most {MOST_DIMS} dims that are not "
                f"contiguous with each other, got {dims}"
            )
        parameters.append(parameter)
    return parameters


def update_moments_all(
    params: Sequence[Tensor],
    lists: Mapping[str, Sequence[Tensor]],
    nesterov: bool,
    active: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    """Run `update_moments`; `lists`: tensors of all parameters by their names in `TENSORS`."""
    constants = {"NESTEROV": nesterov, "HAS_NORMS": bool(len(scalars["norms"]))}
    _run("update_moments_", plan_update_moments, params, lists, constants, active, scalars)


def step_all(
    params: Sequence[Tensor],
    lists: Mapping[str, Sequence[Tensor]],
    nesterov: bool,
    active: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    """Run `apply_updates`; `lists`: tensors of all parameters by their names in `TENSORS`."""
    _run("apply_updates_", plan_apply_updates, params, lists, {"NESTEROV": nesterov}, active, scalars)


def _run(
    op: str,
    make: Callable[[list[ElementsParam], Constants, str], Plan],
    params: Sequence[Tensor],
    lists: Mapping[str, Sequence[Tensor]],
    constants: Constants,
    active: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    architecture = tuning.architecture_of(active.device)
    specs = plan_cache.SymbolicTensors()
    param_specs = specs.all(params)
    list_specs = {name: specs.all(tensors) for name, tensors in lists.items()}
    key = (op, *constants.values(), architecture, param_specs, *list_specs.items())

    def plan() -> Plan:
        return make(parameters_of(op, param_specs, list_specs), constants, architecture)

    plan_cache.run(key, specs, plan, active, scalars)


def plan_update_moments(parameters: list[ElementsParam], constants: Constants, architecture: str) -> Plan:
    return _plan(update_moments, parameters, constants, architecture, ("param", "grad"))


def plan_apply_updates(parameters: list[ElementsParam], constants: Constants, architecture: str) -> Plan:
    return _plan(apply_updates, parameters, constants, architecture, ("param", "direction"))


def _plan(
    kernel: Any,  # noqa: ANN401
    parameters: list[ElementsParam],
    constants: Constants,
    architecture: str,
    typed: tuple[str, ...],
) -> Plan:
    """Plan one launch for each specialisation: dtypes, the tensors that exist, and FLAT."""
    plan, config = Plan(), tuning.config(kernel, "elements", "fp32", architecture)
    counts = [-(-p.tensors["param"].numel() // config.constants["SPAN"]) for p in parameters]
    first_spans = list(itertools.accumulate(counts, initial=0))
    classes: dict[tuple[tuple[str, Any], ...], list[ElementsParam]] = {}
    for parameter in parameters:
        if not counts[parameter.number]:
            continue
        options = dict(constants) | {"FLAT": parameter.flat()}
        options |= {f"{name.upper()}_TYPE": TYPES[parameter.tensors[name].dtype] for name in typed}
        options |= {f"HAS_{name.upper()}": name in parameter.tensors for name in TENSORS}
        options = {name: value for name, value in options.items() if name in kernel.arg_names}
        classes.setdefault(tuple(options.items()), []).append(parameter)
    for key, same in classes.items():
        first, programs = len(plan.entries), 0
        for parameter in same:
            plan.entries.append(parameter.fields(programs, first_spans[parameter.number]))
            programs += counts[parameter.number]
        plan.launches.append(Launch(kernel, config, dict(key), programs, first, len(same)))
    return plan
