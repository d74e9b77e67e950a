r"""The condition vector of a text: what its labels look up, or what a given vector becomes.

    c = sum_f E_f[label_f]      or      c = (E_1[label_1], ..., E_F[label_F])      combine "sum", "concat"      (1)
    c = W (v - mean) / std                                                         a vector                     (2)

The norms of the transformer follow c (`danlu.nn.conditional_norm`). Mean and deviation of (2) are those of the training
vectors: raw features of large norm would make the gains explode. Labels rarer than `min_count` share one row.

Source: kexue.fm/archives/7124. Shapes: B texts, F labels of each, C numbers of a vector, S size of c.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.data.pairs import Condition, Pair

__all__ = ["OTHER", "Conditions", "describe_conditions"]
OTHER = "[other]"  # row of labels that are rare in the training data, or not in it
COMBINE = ("sum", "concat")


def describe_conditions(
    examples: Sequence[Pair], size: int, combine: str = "sum", min_count: int = 1
) -> dict[str, Any] | None:
    """What `Conditions` is built from, as plain values; None where the examples have no condition.

    Args:
        examples: the training part.
        size: S.
        combine: "sum" or "concat".
        min_count: labels with fewer examples share a row, and so do unknown ones; 1: none does, unknown ones are
            refused.

    Raises:
        InputError: fewer numbers than labels to put side by side.
    """
    first = examples[0].condition
    if not first:
        return None
    if first.vector:
        return {"kind": "vector", "size": size, "inputs": len(first.vector)}
    if combine == "concat" and size < len(first.labels):
        raise InputError(
            f"--set condition_size={size} leaves no number for each of {len(first.labels)} labels; raise it"
        )
    fields: dict[str, list[str]] = {}
    for place, (name, _) in enumerate(first.labels):
        counts = Counter(example.condition.labels[place][1] for example in examples)
        kept = sorted(label for label, count in counts.items() if count >= min_count)
        fields[name] = ([OTHER] if min_count > 1 else []) + kept
    return {"kind": "labels", "size": size, "combine": combine, "fields": fields}


class Conditions(nn.Module):
    """Condition vectors, eqs. (1) and (2).

    Args:
        config: what `describe_conditions` returned.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.size = config, int(config["size"])
        self.fields: dict[str, list[str]] = config.get("fields", {})
        self.rows = {name: {label: i for i, label in enumerate(labels)} for name, labels in self.fields.items()}
        if self.fields:
            share, rest = divmod(self.size, len(self.fields))
            together = config["combine"] == "sum"
            self.tables = nn.ModuleList(
                nn.Embedding(len(labels), self.size if together else share + (i < rest))
                for i, labels in enumerate(self.fields.values())
            )
        else:
            self.project = nn.Linear(config["inputs"], self.size)
            self.register_buffer("mean", torch.zeros(config["inputs"]))
            self.register_buffer("std", torch.ones(config["inputs"]))

    def measure(self, examples: Sequence[Pair]) -> None:
        """Take mean and deviation of eq. (2) from the training vectors; labels need none."""
        if self.fields:
            return
        vectors = torch.tensor([example.condition.vector for example in examples])
        self.mean.copy_(vectors.mean(0))
        std = vectors.std(0, correction=0)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))  # a constant number stays, and says nothing

    def fault(self, condition: Condition) -> str:
        """Why a condition cannot be followed; "" if it can."""
        if not self.fields:
            wanted = self.config["inputs"]
            given = f"{len(condition.vector)} numbers" if condition.vector else condition.kind
            return "" if len(condition.vector) == wanted else f"needs a vector of {wanted} numbers, got {given}"
        given_names = [name for name, _ in condition.labels]
        if given_names != list(self.fields):
            return f"needs the labels {', '.join(self.fields)}; got {condition.kind}"
        for name, label in condition.labels:
            if label not in self.rows[name] and OTHER not in self.rows[name]:
                known = self.fields[name]
                names = ", ".join(known[:8]) + (" ..." if len(known) > 8 else "")
                return (
                    f"{name} {label!r} does not occur in the training data ({len(known)} labels: {names}); "
                    "condition_min_count=2 lets rare and unknown labels share a vector"
                )
        return ""

    def encode(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """Tensors that `forward` takes: "condition_labels" (B, F) int64, or "condition_vector" (B, C)."""
        if not self.fields:
            return {"condition_vector": torch.tensor([condition.vector for condition in conditions])}
        rows = [
            [self.rows[name].get(label, 0) for name, label in condition.labels]  # row 0 is OTHER where there is one
            for condition in conditions
        ]
        return {"condition_labels": torch.tensor(rows)}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """c (B, S) of what `encode` made."""
        if not self.fields:
            with torch.autocast(batch["condition_vector"].device.type, enabled=False):
                return self.project((batch["condition_vector"] - self.mean) / self.std)  # eq. (2)
        parts = [table(batch["condition_labels"][:, i]) for i, table in enumerate(self.tables)]
        return sum(parts[1:], parts[0]) if self.config["combine"] == "sum" else torch.cat(parts, dim=-1)  # eq. (1)
