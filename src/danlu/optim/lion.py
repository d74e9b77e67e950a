r"""Lion and Tiger: the sign of a momentum as the step, half of Adam's state.

    Lion    u_t = sign(b1 m_{t-1} + (1 - b1) g_t)                      m_t = b2 m_{t-1} + (1 - b2) g_t        (1)
    Tiger   m_t = b m_{t-1} + (1 - b) g_t                              u_t = sign(m_t)                        (2)
    both    x_t = x_{t-1} - eta (u_t + lambda x_{t-1})                                                      (3)

Tiger is Lion with b1 = b2, so the gradient enters only through m and k batches can be gathered in m itself:

    m_t = (b if t is the first of k, else 1) m_{t-1} + (1 - b) g_t / k;   eq. (3) only after the k-th         (4)

which costs no memory and equals one step on the mean gradient of the k. Tiger's eta is relative (lr, about 1e-3):

    eta = lr / 2, lambda = 0    for biases, gains, shifts: every vector and scalar                            (5)
    eta = lr RMS(x)             for matrices; for embeddings RMS of each row (the author's code; not in the post)  (6)

A matrix of zeros has RMS 0 and never moves: initialise it otherwise, or exclude it. A batch whose gradient has a NaN is
skipped for that tensor, and its weights shrink towards where they were initialised: x <- (x - c) s + c, c = 1 for the
gains of norms, else 0 (in eq. (4) too). bert4keras has Lion as in (1) with b = (0.95, 0.98), the default here; the
paper's default is (0.9, 0.99). Both follow the same trajectory, so there is no compat mode.

Source: Lion: Chen et al., 2023, arXiv:2302.06675; kexue.fm/archives/9473. Tiger: kexue.fm/archives/9512, bojone/tiger;
eq. (4): kexue.fm/archives/8634. Shapes: those of a parameter.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype
from danlu.optim._base import ExactStateOptimizer, check_patterns, chosen, loss_of

__all__ = ["Lion", "Tiger"]


class Lion(ExactStateOptimizer):
    """The sign of a momentum that looks ahead to the newest gradient, eqs. (1) and (3)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.95, 0.98),
        weight_decay: float = 0.0,
    ) -> None:
        """Prepare the optimizer.

        Args:
            params: parameters or groups.
            lr: eta, >= 0; every number moves by so much a step, so take 3 to 10 times less than for Adam.
            betas: b1 and b2 of eq. (1), each in [0, 1).
            weight_decay: lambda, >= 0; 3 to 10 times Adam's for the same lr * weight_decay.

        Raises:
            ValueError: a number out of its range.

        >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> x.grad = torch.tensor([4.0, -0.5])
        >>> Lion([x], lr=0.25).step(); x.data
        tensor([0.7500, 1.2500])
        """
        check("Lion", lr, betas, weight_decay)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, eqs. (1) and (3).

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, None without one.

        Raises:
            ValueError: a gradient is sparse or complex.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g, m = momentum(self, p, "Lion")
                u = m.lerp(g, 1 - beta1).sign_()  # eq. (1)
                m.lerp_(g, 1 - beta2)  # eq. (1)
                x = p.to(m.dtype)
                p.copy_(x - group["lr"] * u.add_(x, alpha=group["weight_decay"]))  # eq. (3)
        return loss


