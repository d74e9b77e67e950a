r"""The feed-forward layer of a transformer, plain or gated.

    plain    W_o act(W_i x)                                                                                    (1)
    gated    W_o (act(W_g x) * W_i x)                                                                          (2)

Source: Vaswani et al., 2017, arXiv:1706.03762 (1); Shazeer, 2020, arXiv:2002.05202 (2), used by T5 1.1.
Shapes: ... any leading axes, D features, F features inside.
"""

from torch import Tensor, nn

from danlu.math.activations import activation as activation_of

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """Eqs. (1) and (2); parameters are `input`, `output` and, for the gated form, `gate`.

    Source: see the module. Shapes: see the module.
    """

    def __init__(
        self, dim: int, inner_dim: int, activation: str = "gelu", *, gated: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.input = nn.Linear(dim, inner_dim, bias=bias)
        self.gate = nn.Linear(dim, inner_dim, bias=bias) if gated else None
        self.output = nn.Linear(inner_dim, dim, bias=bias)
        self.activation = activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:  # (..., D)
        if self.gate is not None:
            return self.output(self.activation(self.gate(x)) * self.input(x))  # eq. (2)
        return self.output(self.activation(self.input(x)))  # eq. (1)
