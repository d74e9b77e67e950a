r"""Nyström attention learns what softmax attention learns, where attention is needed; how far it is from it, and why.

Claim  arXiv:2102.03902 (kexue.fm/archives/8180): accuracy of softmax attention at linear cost, on the text task of
       Long-Range Arena 0.5 points more (65.52 against 65.02) where the performer has 1.2 less (63.81).
Test   two posts side by side and a cue which of them is asked for; the model says its field (4 of them). Pooling alone
       cannot connect the cue and the words: the arm "none", without attention, is the control. Arms: softmax, nystrom,
       its two simpler forms (landmark, double softmax), performer, each by one word of the configuration, with the
       same start, batches and steps. Then, on queries, keys and values of the trained softmax model: the relative error
       of outputs by the number of landmarks, for segment means, centres of keys and random rows, and by the steps of
       the inverse; beside it vectors without structure and vectors alike in blocks. Last, seconds of a training step
       for long sequences (one machine's, for the ratio).
Data   20newsgroups (a folder of $DANLU_DATA/data); smoke: made-up words
Run    danlu run nystromformer --scale smoke|full --seed 0 --set steps=1000
"""

import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.math import iterative_pinv
from danlu.nn import AttentionContext, segment_means
from danlu.probe import attention_inputs, nystrom_report
from danlu.text import TransformerConfig, build_transformer

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS = ("softmax", "nystrom", "nystrom_landmark", "double_softmax", "performer", "none")
FIELDS = {  # of the groups whose name begins so; what is for sale belongs to no field
    "comp": 0, "rec": 1, "sci": 2, "talk": 3, "alt": 3, "soc": 3,
}  # fmt: skip
FIRST, SECOND, WORDS = 1, 2, 3  # ids of the cues, and of the first word
Posts = tuple[Tensor, Tensor]  # (P, W) words, (P,) fields


@dataclass(frozen=True)
class Config:
    """A small BERT over the words of two posts."""

    data: str = "20newsgroups"  # "": made-up posts
    vocabulary: int = 4_000  # the most frequent words; others are left out of the posts
    length: int = 256  # tokens of a sequence, cue and both posts
    cue: int = 16  # of these, repetitions of the cue
    dim: int = 64
    layers: int = 2
    heads: int = 2
    landmarks: int = 32
    features: int = 64  # of the performer
    dropout: float = 0.1
    lr: float = 2e-3
    batch_size: int = 32
    steps: int = 450
    test_pairs: int = 1_600
    error_pairs: int = 8  # sequences whose attention is approximated
    error_landmarks: str = "8 16 32 64 128"
    long: int = 2_048  # tokens of the timed step
    timed_steps: int = 3


SCALES = {
    "smoke": Config(
        data="", vocabulary=60, length=32, cue=4, dim=16, landmarks=4, features=8, batch_size=8, steps=4,
        test_pairs=16, error_pairs=2, error_landmarks="4 8", long=64, timed_steps=1,
    ),
    "full": Config(),
}  # fmt: skip


class Asked(nn.Module):
    """A transformer, the mean of its hidden states, a linear layer."""

    def __init__(self, config: Config, arm: str, vocabulary: int) -> None:
        super().__init__()
        sizes = {"nystrom": config.landmarks, "nystrom_landmark": config.landmarks, "performer": config.features}
        self.encoder = build_transformer(
            TransformerConfig.of(
                "bert", vocab_size=vocabulary, hidden_size=config.dim, num_layers=config.layers, num_heads=config.heads,
                intermediate_size=2 * config.dim, max_positions=config.length, segment_vocab_size=0, pad_token_id=None,
                hidden_dropout=config.dropout, attention_dropout=0.0, initializer_range=config.dim**-0.5,
                attention="softmax" if arm == "none" else arm, attention_size=sizes.get(arm),
            )
        )  # fmt: skip
        if arm == "none":
            for block in self.encoder.layers:
                block.attention = Nothing()
        self.head = nn.Linear(config.dim, len(set(FIELDS.values())))

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) to (B, 4)
        return self.head(self.encoder(ids).hidden_states.mean(1))


class Nothing(nn.Module):
    """In the place of attention: tokens learn nothing of each other."""

    def forward(self, x: Tensor, context: AttentionContext, layer: int = 0) -> Tensor:
        return torch.zeros_like(x)


