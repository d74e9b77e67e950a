r"""Voting: passages that were read one by one agree on an answer.

    s_a = sum_i s_ai^2 / (1 + sum_i s_ai)        "squared": who is sure counts more, who stands alone counts less    (1)
    s_a = sum_i s_ai                             "sum"                                                               (2)
    s_a = max_i s_ai                             "max"                                                               (3)

s_ai is the score of the text a in passage i (start times end, for the best of its places), in [0, 1]. By (1) one
passage alone gives s^2 / (1 + s), a second weak vote may lower a strong one: .9 alone .426, .9 and .1 .41.

Source: kexue.fm/archives/5409.
Shapes: no tensors; a mapping from text to score for every passage.
"""

from collections.abc import Callable, Iterable, Mapping

__all__ = ["vote"]

_RULES: dict[str, Callable[[list[float]], float]] = {
    "squared": lambda s: sum(x * x for x in s) / (1 + sum(s)),  # eq. (1)
    "sum": sum,  # eq. (2)
    "max": max,  # eq. (3)
}


def vote(passages: Iterable[Mapping[str, float]], rule: str = "squared") -> dict[str, float]:
    """The score of every answer over all passages, the best first; equal scores in the order of their first passage.

    Args:
        passages: for each passage the score of every text that may be the answer, in [0, 1]; empty where it has none.
        rule: "squared", "sum" or "max".

    Returns:
        Text -> score, falling; empty where no passage has an answer. The empty text is no answer and takes no part.

    Raises:
        ValueError: an unknown rule, or a score outside [0, 1].

    >>> vote([{"北京": 0.5}, {"上海": 0.5, "北京": 0.5}, {}])  # 0.5 / 2 and 0.25 / 1.5
    {'北京': 0.25, '上海': 0.16666666666666666}
    """
    if rule not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(_RULES)}, got {rule!r}")
    scores: dict[str, list[float]] = {}
    for passage in passages:
        for text, score in passage.items():
            if not 0 <= score <= 1:
                raise ValueError(f"scores must lie in [0, 1], got {score} for {text!r}; give probabilities, not logits")
            if text:
                scores.setdefault(text, []).append(score)
    counted = {text: _RULES[rule](found) for text, found in scores.items()}
    return dict(sorted(counted.items(), key=lambda item: -item[1]))
