r"""Vectors of sentences whose cosine says how alike they are: from plain sentences, from scored pairs, from triples.

Files to train on, as plain text, JSON Lines, CSV or TSV: a sentence a line or {text} (SimCSE: no labels needed);
{text_a, text_b, score or label 0/1} (CoSENT: the order of the scores); {anchor, positive, negative} (InfoNCE, with the
negatives of the batch besides). --set objective=simcse takes the texts of pairs or triples as plain sentences. --dev
and --test hold pairs, and are told in Spearman's correlation of cosine and score. A text that is too long is cut at its
end and counted. Named sets of task match are pairs, those of task classify sentences.

Source: Gao et al., 2021, arXiv:2104.08821; kexue.fm/archives/8348, 8586 and 8847.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from danlu.data import TextGroup, read_sentences
from danlu.data.errors import InputError
from danlu.math import pearson, spearman, spearman_influence
from danlu.tasks.embed_model import POOLINGS, Embedder, GroupedTexts, text_vectors
from danlu.tasks.encoder import load_encoder
from danlu.tasks.model_choice import Choice
from danlu.tasks.scores import Scores
from danlu.tasks.settings import Settings
from danlu.tasks.tricks import Plan

__all__ = ["EmbedSettings", "Task"]
OBJECTIVES = {"sentences": "simcse", "pairs": "cosent", "triples": "contrastive"}  # by what the training data are
BINS = 40  # of the histogram of cosines, at most


@dataclass(frozen=True)
class EmbedSettings(Settings):
    """Defaults of task embed."""

    batch_size: int = 64  # rows a step; the others of a batch are the negatives
    lr: float = 1e-4
    max_len: int = 64  # tokens of a text; what lies beyond is cut
    dropout: float = 0.1
    warmup: float = 0.1
    objective: str = "auto"  # what is trained on: by the data, or simcse for any of them
    pooling: str = "mean"  # a key of POOLINGS
    temperature: float = 0.05  # divides the cosines

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "objective": ("auto", *OBJECTIVES.values()),
        "pooling": tuple(POOLINGS),
    }


class Task:
    """embed: see the module."""

    name = "embed"
    metric = "spearman"
    defaults = EmbedSettings()
    dev_scheme = "pairs"  # what dev and test hold, whatever the training data are

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Sentences, pairs or triples of a file."""
        return read_sentences(source, on_bad_rows=on_bad_rows, format=format, scheme=scheme)

    def build(self, examples: Sequence[TextGroup], scheme: str, choice: Choice, settings: Any, plan: Plan) -> Embedder:
        """The encoder with a pooling, for these training examples.

        Raises:
            InputError: an objective that the data cannot serve, nothing to learn from, or a model that cannot be
                opened.
        """
        objective = OBJECTIVES[scheme] if settings.objective == "auto" else settings.objective
        if objective not in ("simcse", OBJECTIVES[scheme]):
            kinds = {kind: data for data, kind in OBJECTIVES.items()}
            raise InputError(
                f"objective {objective} is for {kinds[objective]}, the training data are {scheme}; leave it at auto "
                f"({OBJECTIVES[scheme]}), or take simcse"
            )
        if not settings.temperature > 0:
            raise InputError(f"temperature must be > 0, got {settings.temperature:g}; 0.05 is usual")
        if objective == "simcse":
            if not settings.dropout:
                raise InputError("simcse tells two draws of dropout apart, and dropout is 0; 0.1 is usual")
            if len({text for e in examples for text in e.texts}) < 2:
                raise InputError("the training data have one sentence only; a sentence needs others to differ from")
        elif objective == "cosent" and len({e.score for e in examples}) < 2:
            raise InputError(f"all scores of the training data are {examples[0].score:g}; there is nothing to learn")
        if plan.contrast and objective == "cosent":
            raise InputError(
                f"{plan.contrast} is for sentences and triples; pairs with scores are trained by cosent: leave it out, "
                "or --set objective=simcse"
            )
        config = {
            "family": "encoder",
            "max_len": settings.max_len,
            "pooling": settings.pooling,
            "objective": objective,
            "loss": plan.contrast or "infonce",
            "temperature": settings.temperature,
        }
        encoder = choice.reader(settings)
        if settings.pooling == "first_last_mean" and encoder.config.num_layers < 2:
            raise InputError(f"pooling first_last_mean needs two layers, {choice.name} has one; take pooling=mean")
        return Embedder(encoder, config)

    def unusable(self, model: Embedder, examples: Sequence[TextGroup]) -> dict[int, str]:
        """No row is unusable once it is read."""
        return {}

    def training_set(self, model: Embedder, examples: Sequence[TextGroup]) -> GroupedTexts:
        """The columns of texts that the objective reads."""
        max_len = model.config["max_len"]
        if model.config["objective"] == "simcse":
            texts = list(dict.fromkeys(text for e in examples for text in e.texts))
            return GroupedTexts(model.encoder, [texts, texts], range(len(texts)), max_len)
        columns = [*zip(*(e.texts for e in examples), strict=True)]
        if model.config["objective"] == "cosent":
            place = {score: i for i, score in enumerate(sorted({float(e.score or 0) for e in examples}))}
            return GroupedTexts(model.encoder, columns, [place[float(e.score or 0)] for e in examples], max_len)
        number: dict[str, int] = {}
        anchors = [number.setdefault(text, len(number)) for text in columns[0]]
        return GroupedTexts(model.encoder, columns, anchors, max_len)

    def notes(self, training: GroupedTexts) -> list[str]:
        """What a record should say about the training texts."""
        count, total = sum(training.cut), len(training.cut)
        if not count:
            return []
        return [f"{count:,} of {total:,} distinct training texts were cut at their end; --set max_len= moves it"]

    def finish(self, model: Embedder, examples: Sequence[TextGroup], plan: Plan) -> list[str]:
        """Whiten the trained vectors, if that is asked for; returns what a record should say of it.

        Raises:
            InputError: more directions asked for than the training texts have.
        """
        if plan.whitening is None:
            return []
        texts = list(dict.fromkeys(text for e in examples for text in e.texts))
        try:
            model.whiten(text_vectors(model, texts, whiten=False)[0], plan.whitening or None)
        except ValueError as error:
            raise InputError(f"whitening: {error}") from None
        few = f"; fewer than {10 * model.encoder.dim:,} are few for it" if len(texts) < 10 * model.encoder.dim else ""
        kept = f"{model.config['whitening']:,} of {model.encoder.dim:,} directions are kept"
        return [f"whitened by the vectors of {len(texts):,} training texts{few}; {kept}"]

    def evaluate(self, model: Embedder, examples: Sequence[TextGroup], details: bool = False) -> Scores:
        """Correlations of the cosines with the scores; with details what a page shows."""
        vectors, cut = text_vectors(model, [text for e in examples for text in e.texts])
        u, v = vectors[0::2], vectors[1::2]  # (N, D) each
        cosines = (u.double() * v.double()).sum(-1)  # (N,)
        gold = torch.tensor([e.score for e in examples], dtype=torch.float64)
        few = len(examples) < 2
        metrics: dict[str, Any] = {
            "spearman": 0.0 if few else float(spearman(cosines, gold)),
            "pearson": 0.0 if few else float(pearson(cosines, gold)),
        }
        if any(cut):
            metrics["truncated"] = sum(cut)
        if not details:
            return Scores(metrics, [])
        influence = torch.zeros_like(gold) if few else spearman_influence(cosines, gold)
        contributions = [round(value, 9) for value in (metrics["spearman"] + influence).tolist()]
        page = {"similarities": _histogram(cosines, gold), "worst": _worst(cosines, gold, examples)}
        return Scores(metrics, [], page, contributions)

    def vectors(self, model: Embedder, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, D) of texts; nan where a text has nothing to read."""
        empty = torch.tensor([not text.strip() for text in texts], dtype=torch.bool)
        return text_vectors(model, texts)[0].masked_fill(empty[:, None], torch.nan)

    def predict(self, model: Embedder, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The vector of every text; None where it has nothing to read."""
        vectors, cut = text_vectors(model, texts)
        return [
            {"text": text, "vector": [round(x, 7) for x in vector] if text.strip() else None}
            | ({"truncated": True} if long else {})
            for text, vector, long in zip(texts, vectors.tolist(), cut, strict=True)
        ]

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction as one line of plain text: the numbers, a tab, the text."""
        if prediction["vector"] is None:
            return ""
        numbers = " ".join(f"{x:.6f}" for x in prediction["vector"])
        return f"{numbers}\t{' '.join(prediction['text'].split())}"

    def save(self, model: Embedder, folder: Path) -> dict[str, Any]:
        """What task.json needs to build the model again."""
        return {"scheme": self.dev_scheme, "config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> Embedder:
        """The model of a folder; a whitening map is still empty."""
        try:
            return Embedder(load_encoder(folder), stored["config"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None


def _histogram(cosines: Tensor, gold: Tensor) -> dict[str, Any]:
    """Shares of the cosines by bin, of the pairs that are alike and of those that are not: above the middle score."""
    middle = float(gold.min() + gold.max()) / 2
    low = min(-0.05 if bool((cosines < 0).any()) else 0.0, float(cosines.min()))
    bins = max(10, min(BINS, round(len(gold) ** 0.5)))
    edges = torch.linspace(max(-1.0, low), 1.0, bins + 1, dtype=torch.float64)
    groups = []
    for name, part in (("alike", cosines[gold > middle]), ("not alike", cosines[gold <= middle])):
        if not len(part):
            continue
        place = (torch.searchsorted(edges, part, right=True) - 1).clamp(0, bins - 1)
        share = torch.bincount(place, minlength=bins) / len(part)
        groups.append({"name": name, "pairs": len(part), "mean": float(part.mean()), "share": share.tolist()})
    return {"middle": middle, "edges": edges.tolist(), "groups": groups}


def _worst(cosines: Tensor, gold: Tensor, examples: Sequence[TextGroup]) -> list[dict[str, Any]]:
    """The pairs whose places by cosine and by score are farthest apart."""
    error = (_places(cosines) - _places(gold)).square()
    return [
        {
            "text": "  ⟷  ".join(examples[i].texts)[:400],
            "line": examples[i].line,
            "gold": f"{float(gold[i]):g}",
            "pred": f"{float(cosines[i]):.2f}",
            "loss": round(float(error[i]), 4),
        }
        for i in error.argsort(descending=True)[:12].tolist()
    ]


def _places(x: Tensor) -> Tensor:
    """Share of the numbers below each (N,), of equal ones half."""
    ordered = x.sort().values
    return (torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)) / (2 * len(x))
