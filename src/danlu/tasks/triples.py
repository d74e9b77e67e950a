r"""Relation triples: who stands in which relation to what, as spans of the text; a transformer with GPLinker or CasRel.

Files: {text, triples: [[subject, predicate, object]]} as JSON Lines, subject and object as spans, entities or texts
(`danlu.data.triples`). A text of more than `max_len` tokens is read in windows that overlap by half; what is found in
them is united, so nothing is cut off, and a triple wider than the overlap may be out of reach: evaluation counts those
of the gold data as `out_of_reach`, and as missed.

    f1    exact match of predicate and both spans; of the texts of both spans where the file gives texts only     (1)

`--set head=casrel` (or `--with head:casrel`) takes CasRel instead of GPLinker. A predicate that training never saw
cannot be found: such gold triples are misses, not errors.

Source: kexue.fm/archives/7161 (CasRel with conditional layer norm), 8888 (GPLinker).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.data.triples import Related, Relation, read_triples
from danlu.math.metrics import score_from_counts
from danlu.math.triple_metrics import triple_breakdown, triple_counts, triple_report
from danlu.tasks.encoder import Encoder, load_encoder
from danlu.tasks.model_choice import Choice
from danlu.tasks.objective import Objective
from danlu.tasks.scores import Scores
from danlu.tasks.settings import Settings
from danlu.tasks.tricks import Plan
from danlu.tasks.triple_windows import TripleWindows
from danlu.text.casrel import CasRel
from danlu.text.gplinker import GPLinker
from danlu.text.triple_targets import Triple

__all__ = ["HEADS", "Task", "TripleModel", "TripleSettings"]

HEADS = ("gplinker", "casrel")
FUSIONS = ("cln", "add")
BATCH_TOKENS = 4_096  # of a batch in prediction, padding included
SHOWN, EXCERPT = 12, 180  # examples on a page, and characters of each


@dataclass(frozen=True)
class TripleSettings(Settings):
    """Defaults of task triples."""

    batch_size: int = 16
    lr: float = 3e-4
    max_len: int = 128
    dropout: float = 0.1
    warmup: float = 0.1
    head_rate: float = 3.0
    head: str = "gplinker"  # or "casrel"
    head_size: int = 64  # of GPLinker's pointers
    efficient: bool = True  # GPLinker with one projection for all predicates
    fusion: str = "cln"  # how CasRel reads a subject: "cln" or "add"
    subject_power: float = 2.0  # power activation of CasRel's subjects; 1 switches it off
    object_power: float = 4.0  # and of its objects
    start_threshold: float = 0.6  # of CasRel, on the power
    end_threshold: float = 0.5


class TripleModel(nn.Module):
    """Encoder and one of the two heads; returns the summed loss of a batch, or triples.

    Args:
        encoder: the transformer with its tokenizer.
        predicates: in the order of the outputs.
        config: "head", its sizes and thresholds, "max_len" (`Task.build`).
    """

    def __init__(self, encoder: Encoder, predicates: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.predicates, self.config = encoder, list(predicates), config
        self.dropout = nn.Dropout(config["dropout"])
        self.head: GPLinker | CasRel = (
            GPLinker(encoder.dim, len(self.predicates), config["head_size"], config["efficient"])
            if config["head"] == "gplinker"
            else CasRel(encoder.dim, len(self.predicates), tuple(config["power"]), config["fusion"])
        )

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the token table."""
        return self.encoder.attack_weights()

    def windows(self, texts: Sequence[str], examples: Sequence[Related] | None = None) -> TripleWindows:
        """The texts as the model reads them; with their triples, to train on."""
        numbers = {name: i for i, name in enumerate(self.predicates)}
        room = self.encoder.room(self.config["max_len"])
        casrel = examples is not None and self.config["head"] == "casrel"
        return TripleWindows(self.encoder, texts, room, room // 2, examples, numbers, casrel)

    def forward(self, batch: dict[str, Tensor], objective: Objective | None = None) -> Tensor:
        """Sum over the windows (GPLinker) or their tokens (CasRel) of the loss."""
        hidden = self.dropout(self.encoder(batch))  # (B, T, D)
        if isinstance(self.head, CasRel):
            return self.head.loss(hidden, batch["triples"], batch["subjects"], batch["pieces"], reduction="sum")
        return self.head.loss(hidden, batch["triples"], batch["pieces"])

    def extract(self, batch: dict[str, Tensor]) -> list[list[Triple]]:
        """The triples of every window, in its tokens."""
        hidden = self.encoder(batch)
        if isinstance(self.head, CasRel):
            return self.head.extract(hidden, batch["pieces"], *self.config["thresholds"])
        return self.head.extract(hidden, batch["pieces"])


class Task:
    """triples: see the module."""

    name = "triples"
    metric = "f1"
    defaults = TripleSettings()
    encoder_defaults = defaults

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Examples of a file; triples have no scheme."""
        return read_triples(source, on_bad_rows=on_bad_rows, format=format)

    def build(
        self, examples: Sequence[Related], scheme: str, choice: Choice, settings: TripleSettings, plan: Plan
    ) -> TripleModel:
        """A model for these training examples, its head fresh.

        Raises:
            InputError: the examples have no triples, a setting is none of those allowed, or the model is no transformer
                or cannot be opened.
        """
        head = plan.head or settings.head
        for name, value, allowed in (("head", head, HEADS), ("fusion", settings.fusion, FUSIONS)):
            if value not in allowed:
                raise InputError(f"setting {name} of task triples is {' or '.join(allowed)}, got {value!r}")
        for name in ("subject_power", "object_power", "head_size"):
            if not getattr(settings, name) > 0:
                raise InputError(f"setting {name} must be above 0, got {getattr(settings, name)}")
        if head == "gplinker" and settings.head_size % 2:
            raise InputError(f"setting head_size must be even (rotary positions), got {settings.head_size}")
        predicates = sorted({t.predicate for e in examples for t in e.triples})
        if not predicates:
            raise InputError("the training data has no triples; every row's list is empty")
        encoder = choice.encoder(settings)
        config = {
            "family": "encoder",
            "head": head,
            "max_len": settings.max_len,
            "dropout": settings.dropout,
            "head_size": settings.head_size,
            "efficient": settings.efficient,
            "fusion": settings.fusion,
            "power": [settings.subject_power, settings.object_power],
            "thresholds": [settings.start_threshold, settings.end_threshold],
        }
        return TripleModel(encoder, predicates, config)

    def unusable(self, model: TripleModel, examples: Sequence[Related]) -> dict[int, str]:
        """Nothing: a predicate that the model does not know is a miss."""
        return {}

    def training_set(self, model: TripleModel, examples: Sequence[Related]) -> TripleWindows:
        """Overlapping windows of the training texts."""
        return model.windows([e.text for e in examples], examples)

    @torch.no_grad()
    def find(self, model: TripleModel, texts: Sequence[str]) -> list[list[Relation]]:
        """The triples of every text in characters, windows united, in the order of the text."""
        data = model.windows(texts)
        device = next(model.parameters()).device
        found: list[set[Relation]] = [set() for _ in texts]
        order = sorted(range(len(data.windows)), key=lambda i: data.lengths[i])
        while order:
            size = max(1, BATCH_TOKENS // data.lengths[order[0]])
            while size > 1 and size * data.lengths[order[min(size, len(order)) - 1]] > BATCH_TOKENS:
                size -= 1
            chunk, order = order[:size], order[size:]
            batch = {k: v.to(device) for k, v in data.collate(chunk).items()}
            for i, triples in zip(chunk, model.extract(batch), strict=True):
                found[data.windows[i].index] |= data.characters(i, triples, model.predicates)
        return [sorted(triples) for triples in found]

    def evaluate(self, model: TripleModel, examples: Sequence[Related], details: bool = False) -> Scores:
        """Precision, recall and F1 of triples by (1); with details also what a page shows."""
        predicted = self.find(model, [e.text for e in examples])
        gold = [e.triples for e in examples]
        judged = [
            (as_texts(e.text, p), as_texts(e.text, e.triples)) if not e.located else (list(p), list(e.triples))
            for e, p in zip(examples, predicted, strict=True)
        ]  # eq. (1)
        said, true = [p for p, _ in judged], [g for _, g in judged]
        counts = triple_counts(said, true)
        micro = score_from_counts(*(sum(row[i] for row in counts) for i in range(3)))
        metrics: dict[str, Any] = {"f1": micro.f1, "precision": micro.precision, "recall": micro.recall}
        if not details:
            return Scores(metrics, counts)
        names = [as_texts(e.text, p) for e, p in zip(examples, predicted, strict=True)]
        report = triple_report(said, true)
        metrics |= {
            "f1_offsets": triple_report(predicted, gold).micro.f1,
            "f1_texts": triple_report(names, [as_texts(e.text, e.triples) for e in examples]).micro.f1,
            "macro_f1": report.macro.f1,
            "triples": sum(g for _, _, g in counts),
            "out_of_reach": out_of_reach(model, examples),
            "by_type": {
                kind: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
                for kind, s in report.by_type.items()
            },
        }
        breakdown = triple_breakdown(said, true)
        rows = [[kind, s.precision, s.recall, s.f1, s.support] for kind, s in breakdown.items()]
        page = {"triples": {"breakdown": rows, "examples": shown(examples, predicted, counts)}}
        return Scores(metrics, counts, page)

    def predict(self, model: TripleModel, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Triples of every text, in its own order, with the places of subject and object."""
        results = []
        for text, triples in zip(texts, self.find(model, texts), strict=True):
            rows = [
                {
                    "subject": text[slice(*t.subject)],
                    "predicate": t.predicate,
                    "object": text[slice(*t.object)],
                    "spans": [list(t.subject), list(t.object)],
                }
                for t in triples
            ]
            results.append({"text": text, "triples": rows})
        return results

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction as one line of plain text."""
        rows = [f"{t['subject']} - {t['predicate']} -> {t['object']}" for t in prediction["triples"]]
        return " ".join("; ".join(rows).split())

    def save(self, model: TripleModel, folder: Path) -> dict[str, Any]:
        """What task.json needs to build the model again."""
        return {"labels": model.predicates, "config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> TripleModel:
        """The model of a folder, its head still random."""
        try:
            return TripleModel(load_encoder(folder), stored["labels"], stored["config"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None


def as_texts(text: str, triples: Sequence[Relation]) -> list[tuple[str, str, str]]:
    """Triples with the texts of subject and object for their places."""
    return [(text[slice(*t.subject)], t.predicate, text[slice(*t.object)]) for t in triples]


def out_of_reach(model: TripleModel, examples: Sequence[Related]) -> int:
    """Gold triples that no window holds; predicates do not count here."""
    anything = {t.predicate: 0 for e in examples for t in e.triples}
    room = model.encoder.room(model.config["max_len"])
    return TripleWindows(model.encoder, [e.text for e in examples], room, room // 2, examples, anything).out_of_reach


def shown(
    examples: Sequence[Related], predicted: Sequence[Sequence[Relation]], counts: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """The examples with the most mistakes, each a stretch of the text around the first one."""
    order = sorted(range(len(examples)), key=lambda i: 2 * counts[i][0] - counts[i][1] - counts[i][2])
    rows = []
    for i in order[:SHOWN]:
        text, gold, found = examples[i].text, set(examples[i].triples), set(predicted[i])
        marked = sorted(gold ^ found) or sorted(gold)
        if not marked:
            continue
        begin, end = _stretch(text, min(marked[0].subject[0], marked[0].object[0]))
        row: dict[str, Any] = {"text": text[begin:end], "line": examples[i].line}
        for side, triples in (("gold", gold), ("pred", found)):
            inside = [t for t in sorted(triples) if all(begin <= a and b <= end for a, b in (t.subject, t.object))]
            row[side] = [
                [t.subject[0] - begin, t.subject[1] - begin, t.predicate, t.object[0] - begin, t.object[1] - begin]
                for t in inside
            ]
        if row["gold"] or row["pred"]:
            rows.append(row)
    return rows


def _stretch(text: str, at: int) -> tuple[int, int]:
    """A stretch of the text that holds a place: from the start of its sentence, no longer than EXCERPT."""
    if len(text) <= EXCERPT:
        return 0, len(text)
    begin = max((text.rfind(mark, max(0, at - EXCERPT // 2), at) for mark in "。！？!?\n"), default=-1) + 1
    begin = begin or max(0, at - EXCERPT // 2)
    return begin, min(len(text), begin + EXCERPT)
