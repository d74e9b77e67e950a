r"""EGDD: momentum that learns its own step sizes, one gain per weight and one scale, by multiplicative updates.

    c_t = <g_t, h_{t-1}> / ((|g_t| + 1e-10) (|h_{t-1}| + 1e-10))                            (1)
    s_t = clip(s_{t-1} exp(gamma_s c_t), s_min, s_max)                                      (2)
    p_t = clip(p_{t-1} exp(gamma_p sign(g_t) sign(m_{t-1})), p_min, p_max)                  (3)
    h_t = mu h_{t-1} + eta p_t g_t,    m_t = beta m_{t-1} + (1 - beta) g_t                  (4)
    theta_t = (1 - eta lambda) theta_{t-1} - s_t h_t                                        (5)

g is the gradient, h the momentum with the rate eta and the gains in it, m the running mean of the gradients, p the
gains (theta's shape), s the scale, lambda the decay of weights. Successive gradients that agree raise the step, those
that alternate lower it; Adam instead enlarges the steps of weights whose gradients are small. Scale and gains meet h
and m of the step before: m_t holds g_t and would always agree with it.

Unnormalised, directions=False puts <g_t, h_{t-1}> in the place of c_t in (2), signs=False puts g_t m_{t-1} / (1 -
beta^(t-1)) in the place of the signs in (3); both then depend on the scale of the loss, (2) on the number of weights.

The paper's abstract has one scale for all weights, aligned with the average gradient: scale="global" (the default) and
align="mean". The published code (EGDD of tensorflow/lingvo, lingvo/core/egdd.py) keeps a scale for each tensor, its
docstring notwithstanding, and aligns with h: scale="tensor", align="momentum". Of the paper we know the abstract only.

A learning rate schedule multiplies the learned scale, which undoes a warm-up: hold it by group["scale_lr"] = 0 and
group["gain_lr"] = 0 until the warm-up ends. A gradient that is inf or nan spoils the gains as it spoils weights; with
loss scaling let torch.amp.GradScaler skip the step. With sharded weights give `reduce` an all-reduce of sums.

Source: kexue.fm/archives/8968 (2022); Amid, Anil, Fifty and Warmuth, 2022, arXiv:2202.00145.
Shapes: those of the parameters.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype
from danlu.optim._base import ExactStateOptimizer, loss_of

__all__ = ["EGDD"]

TINY = 1e-10


class EGDD(ExactStateOptimizer):
    r"""Momentum with learned gains and scale, eqs. (1) to (5); `step`, `state_dict` and groups are torch's.

        optimizer = EGDD(model.parameters(), lr=1e-2)

    State: three tensors of the weight's shape in float32 or better, a step count and the scale.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        beta: float = 0.9,
        gain_lr: float = 0.01,
        scale_lr: float = 0.001,
        gain_bounds: tuple[float, float] = (1e-2, 1e2),
        scale_bounds: tuple[float, float] = (0.1, 10.0),
        signs: bool = True,
        directions: bool = True,
        scale: str = "global",
        align: str = "momentum",
        weight_decay: float = 0.0,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Start with gains and scale 1.

        Args:
            params: parameters or groups; a group may set any of lr ... directions and weight_decay for itself.
            lr: eta, the rate before gains and scale, >= 0.
            momentum: mu, in [0, 1).
            beta: memory of m, in [0, 1).
            gain_lr: gamma_p >= 0; 0 keeps the gains.
            scale_lr: gamma_s >= 0; 0 keeps the scale. For scale="global" that of the first group counts.
            gain_bounds: (p_min, p_max) around 1.
            scale_bounds: (s_min, s_max) around 1.
            signs: gains by signs, eq. (3), or by products of the gradients.
            directions: scale by the cosine of eq. (1), or by the inner product.
            scale: "global", one for all weights, or "tensor", one for each (lingvo's).
            align: what stands beside g_t in eq. (1): "momentum" h_{t-1} (lingvo's) or "mean" m_{t-1} (the abstract's).
            weight_decay: lambda >= 0, kept out of the gradient that gains and scale see.
            reduce: for sharded weights under scale="global": gets (<g,h>, <g,g>, <h,h>) of this process, returns
                their sums over all processes.

        Raises:
            ValueError: a number outside its range, bounds that do not hold 1, an unknown scale or align.
        """
        if scale not in ("global", "tensor"):
            raise ValueError(f"scale must be 'global' (one for all weights) or 'tensor' (one for each), got {scale!r}")
        if align not in ("momentum", "mean"):
            raise ValueError(f"align must be 'momentum' (h, lingvo's) or 'mean' (m, the abstract's), got {align!r}")
        self.scale, self.align, self.reduce = scale, align, reduce
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "beta": beta,
            "gain_lr": gain_lr,
            "scale_lr": scale_lr,
            "gain_bounds": gain_bounds,
            "scale_bounds": scale_bounds,
            "signs": signs,
            "directions": directions,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take another group, torch's method with our checks."""
        super().add_param_group(param_group)
        check_group(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every weight that has a gradient; the state of the others stays as it is.

        Args:
            closure: computes the loss and its gradients anew; usually None.

        Returns:
            What the closure returned.

        Raises:
            ValueError: a sparse gradient.
        """
        loss = loss_of(closure)
        batches = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        grads = {p: self._prepare(p) for _, params in batches for p in params}
        if not grads:
            return loss
        self._update_scales(batches, grads)
        for group, params in batches:
            if params:
                self._update_weights(group, params, [grads[p] for p in params])
        return loss

    def diagnostics(self) -> dict[str, float]:
        """What has been learned: means of scale and gain over the weights, and the share of gains at a bound.

        Returns:
            {"scale", "log_gain" (mean of ln p), "at_bounds"}; {} before the first step. Many gains at a bound mean
            random walks: lower gain_lr, enlarge the batch.

        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = EGDD([weight], lr=0.1)
        >>> weight.grad = torch.ones(2); optimizer.step(); optimizer.diagnostics()
        {'scale': 1.0, 'log_gain': 0.0, 'at_bounds': 0.0}
        """
        found = [(g, self.state[p]) for g in self.param_groups for p in g["params"] if p in self.state]
        if not found:
            return {}
        count = sum(s["gain"].numel() for _, s in found)
        stuck = sum(
            int(((s["gain"] <= g["gain_bounds"][0]) | (s["gain"] >= g["gain_bounds"][1])).sum()) for g, s in found
        )
        return {
            "scale": sum(float(s["scale"]) for _, s in found) / len(found),
            "log_gain": sum(float(s["gain"].double().log().sum()) for _, s in found) / count,
            "at_bounds": stuck / count,
        }

    def _prepare(self, p: Tensor) -> Tensor:
        """The gradient in the precision of the state, which is made where it is missing."""
        assert p.grad is not None
        if p.grad.is_sparse:
            raise ValueError(
                f"EGDD needs dense gradients, the weight {tuple(p.shape)} has a sparse one (its rows at rest have no "
                "sign to follow); make the embedding with sparse=False"
            )
        dtype = wide_dtype(p)
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["gain"] = torch.ones_like(p, dtype=dtype, memory_format=torch.preserve_format)
            state["momentum"] = torch.zeros_like(state["gain"])  # h
            state["mean"] = torch.zeros_like(state["gain"])  # m
            state["scale"] = torch.ones((), dtype=dtype, device=p.device)
        state["step"] += 1
        return p.grad.to(dtype)

    def _update_scales(self, batches: list[tuple[dict[str, Any], list[Tensor]]], grads: dict[Tensor, Tensor]) -> None:
        """Eqs. (1) and (2), for each weight or for all together."""
        sums = {p: self._products(g, self.state[p][self.align]) for p, g in grads.items()}  # (3,) each
        if self.scale == "tensor":
            for group, params in batches:
                for p in params:
                    self.state[p]["scale"] = new_scale(self.state[p]["scale"], sums[p], group)
            return
        owners = [p for group in self.param_groups for p in group["params"] if p in self.state]
        first = next(p for p in owners if p in grads)
        total = torch.stack([s.to(first.device) for s in sums.values()]).sum(dim=0)  # (3,)
        if self.reduce is not None:
            total = self.reduce(total)
        oldest = max(owners, key=lambda p: float(self.state[p]["step"]))  # one that joined in this step knows no scale
        scale = new_scale(self.state[oldest]["scale"].to(first.device), total, self.param_groups[0])
        for p in owners:  # those without a gradient in this step too: there is but one scale
            self.state[p]["scale"] = scale.to(self.state[p]["gain"])

    @staticmethod
    def _products(g: Tensor, h: Tensor) -> Tensor:
        """<g, h>, <g, g>, <h, h>."""
        g, h = g.reshape(-1), h.reshape(-1)
        return torch.stack([torch.dot(g, h), torch.dot(g, g), torch.dot(h, h)])

    def _update_weights(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Eqs. (3) to (5) for the weights of a group."""
        states = [self.state[p] for p in params]
        gains, hs, means = ([s[key] for s in states] for key in ("gain", "momentum", "mean"))
        if group["gain_lr"]:
            if group["signs"]:
                exponents = torch._foreach_sign(grads)
                torch._foreach_mul_(exponents, torch._foreach_sign(means))
            else:
                corrections = [1 / (1 - group["beta"] ** max(float(s["step"]) - 1, 1.0)) for s in states]
                exponents = torch._foreach_mul(grads, means)
                torch._foreach_mul_(exponents, corrections)
            torch._foreach_mul_(exponents, group["gain_lr"])
            low, high = group["gain_bounds"]
            torch._foreach_exp_(exponents)  # where it overflows the bound stops it
            torch._foreach_mul_(gains, exponents)  # eq. (3)
            torch._foreach_clamp_min_(gains, low)
            torch._foreach_clamp_max_(gains, high)
        torch._foreach_mul_(hs, group["momentum"])
        torch._foreach_addcmul_(hs, gains, grads, value=group["lr"])  # eq. (4)
        torch._foreach_mul_(means, group["beta"])
        torch._foreach_add_(means, grads, alpha=1 - group["beta"])  # eq. (4)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])  # eq. (5)
        for p, h, state in zip(params, hs, states, strict=True):
            if p.dtype == h.dtype:
                p.addcmul_(h, state["scale"], value=-1)  # eq. (5)
            else:  # half precision weights: the difference is formed in the state's float32
                p.copy_(p.to(h.dtype) - state["scale"] * h)  # eq. (5)


def new_scale(scale: Tensor, products: Tensor, group: dict[str, Any]) -> Tensor:
    """Eqs. (1) and (2) from <g, h>, <g, g>, <h, h>."""
    if not group["scale_lr"]:
        return scale
    inner, gg, hh = products
    c = inner / ((gg.sqrt() + TINY) * (hh.sqrt() + TINY)) if group["directions"] else inner  # eq. (1)
    low, high = group["scale_bounds"]
    return (scale * (group["scale_lr"] * c).exp()).clamp(low, high).to(scale.dtype)  # eq. (2), an overflow ends at high


def check_group(group: dict[str, Any]) -> None:
    """Every number of a group in its range."""
    for name in ("lr", "gain_lr", "scale_lr", "weight_decay"):
        if not 0 <= group[name] < math.inf:
            raise ValueError(f"EGDD needs {name} >= 0, got {group[name]}; 0 switches it off")
    for name in ("momentum", "beta"):
        if not 0 <= group[name] < 1:
            raise ValueError(f"EGDD needs {name} in [0, 1), got {group[name]}; 0.9 is usual")
    for name in ("gain_bounds", "scale_bounds"):
        low, high = group[name]
        if not 0 < low <= 1 <= high < math.inf:
            raise ValueError(
                f"EGDD needs {name} (low, high) with 0 < low <= 1 <= high, as all start at 1; got {group[name]}"
            )