def read(config: Config) -> tuple[Posts, Posts, int]:
    """Posts to train on and to test with that fill half a sequence, and the number of ids."""
    half = (config.length - config.cue) // 2
    if not config.data:
        return (*(made_up(config.vocabulary, half, seed) for seed in (0, 1)), config.vocabulary + WORDS)
    from danlu.tasks.datasets import load

    parts = []
    for part in ("train", "test"):
        posts = load(config.data, part, "classify").examples
        fields = [FIELDS.get(post.label.partition(".")[0]) for post in posts]
        words = [re.findall(r"[a-z]+", post.text.lower()) for post in posts]
        parts.append([(w, field) for w, field in zip(words, fields, strict=True) if field is not None])
    counts = Counter(word for words, _ in parts[0] for word in words)
    rows = {word: WORDS + i for i, (word, _) in enumerate(counts.most_common(config.vocabulary))}
    coded = []
    for part in parts:
        known = [([rows[w] for w in words if w in rows][:half], field) for words, field in part]
        whole = [(ids, field) for ids, field in known if len(ids) == half]
        coded.append((torch.tensor([ids for ids, _ in whole]), torch.tensor([field for _, field in whole])))
    return coded[0], coded[1], config.vocabulary + WORDS


def made_up(vocabulary: int, half: int, seed: int) -> Posts:
    """Posts of which every third word tells the field."""
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randint(4, (64,), generator=generator)
    words = torch.randint(WORDS, WORDS + vocabulary, (64, half), generator=generator)
    words[:, ::3] = WORDS + fields[:, None]
    return words, fields


