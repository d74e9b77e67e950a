r"""Tag sequences: words, parts of speech, entities; the dilated gated CNN or a transformer, and a head above it.

Files: CoNLL columns (BIO, BMES, BIOES), segmented lines, or {text, entities}. Heads: CRF (default), MEMM, softmax, or
global_pointer, which scores spans and finds nested ones too. A sentence longer than `max_len` tokens is read through
overlapping windows: the scores of a sequence head are joined before decoding, so that the best tag sequence is still
found over the whole sentence; the spans of a pointer belong to the window that answers for their start. Over a
transformer the tags stand on the pieces that begin something (`danlu.tasks.piece_steps`).

Source: kexue.fm/archives/5409 (encoder), 5542 and 7196 (CRF), 7213 (MEMM), 8373 and 8877 (GlobalPointer).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.data.errors import InputError
from danlu.data.tagged import Tagged, join_tokens
from danlu.data.tagging import read_tagged
from danlu.math.metrics import (
    calibration_bins,
    expected_calibration_error,
    report_from_counts,
    score_from_counts,
    span_confusion,
    span_report,
)
from danlu.math.tag_scheme import allowed_transitions, scheme_labels, spans, split_tag
from danlu.tasks.char_model import CharSettings, char_config
from danlu.tasks.encoder import load_encoder
from danlu.tasks.model_choice import Choice
from danlu.tasks.piece_steps import StepWindows
from danlu.tasks.scores import Scores
from danlu.tasks.settings import Settings
from danlu.tasks.tag_model import CharTagger, EncoderTagger, Sentence, Span, SpanTargets, Tagger
from danlu.tasks.tag_reading import read_sentences, sequence_losses
from danlu.tasks.tricks import Plan
from danlu.tasks.windowed import Windowed
from danlu.text import CharVocab

__all__ = ["EncoderTagSettings", "TagSettings", "Task"]


@dataclass(frozen=True)
class TagSettings(CharSettings):
    """Defaults of task tag with the dilated gated CNN."""

    batch_size: int = 48
    lr: float = 3e-3
    table_lr: float = 3e-3
    min_count: int = 1
    context: int = 16  # tokens a window sees of its neighbours


@dataclass(frozen=True)
class EncoderTagSettings(Settings):
    """Defaults of task tag with a transformer."""

    batch_size: int = 32
    lr: float = 3e-4
    dropout: float = 0.1
    warmup: float = 0.1
    head_rate: float = 5.0
    context: int = 16  # pieces a window sees of its neighbours


class Task:
    """tag: see the module."""

    name = "tag"
    metric = "f1"
    defaults = TagSettings()
    encoder_defaults = EncoderTagSettings()

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Examples of a file; with the scheme of earlier data a file too small to tell its own is read in that one.

        Raises:
            InputError: the file cannot be used, or is written in another scheme.
        """
        if not scheme:
            return read_tagged(source, on_bad_rows=on_bad_rows, format=format, nested=True)
        reading, problem = None, None
        if str(source) != "-":  # standard input can be read once
            try:
                reading = read_tagged(source, on_bad_rows=on_bad_rows, format=format, nested=True)
            except InputError as error:
                problem = error
        if reading is not None and reading.scheme == scheme:
            return reading
        try:
            return read_tagged(source, on_bad_rows=on_bad_rows, format=format, scheme=scheme, nested=True)
        except InputError as error:
            if reading is None:
                raise problem or error from None
            raise InputError(
                f"{source} is tagged in {reading.scheme}, the training data in {scheme}; write both in one scheme"
            ) from None

    def build(self, examples: Sequence[Tagged], scheme: str, choice: Choice, settings: Any, plan: Plan) -> Tagger:
        """A fresh model for these training examples.

        Args:
            examples: training part.
            scheme: of its tags.
            choice: what --model names.
            settings: of the run.
            plan: of the tricks.

        Returns:
            The model, weights drawn from the global generator.

        Raises:
            InputError: tricks that do not go with each other or with these tags, or a model that cannot be opened.
        """
        types = {kind for e in examples for _, _, kind in e.nested}
        types |= {split_tag(tag)[1] for e in examples for tag in set(e.tags) if tag != "O"}
        labels = scheme_labels(sorted(types), scheme, outside=any("O" in e.tags for e in examples))
        long = sum(len(t) > 1 for e in examples for t in e.tokens)
        total = sum(len(e.tokens) for e in examples)
        head = plan.head or "crf"
        _check_head(head, labels, plan)
        own = {
            "head": head,
            "constraints": plan.constraints,
            "unit": "character" if long <= 0.2 * total else "word",
            "max_len": settings.max_len,
            "context": settings.context,
        }
        if choice.kind == "encoder":
            config = {"family": "encoder", "dropout": settings.dropout, **own}
            return EncoderTagger(choice.reader(settings), labels, scheme, config)
        vocab = CharVocab.build(
            [e.tokens for e in examples], min_count=settings.min_count, bigram_min_count=settings.bigram_min_count
        )
        return CharTagger(vocab, labels, scheme, {**char_config(choice, settings), **own})

    def unusable(self, model: Tagger, examples: Sequence[Tagged]) -> dict[int, str]:
        """Index -> reason for examples with tags that the model has no output for."""
        known, types = set(model.labels), set(model.types)
        names = ", ".join(model.labels[:8]) + (" ..." if len(known) > 8 else "")
        found = {}
        for index, example in enumerate(examples):
            strange = sorted(set(example.tags) - known) or sorted({s[2] for s in example.nested} - types)
            if strange:
                found[index] = (
                    f"label {strange[0]!r} does not occur in the training data ({len(known)} labels: {names})"
                )
            elif example.nested and not model.points:
                (a, b, kind), (c, d, other) = example.overlap
                found[index] = (
                    f"entities {example.text[a:b]!r} ({kind}) and {example.text[c:d]!r} ({other}) overlap, which tags "
                    "cannot say; --with head:global_pointer finds overlapping ones, or keep one of them"
                )
        return found

    def training_set(self, model: Tagger, examples: Sequence[Tagged]) -> Windowed | StepWindows | SpanTargets:
        """Windows of the training examples; they do not overlap, so that every tag counts once."""
        sentences = _sentences(model, examples)
        if not model.points:
            return model.read(sentences, tags=[e.tags for e in examples])  # type: ignore[operator]
        data = model.read(sentences)  # type: ignore[operator]
        gold: list[Sequence[Span]] = [_gold_spans(e, model.scheme) for e in examples]
        if isinstance(data, StepWindows):
            gold = [a.to_steps(row, overlap=True) for a, row in zip(data.aligned, gold, strict=True)]
        return SpanTargets(data, gold, model.types)

    def evaluate(self, model: Tagger, examples: Sequence[Tagged], details: bool = False) -> Scores:
        """Precision, recall and F1 of spans (words, entities), token accuracy; with details also what a page shows."""
        readings, data, scores = read_sentences(model, _sentences(model, examples), marginals=details)
        predicted, gold = [r.tags for r in readings], [list(e.tags) for e in examples]
        found = [(set(r.spans), set(_gold_spans(e, model.scheme))) for r, e in zip(readings, examples, strict=True)]
        counts = [(len(p & g), len(p), len(g)) for p, g in found]
        micro = (
            score_from_counts(*(sum(column) for column in zip(*counts, strict=True)))
            if counts
            else score_from_counts(0, 0, 0)
        )
        right = sum(a == b for p, g in zip(predicted, gold, strict=True) for a, b in zip(p, g, strict=True))
        tokens = sum(len(g) for g in gold)
        metrics: dict[str, Any] = {
            "f1": micro.f1,
            "precision": micro.precision,
            "recall": micro.recall,
            "accuracy": right / max(1, tokens),
        }
        if not details:
            return Scores(metrics, counts)
        report = _by_type(found) if model.points else span_report(predicted, gold, model.scheme)
        metrics |= {"macro_f1": report.macro.f1, "tokens": tokens, "unknown_tokens": model.unknown(data)}  # type: ignore[operator]
        metrics["by_type"] = {
            k: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
            for k, s in report.by_type.items()
        }
        kinds, confusion = span_confusion(predicted, gold, model.scheme)
        page: dict[str, Any] = {"confusion": {"labels": kinds, "matrix": confusion.tolist()}}
        losses = [float(len(p ^ g)) for p, g in found]
        if not model.points:
            sure = [r.sure for r in readings]
            confidence = torch.from_numpy(np.concatenate([*sure, np.zeros(0, np.float32)]))
            correct = torch.tensor(
                [a == b for p, g in zip(predicted, gold, strict=True) for a, b in zip(p, g, strict=True)]
            )
            metrics["ece"] = expected_calibration_error(confidence, correct)
            metrics["loss"], losses = sequence_losses(model, data, scores, gold)
            page["calibration"] = {
                "ece": metrics["ece"],
                "bins": [asdict(b) for b in calibration_bins(confidence, correct) if b.count],
            }
        page["worst"] = _worst(examples, found, losses, told=not model.points)
        if hasattr(model.head, "transitions"):
            allowed = allowed_transitions(model.labels, model.scheme)[0]
            matrix = model.head.transitions.detach().float().cpu()
            page["transitions"] = {
                "labels": model.labels,
                "matrix": [[round(v, 4) for v in row] for row in matrix.tolist()],
                "illegal": (~allowed).tolist(),
            }
        return Scores(metrics, counts, page)

    def predict(self, model: Tagger, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Words or entities of every text, in its own order; a text without tokens gives empty lists."""
        rows = [_tokens(text, model.config["unit"]) for text in texts]
        sentences = [
            Sentence([token for token, _, _ in row], text, [(a, b) for _, a, b in row])
            for text, row in zip(texts, rows, strict=True)
        ]
        readings, _, _ = read_sentences(model, sentences)
        results = []
        for text, row, reading in zip(texts, rows, readings, strict=True):
            found = [(row[a][1], row[b - 1][2], kind) for a, b, kind in reading.spans]
            if model.scheme == "BMES" and "O" not in model.labels:
                words = {"text": text, "words": [text[a:b] for a, b, _ in found]}
                results.append(
                    words | ({"tags": [kind for *_, kind in found]} if any(kind for *_, kind in found) else {})
                )
            else:
                results.append({"text": text, "entities": [list(span) for span in found]})
        return results

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction as one line of plain text."""
        if "words" in prediction:
            tags = prediction.get("tags")
            return (
                "  ".join(f"{w}/{t}" for w, t in zip(prediction["words"], tags, strict=True))
                if tags
                else "  ".join(prediction["words"])
            )
        return _marked(prediction["text"], prediction["entities"])

    def save(self, model: Tagger, folder: Path) -> dict[str, Any]:
        """Write the vocabulary; returns what task.json needs to build the model again."""
        if isinstance(model, CharTagger):
            model.vocab.save(folder)
        return {"labels": model.labels, "scheme": model.scheme, "config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> Tagger:
        """The model of a folder; what stands above a transformer, and all of a CNN, is still random."""
        try:
            if stored["config"].get("family") == "encoder":
                return EncoderTagger(load_encoder(folder), stored["labels"], stored["scheme"], stored["config"])
            return CharTagger(CharVocab.load(folder), stored["labels"], stored["scheme"], stored["config"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None


def _tokens(text: str, unit: str) -> list[tuple[str, int, int]]:
    """(token, start, end): characters without the blanks, or words between blanks."""
    if unit == "character":
        return [(c, i, i + 1) for i, c in enumerate(text) if not c.isspace()]
    found, start = [], 0
    for word in text.split():
        start = text.index(word, start)
        found.append((word, start, start + len(word)))
        start += len(word)
    return found


def _check_head(head: str, labels: Sequence[str], plan: Plan) -> None:
    """Refuse tricks that have nothing to work on."""
    if head == "global_pointer" and "O" not in labels:
        raise InputError(
            "head:global_pointer finds spans among other text; where every token belongs to a word take head:crf"
        )
    if head == "global_pointer" and plan.constraints:
        raise InputError("constraints exclude tag sequences, which head:global_pointer has none of; leave one out")
    if head in ("global_pointer", "softmax") and any(name == r"^head\." for name, _ in plan.lr_rules):
        raise InputError(f"crf_lr is for the transitions of a CRF or MEMM, which head:{head} has none of")


def _sentences(model: Tagger, examples: Sequence[Tagged]) -> list[Sentence]:
    """Examples with the places of their tokens, where the model asks for them.

    Where a file had characters without their text, neighbouring Latin letters belong to one word, as they will in what
    is predicted on.
    """
    if isinstance(model, CharTagger):
        return [Sentence(e.tokens, e.text, ()) for e in examples]
    rows = []
    for example in examples:
        if model.config["unit"] == "character" and example.text == join_tokens(example.tokens):
            example = replace(example, text="".join(example.tokens))
        text, starts, ends = _placed(example)
        rows.append(Sentence(example.tokens, text, list(zip(starts, ends, strict=True))))
    return rows


def _gold_spans(example: Tagged, scheme: str) -> list[Span]:
    return list(example.nested) or spans(example.tags, scheme)


def _by_type(found: Sequence[tuple[set[Span], set[Span]]]) -> Any:
    """Scores of spans that may overlap, by type."""
    totals: dict[str, list[int]] = {}
    for predicted, gold in found:
        for column, group in enumerate((predicted & gold, predicted, gold)):
            for span in group:
                totals.setdefault(span[2], [0, 0, 0])[column] += 1
    return report_from_counts({kind: (c, p, g) for kind, (c, p, g) in sorted(totals.items())})


def _marked(text: str, entities: Sequence[Sequence[Any]]) -> str:
    """The text with brackets around its entities, also around those inside others; crossing ones stand at the end."""
    opens: dict[int, int] = {}
    closes: dict[int, list[str]] = {}
    stack: list[int] = []
    crossing = []
    for a, b, kind in sorted(entities, key=lambda e: (e[0], -e[1])):
        while stack and stack[-1] <= a:
            stack.pop()
        if stack and b > stack[-1]:
            crossing.append(f" [{text[a:b]}]{kind}")
            continue
        stack.append(b)
        opens[a] = opens.get(a, 0) + 1
        closes.setdefault(b, []).insert(0, f"]{kind}")
    parts = []
    for i in range(len(text) + 1):
        parts += [*closes.get(i, ()), "[" * opens.get(i, 0), text[i : i + 1]]
    return "".join([*parts, *crossing])


def _worst(
    examples: Sequence[Tagged],
    found: Sequence[tuple[set, set]],
    losses: Sequence[float],
    told: bool = True,
    keep: int = 12,
) -> list[dict[str, Any]]:
    """Examples whose true tags the model finds least likely, with both readings; spans count characters of `text`.

    Overlapping spans cannot be drawn in one line: of each reading those are kept that begin first.
    """
    wrong = [i for i, (p, g) in enumerate(found) if p != g and len(examples[i].tokens) <= 200]
    wrong.sort(key=lambda i: -losses[i])
    rows = []
    for i in wrong[:keep]:
        text, starts, ends = _placed(examples[i])
        rows.append(
            {
                "text": text,
                "line": examples[i].line,
                "loss": round(losses[i], 3) if told and np.isfinite(losses[i]) else None,
                **{
                    name: [[starts[a], ends[b - 1], kind] for a, b, kind in _first_of_each(side)]
                    for name, side in zip(("pred", "gold"), found[i], strict=True)
                },
            }
        )
    return rows


def _first_of_each(side: set[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(side, key=lambda s: (s[0], -s[1], s[2])):
        if not kept or kept[-1][1] <= span[0]:
            kept.append(span)
    return kept


def _placed(example: Tagged) -> tuple[str, list[int], list[int]]:
    """The text and where each token begins and ends in it."""
    starts, ends, at = [], [], 0
    for token in example.tokens:
        place = example.text.find(token, at)
        if place < 0:  # the text is not spelled as the tokens are: show the tokens
            joined = "".join(example.tokens)
            sizes = np.cumsum([0, *map(len, example.tokens)]).tolist()
            return joined, sizes[:-1], sizes[1:]
        starts.append(place)
        at = place + len(token)
        ends.append(at)
    return example.text, starts, ends
