r"""Read: find the answer to a question in a text, as a stretch of that text.

Files: SQuAD JSON, or {context, question, answers} as JSON Lines. `--model dgcnn` is the light reader of the source,
over characters; any transformer reads [CLS] question [SEP] window [SEP] and points to start and end. Contexts of any
length are read in windows that overlap; the answer is the span with the best score of all windows, always a stretch
context[start:end].

A question with several contexts (a list; the passages a search found) is answered by a vote: every text that a passage
may mean has its best score there, and the scores of the passages are joined by `danlu.math.vote`.

Where the training data answers every question, so does the model. Otherwise it answers when it is sure: the DGCNN where
start and end lie above `threshold`, a transformer where the span is likelier than "not in this window".

Source: kexue.fm/archives/5409 and 6906 (reader, vote); Devlin et al., 2018, arXiv:1810.04805 (spans of a transformer).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from danlu.data.errors import InputError
from danlu.data.reading import Question, read_questions
from danlu.math.answer_metrics import answer_f1, answer_match, answer_scores
from danlu.math.answer_vote import vote
from danlu.math.metrics import calibration_bins, expected_calibration_error
from danlu.tasks.encoder import load_encoder
from danlu.tasks.model_choice import Choice
from danlu.tasks.read_models import DGCNNReading, EncoderReading
from danlu.tasks.read_windows import Asked, CharWindows, EncoderWindows
from danlu.tasks.scores import Scores
from danlu.tasks.settings import Settings
from danlu.tasks.tricks import Plan
from danlu.text import CharVocab

__all__ = ["DGCNNReadSettings", "EncoderReadSettings", "Found", "ReadSettings", "Task"]

Model = DGCNNReading | EncoderReading
DILATIONS = (1, 2, 4, 8, 16)  # of the source's reader, closed by a 1; --model dgcnn:LxD takes them in turn
TOGETHER = 64  # windows asked at a time
SHOWN = 12  # examples on the report page
KEPT_SETTINGS = (  # of the dgcnn's settings, those that its model goes on reading
    "threshold", "features", "presence", "alpha", "gamma", "dropout", "token_dropout", "bigram_dim", "bigram_dropout",
    "gate_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class ReadSettings(Settings):
    """What both readers know."""

    batch_size: int = 32
    lr: float = 1e-3
    table_lr: float = 1e-3
    max_len: int = 256  # tokens of a window; with a transformer question and special tokens count
    dropout: float = 0.1
    overlap: int = 64  # tokens that neighbouring windows share
    max_question: int = 64  # tokens of the question that are read
    max_answer: int = 0  # characters of the longest answer; 0: as long as 99 of 100 training answers
    vote: str = "squared"  # of several contexts: "squared", "sum" or "max" (`danlu.math.vote`)


@dataclass(frozen=True)
class DGCNNReadSettings(ReadSettings):
    """Defaults of task read with the dgcnn."""

    threshold: float = 0.1  # start and end of an answer it stands by
    features: bool = True  # tell it where question and context repeat each other
    presence: bool = True  # judge the window as a whole
    alpha: float = 0.25  # weight of the places of an answer in the focal loss
    gamma: float = 2.0  # how little a settled character weighs in the focal loss
    token_dropout: float = 0.1  # share of the characters that become unknown in training
    bigram_dim: int = 64  # features of a pair of characters
    bigram_dropout: float = 0.2  # share of the pairs that become unknown in training
    gate_dropout: float = 0.1  # share of the gates that are set to 1/2 in training
    bigram_min_count: int = 2  # pairs rarer than this are unknown


@dataclass(frozen=True)
class EncoderReadSettings(ReadSettings):
    """Defaults of task read with a transformer."""

    batch_size: int = 16
    lr: float = 3e-4
    head_rate: float = 5.0
    warmup: float = 0.1
    span_head: str = "start_end"  # "start_end" or "global_pointer"


@dataclass(frozen=True)
class Found:
    """An answer at its place, contexts[context][start:end], or nothing; cut: tokens read of a longer question."""

    text: str | None
    start: int | None
    end: int | None
    score: float
    context: int = 0
    cut: int = 0


class Task:
    """read: see the module."""

    name = "read"
    metric = "f1"
    fields = ("question", "context")
    defaults = DGCNNReadSettings()
    encoder_defaults = EncoderReadSettings()

    def read(self, source: Any, *, on_bad_rows: str = "fail", format: str = "auto", scheme: str = "") -> Any:
        """Questions of a file; they have no scheme."""
        return read_questions(source, format=format, on_bad_rows=on_bad_rows)

    def build(self, examples: Sequence[Question], scheme: str, choice: Choice, settings: Any, plan: Plan) -> Model:
        """A model for these training questions.

        Args:
            examples: training part.
            scheme: nothing here.
            choice: what --model names.
            settings: of the run.
            plan: of the tricks.

        Returns:
            The model, what is not pretrained drawn from the global generator.

        Raises:
            InputError: no answer of the training part has a place, or a transformer without [CLS].
        """
        lengths = sorted(len(e.best.text) for e in examples if e.best is not None)
        if not lengths:
            raise InputError("no training question has an answer that stands in its context; there is nothing to learn")
        config = {
            "max_len": settings.max_len,
            "overlap": settings.overlap,
            "max_question": settings.max_question,
            "max_answer": settings.max_answer or lengths[int(0.99 * (len(lengths) - 1))],
            "no_answer": any(not e.answers for e in examples),
            "vote": settings.vote,
        }
        if choice.kind == "encoder":
            encoder = choice.encoder(settings)
            if encoder.tokenizer.token_start is None or encoder.tokenizer.token_end is None:
                raise InputError(f"--model {choice.name} has no [CLS] and [SEP] to read with; give a BERT-like encoder")
            config |= {"family": "encoder", "span_head": settings.span_head, "max_len": encoder.room(settings.max_len)}
            return EncoderReading(encoder, config)
        layers = choice.layers if ":" in choice.name else len(DILATIONS) + 1
        config |= {
            "family": "dgcnn",
            "dim": choice.dim,
            "dilations": [DILATIONS[i % len(DILATIONS)] for i in range(layers - 1)] + [1],
            **{name: getattr(settings, name) for name in KEPT_SETTINGS},
        }
        vocab = CharVocab.build(
            sorted({e.context for e in examples} | {e.question for e in examples}),
            min_count=settings.min_count,
            bigram_min_count=settings.bigram_min_count,
        )
        return DGCNNReading(vocab, config)

    def unusable(self, model: Model, examples: Sequence[Question]) -> dict[int, str]:
        """Nothing: every question can be asked."""
        return {}

    def training_set(self, model: Model, examples: Sequence[Question]) -> CharWindows | EncoderWindows:
        """Windows of the questions whose answer has a place, and of those without answer."""
        asked = [Asked(e.question, (e.context,), e.best) for e in examples if e.best is not None or not e.answers]
        return _windows(model, asked)

    @torch.no_grad()
    def answers(self, model: Model, asked: Sequence[Asked]) -> list[Found]:
        """The answer to every question over all windows of all its contexts."""
        data = _windows(model, asked)
        device = next(model.parameters()).device
        sure: list[list[dict[str, Found]]] = [[{} for _ in one.contexts] for one in asked]
        best: list[Found | None] = [None] * len(asked)
        order = sorted(range(len(data.lengths)), key=lambda i: data.lengths[i])
        for begin in range(0, len(order), TOGETHER):
            chunk = order[begin : begin + TOGETHER]
            batch = {name: value.to(device) for name, value in data.collate(chunk).items()}
            for item, spans in zip(chunk, model.spans(batch), strict=True):
                place = data.place(item)
                text = asked[place.asked].contexts[place.context]
                for found in _placed(data, item, spans.sure, text):
                    kept = sure[place.asked][place.context]
                    if found.text is not None and (found.text not in kept or kept[found.text].score < found.score):
                        kept[found.text] = found
                for found in _placed(data, item, spans.best, text):
                    earlier = best[place.asked]
                    if earlier is None or _before(found, earlier):
                        best[place.asked] = found
        results = []
        for passages, fallback, cut in zip(sure, best, data.cut, strict=True):
            found = _chosen(passages, None if model.config["no_answer"] else fallback, model.config["vote"])
            results.append(Found(found.text, found.start, found.end, found.score, found.context, cut))
        return results

    def evaluate(self, model: Model, examples: Sequence[Question], details: bool = False) -> Scores:
        """Exact match and F1 as CMRC 2018 counts them; with details also the WebQA score and what a page shows."""
        found = self.answers(model, [Asked(e.question, (e.context,)) for e in examples])
        texts, gold = [f.text or "" for f in found], [[a.text for a in e.answers] for e in examples]
        f1 = [answer_f1(p, g) for p, g in zip(texts, gold, strict=True)]
        em = [answer_match(p, g) for p, g in zip(texts, gold, strict=True)]
        counts: Any = [(value, 1, 1) for value in f1]
        metrics: dict[str, Any] = {"f1": sum(f1) / max(1, len(f1)), "em": sum(em) / max(1, len(em))}
        if model.config["no_answer"]:
            silent = [not g for g in gold]
            metrics["unanswerable_recall"] = sum(not t for t, s in zip(texts, silent, strict=True) if s) / max(
                1, sum(silent)
            )
            metrics["answered"] = sum(bool(t) for t in texts) / max(1, len(texts))
        if not details:
            return Scores(metrics, counts)
        metrics["webqa_score"] = answer_scores(texts, gold, "bag", "webqa")["score"]
        metrics["cut_questions"] = sum(bool(f.cut) for f in found)
        answered = [i for i, f in enumerate(found) if f.text is not None]
        confidence = torch.tensor([min(1.0, found[i].score) for i in answered])
        correct = torch.tensor([em[i] for i in answered]) > 0
        metrics["ece"] = expected_calibration_error(confidence, correct)
        page = {
            "reading": [_card(examples[i], found[i], f1[i]) for i in _telling(f1, [f.score for f in found])],
            "calibration": {
                "ece": metrics["ece"],
                "bins": [asdict(b) for b in calibration_bins(confidence, correct) if b.count],
            },
        }
        return Scores(metrics, counts, page)

    def predict(self, model: Model, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer, place and score for every {question, context}; context may be a list of passages, which then vote.

        Raises:
            InputError: an item lacks a field or holds something else than texts.
        """
        results = []
        for item, found in zip(items, self.answers(model, [_asked(item) for item in items]), strict=True):
            row: dict[str, Any] = {"question": item["question"], "answer": found.text}
            row |= {"start": found.start, "end": found.end, "score": round(found.score, 6)}
            if not isinstance(item["context"], str):
                row["passage"] = None if found.text is None else found.context
            if found.cut:
                row["note"] = f"only the first {found.cut} tokens of the question were read"
            results.append(row)
        return results

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction as one line of plain text."""
        question = " ".join(prediction["question"].split())
        note = f"\t({prediction['note']})" if "note" in prediction else ""
        return f"{' '.join((prediction['answer'] or '').split())}\t{prediction['score']:.4f}\t{question}{note}"

    def save(self, model: Model, folder: Path) -> dict[str, Any]:
        """Write the vocabulary of a DGCNN; returns what task.json needs to build the model again."""
        if isinstance(model, DGCNNReading):
            model.vocab.save(folder)
        return {"config": model.config}

    def load(self, folder: Path, stored: dict[str, Any]) -> Model:
        """The model of a folder; all but a transformer's weights still random."""
        try:
            config = stored["config"]
            if config["family"] == "dgcnn":
                return DGCNNReading(CharVocab.load(folder), config)
            return EncoderReading(load_encoder(folder), config)
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder}/task.json lacks {error}; restore it from a copy or train again") from None


