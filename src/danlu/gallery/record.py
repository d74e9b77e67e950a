"""The record a recipe returns: what was measured beside what its source claims."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """Numbers of one run of a recipe.

    measured: name -> value of this run. claimed: name -> the source's value, for the names it gives; a name in both is
    compared by the report. figures: plain lists and dicts that a picture is drawn from, JSON only.
    """

    measured: dict[str, float]
    claimed: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
