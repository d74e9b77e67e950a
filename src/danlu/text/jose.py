r"""JoSE: word and document vectors on the unit sphere, trained by a hinge on cosines.

A word u is found near its neighbours v and in its document d; u', u'' are words drawn at random, rows have length 1:

    "separate"  L = max(0, m - v.u + v.u') + max(0, m - d.u + d.u'')                                      (1)
    "joint"     L = max(0, m - v.u - d.u + v.u' + d.u')                                                   (2)

(2) is the loss that the paper and the post write, (1) the one that the program behind the paper's figures trains: the
default. A row moves within the sphere: with the gradient g of L in x, a factor k and a step size r,

    x <- (x - r k (I - x x^T) g) / |...|                                                                  (3)
    "plain"   k = 1: gradient descent in the free parameter t of x = t / |t|, its 1 / |t| put into r       (4)
    "paper"   k = 1 + x.g / |g| = 1 - cos(x, -g): the further from where it is pulled, the larger         (5)
    "jose_c"  the program's: as (5) for u; for u' the step 2 h (v - h u') down with h = u'.v, which drives h to 0
              rather than to -1; for v (and d) k = 1 - (f - h) with f = u.v, without the |u - u'| of (5)  (6)

What is kept as the vector of a word is u. (4) already is a descent direction; (5) and (6) weigh it: they push a near
wrong row harder (1 + h) than they pull a near right one (1 - f), so words that could stand for one another spread. The
hinge rests as soon as the margin is met, so fine orders among far words are not learned, and on topics TF-IDF with a
truncated SVD can be as good: compare before you choose. Words and documents come to lie in one space.

Departures from the program: a negative that is the positive word itself is left out too; documents are not cut after
1,000 words; they are shuffled in each pass unless shuffle=False; random numbers do not depend on the threads.

Source: kexue.fm/archives/7063; Meng et al., 2019, arXiv:1911.01196.
Shapes: V words, N documents, D features.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from danlu.text._jose_file import read_state, write_state
from danlu.text.jose_trainer import JoSEConfig, JoSEProgress, JoSETrainer, backend_for, hashed, random_rows, train
from danlu.text.word_corpus import WordCorpus, build_corpus, encode, keep_probability, walker_table
from danlu.text.word_vectors import WordVectors

__all__ = ["JoSE", "load_jose", "train_jose"]


def train_jose(
    documents: Iterable[Sequence[str]] | WordCorpus,
    config: JoSEConfig | None = None,
    workers: int = 1,
    backend: str = "auto",
    on_progress: Callable[[JoSEProgress], object] | None = None,
    state_file: str | Path | None = None,
    save_seconds: float = 60.0,
) -> "JoSE":
    """Word and document vectors of some documents, eq. (1) to (6).

    Args:
        documents: lists of words, one for each document; or what `build_corpus` made of them.
        config: settings; None: `JoSEConfig()`.
        workers: threads. One gives the same numbers in every run, several share the tables without locks and do not.
        backend: "auto", "kernel" or "torch" (`danlu.text.jose_trainer`).
        on_progress: is called after every block of documents.
        state_file: is written while training and at the end; where it exists training goes on from it, bit for bit as
            if it had never stopped. `load_jose` reads it at any time.
        save_seconds: least time between two writes.

    Returns:
        The trained JoSE.

    Raises:
        ValueError: fewer than two words are frequent enough, or `state_file` holds other settings or documents.
        TypeError: a document is one text instead of a list of words.
        ImportError: backend="kernel" without numba.

    >>> jose = train_jose([["tea", "cup"], ["cup", "tea"]], JoSEConfig(dim=8, min_count=1, epochs=2))
    >>> jose.word_vectors.shape, jose.doc_vectors.shape
    (torch.Size([2, 8]), torch.Size([2, 8]))
    """
    config = config or JoSEConfig()
    corpus = documents if isinstance(documents, WordCorpus) else build_corpus(documents, config.min_count)
    trainer = JoSETrainer(corpus, config, workers, backend)
    place = None if state_file is None else Path(state_file)
    digest = corpus.digest() if place is not None else ""
    if place is not None and place.exists():
        read_state(place).into(trainer, digest)
    written = time.monotonic()
    for progress in trainer:
        if place is not None and time.monotonic() - written >= save_seconds:
            write_state(place, trainer, digest)
            written = time.monotonic()
        if on_progress is not None:
            on_progress(progress)
    if place is not None:
        write_state(place, trainer, digest)
    return JoSE.of(trainer)


def load_jose(path: str | Path) -> "JoSE":
    """The vectors in a file that `train_jose` or `JoSE.save` wrote, also those of an unfinished training.

    Args:
        path: the file.

    Returns:
        JoSE.

    Raises:
        InputError: the file is missing, damaged, of something else or of a newer danlu.
    """
    state = read_state(Path(path))
    v = len(state.words)
    return JoSE(
        state.config, state.words, state.counts, state.word_rows, state.anchors[:v].clone(), state.anchors[v:].clone(),
        state.hits > 0,
    )  # fmt: skip


@dataclass(frozen=True)
class JoSE:
    """Trained vectors, all of length 1.

    words: the vocabulary. counts (V,). word_vectors (V, D): u of every word. context_vectors (V, D): v. doc_vectors
    (N, D): d, in the order of the documents. document_trained (N,) bool: False where none of the document's words was
    ever used, and its vector is the random one it began with.
    """

    config: JoSEConfig
    words: list[str]
    counts: Tensor
    word_vectors: Tensor
    context_vectors: Tensor
    doc_vectors: Tensor
    document_trained: Tensor

    @classmethod
    def of(cls, trainer: JoSETrainer) -> "JoSE":
        """What a trainer has come to, as a copy.

        Args:
            trainer: at any point of its training.
        """
        corpus, v = trainer.corpus, len(trainer.corpus.words)
        words, anchors = trainer.words.detach().cpu().clone(), trainer.anchors.detach().cpu().clone()
        counts = torch.from_numpy(corpus.counts.copy())
        return cls(trainer.config, list(corpus.words), counts, words, anchors[:v], anchors[v:], trainer.hits > 0)

    @property
    def vectors(self) -> WordVectors:
        """The word vectors with neighbours, analogies and files of their own."""
        return WordVectors(self.words, self.word_vectors)

    def most_similar(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The words nearest to a word, with cosines.

        Args:
            word: of the vocabulary.
            k: how many.

        Returns:
            (word, cosine), the nearest first.
        """
        return self.vectors.nearest(word, k)

    def infer(
        self, documents: Iterable[Sequence[str]], epochs: int | None = None, workers: int = 1, backend: str = "auto"
    ) -> Tensor:
        """Vectors of documents that were not trained on: the second part of (1), with the words held where they are.

        A document's vector depends on nothing but its words and the model: not on its neighbours, not on the threads
        (with backend="torch", which draws for the whole list at once, it does depend on the list).

        Args:
            documents: lists of words; unknown words are left out.
            epochs: passes over each document; None: as many as in training.
            workers: threads.
            backend: "auto", "kernel" or "torch".

        Returns:
            (N, D) float32 of length 1; zeros where a document has no known word, or none that survived subsampling.

        Raises:
            TypeError: a document is one text instead of a list of words.
            ValueError: epochs or workers is below 1.
        """
        epochs = self.config.epochs if epochs is None else epochs
        if epochs < 1 or workers < 1:
            raise ValueError(f"epochs and workers must be at least 1, got {epochs} and {workers}")
        ids, offsets = encode(documents, {word: i for i, word in enumerate(self.words)})
        total = len(offsets) - 1
        generator = torch.Generator().manual_seed(self.config.seed)
        rows = random_rows(1, self.config.dim, generator).repeat(total, 1)
        weights = self.counts.numpy().astype(np.float64)
        order, hits = np.arange(total), torch.zeros(total, dtype=torch.int64)
        keep, table = keep_probability(weights, self.config.subsample), walker_table(weights**0.75)
        for epoch in range(epochs if total else 0):
            rates = np.full(total, self.config.lr * max(1 - epoch / epochs, 1e-4))
            seeds = np.repeat(hashed(self.config.seed, epoch, np.zeros(1, np.int64)), total)
            train(backend_for(backend, torch.device("cpu")), order, seeds, rates, offsets, ids, keep, table,
                  self.word_vectors, rows, hits, np.zeros(6), self.config, 0, workers, True)  # fmt: skip
        return rows.masked_fill((hits == 0)[:, None], 0.0)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `load_jose` reads; the old one stays until the new one is complete.

        Args:
            path: of the file.
        """
        write_state(Path(path), self, "")
