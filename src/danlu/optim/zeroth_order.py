r"""Zeroth order: descend what has no gradient, a metric say, by trying random moves of the weights.

    f_e(x) = E f(x + e u),  u ~ N(0, I);     grad f_e = E (f(x + e u) - f(x)) u / e         (1)
    antithetic   (f(x + e u) - f(x - e u)) u / (2 e)                                        (2)
    orthogonal   (2) averaged over directions that are orthogonal, each of length sqrt(d)   (3)
    rank         f replaced by its rank among the values tried, from -1/2 to 1/2            (4)

x are the weights, d their number, e is epsilon. The gradient is that of the smoothed f_e, so f need only be a number:
accuracy, F1, a user's click. (1) is the policy gradient of the policy N(x, e^2 I) with baseline f(x). For a linear f
the variance of (1) and (2) is (d + 1) |grad|^2: use it for modules with few weights, or be patient. (3) with d
directions is exact for quadratics. Epsilon has to reach over the steps of f: a metric that no move changes gives 0.

The noise is drawn again from its seed instead of being kept. One seed names one direction, whichever weight it moves.
f runs under the same state of torch's global generators for every value of a step, so dropout hits all alike; batch
norm in training mode still moves its statistics at each evaluation: call eval().

Source: kexue.fm/archives/7737 (2020); Nesterov and Spokoiny, 2017; Salimans et al., 2017, arXiv:1703.03864 (ranks);
Malladi et al., 2023, arXiv:2305.17333 (seeds).
Shapes: those of the parameters.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.optim._directions import coefficients, draw_seeds, evaluate, noise, orthogonal_rows, restore, shift

__all__ = ["ZerothOrder", "zeroth_order_backward"]

KINDS = ("antithetic", "forward", "orthogonal")
Reduce = Callable[[Tensor], Tensor]


@torch.no_grad()
def zeroth_order_backward(
    loss_fn: Callable[[], Tensor | float],
    weights: Tensor | Sequence[Tensor],
    epsilon: float = 1e-3,
    num_directions: int = 1,
    kind: str = "antithetic",
    shaping: str = "raw",
    generator: torch.Generator | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """Stand in for `loss_fn().backward()` without any gradient: add the estimate of eqs. (1) to (4) to .grad.

    Any torch optimizer may follow. The weights come back to the bit, from a copy.

    Args:
        loss_fn: computes what shall fall, a number or a scalar tensor, under the weights as they are then; called
            num_directions + 1 times for "forward", else 2 num_directions times. Negate a metric that shall rise.
        weights: one weight or several, float32 or float64, that require a gradient.
        epsilon: radius of the smoothing, > 0.
        num_directions: directions to average over; at most the number of weights for "orthogonal".
        kind: "antithetic" eq. (2), "forward" eq. (1), "orthogonal" eq. (3), which keeps its directions in memory.
        shaping: "raw", or "rank", eq. (4), under which any increasing function of f gives the same estimate.
        generator: on the CPU, the source of the seeds; with several processes give each the same seed.
        reduce: gets the values of f of this process, returns what all processes shall use, their means say.

    Returns:
        Mean of the values of f, detached, float64.

    Raises:
        ValueError: epsilon not > 0, num_directions out of range, an unknown kind or shaping, no weight, loss_fn
            returned something else than one finite number.
        TypeError: a weight in half precision, where the move would be rounded away.

    >>> w = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    >>> _ = zeroth_order_backward(lambda: w.square().sum(), w, epsilon=0.5, kind="orthogonal")  # exact: 2 w
    >>> w.grad.round(decimals=6)
    tensor([6.], dtype=torch.float64)
    """
    params = check_weights([weights] if isinstance(weights, Tensor) else list(weights))
    check(epsilon, num_directions, kind, shaping)
    saved = [p.detach().clone() for p in params]
    if kind == "orthogonal":
        rows = orthogonal_rows(params, num_directions, generator)

        def direction(k: int) -> Iterator[Tensor]:
            return (r.view_as(p).to(p) for r, p in zip(rows[k].split([p.numel() for p in params]), params, strict=True))
    else:
        seeds = draw_seeds(num_directions, generator)

        def direction(k: int) -> Iterator[Tensor]:
            return noise(params, seeds[k])

    def move(k: int, amount: float) -> None:
        for p, s, u in zip(params, saved, direction(k), strict=True):
            p.copy_(s + amount * u)

    try:
        values = evaluate(loss_fn, move, lambda: restore(params, saved), epsilon, num_directions, kind)
    finally:
        restore(params, saved)
    values = reduce(values) if reduce is not None else values
    for k, weight in enumerate(coefficients(values, epsilon, kind, shaping).tolist()):
        for p, u in zip(params, direction(k), strict=True):
            p.grad = weight * u if p.grad is None else p.grad.add_(u, alpha=weight)
    return values.mean()


class ZerothOrder(torch.optim.Optimizer):
    r"""Stochastic descent by seeds: no gradients, no copies, no state but a count of steps.

        optimizer = ZerothOrder(head.parameters(), lr=0.1, epsilon=0.05, num_directions=8, maximize=True)
        f1 = optimizer.step(lambda: f1_of(model, batch))     # any number, nothing differentiable

    Moving there and back leaves rounding of the last digit in the weights (restore="copy" spends a copy and leaves
    none). For momentum or Adam on top use `zeroth_order_backward` before that optimizer. Under GradScaler or
    Accelerate's prepare there is no gradient to scale: call this optimizer itself.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        epsilon: float = 1e-3,
        num_directions: int = 1,
        kind: str = "antithetic",
        shaping: str = "raw",
        maximize: bool = False,
        weight_decay: float = 0.0,
        seed: int = 0,
        restore: str = "replay",
        reduce: Reduce | None = None,
    ) -> None:
        """Check the settings.

        Args:
            params: parameters or groups in float32 or float64; a group may set its lr and weight_decay.
            lr: rate, >= 0.
            epsilon: radius of the smoothing, > 0.
            num_directions: directions to average over in a step.
            kind: "antithetic" or "forward".
            shaping: "raw" or "rank".
            maximize: climb instead of descend, for metrics.
            weight_decay: decoupled decay, >= 0.
            seed: seed and number of the step give the seeds of its directions.
            restore: "replay" moves back by the same noise, "copy" keeps a copy of the weights during the step.
            reduce: gets the values of f of this process, returns what all shall use; same seed and weights in every
                process then stay the same weights.

        Raises:
            ValueError: a setting out of range.
            TypeError: a weight in half precision.
        """
        check(epsilon, num_directions, kind, shaping)
        if kind == "orthogonal":
            raise ValueError("ZerothOrder keeps no directions, orthogonal ones must be kept; use zeroth_order_backward")
        if restore not in ("replay", "copy"):
            raise ValueError(f"restore must be 'replay' (no memory) or 'copy' (no rounding), got {restore!r}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"ZerothOrder needs {name} >= 0, got {value}")
        self.epsilon, self.num_directions, self.kind, self.shaping = epsilon, num_directions, kind, shaping
        self.restore, self.reduce = restore, reduce
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "seed": seed, "count": 0}
        )
        check_weights([p for group in self.param_groups for p in group["params"]])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float] | None = None) -> float:  # type: ignore[override]
        """One step from some values of the closure.

        Args:
            closure: computes f under the weights as they are then; it runs without gradients.

        Returns:
            Mean of the values of f that were seen.

        Raises:
            ValueError: no closure, or it returned something else than one finite number.
        """
        if closure is None:
            raise ValueError(
                "ZerothOrder.step needs a closure that returns the value to move: optimizer.step(lambda: metric(model))"
            )
        first = self.param_groups[0]
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        generator = torch.Generator().manual_seed((first["seed"] * 1_000_003 + first["count"]) % 2**63)
        seeds = draw_seeds(self.num_directions, generator)
        saved = [p.detach().clone() for p in params] if self.restore == "copy" else None
        at: list[tuple[int, float]] = []  # the seed and the amount by which the weights are moved now

        def back() -> None:
            if at:
                if saved is not None:
                    restore(params, saved)
                else:
                    shift(params, at[0][0], -at[0][1])
                at.clear()

        def move(k: int, amount: float) -> None:
            if saved is None and at and at[0][0] == seeds[k]:
                shift(params, seeds[k], amount - at[0][1])  # from one side of x to the other in one go
            else:
                back()
                shift(params, seeds[k], amount)
            at[:] = [(seeds[k], amount)]

        try:
            values = evaluate(closure, move, back, self.epsilon, self.num_directions, self.kind)
        finally:
            back()
        values = self.reduce(values) if self.reduce is not None else values
        weights = coefficients(values, self.epsilon, self.kind, self.shaping).tolist()
        for group in self.param_groups:
            if group["weight_decay"]:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
        rates = [
            g["lr"] * (1 if g["maximize"] else -1) for g in self.param_groups for p in g["params"] if p.requires_grad
        ]
        for seed, weight in zip(seeds, weights, strict=True):
            if weight:
                for p, rate, u in zip(params, rates, noise(params, seed), strict=True):
                    p.add_(u, alpha=rate * weight)
        for group in self.param_groups:
            group["count"] += 1
        return float(values.mean())


def check(epsilon: float, num_directions: int, kind: str, shaping: str) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be > 0, got {epsilon}; it is the radius over which f is smoothed")
    if num_directions < 1:
        raise ValueError(f"num_directions must be >= 1, got {num_directions}")
    if kind not in KINDS:
        raise ValueError(f"kind must be 'antithetic', 'forward' or 'orthogonal', got {kind!r}")
    if shaping not in ("raw", "rank"):
        raise ValueError(f"shaping must be 'raw' or 'rank', got {shaping!r}")
    if shaping == "rank" and kind == "forward" and num_directions == 1:
        raise ValueError("one value has no rank; use num_directions >= 2 or kind='antithetic' with shaping='rank'")


def check_weights(weights: list[Tensor]) -> list[Tensor]:
    """The weights that can be moved, each once."""
    unique = [w for w in {id(w): w for w in weights}.values() if w.requires_grad]
    if not unique:
        raise ValueError("no weight to move: none was given that requires a gradient (frozen weights stay)")
    for w in unique:
        if w.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"a small move is rounded away in {w.dtype} weights; keep the weights in float32 and evaluate under "
                "torch.autocast"
            )
    return unique
