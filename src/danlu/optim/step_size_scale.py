r"""StepSizeScale: one learned factor on the steps of any torch optimizer, from how gradients agree with them.

    c_t = <g_t, d_{t-1}> / ((|g_t| + 1e-10) (|d_{t-1}| + 1e-10))                            (1)
    s_t = clip(s_{t-1} exp(gamma c_t), s_min, s_max)                                        (2)
    theta_t = theta_{t-1} - s_t d_t                                                         (3)

d_t is the step that the optimizer would make, theta_{t-1} - theta_t, its learning rate, momentum and decay included;
g_t is the gradient. A gradient along the last step says that the step was too short. This is the global half of EGDD
around any base; the base's own state does not know of the factor.

Source: kexue.fm/archives/8968 (2022); Amid, Anil, Fifty and Warmuth, 2022, arXiv:2202.00145 (abstract).
Shapes: those of the parameters.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype
from danlu.optim.egdd import TINY

__all__ = ["StepSizeScale"]

SCALE, DIRECTION = "scale", "direction."


class StepSizeScale:
    r"""A learned factor on an optimizer's steps, eqs. (1) to (3); the loop stays as it is.

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scale = StepSizeScale(optimizer)                      # follows every optimizer.step()

    It hooks into the plain torch optimizer, not into a wrapper around it. Attach it before an EMA that follows the same
    optimizer. It keeps one copy of the weights' shapes, and a second one during the step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scale_lr: float = 0.001,
        bounds: tuple[float, float] = (0.1, 10.0),
    ) -> None:
        """Start at factor 1.

        Args:
            optimizer: any torch optimizer.
            scale_lr: gamma, >= 0; set the attribute to 0 to hold the factor, in a warm-up say.
            bounds: (s_min, s_max) around 1.

        Raises:
            ValueError: scale_lr < 0, or bounds that do not hold 1.
        """
        if not 0 <= scale_lr < math.inf:
            raise ValueError(f"StepSizeScale needs scale_lr >= 0, got {scale_lr}; 0 holds the factor")
        if not 0 < bounds[0] <= 1 <= bounds[1] < math.inf:
            raise ValueError(
                f"StepSizeScale needs bounds (low, high) with 0 < low <= 1 <= high, as it starts at 1; got {bounds}"
            )
        self.optimizer, self.scale_lr, self.bounds = optimizer, scale_lr, bounds
        self.scale = torch.ones(())  # s
        self._directions: dict[Tensor, Tensor] = {}  # d_{t-1}
        self._before: dict[Tensor, Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._remember()),
            optimizer.register_step_post_hook(lambda *_: self._rescale()),
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Scale and last steps, as tensors only: `safetensors.torch.save_file` takes it as it is."""
        state = {SCALE: self.scale.clone()}
        for i, p in enumerate(self._weights()):
            if p in self._directions:
                state[f"{DIRECTION}{i}"] = self._directions[p].clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict()`.

        Args:
            state: what `state_dict()` returned, for an optimizer over the same weights in the same order.

        Raises:
            ValueError: no scale, or a direction that belongs to no weight of this optimizer; nothing has changed then.
        """
        weights = self._weights()
        fits = {f"{DIRECTION}{i}": p for i, p in enumerate(weights)}
        wrong = [k for k, v in state.items() if k != SCALE and (k not in fits or fits[k].shape != v.shape)]
        if SCALE not in state or wrong:
            raise ValueError(
                f"the state does not fit this StepSizeScale over {len(weights)} weights: "
                + (f"{wrong[:3]} have no weight of their shape here" if wrong else f"{SCALE!r} is missing")
                + "; make the optimizer over the same weights in the same order"
            )
        self.scale = state[SCALE].clone()
        self._directions = {fits[k]: v.to(fits[k].device, copy=True) for k, v in state.items() if k != SCALE}

    def remove(self) -> None:
        """Stop following the optimizer, whose steps are its own again."""
        for hook in self._hooks:
            hook.remove()
        self._directions.clear()

    def _weights(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _remember(self) -> None:
        self._before = {p: p.detach().clone() for p in self._weights()}

    @torch.no_grad()
    def _rescale(self) -> None:
        """After the optimizer's step: learn from the gradient and the step before, then stretch the new step."""
        pairs: list[tuple[Tensor, Any]] = [(p, self._directions.get(p)) for p in self._weights() if p.grad is not None]
        terms = [products(p.grad, d) for p, d in pairs if d is not None and p.grad is not None]
        if terms and self.scale_lr:
            inner, gg, dd = torch.stack([t.to(terms[0].device) for t in terms]).sum(dim=0)
            c = inner / ((gg.sqrt() + TINY) * (dd.sqrt() + TINY))  # eq. (1)
            self.scale = (self.scale * (self.scale_lr * c.cpu()).exp()).clamp(*self.bounds).float()  # eq. (2)
        scale = float(self.scale)
        for p, _ in pairs:
            before = self._before[p].to(wide_dtype(p))
            step = before - p
            if scale != 1.0:
                p.copy_(before - scale * step)  # eq. (3)
            self._directions[p] = step
        self._before.clear()


def products(g: Tensor, d: Tensor) -> Tensor:
    """<g, d>, <g, g>, <d, d> in the precision of d."""
    if g.is_sparse:
        raise ValueError(f"StepSizeScale needs dense gradients, got a sparse one {tuple(g.shape)}; use sparse=False")
    g, d = g.to(d.dtype).reshape(-1), d.reshape(-1)
    return torch.stack([torch.dot(g, d), torch.dot(g, g), torch.dot(d, d)])
