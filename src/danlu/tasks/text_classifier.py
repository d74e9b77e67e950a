r"""A class or a score for what a transformer reads: pooling, dropout, a linear layer; shared by classify and match.

    v = h_1 (the start token)  or  v = mean over tokens of h                                  (1)
    s = W dropout(v) + b                                                                      (2)

A model that was pretrained on masked tokens alone has learned nothing at its start token, so the mean is the default.

Source: Devlin et al., 2019, arXiv:1810.04805 (start token).
Shapes: B batch, T tokens, D features, K outputs.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from danlu.nn.pooling import pool
from danlu.tasks.encoder import Encoder
from danlu.tasks.objective import Objective, classification_loss
from danlu.tasks.settings import Settings

__all__ = ["POOLINGS", "TextClassifier", "TextClassifierSettings"]
POOLINGS = {"first": "cls", "mean": "mean"}


@dataclass(frozen=True)
class TextClassifierSettings(Settings):
    """Defaults of a transformer under eqs. (1) and (2)."""

    batch_size: int = 32
    lr: float = 3e-4
    max_len: int = 256
    dropout: float = 0.1
    warmup: float = 0.1
    pooling: str = "mean"  # a key of POOLINGS


class TextClassifier(nn.Module):
    """Encoder, pooling, linear layer.

    Args:
        encoder: the transformer with its tokenizer.
        outputs: K.
        config: "pooling" ("first" or "mean"), "dropout", and what else the task stores.
    """

    def __init__(self, encoder: Encoder, outputs: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.dropout = nn.Dropout(config["dropout"])
        self.output = nn.Linear(encoder.dim, outputs)

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the token table."""
        return self.encoder.attack_weights()

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, K), float32, eqs. (1) and (2)."""
        vector = pool(self.encoder(batch), batch["mask"], POOLINGS[self.config["pooling"]])  # (B, D)
        return self.output(self.dropout(vector)).float()

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum of the losses of a batch with "label"."""
        return classification_loss(self, batch, objective)
