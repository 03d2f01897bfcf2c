"""Sort a model's parameters into parameter groups by their modules, names and shapes.

    optimizer = KrADagrad(param_groups(model), lr=1e-2, weight_decay=0.1)

The first rule that applies decides: patterns of the user first, then built-in rules. A property that names
and shapes do not prove, such as the parts of a fused matrix, is not guessed: the parameter is left as it is.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .tables import aligned

Options = Mapping[str, Any]

KINDS: dict[str, Options] = {
    "matrices": {},
    "fused": {},
    "experts": {},
    "embeddings": {"precondition": False},
    "heads": {"precondition": False},
    "norms": {"precondition": False, "weight_decay": 0.0},
    "biases": {"precondition": False, "weight_decay": 0.0},
    "vectors": {"precondition": False, "weight_decay": 0.0},
}
"""Kinds of parameters and the options of each; `split` and `batch_dims` follow from shapes."""

HEADS = ("lm_head", "head", "classifier", "score", "output_layer", "embed_out")
FUSED_BY_PART = ("c_attn", "qkv", "qkv_proj", "to_qkv", "Wqkv", "in_proj_weight")
FUSED_BY_HEAD = ("query_key_value",)
FUSED_BY_GROUP = ("linear_qkv",)
GATE_AND_UP = ("gate_up_proj",)
GATED_BY_CONFIG = ("linear_fc1",)
"""Last parts of modules' names, or of parameters' names that do not end with `weight` or `bias`."""


@dataclass
class NamedParam:
    """One parameter of a model, with all its names.

    Attributes:
        module, owner: the parameter's module, and the module that contains that one.
        kind, options: the decision of the rules.
    """

    names: list[str]
    parameter: Tensor
    module: nn.Module
    owner: nn.Module
    kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def matched_name(self) -> str:
        """The part of the name that tables match: the module's for a `weight` or `bias`, else the last."""
        *path, last = self.name.split(".")
        return path[-1] if path and last in ("weight", "bias") else last

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    def in_a_layer(self) -> bool:
        """True if a part of its name is a number, which counts modules of the same kind."""
        return any(part.isdigit() for part in self.name.split("."))


