r"""Classify texts: the dilated gated CNN, attention and maximum pooling, a linear layer.

Files: {text, label} as JSON Lines, CSV or TSV. A text longer than `max_len` characters is read in windows; in training
each window is an example of the text's class, in prediction the windows' probabilities are averaged by their lengths.

Source: kexue.fm/archives/5409 (encoder and attention pooling).
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import Labelled, read_labelled
from danlu.data.errors import InputError
from danlu.losses import soft_accuracy_loss, soft_f1_loss
from danlu.math.metrics import calibration_bins, class_report, confusion_matrix, expected_calibration_error
from danlu.nn import AttentionPool1d
from danlu.tasks.fit import Settings
from danlu.tasks.scores import Scores
from danlu.tasks.tricks import Plan
from danlu.tasks.windowed import Windowed
from danlu.text import CharEncoder, CharVocab

__all__ = ["ClassifyModel", "ClassifySettings", "Task"]


@dataclass(frozen=True)
class ClassifySettings(Settings):
    """Defaults of task classify."""

    batch_size: int = 32
    lr: float = 1e-3
    table_lr: float = 1e-3
    max_len: int = 256
    dropout: float = 0.3
    bigram_dim: int = 64  # features of a pair of characters
    bigram_dropout: float = 0.2  # share of the pairs that become unknown in training
    gate_dropout: float = 0.1  # share of the gates that are set to 1/2 in training
    bigram_min_count: int = 2  # pairs rarer than this are unknown


class ClassifyModel(nn.Module):
    """Encoder, pooling, linear layer; returns the summed loss of a batch, or logits.

    Args:
        vocab: what the tokens and bigrams are numbered by.
        labels: classes in the order of the outputs.
        config: "dim", "dilations", "bigram_dim", "bigram_dropout", "gate_dropout", "dropout", "max_len".
    """

    def __init__(self, vocab: CharVocab, labels: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__()
        self.vocab, self.labels, self.config = vocab, list(labels), config
        self.encoder = CharEncoder(
            len(vocab), vocab.num_bigrams, dim=config["dim"], bigram_dim=config["bigram_dim"],
            dilations=config["dilations"],
            dropout=config["dropout"], bigram_dropout=config["bigram_dropout"],
            gate_dropout=config["gate_dropout"],
        )  # fmt: skip
        self.pool = AttentionPool1d(config["dim"])
        self.dropout = nn.Dropout(config["dropout"])
        self.output = nn.Linear(2 * config["dim"], len(labels))

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the dense token table."""
        return [self.encoder.char_embedding.weight]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Tables of which a batch touches few rows."""
        return list(self.encoder.sparse_parameters())

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, K) of every class, float32."""
        mask = batch["mask"]
        hidden = self.encoder(batch["tokens"], batch["bigrams"] if self.vocab.num_bigrams else None, mask)  # (B, T, D)
        highest = hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)  # (B, D)
        highest = highest.masked_fill(~mask.any(1, keepdim=True), 0.0)
        both = torch.cat([self.pool(hidden, mask), highest.to(hidden.dtype)], -1)  # (B, 2 D)
        return self.output(self.dropout(both)).float()

    def forward(self, batch: dict[str, Tensor], objective: str | None = None) -> Tensor:
        """Sum over windows of the cross-entropy, or the soft metric's loss times their number."""
        logits, target = self.logits(batch), batch["label"]
        if objective == "f1":
            return soft_f1_loss(logits, target, average="macro") * len(target)
        if objective == "accuracy":
            return soft_accuracy_loss(logits, target) * len(target)
        return F.cross_entropy(logits, target, reduction="sum")


