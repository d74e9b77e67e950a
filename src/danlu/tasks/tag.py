r"""Tag sequences: words, parts of speech, entities; the dilated gated CNN with a softmax, MEMM or CRF head.

Files: CoNLL columns (BIO, BMES, BIOES), segmented lines, or {text, entities}. A sentence longer than `max_len` tokens
is read through overlapping windows whose scores are joined before decoding, so nothing is cut off and the best tag
sequence is still found over the whole sentence.

Source: kexue.fm/archives/5409 (encoder), 5542 and 7196 (CRF), 7213 (MEMM).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from danlu.data.errors import InputError
from danlu.data.readers import read_tagged
from danlu.data.tagged import Tagged
from danlu.math.metrics import (
    calibration_bins,
    expected_calibration_error,
    score_from_counts,
    span_confusion,
    span_report,
)
from danlu.math.tag_scheme import allowed_transitions, scheme_labels, spans, split_tag
from danlu.nn.crf import CRF
from danlu.nn.memm import MEMM
from danlu.nn.softmax_head import SoftmaxHead
from danlu.tasks.fit import Settings
from danlu.tasks.scores import Scores
from danlu.tasks.tricks import Plan
from danlu.tasks.windowed import Windowed
from danlu.text import CharEncoder, CharVocab

__all__ = ["TagModel", "TagSettings", "Task"]


@dataclass(frozen=True)
class TagSettings(Settings):
    """Defaults of task tag."""

    batch_size: int = 48
    lr: float = 3e-3
    table_lr: float = 3e-3
    min_count: int = 1
    bigram_dim: int = 64  # features of a pair of characters
    bigram_dropout: float = 0.2  # share of the pairs that become unknown in training
    gate_dropout: float = 0.1  # share of the gates that are set to 1/2 in training
    bigram_min_count: int = 2  # pairs rarer than this are unknown
    context: int = 16  # tokens a window sees of its neighbours


class TagModel(nn.Module):
    """Encoder, linear layer, head; returns the summed loss of a batch, or scores to decode.

    Args:
        vocab: what the tokens and bigrams are numbered by.
        labels: tags in the order of the outputs.
        scheme: of the tags.
        config: sizes and dropouts of the encoder, "head", "constraints", "unit", "max_len", "context" (`Task.build`).
    """

    def __init__(self, vocab: CharVocab, labels: Sequence[str], scheme: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.vocab, self.labels, self.scheme, self.config = vocab, list(labels), scheme, config
        self.encoder = CharEncoder(
            len(vocab), vocab.num_bigrams, dim=config["dim"], bigram_dim=config["bigram_dim"],
            dilations=config["dilations"],
            dropout=config["dropout"], bigram_dropout=config["bigram_dropout"],
            gate_dropout=config["gate_dropout"],
        )  # fmt: skip
        self.output = nn.Linear(config["dim"], len(labels))
        allowed = allowed_transitions(self.labels, scheme) if config["constraints"] else None
        kind, size = config["head"], len(labels)
        self.head: nn.Module = (
            CRF(size, constraints=allowed)
            if kind == "crf"
            else SoftmaxHead(size, constraints=allowed)
            if kind == "softmax"
            else MEMM(size, bidirectional=kind == "bimemm", constraints=allowed)
        )

    def attack_weights(self) -> list[nn.Parameter]:
        """What the embedding attacks move: the dense token table."""
        return [self.encoder.char_embedding.weight]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Tables of which a batch touches few rows."""
        return list(self.encoder.sparse_parameters())

    def emissions(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores (B, T, K) of every label at every token, float32."""
        hidden = self.encoder(
            batch["tokens"], batch["bigrams"] if self.vocab.num_bigrams else None, batch["mask"]
        )  # (B, T, D)
        return self.output(hidden).float()

    def forward(self, batch: dict[str, Tensor], objective: str | None = None) -> Tensor:
        """Sum over sequences of the negative log-likelihood."""
        return self.head(self.emissions(batch), batch["tags"], batch["mask"], reduction="sum")


class Task:
    """tag: see the module."""

    name = "tag"
    metric = "f1"
    defaults = TagSettings()

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Examples of a file; with the scheme of earlier data a file too small to tell its own is read in that one.

        Raises:
            InputError: the file cannot be used, or is written in another scheme.
        """
        if not scheme:
            return read_tagged(source, on_bad_rows=on_bad_rows, format=format)
        reading, problem = None, None
        if str(source) != "-":  # standard input can be read once
            try:
                reading = read_tagged(source, on_bad_rows=on_bad_rows, format=format)
            except InputError as error:
                problem = error
        if reading is not None and reading.scheme == scheme:
            return reading
        try:
            return read_tagged(source, on_bad_rows=on_bad_rows, format=format, scheme=scheme)
        except InputError as error:
            if reading is None:
                raise problem or error from None
            raise InputError(
                f"{source} is tagged in {reading.scheme}, the training data in {scheme}; write both in one scheme"
            ) from None

    def build(
        self, examples: Sequence[Tagged], scheme: str, family: dict[str, Any], settings: TagSettings, plan: Plan
    ) -> TagModel:
        """A fresh model for these training examples.

        Args:
            examples: training part.
            scheme: of its tags.
            family: sizes from --model.
            settings: of the run.
            plan: of the tricks.

        Returns:
            The model, weights drawn from the global generator.
        """
        types = {split_tag(tag)[1] for e in examples for tag in set(e.tags) if tag != "O"}
        labels = scheme_labels(sorted(types), scheme, outside=any("O" in e.tags for e in examples))
        long = sum(len(t) > 1 for e in examples for t in e.tokens)
        total = sum(len(e.tokens) for e in examples)
        config = {
            "family": "dgcnn",
            "dim": family["dim"],
            "dilations": family["dilations"],
            "bigram_dim": settings.bigram_dim,
            "bigram_dropout": settings.bigram_dropout,
            "gate_dropout": settings.gate_dropout,
            "dropout": settings.dropout,
            "head": plan.head or "crf",
            "constraints": plan.constraints,
            "unit": "character" if long <= 0.2 * total else "word",
            "max_len": settings.max_len,
            "context": settings.context,
        }
        vocab = CharVocab.build(
            [e.tokens for e in examples], min_count=settings.min_count, bigram_min_count=settings.bigram_min_count
        )
        return TagModel(vocab, labels, scheme, config)

    def unusable(self, model: TagModel, examples: Sequence[Tagged]) -> dict[int, str]:
        """Index -> reason for examples with tags that the model has no output for."""
        known = set(model.labels)
        names = ", ".join(model.labels[:8]) + (" ..." if len(known) > 8 else "")
        found = {}
        for index, example in enumerate(examples):
            strange = sorted(set(example.tags) - known)
            if strange:
                found[index] = (
                    f"label {strange[0]!r} does not occur in the training data ({len(known)} labels: {names})"
                )
        return found

    def training_set(self, model: TagModel, examples: Sequence[Tagged]) -> Windowed:
        """Windows of the training examples; they do not overlap, so that every tag counts once."""
        number = {label: i for i, label in enumerate(model.labels)}
        tags = [[number[tag] for tag in e.tags] for e in examples]
        return Windowed(model.vocab, [e.tokens for e in examples], model.config["max_len"], tags=tags)

    @torch.no_grad()
    def score_arrays(self, model: TagModel, data: Windowed) -> list[Tensor]:
        """Emissions (length, K) of every example, windows joined."""
        device = next(model.parameters()).device
        out = [torch.zeros(size, len(model.labels)) for size in data.sizes]
        order = sorted(range(len(data.windows)), key=lambda i: data.lengths[i])
        for chunk in _chunks(order, data.lengths, 16_384):
            batch = {k: v.to(device) for k, v in data.collate(chunk).items()}
            scores = model.emissions(batch).cpu()
            for row, i in enumerate(chunk):
                w = data.windows[i]
                out[w.index][w.keep_start : w.keep_stop] = scores[row, w.keep_start - w.start : w.keep_stop - w.start]
        return out

    @torch.no_grad()
    def decode(
        self, model: TagModel, scores: Sequence[Tensor], marginals: bool = False
    ) -> tuple[list[list[str]], list[np.ndarray]]:
        """Best tags of every example, and the probability of each chosen tag if asked."""
        tags: list[list[str]] = [[] for _ in scores]
        sure: list[np.ndarray] = [np.zeros(0, np.float32) for _ in scores]
        lengths = [len(s) for s in scores]
        order = sorted((i for i in range(len(scores)) if lengths[i]), key=lambda i: lengths[i])
        head = model.head.cpu() if next(model.parameters()).device.type == "mps" else model.head
        device = next(model.output.parameters()).device
        for chunk in _chunks(order, lengths, 65_536):
            padded = nn.utils.rnn.pad_sequence([scores[i] for i in chunk], batch_first=True).to(device)  # (B, T, K)
            mask = (
                torch.arange(padded.shape[1], device=device)
                < torch.tensor([lengths[i] for i in chunk], device=device)[:, None]
            )
            best = head.decode(padded, mask)  # (B, T), -1 at masked steps
            chosen = (
                head.marginals(padded, mask).gather(-1, best.clamp_min(0)[..., None])[..., 0] if marginals else None
            )
            for row, i in enumerate(chunk):
                tags[i] = [model.labels[k] for k in best[row, : lengths[i]].tolist()]
                if chosen is not None:
                    sure[i] = chosen[row, : lengths[i]].float().cpu().numpy()
        return tags, sure

    def evaluate(self, model: TagModel, examples: Sequence[Tagged], details: bool = False) -> Scores:
        """Precision, recall and F1 of spans (words, entities), token accuracy; with details also what a page shows."""
        data = _windowed(model, [e.tokens for e in examples])
        scores = self.score_arrays(model, data)
        predicted, sure = self.decode(model, scores, marginals=details)
        gold = [list(e.tags) for e in examples]
        counts = []
        found = [
            (set(spans(p, model.scheme)), set(spans(g, model.scheme))) for p, g in zip(predicted, gold, strict=True)
        ]
        for p, g in found:
            counts.append((len(p & g), len(p), len(g)))
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
        report = span_report(predicted, gold, model.scheme)
        metrics |= {
            "macro_f1": report.macro.f1,
            "tokens": tokens,
            "unknown_tokens": int(
                ((data.tokens > 0) & (data.tokens < len(model.vocab) - len(model.vocab.tokens))).sum()
            ),
        }
        metrics["by_type"] = {
            k: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support}
            for k, s in report.by_type.items()
        }
        confidence = torch.from_numpy(np.concatenate([*sure, np.zeros(0, np.float32)]))
        correct = torch.tensor(
            [a == b for p, g in zip(predicted, gold, strict=True) for a, b in zip(p, g, strict=True)]
        )
        metrics["ece"] = expected_calibration_error(confidence, correct)
        metrics["loss"], losses = self._losses(model, scores, examples)
        kinds, confusion = span_confusion(predicted, gold, model.scheme)
        page: dict[str, Any] = {
            "confusion": {"labels": kinds, "matrix": confusion.tolist()},
            "calibration": {
                "ece": metrics["ece"],
                "bins": [asdict(b) for b in calibration_bins(confidence, correct) if b.count],
            },
            "worst": _worst(examples, found, losses),
        }
        if hasattr(model.head, "transitions"):
            allowed = allowed_transitions(model.labels, model.scheme)[0]
            matrix = model.head.transitions.detach().float().cpu()
            page["transitions"] = {
                "labels": model.labels,
                "matrix": [[round(v, 4) for v in row] for row in matrix.tolist()],
                "illegal": (~allowed).tolist(),
            }
        return Scores(metrics, counts, page)

    @torch.no_grad()
    def _losses(
        self, model: TagModel, scores: Sequence[Tensor], examples: Sequence[Tagged]
    ) -> tuple[float, list[float]]:
        """Mean negative log-likelihood a token, and that of every example."""
        number = {label: i for i, label in enumerate(model.labels)}
        losses = []
        device = next(model.output.parameters()).device
        legal = model.config["constraints"]
        for s, e in zip(scores, examples, strict=True):
            if not len(s):
                losses.append(0.0)
                continue
            tags = torch.tensor([[number[t] for t in e.tags]], device=device)
            try:
                losses.append(-float(model.head.log_prob(s[None].to(device), tags)[0]))
            except ValueError:  # gold tags that the constraints exclude have no probability
                if not legal:
                    raise
                losses.append(float("inf"))
        finite = [v for v in losses if np.isfinite(v)]
        tokens = sum(len(e.tags) for e, v in zip(examples, losses, strict=True) if np.isfinite(v))
        return sum(finite) / max(1, tokens), losses

    def predict(self, model: TagModel, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Words or entities of every text, in its own order; a text without tokens gives empty lists."""
        places = [_tokens(text, model.config["unit"]) for text in texts]
        sequences = [[token for token, _, _ in row] for row in places]
        data = _windowed(model, sequences)
        tags, _ = self.decode(model, self.score_arrays(model, data))
        results = []
        for text, row, tagged in zip(texts, places, tags, strict=True):
            found = [(row[a][1], row[b - 1][2], kind) for a, b, kind in spans(tagged, model.scheme)]
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
        text, parts, end = prediction["text"], [], 0
        for a, b, kind in prediction["entities"]:
            parts += [text[end:a], f"[{text[a:b]}]{kind}"]
            end = b
        return "".join([*parts, text[end:]])

    def save(self, model: TagModel, folder: Path) -> dict[str, Any]:
        """Write the vocabulary; returns what task.json needs to build the model again."""
        model.vocab.save(folder)
        return {"labels": model.labels, "scheme": model.scheme, "config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> TagModel:
        """The model of a folder, weights still random."""
        try:
            return TagModel(CharVocab.load(folder), stored["labels"], stored["scheme"], stored["config"])
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


def _windowed(model: TagModel, sequences: Sequence[Sequence[str]]) -> Windowed:
    """Overlapping windows, for prediction."""
    return Windowed(model.vocab, sequences, model.config["max_len"], model.config["context"])


def _chunks(order: Sequence[int], lengths: Sequence[int], cells: int) -> Iterable[list[int]]:
    """Neighbours of a sorted order, at most `cells` padded tokens together."""
    chunk: list[int] = []
    for i in order:
        if chunk and lengths[i] * (len(chunk) + 1) > cells:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def _worst(
    examples: Sequence[Tagged], found: Sequence[tuple[set, set]], losses: Sequence[float], keep: int = 12
) -> list[dict[str, Any]]:
    """Examples whose true tags the model finds least likely, with both readings; spans count characters of `text`."""
    wrong = [i for i, (p, g) in enumerate(found) if p != g and len(examples[i].tokens) <= 200]
    wrong.sort(key=lambda i: -losses[i])
    rows = []
    for i in wrong[:keep]:
        text, starts, ends = _placed(examples[i])
        rows.append(
            {
                "text": text,
                "line": examples[i].line,
                "loss": None if not np.isfinite(losses[i]) else round(losses[i], 3),
                **{
                    name: [[starts[a], ends[b - 1], kind] for a, b, kind in sorted(side)]
                    for name, side in zip(("pred", "gold"), found[i], strict=True)
                },
            }
        )
    return rows


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
