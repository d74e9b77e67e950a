"""The light network under the text tasks, `--model dgcnn`: its settings, its character encoder, a text's vector."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.tasks.model_choice import Choice
from danlu.tasks.settings import Settings
from danlu.text import CharEncoder, CharVocab

__all__ = ["CharSettings", "char_config", "char_encoder", "char_vector", "split_text"]


@dataclass(frozen=True)
class CharSettings(Settings):
    """What the light network adds to the numbers of the loop."""

    bigram_dim: int = 64  # features of a pair of characters
    bigram_dropout: float = 0.2  # share of the pairs that become unknown in training
    gate_dropout: float = 0.1  # share of the gates that are set to 1/2 in training
    bigram_min_count: int = 2  # pairs rarer than this are unknown


def char_config(choice: Choice, settings: CharSettings) -> dict[str, Any]:
    """What task.json stores of the network."""
    return {
        "family": "dgcnn",
        "dim": choice.dim,
        "dilations": choice.dilations,
        "bigram_dim": settings.bigram_dim,
        "bigram_dropout": settings.bigram_dropout,
        "gate_dropout": settings.gate_dropout,
        "dropout": settings.dropout,
        "max_len": settings.max_len,
    }


def char_encoder(vocab: CharVocab, config: dict[str, Any]) -> CharEncoder:
    """The encoder of a stored configuration, weights drawn from the global generator."""
    return CharEncoder(
        len(vocab), vocab.num_bigrams, dim=config["dim"], bigram_dim=config["bigram_dim"],
        dilations=config["dilations"],
        dropout=config["dropout"], bigram_dropout=config["bigram_dropout"], gate_dropout=config["gate_dropout"],
    )  # fmt: skip


def char_vector(encoder: CharEncoder, pool: nn.Module, batch: dict[str, Tensor], suffix: str = "") -> Tensor:
    """(B, 2 D): attention pooling beside the maximum of "tokens", "bigrams" and "mask" (B, T), names + suffix."""
    mask = batch[f"mask{suffix}"]
    pairs = None if encoder.bigram_embedding is None else batch[f"bigrams{suffix}"]
    hidden = encoder(batch[f"tokens{suffix}"], pairs, mask)  # (B, T, D)
    highest = hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)  # (B, D)
    highest = highest.masked_fill(~mask.any(1, keepdim=True), 0.0)
    return torch.cat([pool(hidden, mask), highest.to(hidden.dtype)], -1)  # (B, 2 D)


def split_text(text: str) -> list[str]:
    """Chinese characters and symbols one by one, runs of Latin letters or digits as words in lower case.

    >>> split_text("Win10真 好")
    ['win', '10', '真', '好']
    """
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text.lower())
