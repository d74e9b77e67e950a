"""The parameters that a file gets of a model, or a refusal where the model has not all that its configuration says.

Source: danlu's own rules.
Shapes: any.
"""

from __future__ import annotations

from torch import Tensor

from danlu.text.transformer import EncoderDecoder, Transformer, build_transformer
from danlu.text.without_memory import without_memory

__all__ = ["whole_parameters"]


def whole_parameters(model: Transformer | EncoderDecoder, writer: str) -> dict[str, Tensor]:
    """Every parameter of a model by name, detached.

    Args:
        model: what `build_transformer` or a loader returned, with or without further parameters.
        writer: who asks, for messages.

    Returns:
        Name to tensor, those that the user added among them.

    Raises:
        ValueError: the model is a copy of `for_inference`, or has lost parameters that its configuration and heads say.

    >>> from danlu.text.config import TransformerConfig
    >>> len(whole_parameters(build_transformer(TransformerConfig("bert", 9, 4, 1, 2, 8)), "save_hf"))
    21
    """
    if getattr(model, "inference_only", False):
        raise ValueError(f"{writer} takes the model itself, not the one that for_inference returned")
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with without_memory():
        expected = [name for name, _ in build_transformer(model.config, model.heads).named_parameters()]
    lost = [name for name in expected if name not in found]
    if lost:
        raise ValueError(
            f"{writer} takes a whole model; {len(lost)} of the parameters that its configuration says are not in this "
            f"one, {lost[0]} first; give the model as it was built or loaded"
        )
    return found
