"""Words a second of JoSE and of gensim's word2vec and doc2vec on the same posts, and what the vectors are worth.

All have the same vocabulary, 100 features, window 10, 2 negatives, subsampling at 1e-3 and number of passes. doc2vec
(PV-DBOW with word vectors) is the one that does the same work: words near words and words in documents. gensim reads a
list in memory, and beside it a file (`corpus_file`), its quicker way with several threads. Building the vocabulary
and compiling are not counted. Worth: macro-F1 of the 3 nearest training posts for test posts, and NMI of spherical
k-means with as many clusters as groups; WordSim-353 by Spearman.

Run: python benchmarks/jose.py [--threads 1] [--epochs 5] [--posts N] [--json FILE]; prints one JSON line.
Needs the extra bench, and 20newsgroups and word-similarity-en in $DANLU_DATA.
"""

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gensim.models import Doc2Vec, Word2Vec
from gensim.models.doc2vec import TaggedDocument

from _machine import record, write
from danlu.data import read_word_pairs
from danlu.math import class_report, normalized_mutual_information, spherical_kmeans
from danlu.tasks.datasets import load
from danlu.text import JoSEConfig, WordVectors, build_corpus, nearest_rows, train_jose, word_similarity

Texts = list[list[str]]
Model = tuple[WordVectors, torch.Tensor | None]  # word vectors, and document vectors if there are any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--posts", type=int, default=100_000, help="of each part at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "numba", "numpy", "gensim"), options.threads)
    examples = [load("20newsgroups", part).examples for part in ("train", "test")]
    examples = [part[:: -(-len(part) // options.posts)] for part in examples]
    trained, every = len(examples[0]), [example for part in examples for example in part]
    texts = [re.findall(r"[a-z]+(?:'[a-z]+)?", example.text.lower()) for example in every]
    known = set(build_corpus(texts, 5).words)
    texts = [[word for word in text if word in known] for text in texts]
    labels = [example.label for example in every]
    words = sum(map(len, texts))
    train_jose(texts[:20], JoSEConfig(min_count=1, epochs=1))  # compiles
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posts.txt"
        path.write_text("\n".join(map(" ".join, texts)) + "\n", encoding="utf-8")
        systems = contestants(texts, str(path), options.epochs, options.threads)
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        worth = {}
        for number in range(options.rounds):
            for name, prepare in systems.items():
                if number and "torch" in name:
                    continue  # slow, once is enough
                run, passes = prepare()
                began = time.perf_counter()
                model = run()
                seconds[name].append((time.perf_counter() - began) / passes)
                worth[name] = judge(model(), labels, trained)
    per_second = {name: words / statistics.median(taken) for name, taken in seconds.items()}
    row: dict[str, Any] = {"posts": len(texts), "words": words, "vocabulary": len(known), "epochs": options.epochs}
    row["words_per_second"] = {name: round(value) for name, value in per_second.items()}
    ours = per_second["JoSE"]
    row["ours_over"] = {name: round(ours / value, 3) for name, value in per_second.items() if name != "JoSE"}
    row["worth"] = worth
    print(json.dumps(row))
    write(options.json, head | row)


def contestants(
    texts: Texts, path: str, epochs: int, threads: int
) -> dict[str, Callable[[], tuple[Callable[[], Callable[[], Model]], int]]]:
    """Name -> prepare(), which returns what is timed and its number of passes; that returns how to get the vectors."""
    shared: dict[str, Any] = {
        "vector_size": 100, "window": 10, "negative": 2, "sample": 1e-3, "min_count": 5, "workers": threads, "seed": 1,
    }  # fmt: skip

    def jose(backend: str, passes: int) -> tuple[Callable[[], Callable[[], Model]], int]:
        corpus, config = build_corpus(texts, 5), JoSEConfig(epochs=passes)

        def run() -> Callable[[], Model]:
            model = train_jose(corpus, config, threads if backend == "kernel" else 1, backend)
            return lambda: (model.vectors, model.doc_vectors)

        return run, passes

    def word2vec(file: bool) -> tuple[Callable[[], Callable[[], Model]], int]:
        model = Word2Vec(sg=1, **shared)
        source = {"corpus_file": path} if file else {"corpus_iterable": texts}
        model.build_vocab(**source)
        total = {"total_words": model.corpus_total_words} if file else {}

        def run() -> Callable[[], Model]:
            model.train(**source, total_examples=len(texts), epochs=epochs, **total)
            return lambda: (keyed(model.wv), None)

        return run, epochs

    def doc2vec(file: bool) -> tuple[Callable[[], Callable[[], Model]], int]:
        model = Doc2Vec(dm=0, dbow_words=1, **shared)
        tagged = [TaggedDocument(text, [i]) for i, text in enumerate(texts)]
        source = {"corpus_file": path} if file else {"corpus_iterable": tagged}
        model.build_vocab(**source)
        total = {"total_words": model.corpus_total_words} if file else {}

        def run() -> Callable[[], Model]:
            model.train(**source, total_examples=len(texts), epochs=epochs, **total)
            return lambda: (keyed(model.wv), torch.from_numpy(np.array(model.dv.vectors)))

        return run, epochs

    return {
        "JoSE": lambda: jose("kernel", epochs),
        "JoSE, plain torch, one pass": lambda: jose("torch", 1),
        "gensim word2vec": lambda: word2vec(False),
        "gensim word2vec, file": lambda: word2vec(True),
        "gensim doc2vec": lambda: doc2vec(False),
        "gensim doc2vec, file": lambda: doc2vec(True),
    }


def keyed(vectors: Any) -> WordVectors:
    return WordVectors(vectors.index_to_key, torch.from_numpy(np.array(vectors.vectors)))


def judge(model: Model, labels: list[str], trained: int) -> dict[str, float]:
    """What words and documents are worth."""
    words, documents = model
    path = Path(os.environ["DANLU_DATA"]).expanduser() / "data" / "word-similarity-en" / "EN-WS-353-ALL.txt"
    found = {"WordSim-353": round(word_similarity(words, read_word_pairs(path).examples).rho, 3)}
    if documents is None:
        return found
    names = sorted(set(labels))
    target = torch.tensor([names.index(label) for label in labels])
    clusters = spherical_kmeans(documents, len(names), generator=torch.Generator().manual_seed(0)).labels
    near = nearest_rows(documents[trained:], documents[:trained], 3)[1]
    votes = F.one_hot(target[near], len(names)).sum(1) - 1e-3 * torch.arange(len(names))
    report = class_report([names[i] for i in votes.argmax(1).tolist()], labels[trained:])
    found["NMI"] = round(normalized_mutual_information(clusters, target).item(), 3)
    found["macro_F1"] = round(report.macro.f1, 3)
    return found


if __name__ == "__main__":
    main()
