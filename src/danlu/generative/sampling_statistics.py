"""Batch norms that serve samples: their running statistics measured on what a model makes, for a while.

    running mean, variance <- mean over the draws of those of each batch                                      (1)

Running statistics of training belong to states whose latents came from the encoder. From the prior, and at a lower
temperature still more, the states are others, and a deep decoder with the old statistics makes grey or blown-out
images. (1) measures them anew. A likelihood needs the old ones: they are back when the block ends.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898.
Shapes: those of the norms.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["sampling_statistics"]


@contextmanager
def sampling_statistics(model: nn.Module, make: Callable[[], object], steps: int = 100) -> Iterator[None]:
    """Inside the block the batch norms that take part in making samples have statistics of samples, eq. (1).

    Args:
        model: whose norms may change; modes, statistics and momenta are put back on any exit.
        make: makes one batch without setting modes, `lambda: model.prior_params(64, temperature=0.7)` for an NVAE.
        steps: batches, >= 1.

    Raises:
        ValueError: steps < 1.

    >>> norm = nn.BatchNorm1d(1)
    >>> with sampling_statistics(norm, lambda: norm(torch.tensor([[2.0], [4.0]])), steps=2):
    ...     inside = norm.running_mean.item()
    >>> inside, norm.running_mean.item(), norm.training
    (3.0, 0.0, True)
    """
    if steps < 1:
        raise ValueError(f"sampling_statistics needs steps >= 1, got {steps}")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [({k: v.clone() for k, v in m.named_buffers()}, m.momentum, m.training) for m in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = None  # a plain mean over the batches
            norm.get_buffer("num_batches_tracked").zero_()
        with torch.no_grad():
            for _ in range(steps):
                make()  # eq. (1)
        for norm, (_, _, training) in zip(norms, kept, strict=True):
            norm.train(training)
        yield
    finally:
        for norm, (buffers, momentum, training) in zip(norms, kept, strict=True):
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
            norm.momentum = momentum
            norm.train(training)
