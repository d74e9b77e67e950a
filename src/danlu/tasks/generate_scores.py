"""What task generate measures: likelihood, likeness to the reference, repetition, exposure bias, control.

Under gold prefixes every example is scored; texts are written for at most `eval_rows` of them, evenly spread. "score"
is what training selects by and what an ablation compares: the micro F1 of the longest common subsequence of written and
gold text (ROUGE-L) where there are sources, the share of tokens foreseen where only a condition leads, for then a text
may be good and quite another than the reference.

    exposure_gap    right tokens under gold prefixes less right tokens under the model's own (greedy), both shares
    condition_gap   nats a token that the condition of another example costs
    control_NAME    share of written texts in which a judge recognises the label NAME that was asked for
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from danlu.data.pairs import Pair
from danlu.math import loop_period, rep_w, seq_rep_n
from danlu.math.generation_metrics import bleu, distinct_n, lcs_length, position_accuracy, rouge_n
from danlu.math.metrics import confusion_matrix, f1_from_counts
from danlu.tasks.classify import split_text
from danlu.tasks.generate_batches import PairRows, Row, rows_of
from danlu.tasks.generate_judge import Judge
from danlu.tasks.generate_model import GenerateModel
from danlu.tasks.scores import Scores

__all__ = ["score_generation"]
ROWS = 32  # examples in a batch
SHOWN = 12  # samples on a page
LABELS = 12  # of one field that are asked for and judged
REAL = 500  # real texts that the judge is measured on
Written = tuple[list[int], float, bool]  # ids without the end, score, whether the end came


@dataclass(frozen=True)
class Forced:
    """One example under gold prefixes: nats of all target tokens, and the most probable token at each."""

    nats: float
    best: list[int]


def score_generation(model: GenerateModel, examples: Sequence[Pair], details: bool = False) -> Scores:
    """Scores of some examples; with details also repetition, exposure bias, control and what a page shows."""
    rows = rows_of(model, examples)
    forced = _forced(model, rows)
    tokens = sum(len(row.target) for row in rows)
    hits = [sum(a == b for a, b in zip(f.best, r.target, strict=True)) for f, r in zip(forced, rows, strict=True)]
    metrics: dict[str, Any] = {
        "score": sum(hits) / tokens,
        "loss": sum(f.nats for f in forced) / tokens,
        "token_accuracy": sum(hits) / tokens,
    }
    counts = [(hit, len(row.target), len(row.target)) for hit, row in zip(hits, rows, strict=True)]
    chosen = _spread(len(examples), model.config["eval_rows"])
    page: dict[str, Any] = {}
    if not model.config["source"] and not details:
        return Scores(metrics, counts)
    some, some_rows = [examples[i] for i in chosen], [rows[i] for i in chosen]
    own = _write(model, some_rows, method="beam", beam=1) if model.config["source"] else []
    rule = model.config["decoding"]
    told = _write(model, some_rows) if details and (rule["method"] != "beam" or rule["beam"] > 1 or not own) else own
    texts = [model.text(ids) for ids, _, _ in told]
    if model.config["source"]:
        likeness = [_likeness(text, example.target) for text, example in zip(texts, some, strict=True)]
        counts = [item["counts"] for item in likeness]
        metrics["score"] = f1_from_counts(*(sum(column) for column in zip(*counts, strict=True)))
        for name in ("rouge_1", "rouge_2", "rouge_l", "bleu"):
            metrics[name] = sum(item[name] for item in likeness) / len(likeness)
    if not details:
        return Scores(metrics, counts)
    metrics |= _repetition(texts, [example.target for example in some], told)
    if own:
        page["exposure"] = _exposure(own, [forced[i] for i in chosen], some_rows, model.end_id)
        metrics["exposure_gap"] = page["exposure"]["gap"]
    metrics["cut_sources"] = sum(row.source_cut for row in rows) / len(rows)
    metrics["cut_targets"] = sum(row.target_cut for row in rows) / len(rows)
    if model.conditions is not None:
        if (gap := _condition_gap(model, some_rows, [forced[i] for i in chosen])) is not None:
            metrics["condition_gap"] = gap
        page["control"] = _control(model, examples, rows)
        for item in page["control"]:
            metrics[f"control_{item['field']}"] = item["accuracy"]
    page["samples"] = [
        {"condition": str(e.condition) if e.condition.labels else "", "source": e.source, "gold": e.target, "pred": t}
        for e, t in list(zip(some, texts, strict=True))[:: max(1, len(some) // SHOWN)][:SHOWN]
    ]
    return Scores(metrics, counts, page)


@torch.no_grad()
def _forced(model: GenerateModel, rows: Sequence[Row]) -> list[Forced]:
    """Every row under its own gold prefixes."""
    data = PairRows(model, rows)
    device = model.encoder.transformer.get_input_embeddings().weight.device
    found: list[Forced] = [Forced(0.0, [])] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: data.lengths[i])
    for begin in range(0, len(order), ROWS):
        some = order[begin : begin + ROWS]
        batch = {k: v.to(device) for k, v in data.collate(some).items()}
        logits = model.logits(batch)  # (N, V)
        labels = batch["labels"][batch["scored"]]
        nats = (logits.logsumexp(-1) - logits.gather(1, labels[:, None])[:, 0]).double().cpu()
        sizes = [len(rows[i].target) for i in some]
        for i, own, best in zip(some, nats.split(sizes), logits.argmax(-1).cpu().split(sizes), strict=True):
            found[i] = Forced(float(own.sum()), best.tolist())
    return found


def _write(model: GenerateModel, rows: Sequence[Row], **changes: Any) -> list[Written]:
    seeds = [str(i) for i in range(len(rows))]
    return model.write([row.source for row in rows], [row.condition for row in rows], seeds, **changes)


def _likeness(text: str, gold: str) -> dict[str, Any]:
    """How near one text is to its reference, on characters and words of other scripts."""
    a, b = split_text(text), split_text(gold)
    common = lcs_length(a, b)
    return {
        "counts": (common, len(a), len(b)),
        "rouge_l": f1_from_counts(common, len(a), len(b)),
        "rouge_1": rouge_n(a, b, 1).f1,
        "rouge_2": rouge_n(a, b, 2).f1,
        "bleu": bleu([a], [b], epsilon=0.1),
    }


def _repetition(texts: Sequence[str], gold: Sequence[str], written: Sequence[Written]) -> dict[str, float]:
    """Repetition of the written texts beside that of the gold ones."""
    found: dict[str, float] = {}
    for end, some in (("", texts), ("_gold", gold)):
        units = [split_text(text) for text in some]
        found[f"rep_16{end}"] = sum(rep_w(u) for u in units) / len(units)
        found[f"seq_rep_4{end}"] = sum(seq_rep_n(u) for u in units) / len(units)
        found[f"distinct_2{end}"] = distinct_n(units, 2)
    found["looped"] = sum(loop_period(split_text(text)) > 0 for text in texts) / len(texts)
    found["unfinished"] = sum(not finished for _, _, finished in written) / len(written)
    return found


def _exposure(own: Sequence[Written], forced: Sequence[Forced], rows: Sequence[Row], end_id: int) -> dict[str, Any]:
    """Right tokens by position under gold and under own prefixes, and the difference of their shares."""
    gold = [row.target for row in rows]
    free = [[*ids, end_id] if finished else ids for ids, _, finished in own]
    best = [f.best for f in forced]
    total = sum(map(len, gold))

    def share(some: Sequence[Sequence[int]]) -> float:
        return sum(a == b for p, g in zip(some, gold, strict=True) for a, b in zip(p, g, strict=False)) / total

    return {
        "gold_prefix": position_accuracy(best, gold),
        "own_prefix": position_accuracy(free, gold),
        "gap": share(best) - share(free),
    }


def _condition_gap(model: GenerateModel, rows: Sequence[Row], forced: Sequence[Forced]) -> float | None:
    """Nats a token more under the condition of the next example that has another; None where all have one."""
    other: list[Row] = []
    for i, row in enumerate(rows):
        later = (rows[(i + j) % len(rows)].condition for j in range(1, len(rows)))
        found = next((condition for condition in later if condition != row.condition), None)
        if found is None:
            return None
        other.append(Row(row.source, row.target, found, row.source_cut, row.target_cut))
    tokens = sum(len(row.target) for row in rows)
    return (sum(f.nats for f in _forced(model, other)) - sum(f.nats for f in forced)) / tokens


def _control(model: GenerateModel, examples: Sequence[Pair], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each named label: texts written for its values, judged by a classifier of real training texts."""
    assert model.conditions is not None
    real, names = model.real, [name for name, _ in examples[0].condition.labels]
    found = []
    for place, name in enumerate(names if real else []):
        values = [example.condition.labels[place][1] for example in examples]
        followed = Counter(value for value in values if value in model.conditions.rows[name])  # not those that share
        asked = {value for value, _ in followed.most_common(LABELS)}
        known = [(e.target, e.condition.labels[place][1]) for e in real if e.condition.labels[place][1] in asked]
        if len({label for _, label in known}) < 2:
            continue
        judge = Judge([_as_written(model, text) for text, _ in known], [label for _, label in known])
        wanted: list[Row] = []
        gold: list[str] = []
        for value in judge.labels:
            own = [row for row, v in zip(rows, values, strict=True) if v == value]
            number = model.config["judge_rows"] if own else 0
            wanted += [own[i % len(own)] for i in range(number)]
            gold += [value] * number
        judged = judge.predict([model.text(ids) for ids, _, _ in _write(model, wanted)])
        seen = [i for i in _spread(len(examples), REAL) if values[i] in judge.labels]
        right = [v == values[i] for i, v in zip(
            seen, judge.predict([_as_written(model, examples[i].target) for i in seen]), strict=True
        )]  # fmt: skip
        found.append(
            {
                "field": name,
                "accuracy": sum(a == b for a, b in zip(judged, gold, strict=True)) / len(gold),
                "real": sum(right) / max(1, len(right)),
                "chance": 1 / len(judge.labels),
                "texts": len(gold),
                "confusion": {
                    "labels": judge.labels,
                    "matrix": confusion_matrix(judged, gold, judge.labels).tolist(),
                },
            }
        )
    return found


def _as_written(model: GenerateModel, text: str) -> str:
    """A real text as the model would have written it: without blanks, and rare characters left out."""
    return model.text(model.encoder.tokenizer.pieces(text)[0])


def _spread(total: int, wanted: int) -> list[int]:
    """Up to `wanted` indices, evenly spread."""
    return list(range(total)) if total <= wanted else [i * total // wanted for i in range(wanted)]
