"""What an evaluation says of predicted classes: accuracy, F1, confusion, calibration, the surest mistakes."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from danlu.math.metrics import calibration_bins, class_report, confusion_matrix, expected_calibration_error
from danlu.tasks.scores import Scores

__all__ = ["class_scores"]


def class_scores(
    probability: Tensor,
    labels: Sequence[str],
    gold: Sequence[str],
    texts: Sequence[str],
    lines: Sequence[int],
    details: bool = False,
    positive: str | None = None,
) -> Scores:
    """Scores of the likeliest classes.

    Args:
        probability: (N, K).
        labels: the K classes.
        gold: the N right ones.
        texts: what a page shows of each.
        lines: where each stands in its file.
        details: with calibration, loss, figures of every class and what a page shows.
        positive: of two classes the one whose F1 is told; None: no such one.

    Returns:
        Metrics, (right, 1, 1) of every example, and the page.
    """
    best = probability.argmax(1)
    predicted = [labels[i] for i in best.tolist()]
    counts = [(int(p == g), 1, 1) for p, g in zip(predicted, gold, strict=True)]
    report = class_report(predicted, gold)
    metrics: dict[str, Any] = {
        "accuracy": sum(c for c, _, _ in counts) / max(1, len(counts)),
        "macro_f1": report.macro.f1,
    }
    if positive is not None:
        metrics["f1"] = report.by_type[positive].f1 if positive in report.by_type else 0.0
    if not details:
        return Scores(metrics, counts)
    confidence, correct = probability.amax(1), torch.tensor([p == g for p, g in zip(predicted, gold, strict=True)])
    number = {label: i for i, label in enumerate(labels)}
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
        "confusion": {"labels": list(labels), "matrix": confusion_matrix(predicted, gold, labels).tolist()},
        "calibration": {
            "ece": metrics["ece"],
            "bins": [asdict(b) for b in calibration_bins(confidence, correct) if b.count],
        },
        "worst": [
            {
                "text": texts[i][:400],
                "line": lines[i],
                "gold": gold[i],
                "pred": predicted[i],
                "confidence": float(confidence[i]),
            }
            for i in wrong
        ],
    }
    return Scores(metrics, counts, page)
