"""What the recipes on generation share: parts of pairs, a run that is chosen by dev, a few made-up lines."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from danlu.data.pairs import Condition, Pair
from danlu.tasks.spec import Spec
from danlu.tasks.training import Part, Run, train_model


def draw(some: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Random items without repetition, the same for the same seed."""
    order = torch.randperm(len(some), generator=torch.Generator().manual_seed(seed))[:count]
    return [some[i] for i in order.tolist()]


def parts_of(name: str, train: Sequence[Pair], dev: Sequence[Pair], test: Sequence[Pair]) -> dict[str, Part]:
    """Three parts; no text of test stands in the others, none of dev in train."""
    rows, held_out = {}, set[str]()
    for role, some in (("test", test), ("dev", dev), ("train", train)):
        rows[role] = list({e.text: e for e in some if e.text not in held_out}.values())
        held_out |= {e.text for e in rows[role]}
    return {role: Part(role, name, rows[role]) for role in ("train", "dev", "test")}


def best_run(
    parts: dict[str, Part],
    model: str,
    rates: Sequence[float],
    seed: int,
    tricks: Sequence[str],
    settings: dict[str, Any],
) -> tuple[float, Run]:
    """The rate that is best on dev, and its run."""
    found: list[tuple[float, Run]] = []
    for rate in rates:
        spec = Spec(
            task="generate", train="", model=model, seed=seed, tricks=tuple(tricks), set={**settings, "lr": rate}
        )
        found.append((rate, train_model(spec, {role: replace(part) for role, part in parts.items()})))
    return max(found, key=lambda pair: pair[1].result.best)


def made_up_titles() -> list[Pair]:
    """Short abstracts and their titles, for a run of seconds."""
    things = ["水库", "桥梁", "土壤", "算法", "电机", "药物", "城市", "森林"]
    doings = ["测量", "设计", "评价", "模拟", "优化"]
    return [
        Pair(f"本文研究{thing}的{doing}，给出方法与结果。", f"{thing}{doing}研究", Condition(), line)
        for line, (thing, doing) in enumerate(((t, d) for t in things for d in doings), 1)
    ]


def made_up_verses() -> list[Pair]:
    """Lines of four or six characters from two pools of words, the form and the pool named."""
    pools = {"山水": ["青山", "白云", "流水", "明月", "松风"], "市井": ["车马", "酒家", "灯火", "街巷", "人声"]}
    rows = []
    for line in range(60):
        pool, long = ("山水", "市井")[line % 2], line // 2 % 2
        words = [pools[pool][(line * 7 + i * (line // 4 + 1)) % 5] for i in range(3 if long else 2)]
        labels = (("form", "long" if long else "short"), ("theme", pool))
        rows.append(Pair("", "".join(words) + f"，{words[0]}{'。' if long else '！'}", Condition(labels), line + 1))
    return rows
