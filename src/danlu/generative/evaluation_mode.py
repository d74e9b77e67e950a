"""A model in evaluation mode for a while, without gradients, then every part of it in the mode it had.

Source: own definition.
Shapes: none.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Inside the block all parts of the models are in evaluation mode and no graph is kept.

    Args:
        *models: modules; parts that were frozen by hand (batch norms, as a rule) stay so.

    >>> model = torch.nn.Dropout()
    >>> with evaluation_mode(model):
    ...     inside = model.training
    >>> inside, model.training
    (False, True)
    """
    training = [part for model in models for part in model.modules() if part.training]
    try:
        for part in training:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
