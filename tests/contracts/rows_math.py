"""Contract rows of danlu.math: one a public callable."""

import torch
from contract import Row

from danlu import math

ROWS: list[Row] = []

# semiring


def _chain(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 3), (3, 3), (3,), (3,)]
    keep = torch.tensor([[True, True, True, True], [True, False, True, False]])
    return *(torch.randn(shape, generator=generator).to(dtype) for shape in shapes), keep


ROWS += [
    Row("chain_forward", lambda: math.chain_forward, _chain, (2, 4, 3)),
    Row("chain_forward[scan]", lambda: lambda *a: math.chain_forward(*a, method="scan"), _chain, (2, 4, 3)),
    Row("chain_backward", lambda: lambda f, g, s, e, m: math.chain_backward(f, g, e, m), _chain, (2, 4, 3)),
    Row("chain_marginals", lambda: math.chain_marginals, _chain, (2, 4, 3)),
    Row("chain_entropy", lambda: math.chain_entropy, _chain, (2,)),
    Row("logsumexp", lambda: lambda f, *rest: math.logsumexp(f, 2), _chain, (2, 4), bfloat16_tolerance=0.05),
]

# activations


def _line(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-4, 4, 9).to(dtype),)


ROWS += [
    Row("gelu", lambda: math.gelu, _line, (9,)),
    Row("gelu[tanh]", lambda: lambda x: math.gelu(x, "tanh"), _line, (9,)),
    Row("gelu[sigmoid]", lambda: lambda x: math.gelu(x, "sigmoid"), _line, (9,)),
    Row("activation", lambda: math.activation("relu2"), _line, (9,), bfloat16_tolerance=0.1),
]

# attention_normalize


def _scores(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    return scores, torch.tensor([[[[True, True, False, True, True]]], [[[False] * 5]]])


ROWS += [
    Row("attention_normalize", lambda: math.attention_normalize, _scores, (2, 3, 4, 5)),
    Row(
        "attention_normalize[squared_relu]",
        lambda: lambda *a: math.attention_normalize(*a, "squared_relu"),
        _scores,
        (2, 3, 4, 5),
    ),
    Row(
        "attention_normalize[softmax_plus]",
        lambda: lambda *a: math.attention_normalize(*a, "softmax_plus"),
        _scores,
        (2, 3, 4, 5),
    ),
    Row("softmax_plus_scale", lambda: math.softmax_plus_scale, lambda dtype: (torch.tensor([3, 17, 512]),), (3,)),
]