def _windows(model: Model, asked: Sequence[Asked]) -> CharWindows | EncoderWindows:
    if isinstance(model, DGCNNReading):
        return CharWindows(model.vocab, asked, model.config)
    return EncoderWindows(model.encoder.tokenizer, asked, model.config)


def _asked(item: Any) -> Asked:
    question, context = (item.get(name) if isinstance(item, dict) else None for name in ("question", "context"))
    contexts = [context] if isinstance(context, str) else context
    if not isinstance(question, str) or not isinstance(contexts, list | tuple) or not contexts:
        raise InputError('to read needs {"question": text, "context": text or a list of texts}')
    if not all(isinstance(text, str) for text in contexts):
        raise InputError("the context must be a text or a list of texts")
    return Asked(question, tuple(contexts))


def _placed(
    data: CharWindows | EncoderWindows, item: int, spans: Iterable[tuple[int, int, float]], text: str
) -> list[Found]:
    """Spans of a window as places in its context, blanks at their ends left out."""
    results = []
    for first, last, score in spans:
        begin, end = data.characters(item, first, last)
        piece = text[begin:end]
        begin += len(piece) - len(piece.lstrip())
        piece = piece.strip()
        if piece:
            results.append(Found(piece, begin, begin + len(piece), score, data.place(item).context))
    return results


