"""A model's parameters sorted into groups for the optimizer, by their modules, names and shapes.

    optimizer = KrADagrad(param_groups(model), lr=1e-2, weight_decay=0.1)

The first rule that speaks decides: patterns that the user gives, then what is built in. What a name cannot
tell for certain, such as how a fused matrix is made up, is left as it is rather than guessed.
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
"""Kinds of parameters and what is particular to each; `split` and `batch_dims` follow from shapes."""

HEADS = ("lm_head", "head", "classifier", "score", "output_layer", "embed_out")
FUSED_BY_PART = ("c_attn", "qkv", "qkv_proj", "to_qkv", "Wqkv", "in_proj_weight")
FUSED_BY_HEAD = ("query_key_value",)
GATE_AND_UP = ("gate_up_proj",)
"""Last parts of the names of modules, or of parameters that are no `weight`."""


@dataclass
class Found:
    """One parameter of a model, with all its names.

    Attributes:
        module, owner: the module that holds it, and the one that holds that.
        kind, options: what the rules decide.
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
    def own_name(self) -> str:
        """Last part of the name that tells: of the module for a `weight` or `bias`, else of the parameter."""
        *path, last = self.name.split(".")
        return path[-1] if path and last in ("weight", "bias") else last

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    def in_a_layer(self) -> bool:
        """Whether it belongs to one of several like modules, which are counted in its name."""
        return any(part.isdigit() for part in self.name.split("."))


def param_groups(
    model: nn.Module,
    *,
    rules: Mapping[str, str | Options] | None = None,
    options: Mapping[str, Options] | None = None,
    frozen: bool = False,
    show: Callable[[str], object] | None = print,
) -> list[dict[str, Any]]:
    """Parameter groups for `KrADagrad`: a list of dicts with ``params``, ``name`` and options.

    ============ ================================================== ===================================
    kind         which                                              options
    ============ ================================================== ===================================
    matrices     all that follow no other rule                      none
    fused        queries, keys and values, or gate and up, in one   ``split``, where it can be told
    experts      3-D weights of a module of experts                 ``batch_dims=1``, ``split``
    embeddings   of `nn.Embedding`, and what is named so            ``precondition=False``
    heads        output embeddings, classifiers                     ``precondition=False``
    norms        of modules whose class is some Norm                the same, ``weight_decay=0``
    biases       named so                                           the same
    vectors      anything else with fewer than two dims of 2 or more  the same
    ============ ================================================== ===================================

    A weight that is tied, such as a head that is the embedding, appears once, under its first name.

    Args:
        model: any module; parameters on the meta device and DTensors are as good as others.
        rules: pattern (as of `fnmatch`) of parameters' full names -> a kind, or options that are added to
            those which the parameter has otherwise. The first pattern that matches counts.
        options: kind -> options that are added to the kind's own.
        frozen: whether parameters that take no gradient are included.
        show: called with a table of what was done; None for none.

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
    found = list(_parameters(model))
    for pattern in rules:
        if not any(fnmatch.fnmatchcase(name, pattern) for own in found for name in own.names):
            raise ValueError(
                f"param_groups: `rules` must match parameters of the model, {pattern!r} does not"
            )
    taken = [own for own in found if own.parameter.requires_grad or frozen]
    if not taken:
        raise ValueError(f"param_groups: `model` must have parameters to train, got {len(found)} frozen ones")
    heads = _output_embeddings(model)
    for own in taken:
        _decide(own, model, heads, rules, options)
    groups = _gather(taken)
    if show is not None:
        show(_table(groups, [own for own in found if own not in taken]))
    return [
        {"params": [own.parameter for own in members], "name": name, **members[0].options}
        for name, members in groups.items()
    ]


def _parameters(model: nn.Module) -> Iterator[Found]:
    """Every parameter once, with all names that it has."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[int, Found] = {}
    for path, module in modules.items():
        owner = modules.get(path.rpartition(".")[0], model)
        for last, p in module.named_parameters(recurse=False):
            name = f"{path}.{last}" if path else last
            if id(p) in found:
                found[id(p)].names.append(name)
            else:
                found[id(p)] = Found([name], p, module, owner)
    yield from found.values()


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that transformers' models name as theirs."""
    ask = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    return head if isinstance(head, nn.Module) else None


def _decide(
    own: Found,
    model: nn.Module,
    heads: nn.Module | None,
    rules: Mapping[str, str | Options],
    options: Mapping[str, Options],
) -> None:
    """Kind and options of one parameter."""
    chosen = next(
        (rule for pattern, rule in rules.items() if any(fnmatch.fnmatchcase(n, pattern) for n in own.names)),
        None,
    )
    own.kind = chosen if isinstance(chosen, str) else _kind(own, heads)
    own.options = dict(KINDS[own.kind])
    if own.kind in ("fused", "experts"):
        own.options |= _division(own, model)
    own.options |= options.get(own.kind, {})
    if isinstance(chosen, Mapping):
        own.options |= chosen


