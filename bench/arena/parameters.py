"""A model's parameters as optimizers of matrices take them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from bench.arena.tasks.base import trainable


def is_matrix(p: Tensor) -> bool:
    return sum(size != 1 for size in p.shape) > 1


@dataclass
class ModelParameters:
    """The parameters of a model that are trained, each once in `matrices`, `ends` or `vectors`.

    The first two are parameters of two dims that share memory with the model's: a convolution's weight
    ``[out, in, k, k]`` is ``[out, in k k]``, and experts' weights ``[experts, out, in]`` are one each.

    Attributes:
        model: the model.
        ends: embeddings and output layers.
    """

    model: nn.Module
    matrices: list[nn.Parameter] = field(default_factory=list)
    ends: list[nn.Parameter] = field(default_factory=list)
    vectors: list[nn.Parameter] = field(default_factory=list)
    _views: list[tuple[nn.Parameter, list[nn.Parameter]]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, ends: tuple[str, ...]) -> ModelParameters:
        """Sort a model's parameters; `ends` are last parts of names."""
        sorted_ones = cls(model)
        for name, p in trainable(model):
            if not is_matrix(p):
                sorted_ones.vectors.append(p)
                continue
            views = [p] if p.dim() == 2 else [nn.Parameter(part) for part in split(p.detach())]
            if p.dim() > 2:
                sorted_ones._views.append((p, views))
            (sorted_ones.ends if name.endswith(ends) else sorted_ones.matrices).extend(views)
        return sorted_ones

    @property
    def all(self) -> list[nn.Parameter]:
        return [*self.matrices, *self.ends, *self.vectors]

    def share_gradients(self) -> None:
        """Give the views the gradients of their parameters."""
        for p, views in self._views:
            if p.grad is not None:
                for view, grad in zip(views, split(p.grad), strict=True):
                    view.grad = grad


def split(tensor: Tensor) -> list[Tensor]:
    """Return the matrices of a tensor of three dims or more, as views."""
    return list(tensor) if tensor.dim() == 3 else [tensor.flatten(1)]
