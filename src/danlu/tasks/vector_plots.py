"""Pictures of sets of vectors for `danlu plot`: of a model and texts, of a file, of digits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.data import load_digits
from danlu.data.errors import InputError
from danlu.gallery import figures
from danlu.tasks.plot_request import Request, open_model, titled

__all__ = ["draw_embedding", "draw_similarities", "draw_spectrum", "draw_sphere"]

MOST_TEXTS = 2_000  # of a set


def pairs_of(request: Request) -> tuple[list[str], list[str], Tensor]:
    """Texts and scores of the pairs of --data."""
    from danlu.data import read_labelled_pairs
    from danlu.tasks import datasets

    if request.data is None:
        raise InputError(
            "this view compares pairs; give --data, a set such as stsb-en or a file of text_a, text_b, score"
        )
    if Path(request.data).is_file():
        examples = read_labelled_pairs(request.data).examples
    else:
        examples = datasets.load(request.data, "dev", "match").examples
    examples = [examples[i] for i in np.linspace(0, len(examples) - 1, min(len(examples), MOST_TEXTS)).astype(int)]
    scores = [float(e.label) if e.score is None else e.score for e in examples]
    return [e.text_a for e in examples], [e.text_b for e in examples], torch.tensor(scores, dtype=torch.float64)


def read_vectors(path: Path) -> tuple[Any, list[str] | None]:
    """Vectors of a NumPy file, or words and vectors of a word2vec file."""
    from danlu.text import read_word2vec

    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise InputError(
                f"{path} is no NumPy file of numbers ({error}); `danlu predict --out` writes one"
            ) from None
        if array.ndim != 2:
            raise InputError(f"{path} must hold rows of vectors, got shape {array.shape}")
        return array, None
    found = read_word2vec(path)
    return found.vectors, list(found.words)


def vectors_of(request: Request) -> tuple[Any, list[str] | None, list[str] | None]:
    """Vectors (N, D) with texts and groups: of a file, or of a model and texts, a set, or the pairs of --data."""
    from danlu.tasks import datasets

    path = Path(request.source)
    if path.is_file():
        vectors, words = read_vectors(path)
        if request.texts:
            if words is not None:
                known = [words.index(word) for word in request.texts if word in words]
                if not known:
                    raise InputError(f"{path} holds none of the words {', '.join(request.texts[:5])}")
                return vectors[known], [words[i] for i in known], None
            if len(request.texts) != len(vectors):
                raise InputError(f"{path} holds {len(vectors)} vectors, got {len(request.texts)} texts to name them")
            return vectors, list(request.texts), None
        return vectors, words, None
    if request.source == "digits":
        images, labels = load_digits().train
        return images.flatten(1), None, [str(int(label)) for label in labels]
    groups: list[str] | None = None
    if request.texts:
        texts = list(request.texts)
    elif request.data is not None:
        examples = datasets.load(request.data, "dev", "classify").examples[:MOST_TEXTS]
        texts, groups = [e.text for e in examples], [str(e.label) for e in examples]
    else:
        raise InputError("give texts, or --data with a set of labelled texts, or a file of vectors instead of a model")
    return encoded(request, [texts])[0], texts, groups


def encoded(request: Request, parts: Sequence[Sequence[str]]) -> list[Tensor]:
    """Vectors of some lists of texts: a folder of task embed has its own way, other models the pooling of the post."""
    from danlu.tasks.trained import Trained
    from danlu.text import sentence_vectors

    if (Path(request.source) / "task.json").is_file():
        trained = Trained.load(request.source)
        if hasattr(trained.task, "vectors"):
            return [trained.task.vectors(trained.model, list(texts)) for texts in parts]
    encoder = open_model(request)
    pooling = "last_avg" if request.source == "minilm" else "first_last_avg"  # MiniLM was trained with the mean
    return [sentence_vectors(encoder.transformer, encoder.tokenizer, texts, pooling) for texts in parts]


def draw_embedding(request: Request) -> Any:
    """Vectors on their plane."""
    vectors, texts, groups = vectors_of(request)
    return figures.plot_embedding(vectors, texts, groups, title=titled(request), **request.look)


def draw_sphere(request: Request) -> Any:
    """Directions on a sphere."""
    vectors, texts, groups = vectors_of(request)
    return figures.plot_sphere(vectors, texts, groups, title=titled(request), **request.look)


def draw_spectrum(request: Request) -> Any:
    """Eigenvalues before and after whitening; with pairs, scores as the dimensions grow."""
    from danlu.math import moments, spearman
    from danlu.text import choose_whitening, whiten, whitening

    scores: dict[str, dict[int, float]] | None = None
    baseline = None
    if Path(request.source).is_file() or request.source == "digits" or request.data is None:
        x = torch.as_tensor(np.asarray(vectors_of(request)[0]), dtype=torch.float64)
        held = moments(x)
    else:
        first, second, gold = pairs_of(request)
        parts = encoded(request, (first, second))
        x = torch.cat(parts).double()
        held = moments(x)
        dims = [2**i for i in range(2, 12) if 2**i <= x.shape[1]] + [x.shape[1]]
        grid = choose_whitening(
            held.mean, held.covariance, parts[0], parts[1], gold, dims=dims, betas=(1.0,), gammas=(0.0, 1.0)
        )
        scores = {"whitened": {}, "only rotated": {}}
        for choice in grid:
            scores["whitened" if choice.gamma else "only rotated"][choice.dim] = choice.spearman
        baseline = float(spearman(F.cosine_similarity(parts[0].double(), parts[1].double()), gold))
    if held.count < 2:
        raise InputError("a spectrum needs at least two vectors")
    kernel, _ = whitening(held.mean, held.covariance)
    after = moments(whiten(x, kernel, held.mean))
    spectra = {
        name: torch.linalg.eigvalsh(part.covariance).clamp_min(0)
        for name, part in (("before", held), ("whitened", after))
    }
    return figures.plot_spectrum(spectra, scores, baseline=baseline, title=titled(request), **request.look)


def draw_similarities(request: Request) -> Any:
    """Cosines of pairs above and below the middle score."""
    first, second, gold = pairs_of(request)
    a, b = encoded(request, (first, second))
    cosines = F.cosine_similarity(a, b)
    middle = float(gold.min() + gold.max()) / 2
    groups = {"alike": cosines[gold > middle], "not alike": cosines[gold <= middle]}
    low = -1.0 if float(cosines.min()) < -0.3 else min(0.0, float(cosines.min()) - 0.02)
    return figures.plot_similarities(groups, low=low, title=titled(request, str(request.data)), **request.look)