def _before(one: Found, other: Found) -> bool:
    """Whether the first is the better answer: by score, equal scores by place."""
    return (-one.score, one.context, one.start or 0) < (-other.score, other.context, other.start or 0)


def _chosen(passages: Sequence[dict[str, Found]], fallback: Found | None, rule: str) -> Found:
    """The best answer of one passage, the elected one of several, else the fallback."""
    if not any(passages):
        return fallback or Found(None, None, None, 0.0)
    if len(passages) == 1:
        return min(passages[0].values(), key=lambda f: (-f.score, f.start or 0))
    elected = vote(({text: found.score for text, found in passage.items()} for passage in passages), rule)
    text, score = next(iter(elected.items()))
    place = min((p[text] for p in passages if text in p), key=lambda f: (-f.score, f.context))
    return Found(text, place.start, place.end, score, place.context)


def _telling(f1: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Examples for the page: the surest mistakes, then the surest answers that are right."""
    by_score = sorted(range(len(f1)), key=lambda i: -scores[i])
    wrong = [i for i in by_score if f1[i] < 1.0][: 2 * SHOWN // 3]
    return wrong + [i for i in by_score if f1[i] == 1.0][: SHOWN - len(wrong)]


def _card(example: Question, found: Found, f1: float) -> dict[str, Any]:
    """What the page shows of one question."""
    accepted = {(a.start, a.end) for a in example.answers if a.start is not None}
    best = example.best
    gold = (
        [(found.start, found.end)] if (found.start, found.end) in accepted else [(best.start, best.end)] if best else []
    )
    return {
        "question": example.question,
        "text": example.context,
        "line": example.line,
        "gold": [[begin, end, "answer"] for begin, end in gold],
        "pred": [] if found.text is None else [[found.start, found.end, "answer"]],
        "f1": round(f1, 4),
        "score": round(found.score, 4),
        "own_words": sorted({a.text for a in example.answers if best is None or a.text != best.text}),
        "silent": not example.answers,
    }