def _kind(own: Found, heads: nn.Module | None) -> str:
    class_name = type(own.module).__name__
    if isinstance(own.module, (nn.Embedding, nn.EmbeddingBag)):
        return "embeddings"
    if own.name.split(".")[-1].endswith("bias"):
        return "biases"
    if "Norm" in class_name:
        return "norms"
    if sum(size != 1 for size in own.shape) < 2:
        return "vectors"
    if own.module is heads or (own.own_name in HEADS and not own.in_a_layer):
        return "heads"
    if not own.name.endswith(".weight") and "embed" in own.own_name:
        return "embeddings"
    if len(own.shape) == 3 and any("expert" in text.lower() for text in (class_name, own.name)):
        return "experts"
    fused = own.own_name in (*FUSED_BY_PART, *FUSED_BY_HEAD, *GATE_AND_UP)
    return "fused" if fused else "matrices"


def _division(own: Found, model: nn.Module) -> dict[str, Any]:
    """`batch_dims`, `split` and `split_dim` of experts' or fused weights, as far as they can be told."""
    batch = {"batch_dims": 1} if own.kind == "experts" else {}
    first = len(batch)
    transposed = type(own.module).__name__ == "Conv1D"  # transformers' own, of [in, out]
    if own.own_name in GATE_AND_UP:
        dim = first if own.kind == "fused" else _gate_dim(own)
        split: int | tuple[int, ...] | None = 2 if dim is not None else None
    else:
        dim = first + transposed
        split = _queries_keys_values(own, own.shape[dim], own.shape[first + 1 - transposed], model)
    if split is None or dim is None:
        return batch
    return {**batch, "split": split, **({"split_dim": dim} if dim else {})}


def _gate_dim(own: Found) -> int | None:
    """Which dim of experts' ``gate_up_proj [E, ., .]`` holds gate and up; ``down_proj`` has half of it."""
    down = getattr(own.module, "down_proj", None)
    if not isinstance(down, Tensor) or down.ndim != 3:
        return None
    rows, columns = own.shape[1:]
    if (rows, columns) == (2 * down.shape[2], down.shape[1]):
        return 1
    return 2 if (rows, columns) == (down.shape[2], 2 * down.shape[1]) else None


def _queries_keys_values(
    own: Found, total: int, inputs: int, model: nn.Module
) -> int | tuple[int, ...] | None:
    """How many outputs of a fused matrix are queries, keys and values."""
    config = getattr(own.owner, "config", None) or getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if own.own_name in (*FUSED_BY_PART, *FUSED_BY_HEAD) and isinstance(heads, int) and heads > 0:
        head = getattr(config, "head_dim", None) or inputs // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        if total == (heads + 2 * groups) * head:
            if own.own_name in FUSED_BY_HEAD:
                return total // head
            return 3 if groups == heads else (heads * head, groups * head, groups * head)
    if own.own_name in FUSED_BY_PART and total in (2 * inputs, 3 * inputs):
        return total // inputs
    return None


def _gather(taken: list[Found]) -> dict[str, list[Found]]:
    """Parameters of one kind and with equal options, in the order of `KINDS`; a group's name is unique."""
    gathered: list[list[Found]] = []
    for own in sorted(taken, key=lambda own: list(KINDS).index(own.kind)):
        like = (group for group in gathered if (group[0].kind, group[0].options) == (own.kind, own.options))
        group = next(like, None)
        if group is None:
            gathered.append(group := [])
        group.append(own)
    counts: dict[str, int] = {}
    groups = {}
    for group in gathered:
        kind = group[0].kind
        counts[kind] = counts.get(kind, 0) + 1
        groups[kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"] = group
    return groups


def _table(groups: Mapping[str, list[Found]], left_out: list[Found]) -> str:
    rows = [("group", "parameters", "elements", "options", "for example")]
    for name, members in groups.items():
        elements = sum(math.prod(own.shape) for own in members)
        own_options = ", ".join(f"{key}={value}" for key, value in members[0].options.items())
        example = f"{members[0].name} {list(members[0].shape)}"
        rows.append((name, str(len(members)), f"{elements:,}", own_options, example))
    lines = aligned(rows, numbers=(1, 2))
    for own in (own for members in groups.values() for own in members if len(own.names) > 1):
        lines.append(f"tied, listed once: {' = '.join(own.names)}")
    if left_out:
        lines.append(f"frozen, left out: {len(left_out)} parameters, {left_out[0].name} the first")
    return "\n".join(lines)
