r"""Lookahead: k quick steps forward, one slow step to a point on the way.

    slow <- slow + alpha (theta - slow),   theta <- slow          after every k steps of the optimizer       (1)

The slow weights start at the weights. bert4keras starts them at zero and makes a slow step at step 0 already, so the
weights shrink to alpha times theirs at once; that is `compat="bert4keras"`, for parity alone. The optimizer's moments
are left as they are, as in the paper's experiments with Adam by default.

Source: Zhang et al., 2019, arXiv:1907.08610; bojone/bert4keras, optimizers.py, extend_with_lookahead.
Shapes: of the parameters.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from danlu.math.precision import wide_dtype

__all__ = ["Lookahead"]


class Lookahead:
    r"""Slow weights behind any torch optimizer, eq. (1); the loop stays as it is.

    lookahead = Lookahead(optimizer, steps=5, alpha=0.5)    # acts after optimizer.step()
    """

    def __init__(self, optimizer: Optimizer, steps: int = 5, alpha: float = 0.5, compat: str | None = None) -> None:
        """Keep a copy of the weights as they are now and follow the optimizer.

        Args:
            optimizer: any torch optimizer, the plain one and not a wrapper around it.
            steps: k of eq. (1), >= 1.
            alpha: of eq. (1), in (0, 1]; 1 is the optimizer alone.
            compat: "bert4keras" for its start at zero.

        Raises:
            ValueError: a number out of its range, an unknown compat.

        >>> x = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([x], lr=1.0)
        >>> lookahead = Lookahead(optimizer, steps=2, alpha=0.5)
        >>> x.grad = torch.tensor([-1.0])
        >>> optimizer.step(), x.item(), optimizer.step(), x.item()  # 1, then 2 halved on the way back to 0
        (None, 1.0, None, 1.0)
        """
        if steps < 1 or not 0 < alpha <= 1:
            raise ValueError(f"Lookahead needs steps >= 1 and alpha in (0, 1], got {steps} and {alpha}")
        if compat not in (None, "bert4keras"):
            raise ValueError(f"compat must be None or 'bert4keras', got {compat!r}")
        self.steps, self.alpha, self.compat = steps, alpha, compat
        self.count = 0
        self._live: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        with torch.no_grad():
            self._slow = [p.detach().to(wide_dtype(p), copy=True) for p in self._live]
            if compat:
                torch._foreach_zero_(self._slow)
        self._hook = optimizer.register_step_post_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Count one step of the optimizer; after every k-th move the weights, eq. (1). The hook calls it."""
        due = self.count % self.steps == (0 if self.compat else self.steps - 1)
        self.count += 1
        if not due:
            return
        for slow, p in zip(self._slow, self._live, strict=True):
            slow.lerp_(p.to(slow), self.alpha)  # eq. (1)
            p.copy_(slow)  # eq. (1)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs beside the optimizer's state, as tensors only."""
        state = {f"slow.{i}": slow.clone() for i, slow in enumerate(self._slow)}
        return state | {"count": torch.tensor(self.count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict()`.

        Args:
            state: what `state_dict()` returned, on any device.

        Raises:
            ValueError: it is of other weights; nothing has been changed then.
        """
        wanted = {f"slow.{i}": tuple(slow.shape) for i, slow in enumerate(self._slow)} | {"count": ()}
        given = {name: tuple(value.shape) for name, value in state.items()}
        if given != wanted:
            wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            raise ValueError(
                f"this Lookahead has {len(self._slow)} weights, the state does not fit: {wrong[:3]} ...; make it from "
                "the same optimizer with the parameters in the same order"
            )
        for i, slow in enumerate(self._slow):
            slow.copy_(state[f"slow.{i}"])
        self.count = int(state["count"])

    def remove(self) -> None:
        """Stop following the optimizer; the weights stay as they are."""
        self._hook.remove()
