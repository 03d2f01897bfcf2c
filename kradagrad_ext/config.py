"""Options of a parameter group: one frozen dataclass with all checks.

Every option can differ between the parameter groups of one optimizer. An option can also change during
training, unless it shapes the state (see `STRUCTURAL`).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeGuard

import torch

from .backends.base import METHODS, PRECISIONS, UpdateRule
from .backends.scalars import DECOUPLED_DECAY, GRADIENT_DECAY, UPDATE_DECAY, ScalarRule
from .polar import POLYNOMIALS

FACTOR_UPDATES = ("auto", *METHODS)
COUPLINGS = ("none", "kl")
GRAFTS = ("adam", "adagrad", "rmsprop", "sgd", "rms", "whitened")
LENGTHS_OF_BLOCKS = ("rms", "whitened")
"""Grafting methods that give lengths to blocks' updates only; parameters without blocks take Adam."""

_LENGTH_OF = {"sgd": "gradient", "rms": "rms", "whitened": "whitened"}
"""``length`` of `ScalarRule` by grafting method; other methods take ``graft``."""

MOMENTUM_ON = ("gradient", "update")
ROOT_METHODS = ("auto", "eigh", "polar")
ROUNDINGS = ("nearest", "stochastic", "compensated")
STORAGE_DTYPES = (None, torch.bfloat16)
LARGEST_REFINE = 6
LARGEST_RATE = torch.finfo(torch.float32).max
PRIOR = 0.03
"""Statistics that a new factor holds before its first gradient, relative to that gradient's, with forgetting.
With a smaller prior, the first roots equalise what one gradient shows by chance (docs/tuning.md)."""

SUPPORTED_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_LAYOUT, _LAYOUTS = operator.attrgetter("layout"), {torch.strided}
_DTYPE, _DTYPES = operator.attrgetter("dtype"), set(SUPPORTED_DTYPES)
STRUCTURAL = (
    "block_size",
    "merge_dims",
    "max_factor_dim",
    "batch_dims",
    "split",
    "split_dim",
    "precondition",
    "precondition_1d",
    "graft",
    "momentum_on",
    "factor_dtype",
    "root_dtype",
    "packed",
)
"""Options that shape the state: they cannot change once the state exists."""


def default_block_size(device: torch.device) -> int:
    """Return the default `block_size`: 256 on a CPU, else 128, as a chip holds a block of that size."""
    return 256 if device.type == "cpu" else 128


