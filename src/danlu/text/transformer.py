"""A model of any family from its configuration.

`Transformer` (`danlu.text.single_stack`) is every family with one stack, `EncoderDecoder`
(`danlu.text.encoder_decoder`) T5.

Source: see those two files.
"""

from __future__ import annotations

from collections.abc import Sequence

from danlu.text.config import TransformerConfig
from danlu.text.encoder_decoder import EncoderDecoder
from danlu.text.single_stack import Transformer, TransformerOutput

__all__ = ["EncoderDecoder", "Transformer", "TransformerOutput", "build_transformer"]


def build_transformer(config: TransformerConfig, heads: Sequence[str] = ()) -> Transformer | EncoderDecoder:
    """A fresh model with random weights; inside `with torch.device("meta")` one without memory, to be filled.

    Args:
        config: family, sizes and options.
        heads: of "pooler", "nsp", "mlm", "discriminator"; an encoder-decoder takes none.

    Returns:
        A Transformer, or an EncoderDecoder for T5 and mT5.

    Raises:
        ValueError: an unknown head, or heads for an encoder-decoder.

    >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    >>> build_transformer(TransformerConfig.of("roformer", **sizes), heads=["mlm"]).heads
    ('mlm',)
    """
    if not config.traits.encoder_decoder:
        return Transformer(config, heads)
    if heads:
        raise ValueError(
            f"{config.family} has no heads to choose from, got {', '.join(heads)}; its scores are always there"
        )
    return EncoderDecoder(config)
