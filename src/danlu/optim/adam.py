r"""Adam with three switches: no bias correction (as BERT was trained), layer adaptation (LAMB), rows left alone (lazy).

    M_t = beta1 M_{t-1} + (1 - beta1) G_t,   V_t = beta2 V_{t-1} + (1 - beta2) G_t^2                          (1)
    U_t = (M_t / (1 - beta1^t)) / (sqrt(V_t / (1 - beta2^t)) + eps)          without correction: both divisors 1  (2)
    D_t = U_t + weight_decay X_{t-1}                                                                          (3)
    X_t = X_{t-1} - lr D_t,     with layer adaptation   X_t = X_{t-1} - lr (||X_{t-1}|| / ||D_t||) D_t        (4)

Without correction the first step is (1 - beta1) / sqrt(1 - beta2) = 3.16 times that of eq. (2) with it: that is why
BERT's recipe needs a warm-up. LAMB's ratio is 1 where either norm is 0.

Lazy: a table of embeddings sees few of its rows in a batch. Under `lazy` only rows with a gradient have eqs. (1) to (4)
done to them, everything else, moments and decay included, stays, and t counts the steps of that row: every row goes as
if it had an Adam of its own. Others differ. bert4keras keeps the weights of untouched rows but lets their moments decay
(`compat="bert4keras"`); torch.optim.SparseAdam and TensorFlow Addons' LazyAdam keep the moments, but t counts the steps
of all: a row first seen late then moves by 3.16 lr at once. Gradients may be dense (a row of zeros is untouched) or
sparse, as nn.Embedding(sparse=True) makes them, where the work follows the rows of the batch, not the table.

For plain Adam on a GPU torch.optim.AdamW(fused=True) is quicker. eps stands outside the root, as in the paper.

Source: Kingma, Ba, 2014, arXiv:1412.6980; LAMB: You et al., 2019, arXiv:1904.00962; decay: Loshchilov, Hutter, 2017,
arXiv:1711.05101; bojone/bert4keras, optimizers.py (Adam, extend_with_layer_adaptation, _lazy_optimization).
Shapes: X, G, M, V of a parameter; lazy: (rows, ...).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype
from danlu.optim._base import ExactStateOptimizer, check_patterns, chosen, loss_of

__all__ = ["LAMB", "Adam"]


class Adam(ExactStateOptimizer):
    r"""Adam with decoupled decay, eqs. (1) to (4), and the switches of this file; all may stand in parameter groups.

    optimizer = Adam(model.named_parameters(), lr=5e-5, bias_correction=False, lazy=("embedding",))
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = True,
        layer_adaptation: bool = False,
        exclude_from_layer_adaptation: Sequence[str] = (),
        lazy: bool | Sequence[str] = False,
        compat: str | None = None,
    ) -> None:
        """Prepare the optimizer; the state appears at the first step.

        Args:
            params: parameters, groups (`danlu.optim.param_groups` makes them), or `model.named_parameters()`.
            lr: step size, >= 0.
            betas: of eq. (1), each in [0, 1).
            eps: of eq. (2), > 0; 1e-6 is BERT's, 1e-8 torch's.
            weight_decay: decoupled decay of eq. (3), >= 0.
            bias_correction: divide as in eq. (2).
            layer_adaptation: LAMB's step, eq. (4).
            exclude_from_layer_adaptation: patterns of names that step plainly, as biases and norms.
            lazy: True, or patterns of names, for tables whose rows without a gradient stay as they are.
            compat: "bert4keras" lets the moments of untouched rows decay and counts t for all rows alike.

        Raises:
            ValueError: a number out of its range, an unknown compat, patterns without names.

        >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> x.grad = torch.tensor([4.0, -0.5])
        >>> Adam([x], lr=0.25).step(); x.data  # corrected, the first step is lr times the sign
        tensor([0.7500, 1.2500])
        """
        if compat not in (None, "bert4keras"):
            raise ValueError(f"compat must be None or 'bert4keras', got {compat!r}")
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "bias_correction": bias_correction, "layer_adaptation": layer_adaptation,
            "exclude_from_layer_adaptation": exclude_from_layer_adaptation, "lazy": lazy, "compat": compat,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            check_group(group)
            check_patterns(self, {k: group[k] for k in ("exclude_from_layer_adaptation", "lazy")})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, eqs. (1) to (4).

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, None without one.

        Raises:
            ValueError: a gradient is complex, or sparse where the parameter is not lazy.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is None or p.numel() == 0:
                    continue
                adapts = group["layer_adaptation"] and not chosen(group, index, group["exclude_from_layer_adaptation"])
                if chosen(group, index, group["lazy"]) and p.ndim > 1:
                    self._lazy(p, group, adapts)
                else:
                    self._dense(p, group, adapts)
        return loss

    def _dense(self, p: Tensor, group: dict[str, Any], adapts: bool) -> None:
        """All of a parameter."""
        assert p.grad is not None
        if p.grad.layout != torch.strided:
            raise ValueError(
                "Adam got a sparse gradient; give that table lazy=True, or make its embedding sparse=False"
            )
        state = self._state(p)
        state["step"] += 1
        x = p if p.dtype == wide_dtype(p) else p.to(wide_dtype(p))
        moments = state["exp_avg"], state["exp_avg_sq"]
        adam_step(x, p.grad.to(x.dtype), *moments, int(state["step"].item()), group, adapts)
        if x is not p:
            p.copy_(x)

    def _lazy(self, p: Tensor, group: dict[str, Any], adapts: bool) -> None:
        """The rows with a gradient."""
        rows, grad = touched(p)
        state = self._state(p)
        state["step"] += 1
        if group["compat"] == "bert4keras":  # all rows are computed, some are taken
            full = torch.zeros_like(p).index_copy_(0, rows, grad)
            x = p.to(wide_dtype(p), copy=True)
            moments = state["exp_avg"], state["exp_avg_sq"]
            adam_step(x, full.to(x.dtype), *moments, int(state["step"].item()), group, adapts)
            p[rows] = x[rows].to(p.dtype)
            return
        if "row_steps" not in state:
            state["row_steps"] = torch.zeros(len(p), dtype=torch.int32, device=p.device)
        state["row_steps"][rows] += 1
        steps = state["row_steps"][rows].view(-1, *[1] * (p.ndim - 1))
        x, m, v = p[rows].to(wide_dtype(p)), state["exp_avg"][rows], state["exp_avg_sq"][rows]
        adam_step(x, grad.to(x.dtype), m, v, steps, group, adapts)
        p[rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = x.to(p.dtype), m, v

    def _state(self, p: Tensor) -> dict[str, Any]:
        """Zeros before the first step."""
        state: dict[str, Any] = self.state[p]
        if p.is_complex():
            raise ValueError(f"Adam of danlu is for real weights, got {p.dtype}; torch.optim.Adam takes complex ones")
        if not state:
            state["step"] = torch.zeros(())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, dtype=wide_dtype(p))
        return state


