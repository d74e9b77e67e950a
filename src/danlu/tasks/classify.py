r"""Classify texts: the dilated gated CNN or a transformer, pooling, a linear layer.

Files: {text, label} as JSON Lines, CSV or TSV. A text longer than `max_len` (characters; with a transformer tokens) is
read in windows; in training each window is an example of the text's class, in prediction the windows' probabilities are
averaged by their lengths.

Source: kexue.fm/archives/5409 (convolutions and attention pooling); Devlin et al., 2019, arXiv:1810.04805.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data import Labelled, read_labelled
from danlu.data.errors import InputError
from danlu.nn import AttentionPool1d
from danlu.tasks.char_model import CharSettings, char_config, char_encoder, char_vector, split_text
from danlu.tasks.class_scores import class_scores
from danlu.tasks.encoder import Encoder, load_encoder
from danlu.tasks.model_choice import Choice
from danlu.tasks.objective import Objective, classification_loss
from danlu.tasks.piece_windows import PieceWindows
from danlu.tasks.scores import Scores
from danlu.tasks.text_classifier import TextClassifier, TextClassifierSettings
from danlu.tasks.tricks import Plan
from danlu.tasks.windowed import Windowed
from danlu.text import CharVocab

__all__ = ["CharClassifier", "ClassifySettings", "EncoderClassifier", "Task"]


@dataclass(frozen=True)
class ClassifySettings(CharSettings):
    """Defaults of task classify with the dilated gated CNN."""

    batch_size: int = 32
    lr: float = 1e-3
    table_lr: float = 1e-3
    max_len: int = 256
    dropout: float = 0.3


class CharClassifier(nn.Module):
    """Encoder of characters, pooling, linear layer; returns the summed loss of a batch, or logits.

    Args:
        vocab: what the tokens and bigrams are numbered by.
        labels: classes in the order of the outputs.
        config: of `char_config`.
    """

    def __init__(self, vocab: CharVocab, labels: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__()
        self.vocab, self.labels, self.config = vocab, list(labels), config
        self.encoder = char_encoder(vocab, config)
        self.pool = AttentionPool1d(config["dim"])
        self.dropout = nn.Dropout(config["dropout"])
        self.output = nn.Linear(2 * config["dim"], len(labels))

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the dense token table."""
        return [self.encoder.char_embedding.weight]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Tables of which a batch touches few rows."""
        return list(self.encoder.sparse_parameters())

    def windows(self, texts: Sequence[str], labels: Sequence[int] | None = None) -> Windowed:
        """The texts as the model reads them."""
        return Windowed(self.vocab, [split_text(text) for text in texts], self.config["max_len"], labels=labels)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, K) of every class, float32."""
        return self.output(self.dropout(char_vector(self.encoder, self.pool, batch))).float()

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over windows of the cross-entropy, or of what the objective asks for."""
        return classification_loss(self, batch, objective)


class EncoderClassifier(TextClassifier):
    """`TextClassifier` with names for its outputs.

    Args:
        encoder: the transformer with its tokenizer.
        labels: classes in the order of the outputs.
        config: "pooling", "dropout", "max_len".
    """

    def __init__(self, encoder: Encoder, labels: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__(encoder, len(labels), config)
        self.labels = list(labels)

    def windows(self, texts: Sequence[str], labels: Sequence[int] | None = None) -> PieceWindows:
        """The texts as the model reads them."""
        rows = [self.encoder.tokenizer.pieces(text)[0] for text in texts]
        return PieceWindows(self.encoder, rows, self.config["max_len"], labels=labels)


Model = CharClassifier | EncoderClassifier


class Task:
    """classify: see the module."""

    name = "classify"
    metric = "accuracy"
    defaults = ClassifySettings()
    encoder_defaults = TextClassifierSettings()

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Examples of a file; classes have no scheme."""
        return read_labelled(source, on_bad_rows=on_bad_rows, format=format)

    def build(self, examples: Sequence[Labelled], scheme: str, choice: Choice, settings: Any, plan: Plan) -> Model:
        """A fresh model for these training examples.

        Raises:
            InputError: fewer than two classes, or a model that cannot be opened.
        """
        labels = sorted({e.label for e in examples})
        if len(labels) < 2:
            raise InputError(f"the training data has one class only ({labels[0]!r}); a classifier needs two or more")
        if choice.kind == "encoder":
            config = {"family": "encoder", "pooling": settings.pooling, "dropout": settings.dropout}
            return EncoderClassifier(choice.reader(settings), labels, {**config, "max_len": settings.max_len})
        vocab = CharVocab.build(
            [split_text(e.text) for e in examples],
            min_count=settings.min_count,
            bigram_min_count=settings.bigram_min_count,
        )
        return CharClassifier(vocab, labels, char_config(choice, settings))

    def unusable(self, model: Model, examples: Sequence[Labelled]) -> dict[int, str]:
        """Index -> reason for examples of a class that the model has no output for."""
        known = set(model.labels)
        names = ", ".join(model.labels[:8]) + (" ..." if len(known) > 8 else "")
        return {
            i: f"label {e.label!r} does not occur in the training data ({len(known)} labels: {names})"
            for i, e in enumerate(examples)
            if e.label not in known
        }

    def training_set(self, model: Model, examples: Sequence[Labelled]) -> Windowed | PieceWindows:
        """Windows of the training texts."""
        number = {label: i for i, label in enumerate(model.labels)}
        return model.windows([e.text for e in examples], [number[e.label] for e in examples])

    @torch.no_grad()
    def probabilities(self, model: Model, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """(N, K) of every text, and its tokens; one without a token gets equal shares."""
        data = model.windows(texts)
        device = next(model.parameters()).device
        out = torch.zeros(len(texts), len(model.labels))
        order = sorted(range(len(data.windows)), key=lambda i: data.lengths[i])
        for begin in range(0, len(order), 128):
            chunk = order[begin : begin + 128]
            batch = {k: v.to(device) for k, v in data.collate(chunk).items()}
            probability = model.logits(batch).softmax(-1).cpu()
            for row, i in enumerate(chunk):
                out[data.windows[i].index] += probability[row] * len(data.windows[i])
        sizes = torch.tensor(data.sizes)
        out[sizes == 0] = 1.0
        return out / out.sum(1, keepdim=True), data.sizes

    def evaluate(self, model: Model, examples: Sequence[Labelled], details: bool = False) -> Scores:
        """Accuracy and macro F1; with details also what a page shows."""
        texts = [e.text for e in examples]
        probability, _ = self.probabilities(model, texts)
        lines = [e.line for e in examples]
        return class_scores(probability, model.labels, [e.label for e in examples], texts, lines, details)

    def predict(self, model: Model, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Class and confidence of every text, in its own order; a text without a token gets label None."""
        results: list[dict[str, Any]] = []
        for text, row, size in zip(texts, *self.probabilities(model, texts), strict=True):
            if not size:
                results.append({"text": text, "label": None, "confidence": None})
                continue
            best = int(row.argmax())
            results.append({"text": text, "label": model.labels[best], "confidence": round(float(row[best]), 6)})
        return results

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction as one line of plain text."""
        if prediction["label"] is None:
            return ""
        text = " ".join(prediction["text"].split())
        return f"{prediction['label']}\t{prediction['confidence']:.4f}\t{text}"

    def save(self, model: Model, folder: Path) -> dict[str, Any]:
        """Write the vocabulary; returns what task.json needs to build the model again."""
        if isinstance(model, CharClassifier):
            model.vocab.save(folder)
        return {"labels": model.labels, "config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> Model:
        """The model of a folder; what stands above a transformer, and all of a CNN, is still random."""
        try:
            if stored["config"].get("family") == "encoder":
                return EncoderClassifier(load_encoder(folder), stored["labels"], stored["config"])
            return CharClassifier(CharVocab.load(folder), stored["labels"], stored["config"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None
