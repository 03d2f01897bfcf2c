"""The optimizer: argument checks and `step`, which reads like the algorithm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import checkpoint
from .config import (
    OPTIONS,
    Config,
    KeptConfigs,
    check_no_overlap,
    check_process_group,
    check_rate,
    check_tensor,
    default_block_size,
    parameter_name,
    plain,
    require,
)
from .coverage import check_coverage, check_options
from .local import Local
from .plan import plan_parameter
from .step import LossScale, Settings
from .whole_steps import WholeSteps, outside_inference_mode

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .distributed.sharded import Sharded


class KrADagrad(Optimizer):
    """KrADagrad* (Mei, Moreno, Walters, UAI 2023), made fit for everyday training.

    Every matrix-shaped parameter is cut into blocks, and every block keeps a positive definite factor on
    each side that approximates the inverse of the gradient statistics. The factors' roots precondition the
    momentum; the length of the result comes from a grafting method. Parameters with fewer than two dims
    take the grafting method alone. The defaults differ from the paper: docs/concepts.md says where and
    why; `PublishedKrADagrad` is the paper's optimizers.

    Every option can be overridden in a parameter group; ``precondition=False`` in a group leaves its
    parameters to the grafting method (embeddings and output heads, if you like).

    Args:
        params: parameters, named parameters or parameter groups: float32, float64 or bfloat16, dense.
        lr: a number or a one-element tensor, on the parameters' device if it is to change in a CUDA graph.
        betas: decay of the momentum and of the grafting method's second moment.
        eps: of the grafting method, relative to the root mean square of the matrix's gradients.
        weight_decay: decoupled, or with ``decoupled_weight_decay=False`` added before the momentum; a number
            or a one-element tensor, as `lr`.
        block_size: longest side; None is 256 on a CPU and 128 elsewhere, by the device of the group's
            parameters when they are given.
        merge_dims: multiply neighbouring small dims before cutting blocks.
        max_factor_dim: a (merged) dim, or part of one, longer than this gets no factor and is not cut.
        batch_dims: the first dims count matrices: experts' weights ``[experts, m, n]`` have 1.
        split, split_dim: parts of one dim, a number of equal ones or the length of each, such as those of
            queries, keys and values in one matrix: no block reaches from one into the next.
        factor_update: ``cholesky`` (exact), ``products`` (what tensor cores are fast at, above the exact
            factor, never below it), or ``auto``: cholesky on a CPU.
        coupling: ``kl``: each factor is updated from the gradient that the other side's root has whitened
            (KL-Shampoo); ``none``: from the gradient itself.
        refine: 1 to 6, steps that take an update by products towards the exact one.
        precision: of float32 products on tensor cores: ``bf16x3``, ``tf32x3`` or ``fp32``.
        factor_decay: forgetting of old statistics, per factor update.
        damping: relative to the statistics' mean eigenvalue.
        factor_every, root_every: steps between updates of the factors, and between two roots of a block. They
            are made more often at first: on each of twenty steps, on every second of the next twenty, and so
            on. By ``polar``, each step makes those of some blocks; by ``eigh``, the last one makes all.
        spike_limit: a gradient more than this many times as large as its matrix's usually are (root mean
            squares) is scaled down to the usual size; with ``math.inf`` none is.
        start_step: first step that is preconditioned; the grafting method alone before.
        exponent: power of the inverse statistics on every mode, 1/p; None is 1/2 for matrices and vectors,
            1/k for blocks of k modes.
        root_method: ``eigh``, ``polar`` (products alone) or ``auto``: the latter on an accelerator.
        root_steps: 5 to 8, of the polar iteration: fewer are cheaper and leave small directions of the
            statistics less of their root (docs/numerics.md); None is 6 with ``root_every=1``, else 8. Take 8
            there, too, for a smaller damping or blocks of more than 256.
        factor_dtype, root_dtype: ``torch.bfloat16`` stores factors or roots in half the memory; None in
            float32, or float64 for float64 parameters.
        packed: store roots as triangles, in half the memory, and factors, too, where ``cholesky`` updates
            them; on a step, some of them at a time are made whole.
        graft: where an update's length comes from: ``adam``, ``adagrad``, ``rmsprop`` or ``sgd``, whose own
            update's it is; or with no second moment kept, ``rms`` (the same for every matrix) or ``whitened``
            (each block's signal over its noise; needs ``coupling="kl"``). With these two, vectors take Adam.
        momentum_on: ``gradient`` (average, then precondition) or ``update`` (the paper's order:
            heavy-ball momentum of the finished update).
        nesterov: Nesterov momentum.  decoupled_weight_decay: as in AdamW.
        rounding: of bfloat16 parameters. ``stochastic``: up or down by chance, to the right mean; chance is
            the same on any number of threads and ranks. ``compensated``: to the nearest, and the other
            sixteen bits of float32 are kept as state: they move as float32 parameters do, to the bit.
            ``nearest``: an update of less than half their last digit does not move them.
        precondition_1d: precondition vectors, too.
        capturable: a step can be held in a CUDA graph and compiled whole: no host sync, schedules on the
            device, roots by products and in turns (docs/large-models.md).
        backend: ``auto``, ``native``, ``triton`` or ``reference``.
        process_group: its ranks share out state and work; parameters and gradients lie on all of them
            (`DistributedDataParallel`), or in shards as DTensors (`fully_shard`, tensor parallelism), for
            which the default is all ranks. None for plain tensors: every rank does all work.
        amp_scaling: let `torch.amp.GradScaler` leave it to the step to divide gradients by the scale and to
            keep all where any is not finite, so that the host waits for nothing. Trainers that clip gradients
            or look whether a step was skipped want it off. It is on with ``capturable`` and DTensors.
        strict: of a model of which less than nine tenths of the elements of matrices are preconditioned, say
            so in an error, not in a warning; groups with ``precondition=False`` do not count.

    Raises:
        ValueError: an option is out of range, or a structural one changed after the state was made.
        TypeError: a parameter or gradient is sparse, complex, integer or of an unsupported dtype.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        *,
        block_size: int | None = None,
        merge_dims: bool = True,
        max_factor_dim: int = 8192,
        batch_dims: int = 0,
        split: int | Sequence[int] = 1,
        split_dim: int = 0,
        factor_update: str = "auto",
        coupling: str = "kl",
        refine: int = 2,
        precision: str = "bf16x3",
        factor_decay: float = 0.8,
        damping: float = 1e-3,
        factor_every: int = 1,
        root_every: int = 10,
        start_step: int = 1,
        spike_limit: float = 5.0,
        exponent: float | None = None,
        root_method: str = "auto",
        root_steps: int | None = None,
        factor_dtype: torch.dtype | None = None,
        root_dtype: torch.dtype | None = None,
        packed: bool = False,
        graft: str = "adam",
        momentum_on: str = "gradient",
        nesterov: bool = True,
        decoupled_weight_decay: bool = True,
        rounding: str = "stochastic",
        precondition_1d: bool = False,
        capturable: bool = False,
        backend: str = "auto",
        process_group: ProcessGroup | None = None,
        amp_scaling: bool = False,
        strict: bool = False,
    ) -> None:
        given = locals()
        options = {name: given[name] for name in ("lr", *OPTIONS) if name in given}
        check_process_group(process_group)
        for name in ("amp_scaling", "strict"):
            require(isinstance(given[name], bool), name, "a bool", given[name])
        self._process_group, self._amp_scaling, self._strict = process_group, amp_scaling, strict
        self._whole = WholeSteps()
        super().__init__(params, {**options, "precondition": True, "step": 0, "format": checkpoint.FORMAT})
        check_coverage(self.param_groups, strict)
        self._engine = self._make_engine()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `torch.amp.GradScaler` sets `grad_scale` and `found_inf` instead of doing it all itself.

        Where gradients lie in shards, ranks that decide by themselves might not decide alike.
        """
        is_capturable = any(group["capturable"] for group in self.param_groups)
        return self._amp_scaling or is_capturable or self._has_dtensors()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options that override the optimizer's; see `torch.optim.Optimizer`.

        Raises:
            ValueError: an option is out of range or does not fit a parameter's shape.
            TypeError: a parameter has an unsupported dtype.
        """
        given, count = dict(param_group), len(self.param_groups)
        try:
            super().add_param_group(param_group)
            self._check_group(count, param_group)
            if hasattr(self, "_engine"):  # or the optimizer is being made, which looks at all of them
                check_coverage(self.param_groups[count:], self._strict, first=count)
        except BaseException:
            del self.param_groups[count:]
            param_group.clear()
            param_group.update(given)
            raise

    @staticmethod
    def _check_group(position: int, group: dict[str, Any]) -> None:
        check_rate("lr", plain(group["lr"]))
        if group["block_size"] is None and group["params"]:
            group["block_size"] = default_block_size(group["params"][0].device)
        config = Config.of(group)
        for i, p in enumerate(group["params"]):
            name = parameter_name(position, i)
            check_tensor(p, name)
            check_no_overlap(p, name)
            plan_parameter(p.shape, config)
        check_options(position, group, config)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step over all parameters that have a gradient.

        A parameter whose gradient holds NaN or Inf keeps its value and all its state on this step; it is
        counted in `kradagrad_ext.diagnostics`, without a host sync. Where `batch_dims` or `split` make
        several matrices of it, that is a matter of each.

        Called through `torch.amp.GradScaler.step` with `amp_scaling`, it divides the gradients by the scale
        itself and, where any holds NaN or Inf, keeps all parameters.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError, TypeError: as the class; before anything is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        settings = self._checked_settings()
        self._engine.step(self.state, settings, LossScale(scale, found_inf), self._whole)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.Optimizer`: plain tensors and values, loadable with ``weights_only=True``.

        Of a sharded optimizer it is to be called on all ranks, and its tensors are those of
        `torch.distributed.checkpoint`: each rank has its pieces of them, unless `consolidate_state_dict`.
        """
        self._whole.check()
        self._complete()
        with checkpoint.whole_state(self):
            return checkpoint.owned(super().state_dict())

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Make `state_dict` whole on one rank of a sharded optimizer, until the next step.

        To be called on all ranks, for trainers that save on one alone, as that of
        `torch.distributed.optim.ZeroRedundancyOptimizer`. Without sharding, every state is whole.

        Args:
            to: a rank of the process group, else it raises ValueError; its host memory takes all state.
        """
        self._complete().consolidate(self.state, to)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`, bit for bit.

        Raises:
            ValueError: it does not fit this optimizer; the message names the key. Nothing is loaded then.
        """
        engine = self._engine

        def restore(saved: Mapping[Tensor, dict[str, Tensor]]) -> None:
            engine.restore(self.state, self._groups(), saved)
            self._engine = engine

        with outside_inference_mode(), checkpoint.exactly(self, restore):
            super().load_state_dict(state_dict)
        self._whole.mend()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: each tensor by itself, and no batch with it."""
        self._whole.check()
        state = super().__getstate__()
        own = {"_amp_scaling": self._amp_scaling, "_strict": self._strict}
        return {**state, **own, "state": {p: checkpoint.copied(kept) for p, kept in self.state.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; the batches are made anew from the parameters' state on the next step."""
        super().__setstate__(state)
        self.state = defaultdict(dict, self.state)
        self._whole = WholeSteps()
        self._process_group = state.get("_process_group", getattr(self, "_process_group", None))
        for name in ("_amp_scaling", "_strict"):
            setattr(self, name, state.get(name, getattr(self, name, False)))
        self._engine = self._make_engine()

    def _make_engine(self) -> Local | Sharded:
        """What steps the parameters: this rank alone, or the ranks of a process group together."""
        self._checked_settings = torch.compiler.disable(self._settings)  # type: ignore[no-untyped-call]
        self._configs = KeptConfigs()
        if self._process_group is None and not self._has_dtensors():
            return Local()
        from .distributed.sharded import Sharded  # torch.distributed is not part of every torch

        return Sharded(self._process_group)

    def _complete(self) -> Local | Sharded:
        """The engine, with whatever state it makes before there are gradients; on all ranks alike."""
        self._follow_dtensors()
        params = (p for group in self.param_groups for p in group["params"])
        if not isinstance(self._engine, Local) and not all(map(self.state.get, params)):
            self._engine.complete(self.state, self._groups())
        return self._engine

    def _follow_dtensors(self) -> None:
        """Let ranks share out the work once DTensors are in the place of the parameters that were given."""
        if isinstance(self._engine, Local) and self._has_dtensors():
            self._engine = self._make_engine()

    def _has_dtensors(self) -> bool:
        types = {kind for own in self.param_groups for kind in set(map(type, own["params"]))}
        return any(hasattr(kind, "device_mesh") for kind in types)

    def _groups(self) -> list[Settings]:
        """All parameter groups, their options checked."""
        self._follow_dtensors()
        with outside_inference_mode():
            return [
                Settings.of(position, group, self._configs.of(position, group))
                for position, group in enumerate(self.param_groups)
            ]

    def _settings(self) -> list[Settings]:
        """All parameter groups with their gradients, checked in every respect."""
        return [own.with_gradients(self._engine.locals_of) for own in self._groups()]
