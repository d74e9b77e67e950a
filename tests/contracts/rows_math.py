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