def param_groups(
    model: nn.Module,
    *,
    rules: Mapping[str, str | Options] | None = None,
    options: Mapping[str, Options] | None = None,
    frozen: bool = False,
    show: Callable[[str], object] | None = print,
) -> list[dict[str, Any]]:
    """Return parameter groups for `KrADagrad`: a list of dicts with ``params``, ``name`` and options.

    ============ ================================================== ===================================
    kind         which                                              options
    ============ ================================================== ===================================
    matrices     all that match no other rule                       none
    fused        queries, keys and values, or gate and up, in one   ``split``, if shapes determine it
    experts      3-D weights of a module of experts                 ``batch_dims=1``, ``split``
    embeddings   of embedding classes, or with "embed" in the name  ``precondition=False``
    heads        output embeddings, classifiers                     ``precondition=False``
    norms        of modules with "Norm" in their class's name       the same, ``weight_decay=0``
    biases       with names that end with "bias"                    the same
    vectors      all others with fewer than two dims of 2 or more   the same
    ============ ================================================== ===================================

    A tied weight, such as a head that is also the embedding, appears once, under its first name.

    Args:
        model: any module; its parameters may be on the meta device, or DTensors.
        rules: pattern (see `fnmatch`) of parameters' full names -> a kind, or options that are added to
            those that the parameter has otherwise. The first pattern that matches counts.
        options: kind -> options that are added to the kind's options.
        frozen: include parameters that take no gradient.
        show: called with a table of the groups; None to turn it off.

    Raises:
        TypeError: `model` is no module.
        ValueError: a pattern matches nothing, a kind does not exist, or there is nothing to train.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"param_groups: `model` must be a torch.nn.Module, got {type(model).__name__}")
    rules, options = rules or {}, options or {}
    for kind in [*options, *(rule for rule in rules.values() if isinstance(rule, str))]:
        if kind not in KINDS:
            raise ValueError(f"param_groups: a kind must be one of {', '.join(KINDS)}, got {kind!r}")
    all_params = list(_parameters(model))
    for pattern in rules:
        if not any(fnmatch.fnmatchcase(name, pattern) for param in all_params for name in param.names):
            raise ValueError(
                f"param_groups: `rules` must match parameters of the model, {pattern!r} does not"
            )
    params = [param for param in all_params if param.parameter.requires_grad or frozen]
    if not params:
        raise ValueError(
            f"param_groups: `model` must have parameters to train, got {len(all_params)} frozen ones"
        )
    heads = _output_embeddings(model)
    for param in params:
        _decide(param, model, heads, rules, options)
    groups = _gather(params)
    if show is not None:
        show(_table(groups, [param for param in all_params if param not in params]))
    return [
        {"params": [param.parameter for param in members], "name": name, **members[0].options}
        for name, members in groups.items()
    ]


def _parameters(model: nn.Module) -> Iterator[NamedParam]:
    """Yield every parameter once, with all its names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    params: dict[int, NamedParam] = {}
    for path, module in modules.items():
        owner = modules.get(path.rpartition(".")[0], model)
        for last, p in module.named_parameters(recurse=False):
            name = f"{path}.{last}" if path else last
            if id(p) in params:
                params[id(p)].names.append(name)
            else:
                params[id(p)] = NamedParam([name], p, module, owner)
    yield from params.values()


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """Return the module that a model of transformers names as its output embeddings; None without one."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def _decide(
    param: NamedParam,
    model: nn.Module,
    heads: nn.Module | None,
    rules: Mapping[str, str | Options],
    options: Mapping[str, Options],
) -> None:
    """Set the kind and options of one parameter."""
    matching = (
        rule for pattern, rule in rules.items() if any(fnmatch.fnmatchcase(n, pattern) for n in param.names)
    )
    chosen = next(matching, None)
    param.kind = chosen if isinstance(chosen, str) else _kind(param, heads)
    param.options = dict(KINDS[param.kind])
    if param.kind in ("fused", "experts"):
        param.options |= _split_options(param, model)
    param.options |= options.get(param.kind, {})
    if isinstance(chosen, Mapping):
        param.options |= chosen


def _kind(param: NamedParam, heads: nn.Module | None) -> str:
    class_name = type(param.module).__name__
    if isinstance(param.module, (nn.Embedding, nn.EmbeddingBag)) or class_name.endswith("Embedding"):
        return "embeddings"
    if param.name.split(".")[-1].endswith("bias"):
        return "biases"
    if "Norm" in class_name and "Linear" not in class_name:  # some classes are a norm and a linear layer
        return "norms"
    if sum(size != 1 for size in param.shape) < 2:
        return "vectors"
    if param.module is heads or (param.matched_name in HEADS and not param.in_a_layer):
        return "heads"
    if not param.name.endswith(".weight") and "embed" in param.matched_name:
        return "embeddings"
    if len(param.shape) == 3 and any("expert" in text.lower() for text in (class_name, param.name)):
        return "experts"
    fused = param.matched_name in (*FUSED_BY_PART, *FUSED_BY_HEAD, *FUSED_BY_GROUP, *GATE_AND_UP)
    return "fused" if fused or _is_gated(param) else "matrices"


def _is_gated(param: NamedParam) -> bool:
    """Return True for gate and up in one matrix where the configuration says so, as Megatron-Core's does."""
    config = getattr(param.owner, "config", None)
    return param.matched_name in GATED_BY_CONFIG and getattr(config, "gated_linear_unit", False) is True


def _split_options(param: NamedParam, model: nn.Module) -> dict[str, Any]:
    """Return `batch_dims`, `split` and `split_dim` of experts' or fused weights, if shapes determine them."""
    batch = {"batch_dims": 1} if param.kind == "experts" else {}
    first = len(batch)
    transposed = type(param.module).__name__ == "Conv1D"  # of transformers, [in, out]
    if param.matched_name in GATE_AND_UP or _is_gated(param):
        dim = first if param.kind == "fused" else _gate_dim(param)
        split: int | tuple[int, ...] | None = 2 if dim is not None else None
    elif param.matched_name in FUSED_BY_GROUP:
        dim, split = first, _by_query_group(param, param.shape[first])
    else:
        dim = first + transposed
        split = _queries_keys_values(param, param.shape[dim], param.shape[first + 1 - transposed], model)
    if split is None or dim is None:
        return batch
    return {**batch, "split": split, **({"split_dim": dim} if dim else {})}


