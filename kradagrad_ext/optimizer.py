"""The optimizer: what a step does, its options, and state dicts.

One step on a matrix W with the gradient G, in the order of `step.step_batch`:

    guard         G without NaN or Inf, a spike scaled down to the usual size      `guard_gradients`
    moments       M <- beta1 M + (1 - beta1) G, and V of G^2                       `update_moments`
    factors       for each block and side: F <- F R, so that F F^T follows         `precondition`
                  the inverse of the running statistics (when due)
    roots         P = (F F^T)^(1/p) (when due)
    direction     U = P_left M P_right for each block
    length        U <- U |Adam's update| / |U| for each matrix                     `scale_updates`
    write         W <- W - lr (U + weight_decay W)                                 `apply_updates`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import checkpoint
from .blocking import blocking_of
from .config import (
    Config,
    ConfigCache,
    check_no_overlap,
    check_process_group,
    check_rate,
    check_tensor,
    default_block_size,
    parameter_name,
    plain,
    require,
)
from .coverage import check_coverage, check_not_flattened, check_options, has_matrices
from .engine import LocalEngine
from .group_options import GROUP_DEFAULTS, GroupOptions, check_group_options
from .step import GroupContext, LossScale
from .whole_steps import WholeSteps, outside_inference_mode

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack

    from .distributed.engine import ShardedEngine


class KrADagrad(Optimizer):
    """KrADagrad* (Mei, Moreno, Walters, UAI 2023) with defaults for everyday training.

    Every matrix-shaped parameter is cut into blocks. Every block keeps one positive definite factor per side,
    which approximates the inverse of the gradient statistics. The factors' roots precondition the momentum; a
    grafting method gives the length of the result. Parameters with fewer than two dims take the grafting
    method's update. docs/concepts.md states where the defaults differ from the paper, and why;
    `PublishedKrADagrad` implements the paper's optimizers.

    Every option except the last three can differ between parameter groups. ``precondition=False`` in a group
    leaves its parameters to the grafting method (for example embeddings and output heads).

    Args:
        params: dense float32, float64 or bfloat16 parameters, named parameters or parameter groups.

    Basics:
        lr: a number or a one-element tensor; on the parameters' device if it is to change in a CUDA graph.
        betas: decay of the momentum and of the grafting method's second moment.
        eps: the grafting method's epsilon, relative to the root mean square of the matrix's gradients.
        weight_decay: decoupled, as in AdamW; a number or a one-element tensor, like `lr`.
        nesterov: Nesterov momentum.

    Blocks:
        block_size: longest side of a block; None is 256 for a group whose parameters are on a CPU when they
            are added, and 128 elsewhere.
        max_factor_dim: a (merged) dim, or part of one, longer than this gets no factor and is not cut.

    Factors:
        factor_update: ``cholesky`` (exact), ``products`` (fast on tensor cores; the result is above the exact
            factor, never below it), or ``auto``: cholesky on a CPU, products elsewhere.
        coupling: ``kl``: each factor is updated from the gradient that the other side's root has whitened
            (KL-Shampoo); ``none``: from the gradient itself.
        factor_every: steps between updates of the factors.
        factor_decay: decay of old statistics, per factor update.
        damping: relative to the statistics' mean eigenvalue.
        factor_dtype: ``torch.bfloat16`` stores factors in half the memory; None stores them in float32, or
            float64 for float64 parameters.

    Roots:
        root_method: ``eigh``, ``polar`` (matrix products only) or ``auto``: polar on an accelerator.
        root_every: steps between two roots of a block. Roots and factors are computed more often at first: on
            each of twenty steps, on every second of the next twenty, and so on. ``polar`` computes some
            blocks' roots on each step, ``eigh`` computes all on the last step.
        root_steps: steps of the polar iteration, 5 to 8. Fewer are cheaper and leave small directions of the
            statistics less of their root (docs/numerics.md). None is 6 with ``root_every=1``, else 8. Set 8
            for a smaller damping or blocks of more than 256 with ``root_every=1``, too.
        root_dtype: of the stored roots, like `factor_dtype`.

    Length:
        graft: where an update's length comes from: ``adam``, ``adagrad``, ``rmsprop`` or ``sgd`` take the
            length of that method's update. ``rms`` (the same for every matrix) and ``whitened`` (each block's
            signal over its noise; needs ``coupling="kl"``) keep no second moment; vectors then take Adam.
        spike_limit: a gradient more than this many times as large as its matrix's usual gradients (root mean
            squares) is scaled down to the usual size; ``math.inf`` turns this off.
        rounding: of bfloat16 parameters. ``stochastic``: randomly up or down with the right mean; the random
            numbers are the same on any number of threads and ranks. ``compensated``: to the nearest, with the
            other sixteen bits of float32 kept as state: parameters move bit for bit as in float32.
            ``nearest``: an update of less than half a parameter's last digit does not move it.

    Runtime:
        packed: store roots as triangles, in half the memory, and also factors where ``cholesky`` updates
            them; a step unpacks some of them at a time.
        capturable: a step can be captured in a CUDA graph and compiled as one graph: no host sync, schedules
            on the device, roots by products and in turns (docs/large-models.md).
        backend: ``auto``, ``native``, ``triton`` or ``reference``.
        process_group: its ranks share out state and work. Parameters and gradients are replicated on all of
            them (`DistributedDataParallel`), or sharded as DTensors (`fully_shard`, tensor parallelism), for
            which the default is all ranks. None for plain tensors: every rank does all work.
        amp_scaling: the step itself, not `torch.amp.GradScaler`, divides gradients by the scale and changes
            nothing if any gradient is not finite. The host then waits for nothing. Leave it off for trainers
            that clip gradients or check if a step was skipped. ``capturable`` and DTensors turn it on.
        strict: raise an error instead of a warning if less than nine tenths of the elements of the model's
            matrices are preconditioned; groups with ``precondition=False`` do not count.

    Group options:
        **group_options: for parameter groups, or here for all parameters; `GroupOptions` describes them:
            `precondition`, `precondition_1d`, `merge_dims`, `batch_dims`, `split`, `split_dim`, and what few
            users change: `exponent`, `start_step`, `momentum_on`, `decoupled_weight_decay`, `refine`,
            `precision`.

    Raises:
        ValueError: an option is out of range, or a structural option changed after the state was created.
        TypeError: an option does not exist, or a parameter or gradient is sparse, complex, integer or of an
            unsupported dtype.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        *,
        nesterov: bool = True,
        block_size: int | None = None,
        max_factor_dim: int = 8192,
        factor_update: str = "auto",
        coupling: str = "kl",
        factor_every: int = 1,
        factor_decay: float = 0.8,
        damping: float = 1e-3,
        factor_dtype: torch.dtype | None = None,
        root_method: str = "auto",
        root_every: int = 10,
        root_steps: int | None = None,
        root_dtype: torch.dtype | None = None,
        graft: str = "adam",
        spike_limit: float = 5.0,
        rounding: str = "stochastic",
        packed: bool = False,
        capturable: bool = False,
        backend: str = "auto",
        process_group: ProcessGroup | None = None,
        amp_scaling: bool = False,
        strict: bool = False,
        **group_options: Unpack[GroupOptions],
    ) -> None:
        check_group_options(group_options)
        check_process_group(process_group)
        require(isinstance(amp_scaling, bool), "amp_scaling", "a bool", amp_scaling)
        require(isinstance(strict, bool), "strict", "a bool", strict)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "block_size": block_size,
            "max_factor_dim": max_factor_dim,
            "factor_update": factor_update,
            "coupling": coupling,
            "factor_every": factor_every,
            "factor_decay": factor_decay,
            "damping": damping,
            "factor_dtype": factor_dtype,
            "root_method": root_method,
            "root_every": root_every,
            "root_steps": root_steps,
            "root_dtype": root_dtype,
            "graft": graft,
            "spike_limit": spike_limit,
            "rounding": rounding,
            "packed": packed,
            "capturable": capturable,
            "backend": backend,
            **GROUP_DEFAULTS,
            **group_options,
        }
        self._process_group, self._amp_scaling, self._strict = process_group, amp_scaling, strict
        self._whole = WholeSteps()
        self._with_matrices: set[int] = set()  # ids of parameter groups
        super().__init__(params, {**defaults, "step": 0, "format": checkpoint.FORMAT})
        check_coverage(self.param_groups, strict)
        self._engine = self._make_engine()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True if `torch.amp.GradScaler` sets `grad_scale` and `found_inf` and leaves the rest to `step`.

        It is true with DTensors because each rank has other shards of the gradients: ranks that decide alone
        might not decide alike.
        """
        is_capturable = any(group["capturable"] for group in self.param_groups)
        return self._amp_scaling or is_capturable or self._has_dtensors()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options that override the optimizer's; see `torch.optim.Optimizer`.

        Raises:
            ValueError: an option is out of range or does not fit a parameter's shape.
            TypeError: a parameter has an unsupported dtype.
        """
        original, count = dict(param_group), len(self.param_groups)
        try:
            super().add_param_group(param_group)
            self._check_group(count, param_group)
            if hasattr(self, "_engine"):  # else __init__ runs, which checks all groups at once
                check_coverage(self.param_groups[count:], self._strict, first=count)
            self._with_matrices.discard(id(param_group))  # of a group that is gone
            if has_matrices(param_group):
                self._with_matrices.add(id(param_group))
        except BaseException:
            del self.param_groups[count:]
            param_group.clear()
            param_group.update(original)
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
            blocking_of(p.shape, config)
        check_options(position, group, config)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step over all parameters that have a gradient.

        A parameter whose gradient holds NaN or Inf keeps its value and all its state on this step. It is
        counted in `kradagrad_ext.diagnostics`, without a host sync. Where `batch_dims` or `split` cut a
        parameter into several matrices, this applies to each matrix separately.

        If `torch.amp.GradScaler.step` calls it with `amp_scaling`, it divides the gradients by the scale and
        keeps all parameters if any gradient holds NaN or Inf.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError, TypeError: as for the class; before anything is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        context = self._checked_settings()
        self._engine.step(self.state, context, LossScale(scale, found_inf), self._whole)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors and values, loadable with ``weights_only=True``; see `torch.optim.Optimizer`.

        Call it on all ranks of a sharded optimizer. The state is then in tensors of
        `torch.distributed.checkpoint`, of which each rank has its pieces, except after
        `consolidate_state_dict`.
        """
        self._whole.check()
        self._complete()
        with checkpoint.whole_state(self):
            return checkpoint.owned(super().state_dict())

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gather the full `state_dict` on one rank of a sharded optimizer; it lasts until the next step.

        Call it on all ranks, as `torch.distributed.optim.ZeroRedundancyOptimizer.consolidate_state_dict`. It
        serves trainers that save on one rank only. Without sharding, every rank has the full state anyway.

        Args:
            to: a rank of the process group, else ValueError is raised; its host memory receives all state.
        """
        self._complete().consolidate(self.state, to)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`, bit for bit.

        Raises:
            ValueError: the state dict does not fit this optimizer; the message names the key. Nothing is
                loaded then.
        """
        engine = self._engine

        def restore(saved: Mapping[Tensor, dict[str, Tensor]]) -> None:
            engine.restore(self.state, self._groups(), saved)
            self._engine = engine

        with outside_inference_mode(), checkpoint.exactly(self, restore):
            super().load_state_dict(state_dict)
        self._whole.mend()

    def __getstate__(self) -> dict[str, Any]:
        """Return the contents of pickles and copies: each tensor without the stack that it is a view of."""
        self._whole.check()
        pickled = super().__getstate__()
        flags = {"_amp_scaling": self._amp_scaling, "_strict": self._strict}
        return {**pickled, **flags, "state": {p: checkpoint.copied(state) for p, state in self.state.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; the next step rebuilds the param batches from the parameters' state."""
        super().__setstate__(state)
        self.state = defaultdict(dict, self.state)
        self._whole = WholeSteps()
        self._process_group = state.get("_process_group", getattr(self, "_process_group", None))
        for name in ("_amp_scaling", "_strict"):
            setattr(self, name, state.get(name, getattr(self, name, False)))
        self._with_matrices = {id(group) for group in self.param_groups if has_matrices(group)}
        self._engine = self._make_engine()

    def _make_engine(self) -> LocalEngine | ShardedEngine:
        """Return the engine that steps the parameters: on this rank alone, or on the ranks of a group."""
        self._checked_settings = torch.compiler.disable(self._settings)  # type: ignore[no-untyped-call]
        self._configs = ConfigCache()
        if self._process_group is None and not self._has_dtensors():
            return LocalEngine()
        from .distributed.engine import ShardedEngine  # some builds of torch lack torch.distributed

        return ShardedEngine(self._process_group)

    def _complete(self) -> LocalEngine | ShardedEngine:
        """Return the engine after it has created the state that needs no gradients; on all ranks alike."""
        self._follow_dtensors()
        params = (p for group in self.param_groups for p in group["params"])
        if not isinstance(self._engine, LocalEngine) and not all(map(self.state.get, params)):
            self._engine.complete(self.state, self._groups())
        return self._engine

    def _follow_dtensors(self) -> None:
        """Let ranks share out the work once DTensors have replaced the original parameters."""
        if isinstance(self._engine, LocalEngine) and self._has_dtensors():
            self._engine = self._make_engine()

    def _has_dtensors(self) -> bool:
        types = {kind for group in self.param_groups for kind in set(map(type, group["params"]))}
        return any(hasattr(kind, "device_mesh") for kind in types)

    def _groups(self) -> list[GroupContext]:
        """Return all parameter groups after checking their options."""
        self._follow_dtensors()
        for position, group in enumerate(self.param_groups):
            if id(group) in self._with_matrices:
                check_not_flattened(position, group)
        with outside_inference_mode():
            return [
                GroupContext.of(position, group, self._configs.of(position, group))
                for position, group in enumerate(self.param_groups)
            ]

    def _settings(self) -> list[GroupContext]:
        """Return all parameter groups with their gradients after checking options and gradients."""
        return [group.with_gradients(self._engine.locals_of) for group in self._groups()]
