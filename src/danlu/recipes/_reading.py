"""What the recipes on reading share: questions of a named set, a small made-up set for the smoke scale, two baselines.

A recipe keeps its arms and its measures.
"""

import random
from collections.abc import Sequence

from danlu.data.reading import Answer, Question
from danlu.math.answer_metrics import answer_f1

PEOPLE, TOWNS = ["张三", "李四", "王五", "赵六", "孙七", "周八"], ["北京", "上海", "广州", "成都", "武汉", "西安"]
FOODS = ["面条", "米饭", "饺子", "火锅", "包子", "汤圆"]


def questions(data: str, part: str, limit: int = 0, longest: int = 0) -> list[Question]:
    """Questions of a named set, or of the made-up one (data ""); only answers of at most `longest` characters."""
    if data:
        from danlu.tasks.datasets import load

        found = load(data, part, "read").examples
    else:
        found = _made_up(limit, {"train": 1, "dev": 2, "test": 3}[part])
    kept = [q for q in found if not longest or (q.best is not None and len(q.best.text) <= longest)]
    return kept[: limit or None]


def _made_up(count: int, seed: int) -> list[Question]:
    """Who lives where and eats what."""
    stream = random.Random(seed)
    rows = []
    for i in range(count):
        who, where, what = (stream.sample(names, 2) for names in (PEOPLE, TOWNS, FOODS))
        context = "".join(f"{p}住在{a}。{p}喜欢吃{b}。" for p, a, b in zip(who, where, what, strict=True))
        k = stream.randrange(2)
        asked, answer = stream.choice([("住在哪里？", where[k]), ("喜欢吃什么？", what[k])])
        rows.append(Question(who[k] + asked, context, (Answer(answer, context.index(answer)),), i + 1))
    return rows


def sentence_baseline(examples: Sequence[Question]) -> float:
    """F1 of the sentence that shares the largest part of its characters with the question: nothing is learned."""
    scores = []
    for q in examples:
        asked = set(q.question)
        sentences = [s for s in q.context.replace("！", "。").replace("？", "。").split("。") if s.strip()]
        overlap = [len(asked & set(s)) / (len(set(s)) + 8) for s in sentences]
        best = sentences[overlap.index(max(overlap))] if sentences else ""
        scores.append(answer_f1(best, [a.text for a in q.answers]))
    return sum(scores) / max(1, len(scores))