def _gate_dim(param: NamedParam) -> int | None:
    """Return the dim of experts' ``gate_up_proj [E, ., .]`` that holds gate and up; None if it is unknown.

    It is the dim that is twice as long as the matching dim of ``down_proj``.
    """
    down = getattr(param.module, "down_proj", None)
    if not isinstance(down, Tensor) or down.ndim != 3:
        return None
    rows, columns = param.shape[1:]
    if (rows, columns) == (2 * down.shape[2], down.shape[1]):
        return 1
    return 2 if (rows, columns) == (down.shape[2], 2 * down.shape[1]) else None


def _queries_keys_values(
    param: NamedParam, total: int, inputs: int, model: nn.Module
) -> int | tuple[int, ...] | None:
    """Return the split of a fused matrix's outputs into queries, keys and values; None if it is unknown."""
    config = getattr(param.owner, "config", None) or getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if param.matched_name in (*FUSED_BY_PART, *FUSED_BY_HEAD) and isinstance(heads, int) and heads > 0:
        head = getattr(config, "head_dim", None) or inputs // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        if total == (heads + 2 * groups) * head:
            if param.matched_name in FUSED_BY_HEAD:
                return total // head
            return 3 if groups == heads else (heads * head, groups * head, groups * head)
    if param.matched_name in FUSED_BY_PART and total in (2 * inputs, 3 * inputs):
        return total // inputs
    return None


def _by_query_group(param: NamedParam, total: int) -> tuple[int, ...] | None:
    """Return the lengths of Megatron-Core's fused rows; None if they are unknown.

    The rows are queries, key and value of the first query group, then those of the second, and so on. A rank
    of a tensor-parallel model has some of the groups. Every length is a matrix: queries of several groups in
    one would have the same factors, as each block has factors for itself.
    """
    names = ("num_attention_heads", "num_query_groups", "kv_channels")
    numbers = [getattr(getattr(param.owner, "config", None), name, None) for name in names]
    heads, groups, channels = (n if isinstance(n, int) and n > 0 else 0 for n in numbers)
    if 0 in (heads, groups, channels) or heads % groups:
        return None
    lengths = (heads // groups * channels, channels, channels)
    return None if total % sum(lengths) else lengths * (total // sum(lengths))


def _gather(params: list[NamedParam]) -> dict[str, list[NamedParam]]:
    """Group parameters of one kind and equal options by unique names, in the order of `KINDS`."""
    gathered: list[list[NamedParam]] = []
    for param in sorted(params, key=lambda param: list(KINDS).index(param.kind)):
        like = (
            group for group in gathered if (group[0].kind, group[0].options) == (param.kind, param.options)
        )
        group = next(like, None)
        if group is None:
            gathered.append(group := [])
        group.append(param)
    counts: dict[str, int] = {}
    groups = {}
    for group in gathered:
        kind = group[0].kind
        counts[kind] = counts.get(kind, 0) + 1
        groups[kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"] = group
    return groups


def _table(groups: Mapping[str, list[NamedParam]], left_out: list[NamedParam]) -> str:
    rows = [("group", "parameters", "elements", "options", "for example")]
    for name, members in groups.items():
        elements = sum(math.prod(param.shape) for param in members)
        options = ", ".join(f"{key}={value}" for key, value in members[0].options.items())
        example = f"{members[0].name} {list(members[0].shape)}"
        rows.append((name, str(len(members)), f"{elements:,}", options, example))
    lines = aligned(rows, numbers=(1, 2))
    for param in (param for members in groups.values() for param in members if len(param.names) > 1):
        lines.append(f"tied, listed once: {' = '.join(param.names)}")
    if left_out:
        lines.append(f"frozen, left out: {len(left_out)} parameters, {left_out[0].name} the first")
    return "\n".join(lines)
