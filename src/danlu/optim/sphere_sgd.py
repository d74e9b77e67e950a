r"""SGD for rows that live on the unit sphere: project the gradient, step, come back to length 1.

With G the gradient of a row x of length 1, g = (I - x x^T) G, and k = 1 or 1 + x.G / |G| (`danlu.math.sphere`),

    m <- mu (I - x x^T) m + k g                                                                           (1)
    x <- retract(x, -lr m)                                                                                (2)

so the momentum m is carried along by projecting it into the tangent space of where x is now. Rows with G = 0 and m = 0
keep their bits. Of a sparse gradient only the rows it holds are looked at. Weight decay would only stretch x, which (2)
undoes: there is none. Any weight whose rows are directions can be given: cosine classifiers, prototypes, embeddings.

For Adam on the sphere and for other manifolds see the library geoopt.

Source: kexue.fm/archives/7063; the factor k: Meng et al., 2019, arXiv:1911.01196.
Shapes: (..., D), each last axis a row.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype
from danlu.math.sphere import RETRACTIONS, angle_factor, retract, tangent
from danlu.optim._base import ExactStateOptimizer, loss_of

__all__ = ["SphereSGD", "normalize_rows_"]

_FACTORS = ("none", "angle")


@torch.no_grad()
def normalize_rows_(param: Tensor) -> Tensor:
    """Give every row of a tensor the length 1, in place.

    Args:
        param: (..., D) any float dtype, no row zero.

    Returns:
        The same tensor.

    Raises:
        ValueError: a row is zero or not finite, so it has no direction.

    >>> normalize_rows_(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    x = param.to(wide_dtype(param))
    top = x.abs().amax(-1, keepdim=True)
    if bool((~torch.isfinite(top) | (top == 0)).any()):
        raise ValueError("normalize_rows_ met a row that is zero or not finite; begin with random rows")
    x = x / top
    return param.copy_(x / x.norm(dim=-1, keepdim=True))


class SphereSGD(ExactStateOptimizer):
    """Gradient descent of unit rows, eqs. (1) and (2)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        factor: str = "none",
        retraction: str = "project",
    ) -> None:
        """Prepare the optimizer.

        Args:
            params: parameters or groups whose rows (the last axis) have length 1; `normalize_rows_` makes them so.
            lr: step size, >= 0.
            momentum: mu of eq. (1), in [0, 1).
            factor: "none", or "angle" for the paper's k.
            retraction: "project" or "exp" (`danlu.math.sphere.retract`).

        Raises:
            ValueError: a setting is out of range, or a row is not of length 1.

        >>> x = torch.nn.Parameter(torch.tensor([[1.0, 0.0]]))
        >>> x.grad = torch.tensor([[5.0, -3.0]])
        >>> SphereSGD([x], lr=0.25).step(); x.data
        tensor([[0.8000, 0.6000]])
        """
        if not lr >= 0 or not 0 <= momentum < 1:
            raise ValueError(f"SphereSGD needs lr >= 0 and momentum in [0, 1), got {lr} and {momentum}")
        if factor not in _FACTORS or retraction not in RETRACTIONS:
            raise ValueError(
                f"factor must be one of {', '.join(_FACTORS)} and retraction one of {', '.join(RETRACTIONS)}, "
                f"got {factor!r} and {retraction!r}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "factor": factor, "retraction": retraction})
        for p in (p for group in self.param_groups for p in group["params"]):
            length = p.detach().to(wide_dtype(p)).norm(dim=-1) if p.ndim else p.detach()[None]
            if not p.ndim or not bool(((length - 1).abs() < 0.02).all()):
                worst = float(length.flatten()[(length - 1).abs().argmax()]) if length.numel() else 0.0
                raise ValueError(
                    f"SphereSGD moves rows of length 1; a parameter of shape {tuple(p.shape)} has one of {worst:.4g}; "
                    "normalize_rows_(param) first"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every row that has a gradient or a momentum, eqs. (1) and (2).

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, None without one.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)
        return loss

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        grad, rows = p.grad, None
        if grad.is_sparse:
            grad = grad.coalesce()
            if grad.sparse_dim() != 1:
                raise ValueError(f"a sparse gradient must hold whole rows, got {grad.sparse_dim()} sparse axes")
            rows, grad = grad.indices()[0], grad.values()
        dtype = wide_dtype(p)
        x, g = (p if rows is None else p[rows]).to(dtype), grad.to(dtype)
        x = x / x.norm(dim=-1, keepdim=True)
        step = tangent(x, g)
        if group["factor"] == "angle":
            step = angle_factor(x, g) * step
        if group["momentum"]:
            state = self.state[p]
            if "m" not in state:
                state["m"] = torch.zeros_like(p, dtype=dtype)
            m = state["m"] if rows is None else state["m"][rows]
            step = group["momentum"] * tangent(x, m) + step  # eq. (1)
            if rows is None:
                state["m"].copy_(step)
            else:
                state["m"][rows] = step
        moved = retract(x, -group["lr"] * step, group["retraction"]).to(p.dtype)  # eq. (2)
        old = p if rows is None else p[rows]
        moved = torch.where(step.abs().amax(-1, keepdim=True) == 0, old, moved)  # not even rounding moves these
        if rows is None:
            p.copy_(moved)
        else:
            p[rows] = moved