def pairs(posts: Posts, count: int, cue: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, T) sequences and (count,) fields of the posts that are asked for; the other one is of another field."""
    words, fields = posts
    first = torch.randint(len(words), (count,), generator=generator)
    second = torch.randint(len(words), (count,), generator=generator)
    while (same := fields[first] == fields[second]).any():
        second[same] = torch.randint(len(words), (int(same.sum()),), generator=generator)
    asked = torch.randint(2, (count,), generator=generator)
    cues = torch.where(asked == 0, FIRST, SECOND)[:, None].expand(-1, cue)
    ids = torch.cat([cues, words[first], words[second]], 1)
    return ids, torch.where(asked == 0, fields[first], fields[second])


def train(config: Config, arm: str, seed: int, posts: Posts, vocabulary: int) -> tuple[Asked, list[float]]:
    """The model of one arm, and its loss on the way."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Asked(config, arm, vocabulary)
    torch.manual_seed(seed)  # for dropout: what was drawn for the start differs between arms
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config.lr)
    warm = max(1, config.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (config.steps - step) / (config.steps - warm + 1))
    )
    losses = []
    model.train()
    for _ in range(config.steps):
        ids, field = pairs(posts, config.batch_size, config.cue, generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids), field)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    every = max(1, config.steps // 20)
    return model.eval(), [sum(losses[i : i + every]) / every for i in range(0, len(losses) - every + 1, every)]


@torch.no_grad()
def accuracy(model: Asked, ids: Tensor, field: Tensor) -> float:
    answers = torch.cat([model(part).argmax(1) for part in ids.split(100)])
    return (answers == field).float().mean().item()


def approximated(q: Tensor, k: Tensor, v: Tensor, q_marks: Tensor, k_marks: Tensor, steps: int | str) -> Tensor:
    """Outputs (B, H, T, V) with given landmarks (B, H, m, K)."""
    s = q.shape[-1] ** -0.5
    f, a, g = ((s * x @ y.mT).softmax(-1) for x, y in ((q, k_marks), (q_marks, k_marks), (q_marks, k)))
    inverse = torch.linalg.pinv(a) if steps == "exact" else iterative_pinv(a, steps, noise=3e-3)
    return f @ (inverse @ (g @ v))


def centres(q: Tensor, k: Tensor, m: int, generator: torch.Generator, rounds: int = 8) -> tuple[Tensor, Tensor]:
    """Means of queries and of keys over m clusters of the keys (Lloyd's algorithm)."""
    rows = torch.randperm(k.shape[2], generator=generator)[:m]
    means = k[:, :, rows]
    for _ in range(rounds):
        member = F.one_hot(torch.cdist(k, means).argmin(-1), m).mT.to(k.dtype)  # (B, H, m, T)
        size = member.sum(-1, keepdim=True)
        means = torch.where(size > 0, member @ k / size.clamp_min(1), means)
    return torch.where(size > 0, member @ q / size.clamp_min(1), q[:, :, rows]), means


@torch.no_grad()
def errors(q: Tensor, k: Tensor, v: Tensor, m: int, generator: torch.Generator) -> dict[str, float]:
    """Relative error of the outputs for each way to landmarks and each way to invert."""
    exact = F.scaled_dot_product_attention(q, k, v)
    means = segment_means(q, m), segment_means(k, m)
    rows = torch.randperm(q.shape[2], generator=generator)[:m]
    ways: dict[str, tuple[Tensor, Tensor, int | str]] = {
        "segment means": (*means, "auto"),
        "segment means, 6 steps": (*means, 6),
        "segment means, full inverse": (*means, "exact"),
        "centres of keys": (*centres(q, k, m, generator), "auto"),
        "random rows": (q[:, :, rows], k[:, :, rows], "auto"),
    }
    found = {name: relative(approximated(q, k, v, *way), exact) for name, way in ways.items()}
    f, g = ((x @ y.mT * q.shape[-1] ** -0.5).softmax(-1) for x, y in ((q, means[1]), (means[0], k)))
    return found | {"no inverse": relative(f @ (g @ v), exact), "mean of values": relative(v.mean(2, True), exact)}


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def approximation(config: Config, model: Asked, ids: Tensor, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Errors of the trained model's layers, of vectors without structure and of vectors alike in blocks of 8."""
    generator = torch.Generator().manual_seed(seed)
    layers = attention_inputs(model.encoder, ids)
    free = [torch.randn(config.error_pairs, config.heads, config.length, config.dim // config.heads,
                        generator=generator) for _ in range(3)]  # fmt: skip
    blocks = [x[:, :, ::8].repeat_interleave(8, 2) + 0.1 * torch.randn(x.shape, generator=generator) for x in free]
    vectors = {f"layer {i}": inputs[:3] for i, inputs in enumerate(layers.values())}
    vectors |= {"no structure": tuple(free), "alike in blocks": tuple(blocks)}
    sizes = [int(m) for m in config.error_landmarks.split()]
    figures: dict[str, Any] = {"landmarks": sizes}
    measured = {}
    for place, (q, k, v) in vectors.items():
        by_size = [errors(q, k, v, m, generator) for m in sizes]
        figures[place] = {way: [found[way] for found in by_size] for way in by_size[0]}
        report = nystrom_report(q, k, v, num_landmarks=config.landmarks)
        figures[f"{place}, condition"] = report.condition.median().item()
        for way, error in errors(q, k, v, config.landmarks, generator).items():
            measured[f"error, {place}, {way}"] = error
    return measured, figures


def seconds_of_a_step(config: Config, arm: str) -> float:
    """Of forward and backward over four long sequences, the least of some."""
    torch.manual_seed(0)
    model = Asked(replace(config, length=config.long), arm, config.vocabulary + WORDS).train()
    ids = torch.randint(WORDS, WORDS + config.vocabulary, (4, config.long), generator=torch.Generator().manual_seed(0))
    taken = []
    for _ in range(config.timed_steps + 1):
        began = time.perf_counter()
        model(ids).square().mean().backward()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def run(config: Config, seed: int) -> Result:
    """All arms of one seed, and what approximates the attention of the softmax arm."""
    posts, test_posts, vocabulary = read(config)
    test = pairs(test_posts, config.test_pairs, config.cue, torch.Generator().manual_seed(1_000))
    measured, figures = {}, {"arm": list(ARMS), "loss": {}}
    softmax = None
    for arm in ARMS:
        model, losses = train(config, arm, seed, posts, vocabulary)
        measured[f"accuracy, {arm}"] = accuracy(model, *test)
        figures["loss"][arm] = losses
        softmax = model if arm == "softmax" else softmax
    for arm in ARMS[1:]:
        measured[f"{arm} minus softmax"] = measured[f"accuracy, {arm}"] - measured["accuracy, softmax"]
    assert softmax is not None
    found, figures["errors"] = approximation(config, softmax, test[0][: config.error_pairs], seed)
    times = {arm: seconds_of_a_step(config, arm) for arm in ("softmax", "nystrom", "performer")}
    measured |= found | {f"seconds a step at {config.long}, {arm}": t for arm, t in times.items()}
    for arm in ("nystrom", "performer"):
        measured[f"speed of {arm} over softmax at {config.long}"] = times["softmax"] / times[arm]
    return Result(
        measured=measured,
        claimed={"nystrom minus softmax": 0.0050, "performer minus softmax": -0.0121},
        figures=figures,
    )