def require(condition: bool, option: str, expected: str, got: object) -> None:
    """Raise ValueError with the option, the expected value and the actual one, unless the condition holds."""
    if not condition:
        raise ValueError(f"KrADagrad: `{option}` must be {expected}, got {got!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Return True for a finite int or float, not for a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_int(value: object) -> bool:
    """Return True for an int, not for a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def plain(value: Any) -> Any:  # noqa: ANN401
    """Convert NumPy scalars to Python numbers and lists to tuples; return any other value unchanged."""
    if isinstance(value, (list, tuple)):
        values = tuple(map(plain, value))
        return value if type(value) is tuple and all(map(operator.is_, values, value)) else values
    is_foreign = not isinstance(value, torch.Tensor) and getattr(value, "shape", None) == ()
    return value.item() if is_foreign else value


def check_rate(option: str, value: object, looks: bool = True) -> None:
    """Raise ValueError unless this is a number >= 0 that float32 holds, or a one-element floating tensor.

    Args:
        looks: check the value of a tensor on the CPU. Values on other devices are never checked, because
            the host would wait for them.
    """
    if isinstance(value, torch.Tensor):
        is_one = value.numel() == 1 and value.is_floating_point()
        require(is_one, option, "a one-element floating tensor", value)
        if not looks or value.device.type != "cpu":
            return
    number = value.item() if isinstance(value, torch.Tensor) else value
    sound = is_number(number) and 0 <= number <= LARGEST_RATE
    require(sound, option, "a number >= 0 that float32 holds, or a one-element tensor", value)


def check_process_group(group: object) -> None:
    """Raise ValueError unless this is None or a process group that this rank is in."""
    if group is not None:
        import torch.distributed as dist  # some builds of torch lack it

        is_one = dist.is_available() and isinstance(group, dist.ProcessGroup)
        require(is_one, "process_group", "None or a process group of which this rank is one", group)


def parameter_name(position: int, place: int) -> str:
    """Return a parameter's name for messages, from its parameter group's position and its index there."""
    return f"parameter {place} of parameter group {position}"


def check_tensor(tensor: torch.Tensor, position: str) -> None:
    """Raise TypeError unless the ops support a parameter or gradient.

    Args:
        position: name of the tensor in the message.
    """
    if tensor.layout != torch.strided or tensor.dtype not in SUPPORTED_DTYPES:
        kind = f"{tensor.layout} {tensor.dtype} {list(tensor.shape)}".replace("torch.", "")
        raise TypeError(f"KrADagrad: {position} must be dense float32, float64 or bfloat16, got {kind}")
    if getattr(tensor, "_fsdp_flattened", False):  # FullyShardedDataParallel's mark of a flat shard
        raise TypeError(
            f"KrADagrad: {position} must keep its shape, got a flat shard {list(tensor.shape)} of "
            "FullyShardedDataParallel; use torch.distributed.fsdp.fully_shard"
        )


def check_no_overlap(p: torch.Tensor, name: str) -> None:
    """Raise ValueError if elements of a parameter share memory: writes to them would overwrite each other."""
    if p.layout == torch.strided and torch._debug_has_internal_overlap(p) == 1:
        raise ValueError(
            f"KrADagrad: {name} must have an element of memory for each element, got {list(p.shape)} with "
            f"strides {list(p.stride())}; clone() makes one"
        )


def all_supported(tensors: Sequence[torch.Tensor]) -> bool:
    """Return True if the ops support the layouts and dtypes of all tensors."""
    return set(map(_LAYOUT, tensors)) <= _LAYOUTS and set(map(_DTYPE, tensors)) <= _DTYPES


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one parameter group, as `KrADagrad` documents them, without `lr` and `params`.

    Raises:
        ValueError: an option is out of range; the message gives its name, the expected and the actual value.
    """

    betas: tuple[float, float]
    eps: float
    weight_decay: float | torch.Tensor
    block_size: int
    merge_dims: bool
    max_factor_dim: int
    batch_dims: int
    split: int | Sequence[int]
    split_dim: int
    factor_update: str
    coupling: str
    refine: int
    precision: str
    factor_decay: float
    damping: float
    factor_every: int
    root_every: int
    start_step: int
    spike_limit: float
    exponent: float | None
    root_method: str
    root_steps: int | None
    factor_dtype: torch.dtype | None
    root_dtype: torch.dtype | None
    packed: bool
    graft: str
    momentum_on: str
    nesterov: bool
    decoupled_weight_decay: bool
    rounding: str
    precondition: bool
    precondition_1d: bool
    backend: str
    capturable: bool

    @classmethod
    def of(cls, param_group: Mapping[str, Any]) -> Config:
        """Return the checked options of a `torch.optim` parameter group."""
        missing = [field.name for field in fields(cls) if field.name not in param_group]
        if missing:
            raise ValueError(f"KrADagrad: a parameter group lacks the options {missing}")
        return cls(**{field.name: plain(param_group[field.name]) for field in fields(cls)})

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        if self.capturable:
            require(self.root_method != "eigh", "root_method", "polar with `capturable`", self.root_method)
            sound = self.factor_update != "cholesky"
            require(sound, "factor_update", "products with `capturable`", self.factor_update)
        if self.graft == "whitened":
            require(self.coupling == "kl", "coupling", "kl with `graft` whitened", self.coupling)

    def _check_choices(self) -> None:
        for option, choices in (
            ("factor_update", FACTOR_UPDATES),
            ("coupling", COUPLINGS),
            ("precision", PRECISIONS),
            ("root_method", ROOT_METHODS),
            ("graft", GRAFTS),
            ("momentum_on", MOMENTUM_ON),
            ("rounding", ROUNDINGS),
            ("factor_dtype", STORAGE_DTYPES),
            ("root_dtype", STORAGE_DTYPES),
        ):
            require(getattr(self, option) in choices, option, f"one of {choices}", getattr(self, option))
        for option in (
            "merge_dims",
            "nesterov",
            "decoupled_weight_decay",
            "precondition",
            "precondition_1d",
            "packed",
            "capturable",
        ):
            require(isinstance(getattr(self, option), bool), option, "a bool", getattr(self, option))
        require(isinstance(self.backend, str), "backend", "a name", self.backend)

    def _check_numbers(self) -> None:
        betas = self.betas
        valid = isinstance(betas, (tuple, list)) and len(betas) == 2 and all(map(is_number, betas))
        require(valid and all(0 <= beta < 1 for beta in betas), "betas", "two numbers in [0, 1)", betas)
        require(is_number(self.eps) and self.eps >= 0, "eps", "a number >= 0", self.eps)
        check_rate("weight_decay", self.weight_decay)
        for option in ("block_size", "max_factor_dim", "factor_every", "root_every"):
            value = getattr(self, option)
            require(is_int(value) and value >= 1, option, "an integer >= 1", value)
        for option in ("start_step", "batch_dims"):
            value = getattr(self, option)
            require(is_int(value) and value >= 0, option, "an integer >= 0", value)
        refine = self.refine
        sound = is_int(refine) and 1 <= refine <= LARGEST_REFINE
        require(sound, "refine", f"an integer from 1 to {LARGEST_REFINE}", refine)
        steps = self.root_steps
        sound = steps is None or (is_int(steps) and steps in POLYNOMIALS)
        require(sound, "root_steps", f"None or one of {tuple(POLYNOMIALS)}", steps)
        require(is_int(self.split_dim), "split_dim", "an integer", self.split_dim)
        parts = self.split if isinstance(self.split, (tuple, list)) else (self.split,)
        sound = len(parts) > 0 and all(is_int(part) and part >= 1 for part in parts)
        require(sound, "split", "a number of parts >= 1 or the length of every part", self.split)
        limit = self.spike_limit
        sound = isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit > 1
        require(sound, "spike_limit", "a number > 1, or infinite", limit)
        decay = self.factor_decay
        require(is_number(decay) and 0 < decay <= 1, "factor_decay", "a number in (0, 1]", decay)
        valid = self._exponent_is_valid()
        require(valid, "exponent", "None or 1/p with an integer p", self.exponent)
        positive = is_number(self.damping) and self.damping > 0
        require(positive, "damping", "a number > 0 (it also scales a new factor)", self.damping)

    def _exponent_is_valid(self) -> bool:
        if self.exponent is None:
            return True
        if not is_number(self.exponent) or not 0 < self.exponent <= 1:
            return False
        return abs(1 / self.exponent - round(1 / self.exponent)) < 1e-6

    def root_order(self, order: int) -> int:
        """Return the p of the root X^(1/p) for a block with `order` dims (docs/concepts.md, exponents)."""
        return max(order, 2) if self.exponent is None else round(1 / self.exponent)

    def factor_method(self, device: torch.device) -> str:
        """Return `factor_update`, with ``auto`` resolved: Cholesky on a CPU, where it is cheap."""
        if self.factor_update != "auto":
            return self.factor_update
        return "cholesky" if device.type == "cpu" and not self.capturable else "products"

    @property
    def polar_steps(self) -> int:
        """`root_steps`, or its default: 6 with ``root_every=1``, else 8 (docs/tuning.md)."""
        if self.root_steps is not None:
            return self.root_steps
        return 6 if self.root_every == 1 else 8

    @property
    def wanted_root_method(self) -> str:
        """`root_method`; with `capturable` always products, as they need no host sync."""
        return "polar" if self.capturable else self.root_method

    def update_rule(self, device: torch.device, damped_updates: float) -> UpdateRule:
        """Return the scalars of a factor update.

        Statistics are sums with ``factor_decay=1``, else running means.
        """
        return UpdateRule(
            decay=self.factor_decay,
            weight=1.0 if self.factor_decay == 1 else 1 - self.factor_decay,
            damping=self.damping,
            prior=self.damping if self.factor_decay == 1 else max(PRIOR, self.damping),
            damped_updates=damped_updates,
            method=self.factor_method(device),
            refine=self.refine,
            precision=self.precision,
            coupled=self.coupling == "kl",
        )

    def for_blocks(self, has_blocks: bool) -> Config:
        """Return the options of parameters with or without blocks.

        Parameters without blocks take Adam if the grafting method is one of `LENGTHS_OF_BLOCKS`.
        """
        return self if has_blocks or self.graft not in LENGTHS_OF_BLOCKS else self._with_adam

    @functools.cached_property
    def _with_adam(self) -> Config:
        return replace(self, graft="adam")

    @property
    def has_second_moment(self) -> bool:
        """True if the grafting method keeps a second moment."""
        return self.graft in ("adam", "rmsprop", "adagrad")

    @property
    def second_moment_rule(self) -> tuple[float, float]:
        """(decay, weight) of v = decay v + weight g^2; (1, 0) without a second moment."""
        if not self.has_second_moment:
            return (1.0, 0.0)
        return (1.0, 1.0) if self.graft == "adagrad" else (self.betas[1], 1 - self.betas[1])

    @functools.cached_property
    def scalar_rule(self) -> ScalarRule:
        """The rule by which gradients are guarded and updates scaled."""
        coupled = GRADIENT_DECAY if self.momentum_on == "gradient" else UPDATE_DECAY
        decay2, weight2 = self.second_moment_rule
        return ScalarRule(
            spike_limit=self.spike_limit,
            beta1=self.betas[0],
            averaged=self.momentum_on == "gradient",
            nesterov=self.nesterov,
            bias2=self.betas[1] if self.graft == "adam" else 0.0,
            decay2=decay2,
            weight2=weight2,
            eps=self.eps,
            decayed=DECOUPLED_DECAY if self.decoupled_weight_decay else coupled,
            by_chance=self.rounding == "stochastic",
            length=_LENGTH_OF.get(self.graft, "graft"),
        )

    @property
    def writes_directions(self) -> bool:
        """True if directions are no state tensors: Nesterov's directions, or gradients over their units."""
        return self.nesterov or self.momentum_on == "update"

    def packs_factors(self, device: torch.device) -> bool:
        """Return True if factors are stored as triangles, which only updates by Cholesky produce."""
        return self.packed and self.factor_method(device) == "cholesky"


class ConfigCache:
    """The checked options of parameter groups; a group is checked again if any option is another object."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[object, ...], Config]] = {}

    def of(self, position: int, param_group: Mapping[str, Any]) -> Config:
        """Return `Config.of` the parameter group at this position."""
        values = tuple(map(param_group.get, OPTIONS))
        kept = self._kept.get(position)
        if kept is not None and all(map(operator.is_, values, kept[0])):
            return kept[1]
        config = Config.of(param_group)
        if all(map(operator.is_, map(plain, values), values)):  # a list could change and stay the same object
            self._kept[position] = values, config
        return config


OPTIONS = tuple(field.name for field in fields(Config))
"""Names of all options except `lr`."""
