"""What an evaluation comes to: numbers, counts per example that a comparison can resample, and details for a page."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Scores"]


@dataclass(frozen=True)
class Scores:
    """metrics: name -> number (and by_type); counts: (correct, predicted, gold) by example; page: details.

    contributions: by example, where the score is no ratio of counts: numbers whose mean it is
    (`danlu.tasks.statistics.paired_contributions`).
    """

    metrics: dict[str, Any]
    counts: list[tuple[int, int, int]]
    page: dict[str, Any] = field(default_factory=dict)
    contributions: list[float] = field(default_factory=list)
