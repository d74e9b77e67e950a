r"""Training of JoSE block by block, so that it can be watched, stopped and continued exactly.

Of T words in E passes, a document that begins after t words is trained with the rate

    r = lr max(1 - t / (E T), 1e-4)                                                                       (1)

and its random numbers come from hash(seed, pass, document). Rates and draws therefore do not depend on who trains it:

    backend "kernel", one worker    the same numbers in every run, also when stopped and continued
    backend "kernel", more workers  threads share the tables without locks: quicker, never twice the same
    backend "torch"                 plain torch in chunks (`danlu.text._jose_batches`); the same numbers in every run
                                    of one device

"auto" is "kernel" where numba is installed (pip install "danlu[fast]") and DANLU_KERNELS is not off, else "torch".

Source: arXiv:1911.01196 and its program for the schedule; the blocks are ours.
Shapes: V words, N documents, T words of all documents, D features.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.text._jose_batches import run_batches
from danlu.text._jose_loop import JOSE_C, PAPER, PLAIN
from danlu.text.word_corpus import WordCorpus, keep_probability, walker_table

__all__ = ["JoSEConfig", "JoSEProgress", "JoSETrainer"]

_STEPS = {"jose_c": JOSE_C, "paper": PAPER, "plain": PLAIN}
_LOSSES = ("separate", "joint")
_BACKENDS = ("auto", "kernel", "torch")


@dataclass(frozen=True)
class JoSEConfig:
    """Settings of the method; the defaults are those of the published program's scripts.

    dim: features. margin: m of the hinge. window: words on each side at most. negative: draws for each positive.
    subsample: t of `keep_probability`, 0 keeps all. min_count: of the vocabulary. epochs: passes. lr: first step size.
    loss: "separate" or "joint". step: "jose_c", "paper" or "plain". shuffle: documents in another order in each pass
    (the program keeps their order). seed: of everything random.
    """

    dim: int = 100
    margin: float = 0.15
    window: int = 10
    negative: int = 2
    subsample: float = 1e-3
    min_count: int = 5
    epochs: int = 10
    lr: float = 0.04
    loss: str = "separate"
    step: str = "jose_c"
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        least = {"dim": 2, "window": 1, "negative": 1, "min_count": 1, "epochs": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number of at least {low}, got {value}")
        if not self.subsample >= 0 or not 0 < self.lr < float("inf") or not 0 <= self.seed < 2**63:
            raise ValueError(
                f"subsample must be >= 0, lr > 0 and seed in [0, 2^63), got {self.subsample}, {self.lr} and {self.seed}"
            )
        if not 0 < self.margin <= 2:
            raise ValueError(f"margin must lie in (0, 2], the reach of a difference of cosines, got {self.margin}")
        if self.step not in _STEPS or self.loss not in _LOSSES:
            raise ValueError(
                f"step must be one of {', '.join(_STEPS)} and loss one of {', '.join(_LOSSES)}, "
                f"got {self.step!r} and {self.loss!r}"
            )
        if self.loss == "joint" and self.step == "jose_c":
            raise ValueError(
                "step='jose_c' is the rule of a program with two hinges; loss='joint' needs 'paper' or 'plain'"
            )


@dataclass(frozen=True)
class JoSEProgress:
    """What a block of training came to.

    epoch: of the block, from 0. words: trained so far in all passes. total: of all passes. lr: of the last document.
    active_words, active_documents: share of the triples that broke the margin. loss: mean hinge of all triples.
    """

    epoch: int
    words: int
    total: int
    lr: float
    active_words: float
    active_documents: float
    loss: float


class JoSETrainer:
    """The tables of a model in training; iterate over it, a block of documents a turn.

    `words` (V, D), `anchors` (V + N, D; contexts, then documents) and `hits` (N,) are tensors that training writes to;
    `epoch` and `done` say how many passes, and how many documents of the next one, are over.

    Args:
        corpus: from `build_corpus`.
        config: settings.
        workers: threads; above 1 no run is like another.
        backend: "auto", "kernel" or "torch".
        device: of the tables; others than the CPU need the backend "torch".
        block_words: words of a turn.

    Raises:
        ValueError: a setting is out of range, the corpus contradicts itself, or the device does not fit the backend.
        ImportError: backend="kernel" without numba.

    >>> from danlu.text.word_corpus import build_corpus
    >>> trainer = JoSETrainer(build_corpus([["a", "b"], ["b", "a"]], min_count=1), JoSEConfig(dim=4, epochs=3))
    >>> [turn.words for turn in trainer]
    [4, 8, 12]
    """

    def __init__(
        self,
        corpus: WordCorpus,
        config: JoSEConfig | None = None,
        workers: int = 1,
        backend: str = "auto",
        device: str | torch.device = "cpu",
        block_words: int = 200_000,
    ) -> None:
        self.config = config or JoSEConfig()
        if workers < 1 or block_words < 1:
            raise ValueError(f"workers and block_words must be at least 1, got {workers} and {block_words}")
        self.backend = backend_for(backend, torch.device(device))
        _check(corpus)
        self.corpus, self.workers, self.block_words = corpus, workers, block_words
        generator = torch.Generator().manual_seed(self.config.seed)
        rows = (len(corpus.words), len(corpus.words) + len(corpus))
        self.words, self.anchors = (random_rows(n, self.config.dim, generator).to(device) for n in rows)
        self.hits = torch.zeros(len(corpus), dtype=torch.int64)
        self.epoch = self.done = 0
        self._keep = keep_probability(corpus.counts, self.config.subsample)
        self._table = walker_table(corpus.counts.astype(np.float64) ** 0.75)
        self._orders: dict[int, np.ndarray] = {}  # of one pass

    def __iter__(self) -> Iterator[JoSEProgress]:
        """Train until the passes are over; what is asked for again goes on where it stopped."""
        while self.epoch < self.config.epochs:
            yield self.step()

    def step(self) -> JoSEProgress:
        """Train the next block of documents.

        Returns:
            Where training stands.

        Raises:
            RuntimeError: all passes are over.
        """
        c, corpus = self.config, self.corpus
        if self.epoch >= c.epochs:
            raise RuntimeError(f"training is over after {c.epochs} epochs; raise epochs in the configuration")
        order, sizes = self._order(), np.diff(corpus.offsets)
        before = np.cumsum(sizes[order]) - sizes[order]  # words of this pass before each document
        stop = int(np.searchsorted(before, before[self.done] + self.block_words)) if len(order) else 0
        part = slice(self.done, max(stop, self.done + 1))
        total = max(1, c.epochs * len(corpus.ids))
        past = self.epoch * len(corpus.ids) + before[part]
        rates = c.lr * np.maximum(1 - past / total, 1e-4)  # eq. (1)
        stats = np.zeros(6)
        train(self.backend, order[part], hashed(c.seed, self.epoch, order[part]), rates, corpus.offsets, corpus.ids,
              self._keep, self._table, self.words, self.anchors, self.hits, stats, c,
              len(corpus.words), self.workers, False)  # fmt: skip
        if self.workers > 1 and self.backend == "kernel":  # rows that two threads wrote at once
            for rows in (self.words, self.anchors):
                rows.copy_(F.normalize(rows, dim=-1))
        epoch, words = self.epoch, int(past[-1] + sizes[order[part][-1]])
        self.done = part.stop
        if self.done >= len(order):
            self.epoch, self.done = self.epoch + 1, 0
        share = stats / np.maximum(1, stats[[0, 0, 0, 3, 3, 3]])
        loss = (stats[2] + stats[5]) / max(1, stats[0] + stats[3])
        return JoSEProgress(epoch, words, total, float(rates[-1]), float(share[1]), float(share[4]), float(loss))

    def _order(self) -> np.ndarray:
        if self.epoch not in self._orders:
            order = np.arange(len(self.corpus))
            if self.config.shuffle:
                generator = np.random.default_rng([self.config.seed, self.epoch])
                order = generator.permutation(order)
            self._orders = {self.epoch: order}
        return self._orders[self.epoch]


def train(
    backend: str, order: np.ndarray, seeds: np.ndarray, rates: np.ndarray, offsets: np.ndarray, ids: np.ndarray,
    keep: np.ndarray, table: tuple[np.ndarray, np.ndarray], words: Tensor, anchors: Tensor,
    hits: Tensor, stats: np.ndarray, config: JoSEConfig, first: int, workers: int, frozen: bool,
) -> None:  # fmt: skip
    """One pass over some documents with one of the backends, in place; see `danlu.text._jose_loop.run_documents`."""
    rule, joint = _STEPS[config.step], config.loss == "joint"
    sizes = offsets[order + 1] - offsets[order]
    if backend == "kernel":
        from danlu.text._jose_kernel import in_threads

        kind: Any = words.numpy().dtype
        in_threads(
            workers, sizes, order.astype(np.int64), seeds, rates.astype(kind),
            (offsets, ids, keep, *table, words.numpy(), anchors.numpy(), hits.numpy()), stats,
            (np.array([config.margin], kind), int(sizes.max(initial=0)), first, config.window, config.negative, rule,
             joint, frozen),
        )  # fmt: skip
        return
    generator = torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))
    run_batches(order, rates, offsets, ids, keep, *table, words, anchors, hits.numpy(), stats, config.margin,
                first, config.window, config.negative, rule, joint, frozen, generator)  # fmt: skip


def _check(corpus: WordCorpus) -> None:
    """Compiled code looks at no bounds, so a corpus that was not made by `build_corpus` is looked at here."""
    v, ids, offsets = len(corpus.words), corpus.ids, corpus.offsets
    kinds = (corpus.counts.dtype, ids.dtype, offsets.dtype) == (np.int64, np.int32, np.int64)
    sound = kinds and v >= 2 and corpus.counts.shape == (v,) and bool((corpus.counts > 0).all()) and len(offsets) > 1
    sound = sound and offsets[0] == 0 and offsets[-1] == len(ids) and bool((np.diff(offsets) >= 0).all())
    if not sound or (len(ids) and not 0 <= ids.min() <= ids.max() < v):
        raise ValueError(
            f"the corpus of {v} words and {len(ids)} ids contradicts itself: counts int64 (V,) above 0, ids int32 in "
            "[0, V), offsets int64 rising from 0 to the number of ids; build_corpus makes one"
        )
    if not (ids.flags.c_contiguous and ids.flags.writeable and offsets.flags.c_contiguous and offsets.flags.writeable):
        raise ValueError("ids and offsets must be contiguous and writeable arrays; take np.array(...) of them")


def backend_for(backend: str, device: torch.device) -> str:
    """The backend that "auto" means here, or the one asked for if it can be had."""
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    there = importlib.util.find_spec("numba") is not None
    off = os.environ.get("DANLU_KERNELS", "").lower() in ("off", "0", "no")
    if backend == "auto":
        return "kernel" if there and not off and device.type == "cpu" else "torch"
    if backend == "kernel" and device.type != "cpu":
        raise ValueError(f"backend='kernel' works on the CPU, got device {device}; take backend='torch'")
    if backend == "kernel" and not there:
        raise ImportError(
            "backend='kernel' needs numba, which is not installed; pip install \"danlu[fast]\", or take backend='torch'"
        )
    return backend


def random_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Directions (count, dim) of points drawn evenly from a cube, as word2vec and its kin begin."""
    return F.normalize(torch.rand(count, dim, generator=generator) - 0.5, dim=-1)


def hashed(seed: int, epoch: int, documents: np.ndarray) -> np.ndarray:
    """Well mixed numbers (K,) uint64 for the documents of a pass (splitmix64)."""
    x = np.full(len(documents), seed, np.uint64)
    for part in (np.full(len(documents), epoch, np.uint64), documents.astype(np.uint64)):
        x = x + part + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x
