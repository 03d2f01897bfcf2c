"""accumulate_ and parameter_step_: from tensors to a plan of launches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import elements as fields
from . import entry, kept_plans, tuning
from .accumulate import accumulate
from .launch import TYPES, Launch, Plan
from .parameter_step import parameter_step

Constants = Mapping[str, bool]
"""Of a kernel, beside those that follow from the tensors."""

MOST_DIMS = fields.DIMS.value
TENSORS = ("param", "grad", "momentum", "second_moment", "direction", "update", "residual")
"""In the order of their numbers in an entry."""


@dataclass(frozen=True)
class Parameter:
    """A parameter's tensors by name; one that is missing, or has no elements, is left out."""

    number: int
    tensors: Mapping[str, Tensor]

    def layout(self) -> list[tuple[int, dict[str, int]]]:
        """Sizes and strides of the dims in the order of the parameter's memory, merged where they are one."""
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
        """Whether the kernels may take the elements in vectors (elements.py)."""
        dims = self.layout()
        contiguous = len(dims) == 1 and all(stride == 1 for stride in dims[0][1].values())
        whole = self.tensors["param"].numel() % entry.SIZE_MULTIPLE.value == 0
        return contiguous and whole and all(tensor.data_ptr() % 16 == 0 for tensor in self.tensors.values())

    def words(self, first_program: int, first_span: int) -> list[int]:
        """The entry."""
        words = [0] * entry.WIDTH.value
        words[entry.FIRST_PROGRAM.value] = first_program
        words[fields.PARAMETER.value] = self.number
        words[fields.NUMEL.value] = self.tensors["param"].numel()
        words[fields.FIRST_SPAN.value] = first_span
        dims = [(1, dict.fromkeys(self.tensors, 0))] * MOST_DIMS + self.layout()
        for place, (size, strides) in enumerate(dims[-MOST_DIMS:]):
            words[fields.SIZES.value + place] = size
            for name, tensor in self.tensors.items():
                at = fields.TENSORS.value + TENSORS.index(name) * fields.TENSOR_WIDTH.value
                words[at] = tensor.data_ptr()
                words[at + 1 + place] = strides[name]
        return words


def parameters_of(
    op: str, params: Sequence[Tensor], lists: Mapping[str, Sequence[Tensor]]
) -> list[Parameter]:
    """The parameters of an op's lists of tensors, of which each may be empty.

    Raises:
        RuntimeError: a parameter's tensors have too many dims that cannot be merged.
    """
    found = []
    for number, param in enumerate(params):
        tensors = {"param": param}
        tensors |= {name: given[number] for name, given in lists.items() if given and given[number].numel()}
        parameter = Parameter(number, tensors)
        dims = len(parameter.layout())
        if dims > MOST_DIMS:
            raise RuntimeError(
                f"{op}: `params[{number}]` and its tensors must have at most {MOST_DIMS} dims that are not "
                f"contiguous with each other, got {dims}"
            )
        found.append(parameter)
    return found


def accumulate_all(
    params: Sequence[Tensor],
    lists: Mapping[str, Sequence[Tensor]],
    nesterov: bool,
    active: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    """Run `accumulate` on the lists of tensors, by their names in `TENSORS`."""
    constants = {"NESTEROV": nesterov, "HAS_NORMS": bool(len(scalars["norms"]))}
    _run("accumulate_", plan_accumulate, params, lists, constants, active, scalars)


def step_all(
    params: Sequence[Tensor],
    lists: Mapping[str, Sequence[Tensor]],
    nesterov: bool,
    active: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    """Run `parameter_step`, likewise."""
    _run("parameter_step_", plan_parameter_step, params, lists, {"NESTEROV": nesterov}, active, scalars)


def _run(
    op: str,
    make: Callable[[list[Parameter], Constants, str], Plan],
    params: Sequence[Tensor],
    lists: Mapping[str, Sequence[Tensor]],
    constants: Constants,
    active: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    architecture = tuning.architecture_of(active.device)
    symbols = kept_plans.Symbols()
    own, given = symbols.all(params), {name: symbols.all(tensors) for name, tensors in lists.items()}
    key = (op, *constants.values(), architecture, own, *given.items())
    kept_plans.run(
        key, symbols, lambda: make(parameters_of(op, own, given), constants, architecture), active, scalars
    )


def plan_accumulate(parameters: list[Parameter], constants: Constants, architecture: str) -> Plan:
    return _plan(accumulate, parameters, constants, architecture, ("param", "grad"))


def plan_parameter_step(parameters: list[Parameter], constants: Constants, architecture: str) -> Plan:
    return _plan(parameter_step, parameters, constants, architecture, ("param", "direction"))


def _plan(
    kernel: Any,  # noqa: ANN401
    parameters: list[Parameter],
    constants: Constants,
    architecture: str,
    typed: tuple[str, ...],
) -> Plan:
    """One launch for each specialisation: dtypes, which tensors there are, and whether they are flat."""
    plan, config = Plan(), tuning.config(kernel, "elements", "fp32", architecture)
    counts = [-(-p.tensors["param"].numel() // config.constants["SPAN"]) for p in parameters]
    first_spans = list(itertools.accumulate(counts, initial=0))
    classes: dict[tuple[tuple[str, Any], ...], list[Parameter]] = {}
    for parameter in parameters:
        if not counts[parameter.number]:
            continue
        own = dict(constants) | {"FLAT": parameter.flat()}
        own |= {f"{name.upper()}_TYPE": TYPES[parameter.tensors[name].dtype] for name in typed}
        own |= {f"HAS_{name.upper()}": name in parameter.tensors for name in TENSORS}
        own = {name: value for name, value in own.items() if name in kernel.arg_names}
        classes.setdefault(tuple(own.items()), []).append(parameter)
    for key, same in classes.items():
        first, programs = len(plan.words), 0
        for parameter in same:
            plan.words.append(parameter.words(programs, first_spans[parameter.number]))
            programs += counts[parameter.number]
        plan.launches.append(Launch(kernel, config, dict(key), programs, first, len(same)))
    return plan
