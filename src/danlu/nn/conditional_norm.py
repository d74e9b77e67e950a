r"""Layer and RMS normalization whose gain and shift may follow a condition: a class, an image, the span before.

    layer        y = gamma (x - mean) / sqrt(var + eps) + beta                                    (1)
    rms          y = gamma x / sqrt(mean(x^2) + eps)                                              (2)
    plain_rms    (2) with gamma = 1                                                               (3)
    c' = act(V c),   gamma(c) = gamma + A c',   beta(c) = beta + B c'                             (4)

c is one vector for a whole sequence; without a bottleneck V, c' = c. A and B start at zero: a pretrained model keeps
its outputs until training moves them, and one linear layer at zero still has a gradient. V may not start at zero,
because then neither V nor A would have one. (4) acts on what there is: an rms norm has no shift and gets none, a plain
one follows the condition by 1 + A c'. A, B and V want 10 to 100 times the learning rate of the pretrained weights.

`weight` and `bias` carry nn.LayerNorm's names, so its checkpoints load unchanged.

Source: kexue.fm/archives/7124; Ba et al., 2016, arXiv:1607.06450 (1); Zhang and Sennrich, 2019, arXiv:1910.07467 (2).
Shapes: B sequences, T tokens, D features, C size of a condition, N tokens without padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.activations import activation

__all__ = ["Norm"]

_KINDS = ("layer", "rms", "plain_rms")


class Norm(nn.Module):
    """Normalization over the last axis, eq. (1), (2) or (3), with or without a condition, eq. (4).

    Args:
        dim: features D.
        kind: "layer", "rms" or "plain_rms".
        eps: guard inside the root, > 0.
        condition_dim: size C of the condition; None: the norm takes none.
        condition_hidden: size of the bottleneck V; None: none.
        condition_activation: after V, a name of `danlu.math.activations`.

    Raises:
        ValueError: an unknown kind or activation, a size below 1, eps not above 0, or a bottleneck and no condition.

    >>> norm = Norm(2, condition_dim=1)
    >>> norm(torch.tensor([[[1.0, 3.0]]]), condition=torch.tensor([[5.0]]))  # before training: a plain layer norm
    tensor([[[-1.,  1.]]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: str = "layer",
        eps: float = 1e-12,
        condition_dim: int | None = None,
        condition_hidden: int | None = None,
        condition_activation: str | None = "linear",
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}; got {kind!r}")
        if any(size is not None and size < 1 for size in (dim, condition_dim, condition_hidden)):
            raise ValueError(
                f"dim, condition_dim and condition_hidden must be at least 1 (None: no condition, no bottleneck); got "
                f"{dim}, {condition_dim} and {condition_hidden}"
            )
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}: constant rows would be divided by zero; BERT has 1e-12")
        if condition_hidden is not None and condition_dim is None:
            raise ValueError("condition_hidden is the bottleneck of a condition; give condition_dim too")
        self.dim, self.kind, self.eps, self.condition_dim = dim, kind, eps, condition_dim
        self.weight = nn.Parameter(torch.ones(dim)) if kind != "plain_rms" else None
        self.bias = nn.Parameter(torch.zeros(dim)) if kind == "layer" else None
        self.cond_hidden: nn.Linear | None = None
        self.cond_gamma: nn.Linear | None = None
        self.cond_beta: nn.Linear | None = None
        self.condition_activation = activation(condition_activation)
        if condition_dim is None:
            return
        if condition_hidden is not None:
            self.cond_hidden = nn.Linear(condition_dim, condition_hidden, bias=False)
            nn.init.trunc_normal_(self.cond_hidden.weight, std=0.02, a=-0.04, b=0.04)
        self.cond_gamma = _zero_linear(condition_hidden or condition_dim, dim)
        if self.bias is not None:
            self.cond_beta = _zero_linear(condition_hidden or condition_dim, dim)

    def forward(self, x: Tensor, condition: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """The normalized x; float32 inside where x is in half precision.

        Args:
            x: (B, ..., D), or (N, D) with rows.
            condition: (B, C), a vector for each sequence, or (B, T, C), one for each token; only for a norm with
                condition_dim.
            rows: (N,) int64, the row of condition that each token of x follows; None: x has condition's leading axes.

        Returns:
            The shape and dtype of x.

        Raises:
            ValueError: x has another last axis, a condition is missing, unexpected, or does not fit x.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"this norm is over {self.dim} features; got x {tuple(x.shape)}")
        if self.condition_dim is None:
            if condition is not None:
                raise ValueError(
                    "this norm takes no condition; build it with condition_dim, or give a built model one with "
                    "add_condition(model, condition_dim)"
                )
            return self._plain(x)
        gain, shift = self.gain_and_shift(self._checked(x, condition, rows))
        if rows is not None:
            gain, shift = gain[rows], None if shift is None else shift[rows]  # (N, D)
        else:
            shape = (*gain.shape[:-1], *[1] * (x.ndim - gain.ndim), self.dim)  # (B, 1, D): over all tokens of a row
            gain, shift = gain.reshape(shape), None if shift is None else shift.reshape(shape)
        work = x.to(_working_dtype(x))
        if self.kind == "layer":
            x_hat = F.layer_norm(work, (self.dim,), eps=self.eps)
        else:
            x_hat = _rms_norm(work, None, self.eps)
        # one rounding, as torch's layer norm has it: a norm that is not trained yet gives its very bits
        y = x_hat * gain if shift is None else torch.addcmul(shift, x_hat, gain)  # eq. (1), (2)
        return y.to(x.dtype)

    def gain_and_shift(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """gamma(c) and beta(c) of eq. (4).

        Args:
            condition: (..., C).

        Returns:
            Two (..., D) in float32 (float64 for float64 parameters); None for the shift that an rms norm lacks.

        Raises:
            ValueError: the norm takes no condition, or one of another size.
        """
        if self.cond_gamma is None or self.condition_dim is None:
            raise ValueError("this norm takes no condition; build it with condition_dim")
        if condition.shape[-1] != self.condition_dim:
            raise ValueError(
                f"this norm takes conditions of {self.condition_dim} numbers; got condition {tuple(condition.shape)}"
            )
        dtype = _working_dtype(self.cond_gamma.weight)
        with torch.autocast(condition.device.type, enabled=False):
            c = condition.to(dtype)
            if self.cond_hidden is not None:
                c = self.condition_activation(F.linear(c, self.cond_hidden.weight.to(dtype)))  # eq. (4)
            gain = F.linear(c, self.cond_gamma.weight.to(dtype))
            gain = gain + (1.0 if self.weight is None else self.weight.to(dtype))
            if self.cond_beta is None or self.bias is None:
                return gain, None
            return gain, F.linear(c, self.cond_beta.weight.to(dtype)) + self.bias.to(dtype)

    def _plain(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        work = x
        kernel_mixes = self.kind == "layer" and x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
        if weight is not None and weight.dtype != x.dtype and not (kernel_mixes and weight.dtype == torch.float32):
            dtype = torch.promote_types(_working_dtype(x), _working_dtype(weight))
            work, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if self.kind == "layer":
            return F.layer_norm(work, (self.dim,), weight, bias, self.eps).to(x.dtype)  # eq. (1)
        return _rms_norm(work, weight, self.eps).to(x.dtype)

    def _checked(self, x: Tensor, condition: Tensor | None, rows: Tensor | None) -> Tensor:
        """The condition, if x can follow it."""
        if condition is None:
            raise ValueError(
                f"this norm follows a condition of {self.condition_dim} numbers and none was given; pass condition= to "
                "the model, or run it inside `with condition(c):` if add_condition changed it (backward too, where "
                "activation checkpointing runs the layers again)"
            )
        if rows is not None:
            if x.ndim != 2 or rows.shape != x.shape[:1] or condition.ndim != 2:
                raise ValueError(
                    f"rows (N,) go with x (N, {self.dim}) and condition (B, {self.condition_dim}); got rows "
                    f"{tuple(rows.shape)}, x {tuple(x.shape)}, condition {tuple(condition.shape)}"
                )
            return condition
        lead = condition.shape[:-1]
        if not 1 <= len(lead) < x.ndim or x.shape[: len(lead)] != lead:
            raise ValueError(
                f"condition {tuple(condition.shape)} does not fit x {tuple(x.shape)}: it needs one row for each of the "
                f"{x.shape[0]} rows of x, nothing is repeated for you. For k beams or samples of a row write "
                "condition.repeat_interleave(k, dim=0), for one condition for all condition.expand(rows, -1); tokens "
                "without padding need rows="
            )
        return condition

    def extra_repr(self) -> str:
        """Sizes and kind, as print(model) shows them."""
        condition = "" if self.condition_dim is None else f", condition_dim={self.condition_dim}"
        return f"{self.dim}, kind={self.kind!r}, eps={self.eps:g}{condition}"


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if not torch.onnx.is_in_onnx_export():
        return F.rms_norm(x, x.shape[-1:], weight, eps)  # eq. (2), (3)
    y = x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()  # the exporter has no rule for torch's own
    return y if weight is None else y * weight


def _zero_linear(size: int, dim: int) -> nn.Linear:
    linear = nn.Linear(size, dim, bias=False)
    nn.init.zeros_(linear.weight)
    return linear
