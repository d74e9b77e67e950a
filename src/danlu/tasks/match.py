r"""Match pairs of texts: same meaning or not, what follows from what, how alike; a transformer or a light network.

Files: {text_a, text_b, label} with two or more classes, or {text_a, text_b, score} with a number, as JSON Lines, CSV or
TSV; text1 and text2, sentence1 and sentence2, query and title are understood as well. A pair that is too long is cut at
the end of its longer text and counted: `truncated` in the scores and in a prediction, a note under the training run.

Source: Devlin et al., 2019, arXiv:1810.04805; Conneau et al., 2017, arXiv:1705.02364.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.data import LabelledPair, read_labelled_pairs
from danlu.data.errors import InputError
from danlu.data.pairs_labelled import PAIR_NAMES
from danlu.math import pearson, spearman
from danlu.tasks.char_model import CharSettings, char_config, split_text
from danlu.tasks.class_scores import class_scores
from danlu.tasks.encoder import load_encoder
from danlu.tasks.match_model import CharMatcher, CharPairs, EncodedPairs, EncoderMatcher
from danlu.tasks.model_choice import Choice
from danlu.tasks.scores import Scores
from danlu.tasks.text_classifier import TextClassifierSettings
from danlu.tasks.tricks import Plan
from danlu.text import CharVocab

__all__ = ["EncoderMatchSettings", "MatchSettings", "Task"]
Model = CharMatcher | EncoderMatcher


@dataclass(frozen=True)
class MatchSettings(CharSettings):
    """Defaults of task match with the dilated gated CNN."""

    batch_size: int = 32
    lr: float = 1e-3
    table_lr: float = 1e-3
    max_len: int = 128
    dropout: float = 0.3


@dataclass(frozen=True)
class EncoderMatchSettings(TextClassifierSettings):
    """Defaults of task match with a transformer."""

    max_len: int = 128  # tokens of both texts together


class Task:
    """match: see the module."""

    name = "match"
    metric = "accuracy"
    score_metric = "spearman"  # of pairs with scores instead of classes
    fields = ("text_a", "text_b")
    field_names = PAIR_NAMES[1:]  # what a table may call them
    defaults = MatchSettings()
    encoder_defaults = EncoderMatchSettings()

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Pairs of a file; their scheme is "label" or "score", and later files are read for that of the first."""
        return read_labelled_pairs(source, on_bad_rows=on_bad_rows, format=format, target=scheme or "auto")

    def build(self, examples: Sequence[LabelledPair], scheme: str, choice: Choice, settings: Any, plan: Plan) -> Model:
        """A fresh model for these training examples.

        Raises:
            InputError: fewer than two classes, scores that are all the same, or a model that cannot be opened.
        """
        labels = sorted({e.label for e in examples}) if scheme == "label" else []
        config: dict[str, Any] = {"family": "encoder", "max_len": settings.max_len, "dropout": settings.dropout}
        if scheme == "label" and len(labels) < 2:
            raise InputError(f"the training data has one class only ({labels[0]!r}); matching needs two or more")
        if scheme == "score":
            scores = torch.tensor([e.score for e in examples], dtype=torch.float64)
            config |= {"mean": float(scores.mean()), "std": float(scores.std(correction=0))}
            if not config["std"]:
                raise InputError(f"all scores of the training data are {config['mean']:g}; there is nothing to learn")
            asked = f"soft_{plan.metric_loss}" if plan.metric_loss else plan.objective[0] if plan.objective else ""
            asked = asked or ("vat" if plan.attack == "vat" else "")
            if asked:
                raise InputError(f"{asked} is for classes; these pairs have scores: leave it out")
        if choice.kind == "encoder":
            return EncoderMatcher(choice.reader(settings), labels, {**config, "pooling": settings.pooling})
        texts = [text for e in examples for text in (e.text_a, e.text_b)]
        vocab = CharVocab.build(
            [split_text(text) for text in texts],
            min_count=settings.min_count,
            bigram_min_count=settings.bigram_min_count,
        )
        return CharMatcher(vocab, labels, {**config, **char_config(choice, settings)})

    def unusable(self, model: Model, examples: Sequence[LabelledPair]) -> dict[int, str]:
        """Index -> reason for pairs of a class that the model has no output for."""
        known = set(model.labels)
        return {
            i: f"label {e.label!r} does not occur in the training data ({', '.join(model.labels[:8])})"
            for i, e in enumerate(examples)
            if known and e.label not in known
        }

    def training_set(self, model: Model, examples: Sequence[LabelledPair]) -> CharPairs | EncodedPairs:
        """The training pairs with the number of their class, or their score."""
        number = {label: i for i, label in enumerate(model.labels)}
        targets = [number[e.label] if model.labels else e.score for e in examples]
        return model.pairs([e.text_a for e in examples], [e.text_b for e in examples], targets)

    def notes(self, training: CharPairs | EncodedPairs) -> list[str]:
        """What a record should say about the training pairs."""
        count, total = sum(training.cut), len(training.cut)
        if not count:
            return []
        return [
            f"{count:,} of {total:,} training pairs were cut at the end of the longer text; --set max_len= moves it"
        ]

    @torch.no_grad()
    def outputs(self, model: Model, first: Sequence[str], second: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Probabilities (N, K), or scores (N, 1) on their own scale; and which pairs were cut."""
        data = model.pairs(first, second)
        device = next(model.parameters()).device
        out = torch.zeros(len(first), max(1, len(model.labels)))
        order = sorted(range(len(first)), key=lambda i: data.lengths[i])
        for begin in range(0, len(order), 128):
            chunk = order[begin : begin + 128]
            logits = model.logits({k: v.to(device) for k, v in data.collate(chunk).items()}).cpu()
            out[chunk] = logits.softmax(-1) if model.labels else logits * model.config["std"] + model.config["mean"]
        return out, data.cut

    def evaluate(self, model: Model, examples: Sequence[LabelledPair], details: bool = False) -> Scores:
        """Accuracy and F1 (of the last class where there are two), or correlations; with details what a page shows."""
        out, cut = self.outputs(model, [e.text_a for e in examples], [e.text_b for e in examples])
        shown = [f"{e.text_a}  ⟷  {e.text_b}" for e in examples]
        lines = [e.line for e in examples]
        if model.labels:
            positive = model.labels[1] if len(model.labels) == 2 else None
            gold = [e.label for e in examples]
            scores = class_scores(out, model.labels, gold, shown, lines, details, positive)
        else:
            scores = _score_scores(out[:, 0], [float(e.score or 0) for e in examples], shown, lines, details)
        return Scores({**scores.metrics, **_told(sum(cut))}, scores.counts, scores.page)

    def predict(self, model: Model, items: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """Class and confidence, or score, of every pair; None where a text has nothing to read."""
        first, second = ([item[name] for item in items] for name in self.fields)
        out, cut = self.outputs(model, first, second)
        results = []
        for a, b, row, long in zip(first, second, out, cut, strict=True):
            result: dict[str, Any] = {"text_a": a, "text_b": b}
            empty = not (a.strip() and b.strip())
            if model.labels:
                best = int(row.argmax())
                result["label"] = None if empty else model.labels[best]
                result["confidence"] = None if empty else round(float(row[best]), 6)
            else:
                result["score"] = None if empty else round(float(row[0]), 6)
            results.append(result | ({"truncated": True} if long else {}))
        return results

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction as one line of plain text."""
        texts = [" ".join(prediction[name].split()) for name in self.fields]
        if prediction.get("label") is None and prediction.get("score") is None:
            return ""
        if "score" in prediction:
            return "\t".join([f"{prediction['score']:.4f}", *texts])
        return "\t".join([prediction["label"], f"{prediction['confidence']:.4f}", *texts])

    def save(self, model: Model, folder: Path) -> dict[str, Any]:
        """Write the vocabulary; returns what task.json needs to build the model again."""
        if isinstance(model, CharMatcher):
            model.vocab.save(folder)
        return {"labels": model.labels, "scheme": "label" if model.labels else "score", "config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> Model:
        """The model of a folder; what stands above a transformer, and all of a CNN, is still random."""
        try:
            if stored["config"].get("family") == "encoder":
                return EncoderMatcher(load_encoder(folder), stored["labels"], stored["config"])
            return CharMatcher(CharVocab.load(folder), stored["labels"], stored["config"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None


def _told(cut: int) -> dict[str, int]:
    return {"truncated": cut} if cut else {}


def _score_scores(
    predicted: Tensor, gold: Sequence[float], shown: Sequence[str], lines: Sequence[int], details: bool
) -> Scores:
    """Correlations and the mean error; a comparison of arms has nothing to count here."""
    target = torch.tensor(gold)
    error = predicted - target
    few = len(gold) < 2
    metrics = {
        "spearman": 0.0 if few else float(spearman(predicted, target)),
        "pearson": 0.0 if few else float(pearson(predicted, target)),
        "rmse": float(error.square().mean().sqrt()),
    }
    if not details:
        return Scores(metrics, [])
    worst = error.abs().argsort(descending=True)[:12].tolist()
    rows = [
        {
            "text": shown[i][:400],
            "line": lines[i],
            "gold": f"{gold[i]:g}",
            "pred": f"{float(predicted[i]):.2f}",
            "loss": round(float(error[i] ** 2), 4),
        }
        for i in worst
    ]
    return Scores(metrics, [], {"worst": rows})