class LAMB(Adam):
    """`Adam` with layer adaptation: each tensor moves by lr times its own norm, for very large batches."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        exclude_from_layer_adaptation: Sequence[str] = (),
    ) -> None:
        """Prepare the optimizer.

        Args:
            params: as for `Adam`.
            lr: step relative to the norm of a tensor, >= 0.
            betas: of eq. (1).
            eps: of eq. (2).
            weight_decay: of eq. (3); inside the ratio of eq. (4).
            bias_correction: divide as in eq. (2).
            exclude_from_layer_adaptation: patterns of names that step plainly; usual are ("bias", "norm").

        Raises:
            ValueError: as for `Adam`.

        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> x.grad = torch.tensor([0.1, 0.0])
        >>> LAMB([x], lr=0.1, weight_decay=0.0).step(); x.data  # norm 5, direction (1, 0)
        tensor([2.5000, 4.0000])
        """
        super().__init__(
            params, lr, betas, eps, weight_decay, bias_correction=bias_correction, layer_adaptation=True,
            exclude_from_layer_adaptation=exclude_from_layer_adaptation,
        )  # fmt: skip


def adam_step(x: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int | Tensor, group: dict[str, Any], adapts: bool) -> None:
    """Eqs. (1) to (4) in place on x, m, v; t is a number, or one for each row."""
    beta1, beta2 = group["betas"]
    m.lerp_(g, 1 - beta1)  # eq. (1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # eq. (1)
    if group["bias_correction"]:
        first, second = share(beta1, t, x.dtype), share(beta2, t, x.dtype)
        d = (m / first).div_((v / second).sqrt_().add_(group["eps"]))  # eq. (2)
    else:
        d = m / v.sqrt().add_(group["eps"])  # eq. (2)
    if group["weight_decay"]:
        d.add_(x, alpha=group["weight_decay"])  # eq. (3)
    if adapts:
        size, length = torch.linalg.vector_norm(x), torch.linalg.vector_norm(d)
        d.mul_(torch.where((size > 0) & (length > 0), size / length, 1.0))  # eq. (4)
    x.add_(d, alpha=-float(group["lr"]))  # eq. (4)


def share(beta: float, t: int | Tensor, dtype: torch.dtype) -> Any:
    """1 - beta^t, without loss of digits where t is a tensor in float32."""
    if isinstance(t, Tensor):
        return -torch.expm1(t.to(dtype) * (math.log(beta) if beta > 0 else -math.inf))
    return 1 - beta**t


def touched(p: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with a gradient, and it."""
    grad = p.grad
    assert grad is not None
    if grad.layout == torch.strided:
        rows = grad.flatten(1).any(1).nonzero()[:, 0]
        return rows, grad[rows]
    if grad.layout != torch.sparse_coo or grad.sparse_dim() != 1:
        raise ValueError(f"lazy takes dense gradients or those of nn.Embedding(sparse=True), got {grad.layout}")
    grad = grad.coalesce()
    return grad.indices()[0], grad.values()


def check_group(group: dict[str, Any]) -> None:
    """Every number in its range."""
    betas = group["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas of Adam must be two numbers in [0, 1), got {betas}")
    if not group["lr"] >= 0 or not group["eps"] > 0 or not group["weight_decay"] >= 0:
        raise ValueError(
            f"Adam needs lr >= 0, eps > 0 and weight_decay >= 0, got lr={group['lr']}, eps={group['eps']}, "
            f"weight_decay={group['weight_decay']}"
        )
