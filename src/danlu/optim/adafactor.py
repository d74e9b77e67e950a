r"""Adafactor: Adam's second moment kept as row means and column means, so that a matrix costs m + n numbers, not 2 m n.

    R_t = b_t R_{t-1} + (1 - b_t) mean over a row of (G^2 + eps1)        C_t likewise, over a column          (1)
    V_t = R_t C_t / mean(R_t)                                            (the best rank-one fit, see below)   (2)
    U_t = G / sqrt(V_t),   U_t <- U_t / max(1, RMS(U_t) / d)                                                  (3)
    M_t = beta1 M_{t-1} + (1 - beta1) U_t                                (only if beta1 > 0, else M_t = U_t)  (4)
    a_t = max(eps2, RMS(X_{t-1})) rho_t                                                                       (5)
    X_t = X_{t-1} - a_t M_t - weight_decay rho_t X_{t-1}                                                      (6)
    rho_t = lr,   or for lr=None   min(max_relative_step, 1 / sqrt(t)),   b_t = 1 - t^-decay_rate             (7)

What is not factored (vectors, and tensors whose second largest side is below min_dim_size_to_factor) keeps V_t whole.
b_1 is 0, so no bias correction is needed, and b_t goes to 1: late steps hardly change the scale, where a constant
beta2 keeps following the newest gradients. The product of the marginals is the exact minimum of the generalised
Kullback-Leibler divergence between G^2 and a rank-one matrix (not of the squared error), and marginals, unlike singular
vectors, may be averaged over time.

The two forms. The author's (the default): a given lr, relative to the size of the weights (so 1e-3 also where Adam
takes 1e-5), the two largest sides factored if the smaller has at least 128. The paper's:
`Adafactor(params, lr=None, min_dim_size_to_factor=1)`, the step size of eq. (7) and every matrix factored.

How others differ. transformers: the last two sides, however small (a 3 x 3 convolution then saves nothing); momentum
after the step size, M_t = beta1 M_{t-1} + (1 - beta1) a_t U_t; decay by weight_decay a_t: `compat="transformers"` does
all three, and for matrices without momentum and decay both are the same. torch.optim.Adafactor: its lr is a cap,
rho_t = min(lr, 1 / sqrt(t)), which here is lr=None with max_relative_step=lr; eps1 is a bound and not a summand; the
last two sides; no momentum; its state has the precision of the gradients. bert4keras: eq. (6) as here; for lr=None
without parameter scaling rho_t is 20 times smaller: `compat="bert4keras"`. Sums (paper) or means give the same V_t.

The work is done in blocks that stay in the cache: gradients are read for (1), again for RMS(U), again for (6), and
nothing as large as the matrix is ever stored. Sums are float32 or better for bfloat16 weights too; the state is
float32. RMS, rows and columns mean the whole tensor, so pieces of a tensor (DTensor) are refused.

Source: Shazeer, Stern, 2018, arXiv:1804.04235; kexue.fm/archives/7302; bojone/bert4keras, optimizers.py.
Shapes: E matrices of m x n in a tensor, the other sides flattened into E.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype
from danlu.optim._adafactor_blocks import Sweeps, check_gradient, factored_dims, kernel_for, matrices, moved
from danlu.optim._base import ExactStateOptimizer, check_patterns, chosen, loss_of, round_at_random

__all__ = ["Adafactor"]

COMPAT = (None, "bert4keras", "transformers")


class Adafactor(ExactStateOptimizer):
    r"""Adam's step sizes from row and column means, eqs. (1) to (7).

        optimizer = Adafactor(model.named_parameters(), lr=1e-3, exclude_from_scale=("norm", "bias"))

    lr is relative: a step moves a weight matrix by about lr times its own size. Schedulers write `lr` of the groups as
    usual; for lr=None they have nothing to write. Every setting may stand in a parameter group.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = 1e-3,
        *,
        beta1: float = 0.0,
        beta2: float | None = None,
        decay_rate: float = 0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float | None = 1.0,
        scale_parameter: bool = True,
        exclude_from_scale: Sequence[str] = (),
        max_relative_step: float = 1e-2,
        warmup_slope: float | None = None,
        min_dim_size_to_factor: int = 128,
        weight_decay: float = 0.0,
        stochastic_rounding: bool = False,
        seed: int = 0,
        compat: str | None = None,
    ) -> None:
        """Prepare the optimizer; the state appears at the first step.

        Args:
            params: parameters, groups, or `model.named_parameters()`.
            lr: rho of eq. (7), > 0; None takes the falling step of eq. (7).
            beta1: momentum of eq. (4), in [0, 1); 0 keeps none and saves its memory.
            beta2: a constant for b_t, in [0, 1); None is the author's growing one.
            decay_rate: c in b_t = 1 - t^-c, > 0; 1 averages all squares alike.
            eps: (eps1, eps2), added to the squared gradients; least RMS of a weight, which lets zeros begin to move.
            clip_threshold: d of eq. (3), > 0; None clips nothing.
            scale_parameter: multiply by the size of the weights, eq. (5); without it lr is absolute.
            exclude_from_scale: patterns of names that are not scaled, as biases and norms.
            max_relative_step: cap of the step for lr=None, > 0.
            warmup_slope: cap the step for lr=None by warmup_slope * t too, as transformers' warmup_init does with 1e-6.
            min_dim_size_to_factor: tensors whose second largest side is smaller keep all of V_t, >= 1.
            weight_decay: decoupled decay of eq. (6), >= 0.
            stochastic_rounding: round bfloat16 weights at random, so that steps below their resolution count.
            seed: of that rounding; with the number of the step it gives the noise, so a resumed run repeats.
            compat: "bert4keras" or "transformers" for their differences, see the top of the file.

        Raises:
            ValueError: a number out of its range, an unknown compat, patterns without names.

        >>> x = torch.nn.Parameter(torch.tensor([2.0, -2.0]))  # RMS 2, first step: lr * RMS * sign
        >>> x.grad = torch.tensor([0.1, -0.3])
        >>> Adafactor([x], lr=0.1).step(); x.data
        tensor([ 1.8000, -1.8000])
        """
        if compat not in COMPAT:
            raise ValueError(f"compat must be one of {COMPAT}, got {compat!r}; None is the author's form")
        defaults = {
            "lr": lr, "beta1": beta1, "beta2": beta2, "decay_rate": decay_rate, "eps": eps,
            "clip_threshold": clip_threshold, "scale_parameter": scale_parameter,
            "exclude_from_scale": exclude_from_scale, "max_relative_step": max_relative_step,
            "warmup_slope": warmup_slope, "min_dim_size_to_factor": min_dim_size_to_factor,
            "weight_decay": weight_decay, "stochastic_rounding": stochastic_rounding, "seed": seed, "compat": compat,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            check_group(group)
            check_patterns(self, {"exclude_from_scale": group["exclude_from_scale"]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, eqs. (1) to (7).

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, None without one.

        Raises:
            ValueError: a gradient is sparse, complex or one piece of a distributed tensor.
        """
        loss = loss_of(closure)
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            check_gradient(p)  # all of them before the first weight moves
        jobs: list[Job] = []
        for number, (group, index) in enumerate((g, i) for g in self.param_groups for i in range(len(g["params"]))):
            p = group["params"][index]
            if p.grad is None or p.numel() == 0:
                continue
            scaled = group["scale_parameter"] and not chosen(group, index, group["exclude_from_scale"])
            job = Job(p, group, scaled, self.state[p], number)
            if job.kernel is None:
                job.run()
            else:
                jobs.append(job)
        threads = min(torch.get_num_threads(), len(jobs))
        if threads < 2:
            for job in jobs:
                job.run()
        else:  # the largest first, whole tensors to a thread: their number changes no bit
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(Job.run, sorted(jobs, key=lambda job: -job.x.numel())))
        return loss


class Job:
    """One step of one parameter, which is the `number`-th."""

    def __init__(self, p: Tensor, group: dict[str, Any], scaled: bool, state: dict[str, Any], number: int) -> None:
        assert p.grad is not None
        self.p, self.group, self.scaled, self.state, self.number = p, group, scaled, state, number
        self.like_transformers = group["compat"] == "transformers"
        self.dims = factored_dims(tuple(p.shape), group["min_dim_size_to_factor"], last_two=self.like_transformers)
        self.work = wide_dtype(p)
        self.x, self.g = matrices(p, self.dims), matrices(p.grad, self.dims)  # (E, m, n)
        if not state:
            self._begin()
        state["step"] += 1
        self.t = int(state["step"].item())
        self.rho = relative_step(group, self.t)
        self.beta2 = 1 - self.t ** -group["decay_rate"] if group["beta2"] is None else group["beta2"]  # eq. (7)
        plain = self.dims is not None and "exp_avg" not in state
        self.kernel = kernel_for(self.x, self.g) if plain else None

    def _begin(self) -> None:
        """Zeros under transformers' names: m + n numbers of a matrix."""
        shape = moved(self.p, self.dims).shape
        sizes = {"exp_avg_sq": shape}
        if self.dims is not None:
            sizes = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
        if self.group["beta1"] > 0:
            sizes["exp_avg"] = shape
        self.state["step"] = torch.zeros(())
        for name, size in sizes.items():
            self.state[name] = torch.zeros(size, dtype=self.work, device=self.p.device)

    @torch.no_grad()
    def run(self) -> None:
        """Eqs. (1) to (6)."""
        x, (eps1, eps2), limit = self.x, self.group["eps"], self.group["clip_threshold"]
        sweeps = Sweeps(x, self.g, self.work)
        right: Tensor | None = None  # (E, n)
        if self.dims is None:
            v = self.state["exp_avg_sq"].view(x.shape)
            u_rows = x.new_empty(x.shape[:2], dtype=self.work)
            for span in sweeps.spans:
                v[span].lerp_(sweeps.squared(span).add_(eps1), 1 - self.beta2)  # eq. (1) without the means
                u_rows[span] = sweeps.squared(span).div_(v[span]).sum(-1)
            left = torch.ones_like(u_rows)
            size = sweeps.weighted_sums(None)[1]
        else:
            row = self.state["exp_avg_sq_row"].view(x.shape[:2])  # (E, m)
            col = self.state["exp_avg_sq_col"].view(x.shape[0], x.shape[2])  # (E, n)
            new_row, new_col = self.kernel.square_sums(self.g) if self.kernel else sweeps.square_sums()
            row.lerp_(new_row.div_(x.shape[2]).add_(eps1), 1 - self.beta2)  # eq. (1)
            col.lerp_(new_col.div_(x.shape[1]).add_(eps1), 1 - self.beta2)  # eq. (1)
            left = (row / row.mean(-1, keepdim=True)).rsqrt_()  # (E, m)  eq. (2)
            right = col.rsqrt()  # eq. (2)
            if self.kernel:
                u_rows, size = self.kernel.weighted_sums(self.g, x, 1 / col)
            else:
                u_rows, size = sweeps.weighted_sums(1 / col if limit is not None else None)

        # a product of the squares with a vector is quicker than U itself
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # 1 / R may be 1e30
        u_rms = (u_rows.to(wide) * left.to(wide).square()).sum().div_(x.numel()).sqrt_()
        clip = torch.ones_like(u_rms) if limit is None else (u_rms / limit).clamp_(min=1)  # eq. (3)
        alpha: Tensor | float = self.rho
        if self.scaled:
            alpha = (size.to(wide) / x.numel()).sqrt().clamp_(min=eps2) * self.rho  # eq. (5)
        decay = self.group["weight_decay"] * (alpha if self.like_transformers else self.rho)  # eq. (6)
        if self.kernel:
            keep = 1 - float(decay)
            self.kernel.move(x, self.g, (left * (alpha / clip)).to(x.dtype), right, keep)  # eq. (6)
        else:
            self._move(sweeps, left, right, 1 / clip, alpha, 1 - decay)
        if x.data_ptr() != self.p.data_ptr():  # sides that could not be flattened in place
            target = moved(self.p, self.dims)
            target.copy_(x.view(target.shape))

    def _move(
        self, sweeps: Sweeps, left: Tensor, right: Tensor | None, scale: Tensor, alpha: Tensor | float,
        keep: Tensor | float,
    ) -> None:  # fmt: skip
        """Eqs. (3), (4) and (6), block by block."""
        x, g, beta1 = self.x, self.g, self.group["beta1"]
        momentum = self.state["exp_avg"].view(x.shape) if "exp_avg" in self.state else None
        late = momentum is not None and not self.like_transformers  # the step size comes after the momentum
        factor = (left * (scale if late else scale * alpha)).to(self.work)[..., None]  # (E, m, 1)
        after = torch.as_tensor(alpha if late else 1.0, dtype=self.work, device=x.device)
        generator = None
        if self.group["stochastic_rounding"] and x.dtype == torch.bfloat16:
            seed = hash((self.group["seed"], self.number, self.t)) & (2**63 - 1)
            generator = torch.Generator(x.device).manual_seed(seed)
        for span in sweeps.spans:
            u = sweeps.like(span)
            if right is None:
                torch.rsqrt(self.state["exp_avg_sq"].view(x.shape)[span], out=u).mul_(g[span])  # eq. (3)
            else:
                torch.mul(g[span], right[span[0], None], out=u)  # eq. (3), its other half is in `factor`
            wide = x[span] if x.dtype == self.work else x[span].to(self.work)
            if self.group["weight_decay"]:
                wide.mul_(keep)  # eq. (6)
            if momentum is None:
                wide.addcmul_(u, factor[span], value=-1)  # eq. (6)
            else:
                m = momentum[span].lerp_(u.mul_(factor[span]), 1 - beta1)  # eq. (4)
                wide.addcmul_(m, after, value=-1)  # eq. (6)
            if x.dtype != self.work:
                x[span] = wide if generator is None else round_at_random(wide, generator)


def relative_step(group: dict[str, Any], t: int) -> float:
    """rho_t, the step size before it is scaled, eq. (7)."""
    if group["lr"] is not None:
        return float(group["lr"])
    cap = group["max_relative_step"]
    if group["warmup_slope"] is not None:
        cap = min(cap, group["warmup_slope"] * t)
    rho = min(cap, 1 / math.sqrt(t))
    return rho * 0.05 if group["compat"] == "bert4keras" and not group["scale_parameter"] else rho


def check_group(group: dict[str, Any]) -> None:
    """Every number in its range."""
    rules: list[tuple[str, Callable[[Any], bool], str]] = [
        ("lr", lambda v: v is None or v > 0, "> 0, or None for the falling step of the paper"),
        ("beta1", lambda v: 0 <= v < 1, "in [0, 1); there are no betas=, the second is beta2= or grows by decay_rate="),
        ("beta2", lambda v: v is None or 0 <= v < 1, "in [0, 1), or None for 1 - t^-decay_rate"),
        ("decay_rate", lambda v: v > 0, "> 0 (transformers writes it with a minus); 0.8 is the author's"),
        ("eps", lambda v: len(v) == 2 and min(v) >= 0, "two numbers >= 0: for squared gradients, for the RMS"),
        ("clip_threshold", lambda v: v is None or v > 0, "> 0, or None to clip nothing"),
        ("max_relative_step", lambda v: v > 0, "> 0; 0.01 is the paper's"),
        ("warmup_slope", lambda v: v is None or v > 0, "> 0 or None; transformers' warm-up is 1e-6"),
        ("min_dim_size_to_factor", lambda v: v >= 1, ">= 1; 1 factors every matrix"),
        ("weight_decay", lambda v: v >= 0, ">= 0"),
    ]
    for name, fits, allowed in rules:
        if not fits(group[name]):
            raise ValueError(f"{name} of Adafactor must be {allowed}; got {group[name]!r}")