class Tiger(ExactStateOptimizer):
    r"""The author's tight-fisted optimizer, eqs. (2) to (6): relative steps, accumulation without memory, NaN skipped.

    optimizer = Tiger(model.named_parameters(), lr=1e-3)

    Names tell embeddings and gains apart from the rest; without them embeddings count as matrices, and vectors do not
    shrink after a NaN.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta: float = 0.965,
        weight_decay: float = 0.01,
        *,
        accumulate: int = 1,
        shrink: float = 0.99,
        embeddings: Sequence[str] = (r"embed", r"\bwte\b", r"\bwpe\b"),
        gains: Sequence[str] = (r"norm\w*\.weight$", r"\bln_\w+\.weight$", r"gamma$"),
    ) -> None:
        """Prepare the optimizer.

        Args:
            params: `model.named_parameters()`, or parameters or groups.
            lr: relative step of eqs. (5) and (6), >= 0; the author takes 1e-3 to 2e-3 at the top of his schedule.
            beta: b of eq. (2), in [0, 1); 0.965 for text, 0.945 for images.
            weight_decay: lambda of matrices, >= 0.
            accumulate: k of eq. (4), >= 1; call step() and zero_grad() after every batch all the same.
            shrink: s after a NaN, in (0, 1]; 1 only skips.
            embeddings: patterns of tables whose rows are scaled one by one.
            gains: patterns of vectors that were initialised with ones.

        Raises:
            ValueError: a number out of its range.

        >>> x = torch.nn.Parameter(torch.tensor([[2.0, -2.0]]))  # RMS 2
        >>> x.grad = torch.tensor([[4.0, -0.5]])
        >>> Tiger([x], lr=0.1, weight_decay=0.0).step(); x.data
        tensor([[ 1.8000, -1.8000]])
        """
        check("Tiger", lr, (beta,), weight_decay)
        if accumulate < 1 or not 0 < shrink <= 1:
            raise ValueError(f"Tiger needs accumulate >= 1 and 0 < shrink <= 1, got {accumulate} and {shrink}")
        defaults = {
            "lr": lr, "beta": beta, "weight_decay": weight_decay, "accumulate": accumulate, "shrink": shrink,
            "embeddings": embeddings, "gains": gains,
        }  # fmt: skip
        super().__init__(params, defaults)
        check_patterns(self, {"embeddings": embeddings, "gains": gains}, names=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one batch in, and after every `accumulate`-th move the weights.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, None without one.

        Raises:
            ValueError: a gradient is sparse or complex.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    self._update(p, group, index)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any], index: int) -> None:
        """One parameter."""
        named, lr, decay = "param_names" in group, group["lr"], group["weight_decay"]
        g, m = momentum(self, p, "Tiger")
        state = self.state[p]
        x = p.to(m.dtype)
        first = int(state["step"].item()) % group["accumulate"] == 0
        state["step"] += 1
        last = int(state["step"].item()) % group["accumulate"] == 0
        if g.isnan().any():
            if p.ndim > 1 or named:
                center = 1.0 if p.ndim < 2 and chosen(group, index, group["gains"]) else 0.0
                p.copy_((x - center) * group["shrink"] + center)
            return
        m.mul_(group["beta"] if first else 1.0).add_(g, alpha=(1 - group["beta"]) / group["accumulate"])  # eq. (4)
        if not last:
            return
        if p.ndim < 2:
            p.copy_(x - lr / 2 * m.sign())  # eqs. (3), (5)
            return
        per_row = named and chosen(group, index, group["embeddings"])
        size = x.square().mean(-1, keepdim=True).sqrt() if per_row else x.square().mean().sqrt()
        p.copy_(x - lr * size * m.sign().add_(x, alpha=decay))  # eqs. (3), (6)


def momentum(optimizer: ExactStateOptimizer, p: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The gradient and m in float32 or better; zeros before the first step."""
    assert p.grad is not None
    if p.grad.layout != torch.strided or p.is_complex():
        raise ValueError(f"{name} needs dense real gradients, got {p.grad.layout} of {p.dtype}; use sparse=False")
    state = optimizer.state[p]
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(p, dtype=wide_dtype(p))
    return p.grad.to(state["exp_avg"].dtype), state["exp_avg"]


def check(name: str, lr: float, betas: Sequence[float], weight_decay: float) -> None:
    """Every number in its range."""
    if not lr >= 0 or not weight_decay >= 0 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f"{name} needs lr >= 0, weight_decay >= 0 and betas in [0, 1), got lr={lr}, weight_decay={weight_decay}, "
            f"betas={tuple(betas)}"
        )
