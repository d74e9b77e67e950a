r"""Exponentiated gradient: descent by factors, for weights that must stay non-negative or keep their sum.

    theta <- theta exp(-eta g)                                                              (1)
    theta <- S theta exp(-eta g) / sum theta exp(-eta g),    S = sum theta                  (2)
    theta <- theta exp(-eta g theta)                                                        (3)

g is the gradient, eta the rate. (1) is the mirror descent argmin_x eta <g, x> + sum x ln(x / theta) - x + theta; (2) is
the same on the simplex of sum S, the Hedge algorithm. (3) is exactly what gradient descent on phi does for theta =
e^phi; the post goes from (3) to (1) by taking theta in the exponent for a constant. A weight at 0 stays at 0, a
positive one stays positive: it is kept above the dtype's smallest normal number.

Source: kexue.fm/archives/8968 (2022), part 1; Kivinen and Warmuth, 1997.
Shapes: those of the parameters; sums run over one dimension, or over all of a tensor.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide
from danlu.optim._base import loss_of

__all__ = ["ExponentiatedGradient", "exponentiated_gradient_step"]

FAR = 80.0  # exponents beyond it leave float32


def exponentiated_gradient_step(
    weight: Tensor, grad: Tensor, lr: float, keep_sum: int | str | None = None, form: str = "eg"
) -> Tensor:
    """The weights after one step, eq. (1), (2) or (3).

    Args:
        weight: any shape, float, >= 0.
        grad: the shape of weight.
        lr: eta, > 0.
        keep_sum: None lets the sums run free; a dimension keeps the sums over it, "all" that of the whole tensor.
        form: "eg" for eq. (1) and (2), "log" for eq. (3), descent on the logarithm (before the sum is restored).

    Returns:
        New weights, shape and dtype of weight.

    Raises:
        ValueError: shapes differ, a weight is negative, lr is not > 0, an unknown form.

    >>> weight = torch.tensor([0.25, 0.75])
    >>> exponentiated_gradient_step(weight, torch.tensor([0.0, 1.0]), lr=math.log(3), keep_sum=0)  # 1/4 : 3/4 / 3
    tensor([0.5000, 0.5000])
    """
    if weight.shape != grad.shape:
        raise ValueError(f"weight and grad must have one shape, got {tuple(weight.shape)} and {tuple(grad.shape)}")
    check(lr, form)
    if not torch.compiler.is_compiling() and bool((weight < 0).any()):
        raise ValueError(
            "exponentiated gradient moves weights by positive factors and needs them >= 0, got "
            f"{float(weight.min()):.4g}; start from torch.rand or softmax, or write signed weights as a difference"
        )
    theta, g = (wide(t) for t in (weight, grad))
    exponent = -lr * g * theta if form == "log" else -lr * g  # eq. (3), eq. (1)
    alive = theta > 0
    small = torch.finfo(weight.dtype).tiny
    if keep_sum is None:
        moved = theta * exponent.clamp(-FAR, FAR).exp()  # eq. (1)
    else:
        dims = tuple(range(theta.ndim)) if keep_sum == "all" else (int(keep_sum),)
        logits = torch.where(alive, theta.log() + exponent, -torch.inf)
        share = (logits - logits.amax(dim=dims, keepdim=True).clamp_min(torch.finfo(theta.dtype).min)).exp()
        total = share.sum(dim=dims, keepdim=True)
        moved = theta.sum(dim=dims, keepdim=True) * share / torch.where(total > 0, total, 1.0)  # eq. (2)
    moved = moved.clamp(max=torch.finfo(weight.dtype).max)
    return torch.where(alive, moved.clamp_min(small), 0.0).to(weight.dtype)


class ExponentiatedGradient(torch.optim.Optimizer):
    r"""`exponentiated_gradient_step` on every parameter, without state; groups may set lr, keep_sum and form.

    mixture = nn.Parameter(torch.full((4,), 0.25))                       # stays a distribution, no softmax needed
    optimizer = ExponentiatedGradient([mixture], lr=0.1, keep_sum=0)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        keep_sum: int | str | None = None,
        form: str = "eg",
    ) -> None:
        """Check the settings; the weights are checked at each step.

        Args:
            params: parameters or groups, all >= 0.
            lr: eta, > 0.
            keep_sum: None, a dimension, or "all".
            form: "eg" or "log".

        Raises:
            ValueError: lr is not > 0, an unknown form.
        """
        check(lr, form)
        super().__init__(params, {"lr": lr, "keep_sum": keep_sum, "form": form})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every weight that has a gradient.

        Args:
            closure: computes the loss and its gradients anew; usually None.

        Returns:
            What the closure returned.

        Raises:
            ValueError: a negative weight.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and group["lr"]:  # a schedule may begin at 0
                    g = p.grad.to_dense() if p.grad.is_sparse else p.grad
                    p.copy_(exponentiated_gradient_step(p, g, group["lr"], group["keep_sum"], group["form"]))
        return loss


def check(lr: float, form: str) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be > 0, got {lr}; a weight moves by the factor exp(-lr * grad)")
    if form not in ("eg", "log"):
        raise ValueError(f"form must be 'eg' (exp(-lr grad)) or 'log' (exp(-lr grad weight)), got {form!r}")