class Task:
    """classify: see the module."""

    name = "classify"
    metric = "accuracy"
    defaults = ClassifySettings()

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Examples of a file; classes have no scheme."""
        return read_labelled(source, on_bad_rows=on_bad_rows, format=format)

    def build(
        self, examples: Sequence[Labelled], scheme: str, family: dict[str, Any], settings: ClassifySettings, plan: Plan
    ) -> ClassifyModel:
        """A fresh model for these training examples.

        Raises:
            InputError: fewer than two classes.
        """
        labels = sorted({e.label for e in examples})
        if len(labels) < 2:
            raise InputError(f"the training data has one class only ({labels[0]!r}); a classifier needs two or more")
        config = {
            "family": "dgcnn",
            "dim": family["dim"],
            "dilations": family["dilations"],
            "bigram_dim": settings.bigram_dim,
            "bigram_dropout": settings.bigram_dropout,
            "gate_dropout": settings.gate_dropout,
            "dropout": settings.dropout,
            "max_len": settings.max_len,
        }
        vocab = CharVocab.build(
            [split_text(e.text) for e in examples],
            min_count=settings.min_count,
            bigram_min_count=settings.bigram_min_count,
        )
        return ClassifyModel(vocab, labels, config)

    def unusable(self, model: ClassifyModel, examples: Sequence[Labelled]) -> dict[int, str]:
        """Index -> reason for examples of a class that the model has no output for."""
        known = set(model.labels)
        names = ", ".join(model.labels[:8]) + (" ..." if len(known) > 8 else "")
        return {
            i: f"label {e.label!r} does not occur in the training data ({len(known)} labels: {names})"
            for i, e in enumerate(examples)
            if e.label not in known
        }

    def training_set(self, model: ClassifyModel, examples: Sequence[Labelled]) -> Windowed:
        """Windows of the training texts."""
        number = {label: i for i, label in enumerate(model.labels)}
        sequences, labels = [split_text(e.text) for e in examples], [number[e.label] for e in examples]
        return Windowed(model.vocab, sequences, model.config["max_len"], labels=labels)

    @torch.no_grad()
    def probabilities(self, model: ClassifyModel, texts: Sequence[str]) -> Tensor:
        """(N, K) of every text; one without a character gets equal shares."""
        data = Windowed(model.vocab, [split_text(text) for text in texts], model.config["max_len"])
        device = next(model.parameters()).device
        out = torch.zeros(len(texts), len(model.labels))
        order = sorted(range(len(data.windows)), key=lambda i: data.lengths[i])
        for begin in range(0, len(order), 128):
            chunk = order[begin : begin + 128]
            batch = {k: v.to(device) for k, v in data.collate(chunk).items()}
            probability = model.logits(batch).softmax(-1).cpu()
            for row, i in enumerate(chunk):
                out[data.windows[i].index] += probability[row] * data.lengths[i]
        sizes = torch.tensor(data.sizes)
        out[sizes == 0] = 1.0
        return out / out.sum(1, keepdim=True)

    def evaluate(self, model: ClassifyModel, examples: Sequence[Labelled], details: bool = False) -> Scores:
        """Accuracy and macro F1; with details also what a page shows."""
        probability = self.probabilities(model, [e.text for e in examples])
        best = probability.argmax(1)
        predicted, gold = [model.labels[i] for i in best.tolist()], [e.label for e in examples]
        counts = [(int(p == g), 1, 1) for p, g in zip(predicted, gold, strict=True)]
        report = class_report(predicted, gold)
        metrics: dict[str, Any] = {
            "accuracy": sum(c for c, _, _ in counts) / max(1, len(counts)),
            "macro_f1": report.macro.f1,
        }
        if not details:
            return Scores(metrics, counts)
        confidence, correct = probability.amax(1), torch.tensor([p == g for p, g in zip(predicted, gold, strict=True)])
        number = {label: i for i, label in enumerate(model.labels)}
        own = probability[torch.arange(len(gold)), torch.tensor([number[g] for g in gold])]
        metrics |= {
            "ece": expected_calibration_error(confidence, correct),
            "loss": float(-own.clamp_min(1e-12).log().mean()),
        }
        metrics["by_type"] = {
            k: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
            for k, s in report.by_type.items()
        }
        wrong = sorted((i for i, (c, _, _) in enumerate(counts) if not c), key=lambda i: float(own[i]))[:12]
        page = {
            "confusion": {"labels": model.labels, "matrix": confusion_matrix(predicted, gold, model.labels).tolist()},
            "calibration": {
                "ece": metrics["ece"],
                "bins": [asdict(b) for b in calibration_bins(confidence, correct) if b.count],
            },
            "worst": [
                {
                    "text": examples[i].text[:400],
                    "line": examples[i].line,
                    "gold": gold[i],
                    "pred": predicted[i],
                    "confidence": float(confidence[i]),
                }
                for i in wrong
            ],
        }
        return Scores(metrics, counts, page)

    def predict(self, model: ClassifyModel, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Class and confidence of every text, in its own order; a text without a character gets label None."""
        results = []
        for text, row in zip(texts, self.probabilities(model, texts), strict=True):
            if not split_text(text):
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

    def save(self, model: ClassifyModel, folder: Path) -> dict[str, Any]:
        """Write the vocabulary; returns what task.json needs to build the model again."""
        model.vocab.save(folder)
        return {"labels": model.labels, "config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> ClassifyModel:
        """The model of a folder, weights still random."""
        try:
            return ClassifyModel(CharVocab.load(folder), stored["labels"], stored["config"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None


def split_text(text: str) -> list[str]:
    """Chinese characters and symbols one by one, runs of Latin letters or digits as words in lower case.

    >>> split_text("Win10真 好")
    ['win', '10', '真', '好']
    """
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text.lower())
